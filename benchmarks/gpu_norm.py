"""The part of `gpu_check.py` about InstanceNorm and concatenations: our kernels against PyTorch's, and what they make of
the network."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

from gpu_common import Figures, bare_rate, need, network_of, plain_rate
from gpu_report import NORM_SHARE, Row

LEVELS = ((32, 128), (64, 64), (128, 32), (256, 16), (320, 8))
"""Channels, and voxels along each side, of MLPerf's network."""


def norm(args: argparse.Namespace) -> Figures:
    """Other bits than those of the same bodies in loops fail; so does a network that runs slower with ours."""
    need("norm", args)
    import torch

    from unet_engine.backends.torch_norm import normalised

    where, small = "cpu" if args.simulate else "cuda", args.quick or args.simulate
    precision = torch.bfloat16 if args.simulate else torch.float16
    for channels, _ in LEVELS[-2:]:
        x = _batch(channels, 8, torch.float16)
        weight = torch.rand(channels)
        found = [normalised(x.to(p), weight.to(p), weight.to(p), 1e-5, 0.01).cpu() for p in ("cpu", where)]
        if not torch.equal(*found):
            raise RuntimeError(f"other bits than the loop's with {channels} channels")
    yield "kernels against the loop", "same bits"
    with torch.inference_mode():
        for channels, side in LEVELS[-1:] if small else LEVELS:
            x, weight = _batch(channels, side, torch.float16).to(where), torch.rand(channels, device=where)
            ours = seconds(lambda x=x, w=weight: normalised(x, w, w, 1e-5, 0.01), where)
            theirs = seconds(lambda x=x, w=weight: _theirs(x, w), where)
            yield f"{channels} channels, PyTorch's / ours, times as long", theirs / ours
            copied = seconds(x.clone, where)
            share = 1.5 * copied / ours  # read twice and written once, a copy each once
            is_judged = not small and channels == LEVELS[0][0]
            yield Row(
                f"{channels} channels, share of the copy's bandwidth", share,
                share >= NORM_SHARE if is_judged else None, f"at least {NORM_SHARE:g}" if is_judged else "",
            )  # fmt: skip
            yield from _concatenated(x, where, copied, judged=is_judged)
    network, window, _ = network_of(args)
    plain = plain_rate(network, window, precision, 0.2 if small else 2)
    yield "network with PyTorch's, windows/s", plain
    ours = bare_rate(network, window, precision, 0.2 if small else 2)
    yield "network with ours, windows/s", ours
    yield Row(
        "network with ours / with PyTorch's", ours / plain, None if small else ours > plain, "" if small else "> 1"
    )


def _concatenated(x: Any, where: str, copied: float, *, judged: bool) -> Figures:
    """What is put into a concatenation of as many channels more: other values than PyTorch's fail. copied: seconds of a
    copy of `x`."""
    import torch

    from unet_engine.backends.torch_norm import put

    channels = x.shape[1]
    joined = [torch.zeros((1, 2 * channels, *x.shape[2:]), dtype=x.dtype, device=where) for _ in range(2)]
    joined = [one.contiguous(memory_format=torch.channels_last_3d) for one in joined]
    ours = seconds(lambda: put(joined[0], channels, x), where)
    theirs = seconds(lambda: joined[1][:, channels:].copy_(x), where)
    if not torch.equal(*joined):
        raise RuntimeError(f"{channels} channels are put elsewhere than PyTorch puts them")
    yield f"{channels} channels put into a concatenation, PyTorch's / ours, times as long", theirs / ours
    share = copied / ours
    yield Row(
        f"{channels} channels put into a concatenation, share of the copy's bandwidth", share,
        share >= NORM_SHARE if judged else None, f"at least {NORM_SHARE:g}" if judged else "",
    )  # fmt: skip


def _batch(channels: int, side: int, kind: Any) -> Any:
    import torch

    x = torch.randn((1, channels, side, side, side)).to(kind)
    return x.contiguous(memory_format=torch.channels_last_3d)


def _theirs(x: Any, weight: Any) -> Any:
    import torch

    normal = torch.nn.functional.instance_norm(x, weight=weight, bias=weight)
    return torch.nn.functional.leaky_relu(normal, 0.01)


def seconds(work: Callable[[], Any], where: str) -> float:
    """Of one call, the median of five rounds; on a GPU recorded as a graph, so that the host's calls do not count."""
    import time

    import torch

    if where == "cpu":
        rounds = []
        for _ in range(5):
            begun = time.perf_counter()
            work()
            rounds.append(time.perf_counter() - begun)
        return statistics.median(rounds)
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        work()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=side):
            kept = work()
    rounds = []
    for _ in range(5):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        for _ in range(20):
            graph.replay()
        events[1].record()
        torch.cuda.synchronize()
        rounds.append(events[0].elapsed_time(events[1]) / 20e3)
    del kept
    return statistics.median(rounds)
