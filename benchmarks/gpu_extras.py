"""Parts of `gpu_check.py` that need what a machine may not have: TensorRT, a second GPU, UCX, nvCOMP."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from gpu_common import Figures, need, network_of
from gpu_report import CannotRun, LeftOut

# --- TensorRT ---


def tensorrt(args: argparse.Namespace) -> Figures:
    """The bare engine from random weights in FP16 and INT8: its speed does not depend on them, nor on what it was
    calibrated on."""
    if args.simulate:
        raise CannotRun("simulated: no engine runs there")
    from unet_engine.backends import tensorrt_api
    from unet_engine.backends.libraries import record

    if not record("tensorrt").installed:
        raise LeftOut("TensorRT is not installed; FP16 and INT8 in it stay not measured")
    if said := _not_for_this_gpu():
        raise LeftOut(said)
    need("tensorrt", args)
    if lacking := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise LeftOut(f"{', '.join(lacking)} not installed: the graphs cannot be made")
    from gpu_network import typed_graphs

    network, window, _ = network_of(args)
    small = ", small" if args.quick else ""
    yield "library", tensorrt_api.version()
    with tempfile.TemporaryDirectory() as name:
        for precision, proto in typed_graphs(network, window, 3).items():
            path = Path(name, f"{precision}.onnx")
            path.write_bytes(proto.SerializeToString())
            begun = time.perf_counter()
            rate = _engine_rate(path, window)
            yield f"{precision.upper()} engine built and measured in, s", time.perf_counter() - begun
            yield (
                f"bare network, {precision.upper()}{' in TensorRT' if precision == 'fp16' else ''}, windows/s{small}",
                rate,
            )


def _not_for_this_gpu() -> str:
    from unet_engine.backends import tensorrt_api
    from unet_engine.devices.opening import capabilities_of

    return next((said for gpu in capabilities_of("cuda:0") if (said := tensorrt_api.refuses(gpu))), "")


def _engine_rate(path: Path, window: tuple[int, ...], batches: int = 30) -> float:
    """Windows per second of the network alone, replayed back to back. The graph says its types, so it is opened as it
    is."""
    from unet_engine.backends.base import Setup
    from unet_engine.backends.libraries import open_on_device
    from unet_engine.model.file import open_model

    backend = open_on_device("tensorrt", Setup(open_model(str(path), window), window, "cuda:0"))
    device, done = backend.device, backend.device.event()
    backend.warm_up()
    rates = []
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(batches):
            device.run(backend.stream, "network", backend.run, [backend.input.region], [backend.output.region])
        device.record(done, backend.stream)
        device.synchronize(done)
        rates.append(batches / (time.perf_counter() - begun))
    backend.close()
    return statistics.median(rates)


# --- halos between GPUs ---


def gpus(args: argparse.Namespace) -> Figures:
    """Bytes per second of halos: between two GPUs through host memory and peer to peer, and between two processes by
    TCP and UCX."""
    yield from _by_protocol(args)
    if args.simulate:
        raise CannotRun("simulated: there is one device")
    import torch

    if torch.cuda.device_count() < 2:
        raise LeftOut("one GPU: halos from GPU to GPU stay not measured")
    count = 2**28
    source, target = (
        torch.ones(count, dtype=torch.uint8, device="cuda:0"),
        torch.empty(count, dtype=torch.uint8, device="cuda:1"),
    )
    staging = torch.empty(count, dtype=torch.uint8, pin_memory=True)
    for name, move in (
        ("through host memory", lambda: (staging.copy_(source), target.copy_(staging))),
        ("peer to peer", lambda: target.copy_(source)),
    ):
        move()
        torch.cuda.synchronize(1)
        begun = time.perf_counter()
        for _ in range(10):
            move()
        torch.cuda.synchronize(0)
        torch.cuda.synchronize(1)
        yield f"halos {name}, GB/s", 10 * count / (time.perf_counter() - begun) / 1e9


def _by_protocol(args: argparse.Namespace) -> Figures:
    need("gpus", args)
    from protocols import measure

    rates = measure(1 if args.simulate else 100, 1 if args.simulate else 5)
    for protocol, found in rates.items():
        yield f"halos from process to process by {protocol}, GB/s", statistics.median(found)
    if "ucx" in rates:
        ratios = [u / t for t, u in zip(rates["tcp"], rates["ucx"], strict=True)]
        yield "halos by ucx / by tcp", statistics.median(ratios)
    else:
        yield "halos from process to process by ucx", "not measured: distributed-ucxx is not installed"


# --- decoding ---

CHUNK, CHUNKS = 64, 64
"""Voxels along each side of a chunk of int16, and how many are decoded at once."""


def decoding(args: argparse.Namespace) -> Figures:
    """GB/s of decoded voxels on the host, per number of threads, and by nvCOMP on the GPU with the compressed bytes'
    way there."""
    need("decoding", args)
    from gpu_counts import decoding as needed
    from numcodecs import zstd

    chunks = 4 if args.simulate else CHUNKS
    rng = np.random.default_rng(0)
    # noise of some levels, as a detector's: a constant would decode too fast, random bits are not compressed at all
    voxels = [rng.normal(0, 30, (CHUNK,) * 3).astype(np.int16) for _ in range(chunks)]
    stored = [zstd.compress(part.tobytes(), 3) for part in voxels]
    total = sum(part.nbytes for part in voxels)
    yield "compressed to, share", sum(map(len, stored)) / total
    yield "needed at 314 windows/s, chunks of 64³, GB/s", needed(314, CHUNK)
    for threads in (1, 2, 4):
        yield (
            f"decoded on the host by {threads} thread(s), GB/s",
            _host_rate(voxels, threads, 0.05 if args.simulate else 1),
        )
    if args.simulate:
        raise CannotRun("simulated: nothing to decode on")
    if find_spec("nvidia") is None or find_spec("nvidia.nvcomp") is None:
        raise LeftOut("nvidia-nvcomp is not installed: decoding on the GPU stays not measured")
    yield "decoded by nvCOMP with the copy there, GB/s", _nvcomp_rate(stored, voxels)


def _host_rate(voxels: list[Any], threads: int, seconds: float) -> float:
    """As a run reads: zarr with the codec pipeline of zarrs, chunks decoded on so many threads; from a folder the
    system has in memory."""
    import zarr

    from unet_engine.storage.codecs import decoding as with_threads
    from unet_engine.volumes.formats import open_volume

    n = len(voxels)
    with tempfile.TemporaryDirectory() as name:
        path = str(Path(name, "v.zarr"))
        array = zarr.create_array(
            path,
            shape=(n * CHUNK, CHUNK, CHUNK),
            chunks=(CHUNK,) * 3,
            dtype="int16",
            compressors=zarr.codecs.ZstdCodec(level=3),
        )
        for i, part in enumerate(voxels):
            array[i * CHUNK : (i + 1) * CHUNK] = part
        from unet_engine.plan.box import Box

        with with_threads(threads):
            volume = open_volume(path, None)
        box = Box.of_shape((n * CHUNK, CHUNK, CHUNK))
        return _rate(lambda: volume.read(box), sum(part.nbytes for part in voxels), seconds)


def _rate(work: Callable[[], Any], count: int, seconds: float) -> float:
    """GB/s, the median of repetitions; the first does not count."""
    work()
    taken: list[float] = []
    while sum(taken) < seconds or len(taken) < 3:
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return count / statistics.median(taken) / 1e9


def _nvcomp_rate(stored: list[bytes], voxels: list[Any]) -> float:
    import torch
    from nvidia import nvcomp

    codec = nvcomp.Codec(algorithm="Zstd", bitstream_kind=nvcomp.BitstreamKind.RAW)
    host = [np.frombuffer(data, np.uint8) for data in stored]

    def decoded() -> Any:
        batch = nvcomp.as_arrays(host)
        # a batch of its own since nvCOMP 6, a list before
        found = codec.decode(batch.cuda() if hasattr(batch, "cuda") else [part.cuda() for part in batch])
        torch.cuda.synchronize()
        return found

    first = np.from_dlpack(decoded()[0].cpu()).view(np.int16)
    if not np.array_equal(first.ravel(), voxels[0].ravel()):
        raise RuntimeError("nvCOMP decodes a chunk to other voxels")
    return _rate(decoded, sum(part.nbytes for part in voxels), 1)
