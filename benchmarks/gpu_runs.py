"""Parts of `gpu_check.py` that run the whole engine: end to end, against MONAI, and their device memory."""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gpu_common import Figures, bare_rate, device_name, need, network_of, volume_in

from unet_engine.threads.beside import beside


def end_to_end(args: argparse.Namespace) -> Figures:
    """Bare, engine, bare, twice: the bare figure is the mean of before and after, as clocks drift. Then the engine
    again, profiled. Each figure is told when it is there."""
    need("end-to-end", args)
    import torch
    from gpu_network import flops, save

    import unet_engine

    small = ", small" if args.quick or args.simulate else ""
    network, window, shape = network_of(args)
    precision, kind = (torch.bfloat16, "fp32") if args.simulate else (torch.float16, "fp16")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save(network, folder, window, 3, flops(network_of(args)[0], window))
        volume = volume_in(folder, shape)
        rates, ratios, digests = [], [], []
        for n in range(2):
            before = bare_rate(network, window, precision, 0.2 if small else 4)
            if n == 0:
                yield f"bare network, FP16, windows/s{small}", before
            options = {
                "model": model, "backend": "pytorch", "device": device_name(args), "precision": kind, "overlap": 0.5,
                "out": str(folder / f"out{n}.zarr"),
            }  # fmt: skip
            facts, result, steady = watched(volume, options)
            bare = (before + bare_rate(network, window, precision, 0.2 if small else 4)) / 2
            rates.append(result.windows_inferred / result.seconds)
            digests.append(_digest(folder / f"out{n}.zarr"))
            yield f"run {n + 1}, windows/s", rates[-1]
            ratios.append(rates[-1] / bare)
            yield f"run {n + 1}, the whole of it / bare network", ratios[-1]
            if steady:
                yield f"run {n + 1}, steady state / bare network", steady / bare
            if n == 0:
                yield from _plan_figures(facts, result, bare)
            if digests[0] != digests[-1]:
                raise RuntimeError("two runs gave other bytes")
        yield "two runs", "the same bytes"
        yield f"end to end / bare network{small}", max(ratios)
        profile = {"out": str(folder / "profiled.zarr"), "profile": str(folder / "trace.json")}
        told = unet_engine.run(volume, **{**options, **profile})
        yield "profiled run / plain", told.windows_inferred / told.seconds / max(rates)
        reading = {k: v for k, v in (told.stages or {}).get("read", {}).items() if k != "threads"}
        if reading:  # near 1 the GPU waits for voxels
            yield "blocks read at a time", facts["readers"]
            yield "the reading threads are busy, share", 1 - reading.get("waiting", 0) / sum(reading.values())
        for stage in ("read", "decode", "other"):
            yield f"reading threads in {stage}, s", reading.get(stage, 0.0)
        compute = {k: v for k, v in (told.stages or {})["stream compute"].items() if k != "threads"}
        for stage, seconds in compute.items():
            yield f"compute stream in {stage}, share", seconds / sum(compute.values())


def watched(volume: str, options: dict[str, Any]) -> tuple[dict[str, Any], Any, float]:
    """A run: the facts of its plan, its result, and windows per second between a tenth and nine tenths of it; 0 where
    it was over too soon to tell."""
    import unet_engine
    from unet_engine.commands.report import plan_facts
    from unet_engine.execution.choose import team
    from unet_engine.settings.settings import Settings

    with team(Settings.of(input=volume, **options)) as crew:
        prepared = crew.prepare()
        seen: list[tuple[float, int]] = []

        def look(over: threading.Event) -> None:
            while not over.wait(0.005):
                inferred = crew.counters().inferred
                if not seen or seen[-1][1] != inferred:
                    seen.append((time.perf_counter(), inferred))

        with beside(look):
            result = unet_engine.api.run_volume(crew, prepared)
        return {**plan_facts(prepared), "readers": prepared.job.readers}, result, steady_rate(seen)


def steady_rate(seen: list[tuple[float, int]]) -> float:
    """Windows per second between the first time that a tenth was inferred, and the first that nine tenths were. seen:
    seconds, and windows inferred until then, whenever there were more."""
    total = seen[-1][1] if seen else 0
    begins = next((s for s in seen if s[1] >= 0.1 * total), None)
    ends = next((s for s in seen if s[1] >= 0.9 * total), None)
    if begins is None or ends is None or ends[0] <= begins[0]:
        return 0.0
    return (ends[1] - begins[1]) / (ends[0] - begins[0])


def _plan_figures(facts: dict[str, Any], result: Any, bare: float) -> Figures:
    window = facts["flops"] / facts["windows_planned"] / 1e12
    yield "windows", result.windows_inferred
    yield "TFLOP per window", window
    yield "TFLOP/s of the bare network", bare * window
    yield "decoding needed, GB/s", facts["reading"]["needed_gb_per_second"]
    yield "decoding found, GB/s", facts["reading"]["found_gb_per_second"]


