"""Convolutions in INT8 of networks that PyTorch runs on a GPU, by the scales of our own QuantizeLinear and
DequantizeLinear: PyTorch has none for GPUs. `int8_triton.py` computes them there, PyTorch in float64 on the CPU, for
tests; sums are whole numbers, so that both give the same.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch.nn import functional as F

from unet_engine.version import version_of

KERNEL, AXES = 3, 3
LEAST = 32
"""Input channels that are taken at once; a layer has whole multiples of them."""
MOST = 4096
"""Input channels whose sums still are 32-bit integers."""
OLDEST = (8, 0)
"""Compute capability that Triton compiles for."""


def takes(weight: tuple[int, ...], attributes: dict[str, Any]) -> bool:
    """Whether a convolution is computed in INT8: of 3x3x3 voxels, padded by one, of every voxel or every second, and
    with enough channels. weight: its shape (channels out, channels in, 3, 3, 3); attributes: those of ONNX."""
    ones = (1,) * AXES
    strides = tuple(attributes.get("strides", ones))
    return (
        len(weight) == 2 + AXES and set(weight[2:]) == {KERNEL}
        and weight[1] % LEAST == 0 and LEAST <= weight[1] <= MOST and weight[0] >= LEAST // 2
        and tuple(attributes.get("pads", (0,) * 2 * AXES)) == (1,) * 2 * AXES
        and strides in (ones, (2,) * AXES) and attributes.get("auto_pad", "NOTSET") == "NOTSET"
        and tuple(attributes.get("dilations", ones)) == ones and attributes.get("group", 1) == 1
    )  # fmt: skip


def lacking(capability: tuple[int, int] | None) -> str:
    """What a GPU of that compute capability, or this installation, lacks; empty if nothing."""
    if capability is not None and capability < OLDEST:
        return f"compute capability {'.'.join(map(str, capability))} is below {'.'.join(map(str, OLDEST))}"
    return (
        ""
        if find_spec("triton")
        else "Triton is not installed, which PyTorch's wheels for CUDA bring; run: pip install triton"
    )


def version() -> str:
    """What computes them on GPUs, to be put behind PyTorch's version; empty where it is not installed."""
    found = version_of("triton")
    return f", triton {found}" if found else ""


@torch.library.custom_op("unet_engine::int8_convolution", mutates_args=())  # type: ignore[untyped-decorator, unused-ignore]
def convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale_in: float,
    scale_out: torch.Tensor,
    bias: torch.Tensor | None,
    stride: int,
) -> torch.Tensor:
    """x (N, channels in, z, y, x), in its own type, channels last; weight (channels out, 3, 3, 3, channels in) int8;
    scale_in: what one level of x stands for; scale_out (channels out,) float32: what one level of a sum does; bias
    (channels out,) or none. Where x is not finite, all of the output is NaN: a level would hide it."""
    given = None if bias is None else bias.float()
    if x.device.type == "cuda":
        from unet_engine.backends import int8_triton

        return int8_triton.convolution(x, weight, scale_in, scale_out, given, stride)
    return reference(x, weight, scale_in, scale_out, given, stride)


def reference(
    x: torch.Tensor, weight: torch.Tensor, scale_in: float, scale_out: torch.Tensor, bias: torch.Tensor | None,
    stride: int,
) -> torch.Tensor:  # fmt: skip
    """The same in float64, which holds every sum."""
    levels = (x.float() / scale_in).round().clamp(-128, 127).double()
    sums = F.conv3d(levels, weight.permute(0, 4, 1, 2, 3).double(), stride=stride, padding=1).float()
    shape = (1, -1, *(1,) * AXES)
    found = sums * scale_out.reshape(shape)
    if bias is not None:
        found = found + bias.reshape(shape)
    if not bool(x.isfinite().all()):
        found = torch.full_like(found, float("nan"))
    return found.to(x.dtype).contiguous(memory_format=torch.channels_last_3d)
