"""Parts of `gpu_check.py` that run the whole engine: end to end, against MONAI, and their device memory."""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gpu_common import Figures, bare_rate, device_name, need, network_of, volume_in


def end_to_end(args: argparse.Namespace) -> Figures:
    """Bare, engine, bare, twice: the bare figure is the mean of before and after, as clocks drift. Then the engine
    again, profiled."""
    need("torch", "zarr", "zarrs", "pydantic")
    import torch
    from gpu_network import flops, save

    import unet_engine
    from unet_engine.commands.report import plan_facts
    from unet_engine.execution.choose import team
    from unet_engine.settings import Settings

    small = args.quick or args.simulate
    network, window, shape = network_of(args)
    precision, kind = (torch.bfloat16, "fp32") if args.simulate else (torch.float16, "fp16")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save(network, folder, window, 3, flops(network_of(args)[0], window))
        volume = volume_in(folder, shape)
        rates, digests, bares, profiled = [], [], [], []
        for n in range(2):
            bares.append(bare_rate(network, window, precision, 0.2 if small else 4))
            options = {
                "model": model, "backend": "pytorch", "device": device_name(args), "precision": kind, "overlap": 0.5,
                "out": str(folder / f"out{n}.zarr"),
            }  # fmt: skip
            with team(Settings.of(input=volume, **options)) as crew:
                prepared = crew.prepare()
                facts = plan_facts(prepared)
                result = unet_engine.api.run_volume(crew, prepared)
            rates.append(result.windows_inferred / result.seconds)
            digests.append(_digest(folder / f"out{n}.zarr"))
            bares.append(bare_rate(network, window, precision, 0.2 if small else 4))
            options |= {"out": str(folder / "profiled.zarr"), "overwrite": True, "profile": str(folder / "trace.json")}
            told = unet_engine.run(volume, **options)
            profiled.append(told.windows_inferred / told.seconds)
        bare = sum(bares) / len(bares)
        yield "bare network, FP16, windows/s" if not small else "bare network, small, windows/s", bare
        yield "end to end, windows/s", max(rates)
        ratio = max(rates[0] / (bares[0] + bares[1]) * 2, rates[1] / (bares[2] + bares[3]) * 2)
        yield "end to end / bare network" if not small else "end to end / bare network, small", ratio
        yield "end to end, profiled / plain (two runs each)", sum(profiled) / sum(rates)
        compute = (told.stages or {})["stream compute"]
        for stage, seconds in compute.items():
            if stage != "threads":
                yield (
                    f"compute stream in {stage}, share",
                    seconds / sum(v for k, v in compute.items() if k != "threads"),
                )
        yield "windows", result.windows_inferred
        yield "TFLOP per window", facts["flops"] / facts["windows_planned"] / 1e12
        yield "TFLOP/s of the bare network", bare * facts["flops"] / facts["windows_planned"] / 1e12
        yield "decoding needed, GB/s", facts["reading"]["needed_gb_per_second"]
        yield "decoding found, GB/s", facts["reading"]["found_gb_per_second"]
        if digests[0] != digests[1]:
            raise RuntimeError("two runs gave other bytes")
        yield "two runs", "the same bytes"


def _digest(path: Path) -> str:
    import zarr

    return hashlib.sha256(np.asarray(zarr.open_array(path / "0", mode="r")[...]).tobytes()).hexdigest()


