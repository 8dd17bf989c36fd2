"""What the parts of `gpu_check.py` share: what must be there, the network, the volume, the bare network's speed."""

from __future__ import annotations

import argparse
import copy
import importlib.util
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gpu_needs import GPU, PARTS
from gpu_report import CannotRun

ROOT = Path(__file__).resolve().parents[1]
Figures = Iterator[tuple[str, Any]]


def need(part: str, args: argparse.Namespace) -> None:
    """Raise `CannotRun` naming all that `part` imports and is not there."""
    modules = PARTS[part] | ({} if args.simulate or part == "build" else GPU)
    if part in ("norm", "end-to-end", "monai", "memory", "classes", "tiling", "int8"):
        modules = modules | {"torch": "torch"}
    if lacking := [name for module, name in modules.items() if not _there(module)]:
        raise CannotRun(f"{', '.join(lacking)} not installed: give wheels in --wheels (gpu_wheels.py fetches them)")


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def device_name(args: argparse.Namespace) -> str:
    return "simulated" if args.simulate else "cuda:0"


def tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    if found is None:
        raise CannotRun(f"{name} is not on PATH nor in /usr/local/cuda/bin")
    return found


def network_of(args: argparse.Namespace, classes: int = 3) -> tuple[Any, tuple[int, ...], tuple[int, ...]]:
    """The network on the CPU, its window, and the shape of the synthetic volume."""
    import torch
    from gpu_network import MLPerfUNet

    torch.manual_seed(0)
    if args.simulate:
        torch.set_num_threads(1)  # as many as there are cores spin for one another where others are at work
        return MLPerfUNet(classes, (2, 3, 4, 5, 6)).eval(), (32, 32, 32), (48, 40, 40)
    if args.quick:
        return MLPerfUNet(classes).eval(), (64, 64, 64), (128, 128, 256)
    return MLPerfUNet(classes).eval(), (128, 128, 128), (512, 512, 1024)


def volume_in(folder: Path, shape: tuple[int, ...]) -> str:
    """Random int16: as hard to compress as can be."""
    import zarr

    path, rng = str(folder / "volume.zarr"), np.random.default_rng(0)
    chunk = tuple(min(128, n) for n in shape)
    array = zarr.create_array(path, shape=shape, chunks=chunk, dtype="int16")
    for z in range(0, shape[0], chunk[0]):
        part = array[z : z + chunk[0]].shape
        array[z : z + chunk[0]] = rng.integers(-1000, 1000, part, np.int16)
    return path


def bare_rate(network: Any, window: tuple[int, ...], precision: Any, seconds: float) -> float:
    """Windows per second of the network alone: a batch recorded as a CUDA graph, replayed. Prepared as the engine
    does: weights cast beforehand, our own InstanceNorm, deterministic algorithms chosen without timing."""
    from unet_engine.backends.torch_norm import rewritten

    def ours(net: Any, given: Any) -> Any:
        found = rewritten(net, given)
        if found.why:
            raise RuntimeError(found.why)
        return found.network or net

    return _rate(network, window, precision, seconds, ours)


def plain_rate(network: Any, window: tuple[int, ...], precision: Any, seconds: float) -> float:
    """The same with PyTorch's own InstanceNorm."""
    return _rate(network, window, precision, seconds, lambda net, given: net)


def _rate(
    network: Any, window: tuple[int, ...], precision: Any, seconds: float, made: Callable[[Any, Any], Any]
) -> float:  # fmt: skip
    import torch

    from unet_engine.backends.pytorch import prepare_weights, set_algorithms

    where = "cuda" if torch.cuda.is_available() else "cpu"
    if where == "cuda":
        set_algorithms()
    with torch.inference_mode(), torch.autocast(where, precision, cache_enabled=False):
        net = copy.deepcopy(network).to(where)
        prepare_weights(net, precision)
        given = torch.randn((1, 1, *window), device=where, dtype=precision)
        given = given.contiguous(memory_format=torch.channels_last_3d)
        net = made(net, given)
        if where == "cpu":
            begun, calls = time.perf_counter(), 0
            while time.perf_counter() - begun < seconds or calls < 2:
                net(given)
                calls += 1
            return calls / (time.perf_counter() - begun)
        return _replayed(net, given, seconds)


def _replayed(net: Any, given: Any, seconds: float) -> float:
    import torch

    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        for _ in range(3):
            net(given)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=side):
            net(given)
    graph.replay()
    torch.cuda.synchronize()
    begun, calls = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        for _ in range(10):
            graph.replay()
        torch.cuda.synchronize()
        calls += 10
    return calls / (time.perf_counter() - begun)