def _digest(path: Path) -> str:
    import zarr

    return hashlib.sha256(np.asarray(zarr.open_array(path / "0", mode="r")[...]).tobytes()).hexdigest()


def monai(args: argparse.Namespace) -> Figures:
    need("monai", args)
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
            yield f"MONAI, run {len(theirs)}, s", theirs[-1]
        del scan, labels, net
        ours = []
        for n in range(2):
            result = unet_engine.run(
                volume, model=model, backend="pytorch", device=device_name(args), out=str(folder / f"o{n}.zarr"),
                precision="fp32" if args.simulate else "fp16", overlap=0.5,
            )  # fmt: skip
            ours.append(result.seconds)
            yield f"engine, run {n + 1}, s", ours[-1]
        small = ", small" if args.quick or args.simulate else ""
        yield f"engine / MONAI with AMP{small}", min(theirs) / min(ours)


# --- memory ---


@contextmanager
def _peak(device: Any) -> Iterator[Callable[[], int]]:
    """Most device memory in use since it was entered, looked at every two milliseconds."""
    before, least = device.free_bytes(), [device.free_bytes()]

    def look(over: threading.Event) -> None:
        device.use()
        while not over.wait(0.002):
            least[0] = min(least[0], device.free_bytes())

    with beside(look):
        yield lambda: before - least[0]


def memory(args: argparse.Namespace) -> Figures:
    """Each volume in a process of its own: what an earlier run left in libraries' pools would hide what a later one
    takes."""
    need("memory", args)
    peaks = {}
    for factor in (1, 8) if args.quick or args.simulate else (1, 8, 64):
        peaks[factor] = _peak_of(factor, args)
        yield f"peak device memory, {factor} times the volume, GiB", peaks[factor] / 2**30
    if 64 in peaks:
        yield "peak memory, 64 times the volume / 1 time", peaks[64] / max(1, peaks[1])
    if not (args.quick or args.simulate):
        yield from _hundred_classes(args)


def _peak_of(factor: int, args: argparse.Namespace) -> int:
    """By a process of its own: bytes."""
    command = [sys.executable, __file__, "--factor", str(factor), *(["--simulate"] if args.simulate else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return int(done.stdout.split()[-1])


def peak_of_run(args: argparse.Namespace) -> int:
    """Of a run on a volume that is `args.factor` times as large as the least one: bytes, in this process."""
    from gpu_network import flops, save

    import unet_engine
    from unet_engine.devices.opening import open_device

    small = argparse.Namespace(quick=True, simulate=args.simulate)
    network, window, _ = network_of(small)
    side = (40 if args.simulate else 128) * round(args.factor ** (1 / 3))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save(network, folder, window, 3, flops(network_of(small)[0], window))
        volume = volume_in(folder, (side,) * 3)
        with _peak(open_device(device_name(args))) as peak:
            unet_engine.run(
                volume, model=model, backend="pytorch", device=device_name(args), out=str(folder / "out.zarr"),
                precision="fp32" if args.simulate else "fp16",
            )  # fmt: skip
            return peak()


def _hundred_classes(args: argparse.Namespace) -> Figures:
    """100 classes at 384³ with a network of no cost, so that what is measured is stitching."""
    need("monai", args)
    import torch
    from gpu_network import MLPerfUNet, save
    from monai.inferers import SlidingWindowInferer

    import unet_engine
    from unet_engine.devices.opening import open_device

    window = (128, 128, 128)
    network = MLPerfUNet(100, (2, 4)).eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, volume = save(network, folder, window, 100, 1), volume_in(folder, (384, 384, 384))
        with _peak(open_device("cuda:0")) as peak:
            unet_engine.run(
                volume, model=model, backend="pytorch", device="cuda:0", precision="fp16", out=str(folder / "o.zarr")
            )
            ours = peak()
        yield "peak device memory at 100 classes, GiB", ours / 2**30
        torch.cuda.reset_peak_memory_stats()
        inferer = SlidingWindowInferer(
            window, sw_batch_size=1, overlap=0.5, mode="gaussian", sw_device="cuda", device="cuda"
        )
        with torch.inference_mode(), torch.autocast("cuda", torch.float16):
            inferer(torch.zeros((1, 1, 384, 384, 384), device="cuda"), network.cuda()).argmax(1)
        theirs = torch.cuda.max_memory_allocated()
    yield "MONAI's, GiB", theirs / 2**30
    yield "peak memory at 100 classes / MONAI's", ours / theirs


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--factor", type=int, required=True)
    parser.add_argument("--simulate", action="store_true")
    print(peak_of_run(parser.parse_args()))