def monai(args: argparse.Namespace) -> Figures:
    need("torch", "monai", "zarr", "zarrs", "pydantic")
    import torch
    from gpu_network import flops, save
    from monai.inferers import SlidingWindowInferer

    import unet_engine

    network, window, shape = network_of(args)
    if not (args.quick or args.simulate):
        shape = (256, 512, 512)  # a quarter: MONAI takes several times as long
    where = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.float16 if where == "cuda" else torch.bfloat16
    inferer = SlidingWindowInferer(window, sw_batch_size=4, overlap=0.5, mode="gaussian", sw_device=where, device=where)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save(network, folder, window, 3, flops(network_of(args)[0], window))
        volume = volume_in(folder, shape)
        import zarr

        net = network.to(where)
        theirs = []
        for _ in range(2):
            begun = time.perf_counter()
            with torch.inference_mode(), torch.autocast(where, kind):
                scan = torch.from_numpy(zarr.open_array(volume, mode="r")[...]).to(where).float()[None, None]
                labels = inferer((scan + 1000) / 2000, net).argmax(1).to(torch.uint8).cpu().numpy()
            theirs.append(time.perf_counter() - begun)
        del scan, labels, net
        ours = []
        for n in range(2):
            result = unet_engine.run(
                volume, model=model, backend="pytorch", device=device_name(args), out=str(folder / f"o{n}.zarr"),
                precision="fp32" if args.simulate else "fp16", overlap=0.5,
            )  # fmt: skip
            ours.append(result.seconds)
        yield "MONAI, s", min(theirs)
        yield "engine, s", min(ours)
        small = ", small" if args.quick or args.simulate else ""
        yield f"engine / MONAI with AMP{small}", min(theirs) / min(ours)


# --- memory ---


@contextmanager
def _peak(device: Any) -> Iterator[Callable[[], int]]:
    """Most device memory in use since it was entered, looked at every two milliseconds."""
    before, least, stop = device.free_bytes(), [device.free_bytes()], threading.Event()

    def look() -> None:
        device.use()
        while not stop.wait(0.002):
            least[0] = min(least[0], device.free_bytes())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield lambda: before - least[0]
    finally:
        stop.set()
        thread.join()


def memory(args: argparse.Namespace) -> Figures:
    need("zarr", "zarrs", "pydantic", "torch")
    from gpu_network import flops, save

    import unet_engine
    from unet_engine.devices.opening import open_device

    small = args.quick or args.simulate
    device = open_device(device_name(args))
    network, window, _ = network_of(argparse.Namespace(quick=True, simulate=args.simulate))
    side = 40 if args.simulate else 128
    peaks = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save(
            network,
            folder,
            window,
            3,
            flops(network_of(argparse.Namespace(quick=True, simulate=args.simulate))[0], window),
        )
        for factor in (1, 8) if small else (1, 8, 64):
            place = folder / str(factor)
            place.mkdir()
            volume = volume_in(place, (side * {1: 1, 8: 2, 64: 4}[factor],) * 3)
            with _peak(device) as peak:
                unet_engine.run(
                    volume, model=model, backend="pytorch", device=device_name(args), out=str(place / "out.zarr"),
                    precision="fp32" if args.simulate else "fp16",
                )  # fmt: skip
                peaks[factor] = peak()
            yield f"peak device memory, {factor} times the volume, GiB", peaks[factor] / 2**30
    if 64 in peaks:
        yield "peak memory, 64 times the volume / 1 time", peaks[64] / max(1, peaks[1])
    if not small:
        yield from _hundred_classes(args, device)


def _hundred_classes(args: argparse.Namespace, device: Any) -> Figures:
    """100 classes at 384³ with a network of no cost, so that what is measured is stitching."""
    need("monai")
    import torch
    from gpu_network import MLPerfUNet, save
    from monai.inferers import SlidingWindowInferer

    import unet_engine

    window = (128, 128, 128)
    network = MLPerfUNet(100, (2, 4)).eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, volume = save(network, folder, window, 100, 1), volume_in(folder, (384, 384, 384))
        with _peak(device) as peak:
            unet_engine.run(
                volume, model=model, backend="pytorch", device="cuda:0", precision="fp16", out=str(folder / "o.zarr")
            )
            ours = peak()
        torch.cuda.reset_peak_memory_stats()
        inferer = SlidingWindowInferer(
            window, sw_batch_size=1, overlap=0.5, mode="gaussian", sw_device="cuda", device="cuda"
        )
        with torch.inference_mode(), torch.autocast("cuda", torch.float16):
            inferer(torch.zeros((1, 1, 384, 384, 384), device="cuda"), network.cuda()).argmax(1)
        theirs = torch.cuda.max_memory_allocated()
    yield "peak device memory at 100 classes, GiB", ours / 2**30
    yield "MONAI's, GiB", theirs / 2**30
    yield "peak memory at 100 classes / MONAI's", ours / theirs
