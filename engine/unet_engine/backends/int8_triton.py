"""INT8 convolutions on a GPU, in Triton: a product of matrices whose rows are voxels of the output, found among those of
the input as they are loaded (implicit GEMM). With ``TRITON_INTERPRET=1`` it runs on the CPU. Imported only where Triton
is.

Sums are 32-bit integers, so neither tiles nor the order they are added in decide a bit.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

ROUNDER = tl.constexpr(12582912.0)
"""1.5 * 2**23: what is added to it loses its digits behind the point, half to even, as QuantizeLinear rounds."""


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def levels_kernel(x, out, bad, count, scale, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """out int8 = x / scale, rounded half to even and cut off; bad: set to 1 where x is not finite."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    finite = tl.abs(value) < float("inf")
    tl.atomic_max(bad, tl.max(tl.where(finite, 0, 1), axis=0))
    level = tl.div_rn(tl.where(finite, value, 0.0), scale)
    level = tl.minimum(tl.maximum(level, -128.0), 127.0)
    tl.store(out + at, ((level + ROUNDER) - ROUNDER).to(tl.int8), mask=inside)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def convolution_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0917  # as a kernel is launched
    x, weight, out, scale, bias, bad, rows, depth, height, width, out_depth, out_height, out_width, channels_out,
    CHANNELS: tl.constexpr, STRIDE: tl.constexpr, BIASED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEEP: tl.constexpr,
):  # fmt: skip
    """A tile of ROWS voxels and COLUMNS channels of the output, DEEP channels of the input at a time."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    deep = tl.arange(0, DEEP)
    line = row // out_width
    plane = line // out_height
    window = plane // out_depth
    z, y, x_ = plane % out_depth * STRIDE - 1, line % out_height * STRIDE - 1, row % out_width * STRIDE - 1
    known = row < rows
    of_weight = column.to(tl.int64)[None, :] * (27 * CHANNELS)
    sums = tl.zeros((ROWS, COLUMNS), tl.int32)
    steps: tl.constexpr = CHANNELS // DEEP
    for step in range(27 * steps):
        tap, first = step // steps, step % steps * DEEP
        there_z, there_y, there_x = z + tap // 9, y + tap // 3 % 3, x_ + tap % 3
        inside = known & (there_z >= 0) & (there_z < depth) & (there_y >= 0) & (there_y < height)
        inside = inside & (there_x >= 0) & (there_x < width)
        voxel = ((window.to(tl.int64) * depth + there_z) * height + there_y) * width + there_x
        part = tl.load(
            x + voxel[:, None] * CHANNELS + (first + deep)[None, :], mask=inside[:, None], other=0
        )  # fmt: skip
        factor = tl.load(
            weight + of_weight + (tap * CHANNELS + first + deep)[:, None],
            mask=(column < channels_out)[None, :],
            other=0,
        )
        sums = tl.dot(part, factor, sums, out_dtype=tl.int32)
    there = column < channels_out
    value = sums.to(tl.float32) * tl.load(scale + column, mask=there, other=0.0)[None, :]
    if BIASED:
        value += tl.load(bias + column, mask=there, other=0.0)[None, :]
    value = tl.where(tl.load(bad) != 0, float("nan"), value)
    target = out + row.to(tl.int64)[:, None] * channels_out + column[None, :]
    tl.store(target, value.to(out.dtype.element_ty), mask=known[:, None] & there[None, :])


def tile(channels_in: int, channels_out: int) -> dict[str, Any]:
    """Of the output, and how deep; warps, loads under way, and that scale and bias are rounded one by one, as on the
    CPU."""
    columns = min(128, triton.next_power_of_2(channels_out))
    deep = 64 if channels_in % 64 == 0 else 32
    how = {"num_warps": 4 if columns <= 64 else 8, "num_stages": 3, "enable_fp_fusion": False}
    return {"ROWS": 128, "COLUMNS": columns, "DEEP": deep, **how}


def levels(x: torch.Tensor, scale: float, bad: torch.Tensor) -> torch.Tensor:
    """x as int8, in its own memory order; bad (1,) int32: set to 1 where it is not finite."""
    out = torch.empty_like(x, dtype=torch.int8)
    block = 1024
    levels_kernel[(triton.cdiv(x.numel(), block),)](x, out, bad, x.numel(), scale, BLOCK=block)
    return out


def convolution(
    x: torch.Tensor, weight: torch.Tensor, scale_in: float, scale_out: torch.Tensor, bias: torch.Tensor | None,
    stride: int,
) -> torch.Tensor:  # fmt: skip
    """See `int8_convolution.convolution`."""
    x = x.contiguous(memory_format=torch.channels_last_3d)
    count, channels_in, *size = x.shape
    channels_out = weight.shape[0]
    made = [(n - 1) // stride + 1 for n in size]
    bad = torch.zeros(1, dtype=torch.int32, device=x.device)
    out = torch.empty(
        (count, channels_out, *made), dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d
    )
    how = tile(channels_in, channels_out)
    rows = count * made[0] * made[1] * made[2]
    convolution_kernel[(triton.cdiv(rows, how["ROWS"]), triton.cdiv(channels_out, how["COLUMNS"]))](
        levels(x, scale_in, bad), weight, out, scale_out, scale_out if bias is None else bias, bad, rows, *size, *made,
        channels_out, CHANNELS=channels_in, STRIDE=stride, BIASED=bias is not None, **how,
    )  # fmt: skip
    return out
