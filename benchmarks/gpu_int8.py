"""The part of `gpu_check.py` about INT8 in PyTorch: our convolutions against the CPU's bits and against cuDNN's in FP16, and
what they make of MLPerf's 3D U-Net. The scales come from its own weights and one window, as `quantize` takes them from
many: how fast it is does not depend on them."""

from __future__ import annotations

import argparse
import copy
from typing import Any

from gpu_common import Figures, bare_rate, need, network_of
from gpu_norm import LEVELS, seconds
from gpu_report import LeftOut, Row

LARGEST_ERROR = 0.1
"""Of the network in INT8 against fp32, in the root mean square: a wrong layer is off by far more."""


def int8(args: argparse.Namespace) -> Figures:
    """Other bits than the CPU's fail; so do layers that are not faster than FP16's, and a network that is far off."""
    need("int8", args)
    import torch

    from unet_engine.backends.int8_convolution import lacking

    where, small = "cpu" if args.simulate else "cuda", args.quick or args.simulate
    if why := "" if args.simulate else lacking(torch.cuda.get_device_capability()):
        raise LeftOut(f"{why}: INT8 in PyTorch stays not measured")
    precision = torch.bfloat16 if args.simulate else torch.float16
    yield from _bits(where)
    for channels, side in () if args.simulate else LEVELS[-1:] if small else LEVELS:
        yield from _against_half(channels, side, judged=not small and channels == LEVELS[0][0])
    network, window, _ = network_of(args)
    if args.simulate:
        from gpu_network import MLPerfUNet

        network, window = MLPerfUNet(3, (32, 32)).eval(), (16, 16, 16)
    with torch.inference_mode():
        found, apart = quantised(network.to(where), torch.randn((1, 1, *(min(64, n) for n in window)), device=where))
    yield Row("network in INT8 / in fp32, apart", apart, apart <= LARGEST_ERROR, f"at most {LARGEST_ERROR:g}")
    label = ", small" if small else ""
    half = bare_rate(network, window, precision, 0.2 if small else 2)
    yield f"bare network, FP16 in PyTorch, windows/s{label}", half
    ours = bare_rate(found, window, precision, 0.2 if small else 2)
    yield f"bare network, INT8, windows/s{label}", ours
    yield f"network in INT8 / in FP16{label}", ours / half


def _bits(where: str) -> Figures:
    import torch

    from unet_engine.backends.int8_convolution import convolution, reference

    for channels, channels_out, stride in ((32, 32, 1), (64, 48, 2), (320, 320, 1)):
        x, weight, scale = _layer(channels, channels_out, 9)
        ours = convolution(x.to(where), weight.to(where), 0.02, scale.to(where), scale.to(where), stride)
        if not torch.equal(ours.cpu(), reference(x, weight, 0.02, scale, scale, stride)):
            raise RuntimeError(f"INT8 from {channels} to {channels_out} channels: other bits than the CPU's")
    yield "INT8 convolutions against the CPU", "same bits"


def _layer(channels: int, channels_out: int, side: int) -> tuple[Any, Any, Any]:
    import torch

    x = torch.randn((1, channels, side, side, side)).half().contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randint(-127, 128, (channels_out, 3, 3, 3, channels), dtype=torch.int8)
    return x, weight, torch.rand(channels_out) / 1e5


def _against_half(channels: int, side: int, *, judged: bool) -> Figures:
    """A layer of as many channels out as in, with the pass that makes levels of what it reads."""
    import torch
    from torch.nn import functional as F

    from unet_engine.backends import int8_triton
    from unet_engine.backends.int8_convolution import convolution

    x, weight, scale = (v.cuda() for v in _layer(channels, channels, side))
    plain = torch.randn((channels, channels, 3, 3, 3), device="cuda").half()
    plain = plain.contiguous(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        ours = seconds(lambda: convolution(x, weight, 0.02, scale, scale, 1), "cuda")
        theirs = seconds(lambda: F.conv3d(x, plain, padding=1), "cuda")
        bad = torch.zeros(1, dtype=torch.int32, device="cuda")
        levels = seconds(lambda: int8_triton.levels(x, 0.02, bad), "cuda")
    yield f"{channels} channels, of which making levels, share", levels / ours
    yield f"{channels} channels, TOP/s", 2 * 27 * channels**2 * side**3 / ours / 1e12
    yield Row(
        f"{channels} channels, FP16 by cuDNN / INT8, times as long", theirs / ours,
        theirs > ours if judged else None, "> 1" if judged else "",
    )  # fmt: skip


def quantised(network: Any, example: Any) -> tuple[Any, float]:
    """A copy with those convolutions in INT8 that are taken, and how far its answer to `example` is apart."""
    import torch

    from unet_engine.backends.int8_convolution import takes

    found = copy.deepcopy(network)
    largest: dict[str, float] = {}

    def looked(name: str) -> Any:
        def look(_: Any, given: Any) -> None:
            largest[name] = float(given[0].abs().max())

        return look

    chosen = {
        name: conv for name, conv in network.named_modules()
        if isinstance(conv, torch.nn.Conv3d) and takes(tuple(conv.weight.shape), _attributes(conv))
    }  # fmt: skip
    hooks = [conv.register_forward_pre_hook(looked(name)) for name, conv in chosen.items()]
    wanted = network(example)
    for hook in hooks:
        hook.remove()
    for name, conv in chosen.items():
        parent, _, last = name.rpartition(".")
        setattr(found.get_submodule(parent), last, _convolution(conv, largest[name] / 127))
    got = found(example)
    return found, float((got - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


def _attributes(conv: Any) -> dict[str, Any]:
    return {
        "strides": conv.stride, "pads": (*conv.padding, *conv.padding), "dilations": conv.dilation, "group": conv.groups
    }  # fmt: skip


def _convolution(conv: Any, scale_in: float) -> Any:
    """The module in its place."""
    import torch

    from unet_engine.backends.int8_convolution import convolution

    class Int8(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            scales = conv.weight.abs().amax((1, 2, 3, 4)) / 127
            levels = (conv.weight / scales.reshape(-1, 1, 1, 1, 1)).round().to(torch.int8)
            self.register_buffer("levels", levels.permute(0, 2, 3, 4, 1).contiguous())
            self.register_buffer("scales", scale_in * scales)
            self.register_buffer("bias", conv.bias)

        def forward(self, x: Any) -> Any:
            return convolution(x, self.levels, scale_in, self.scales, self.bias, conv.stride[0])

    return Int8()
