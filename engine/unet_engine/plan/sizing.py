"""Choosing blocks and chunks. Pure arithmetic on sizes.

The block grid follows from the volume, the windows and the number of output channels alone, so that one volume and one
model always give the same bytes. A memory budget shrinks blocks only where even a single column of default ones does
not fit.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from unet_engine.plan.box import Box
from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.plan import HostMemory, Plan
from unet_engine.plan.resampling import AxisResampling

NO_MEMORY = HostMemory(0, 0, 0, 0, 0)
"""Of a plan whose memory is not known yet."""
SUMS_TARGET = 128 * 2**20
"""Bytes of float32 sums a default block stays under: several are in flight, and larger ones gain little."""
SUMS_WINDOWS, SUMS_MOST = 2, 512 * 2**20
"""With very many classes a block may have the sums of so many windows instead, up to so many bytes: a block of a single
window hands seven eighths of its sums on as halos, which are copied and merged."""

DEVICE_WINDOWS, DEVICE_MOST = 8, 3 * 2**30
"""On a GPU a block may have so many windows where their sums are at most so many bytes: a block of a single window decodes
the chunks around it again that its neighbours decode, and the GPU waits for them. Constants, and not what the GPU at
hand has: the block is part of what names a run, and any device with room for it gives the same bytes."""


def device_block(axes: tuple[AxisGrid, ...], channels_out: int) -> tuple[int, ...]:
    """As `default_block`, for a GPU: of many classes, up to `DEVICE_WINDOWS` windows."""
    grown = _grown(axes, channels_out, DEVICE_WINDOWS, DEVICE_MOST)
    return max(default_block(axes, channels_out), grown, key=prod)


def default_block(axes: tuple[AxisGrid, ...], channels_out: int) -> tuple[int, ...]:
    """Windows per block: at least as many as keep halos from reaching past the next block, then grown evenly up to two
    window lengths (sixteen planes where a 2D network runs plane by plane) while the sums stay under `SUMS_TARGET`, or
    under what `SUMS_WINDOWS` allows."""
    most = max(SUMS_TARGET, min(SUMS_MOST, SUMS_WINDOWS * 4 * channels_out * prod(axis.window for axis in axes)))
    return _grown(axes, channels_out, prod(axis.count for axis in axes), most)


def _grown(axes: tuple[AxisGrid, ...], channels_out: int, windows: int, most: int) -> tuple[int, ...]:
    """The smallest block, grown to so many windows and bytes of sums at most."""
    target = chunk_target(axes)
    block = [least_windows(axis, target) for axis in axes]
    enough = [16 if axis.window == 1 else 2 * axis.window for axis in axes]
    growing = set(range(len(axes)))
    while growing:
        a = min(growing, key=lambda i: (block[i] * axes[i].stride / enough[i], i))
        axis, larger = axes[a], [*block]
        larger[a] += 1
        if (
            larger[a] > axis.count
            or block[a] * axis.stride >= enough[a]
            or prod(larger) > windows
            or 4 * channels_out * prod(map(sums_span, axes, larger)) > most
        ):
            growing.remove(a)
        else:
            block = larger
    return tuple(block)


def default_chunk(
    axes: tuple[AxisGrid, ...], block: tuple[int, ...], back: tuple[AxisResampling, ...] = ()
) -> tuple[int, ...]:
    """Voxels per chunk of the output, for blocks of `block` windows. back: to the output's grid, where that is another
    than the windows'."""
    target = chunk_target(axes)
    if not back:
        return tuple(chunk_length(axis, windows, target) for axis, windows in zip(axes, block, strict=True))
    return tuple(
        _chunk_of_other_grid(axis, windows, there, target)
        for axis, windows, there in zip(axes, block, back, strict=True)
    )


def shrunk(plan: Plan) -> Plan | None:
    """The plan in a single column, its blocks a window shorter along their longest axis; None where none can be
    shorter."""
    target = chunk_target(plan.axes)
    floor = [least_windows(axis, target) for axis in plan.axes]
    a = max(range(len(floor)), key=lambda i: plan.block[i] * plan.axes[i].stride if plan.block[i] > floor[i] else -1)
    if plan.block[a] <= floor[a]:
        return None
    block = tuple(b - 1 if i == a else b for i, b in enumerate(plan.block))
    return replace(
        plan, block=block, chunk=default_chunk(plan.axes, block, plan.back), cuts=((),) * len(block), walls=()
    )


def least_windows(axis: AxisGrid, target: int) -> int:
    """The smallest block whose halos reach only the next one."""
    for windows in range(1, axis.count + 1):
        whole = Box((0,), (axis.size,))
        line = Plan(
            "x", (axis,), whole, (windows,), (chunk_length(axis, windows, target),), ((),), "edge", NO_MEMORY, {}
        )
        if line.reach[0] <= 1:
            return windows
    return axis.count


def sums_span(axis: AxisGrid, windows: int) -> int:
    """Voxels that the sums of a block of `windows` windows span."""
    if axis.blend == "crop":
        return min(axis.size, min(windows, axis.count) * axis.longest + (axis.window - axis.longest + 1) // 2)
    return min(axis.size, axis.window + (min(windows, axis.count) - 1) * axis.longest)


def chunk_target(axes: tuple[AxisGrid, ...]) -> int:
    """Voxels per axis a chunk of the output should have: a few hundred kilobytes of labels, good to look at."""
    if len(axes) == 2:
        return 512
    return 256 if any(axis.window == 1 for axis in axes) else 64


def chunk_length(axis: AxisGrid, windows: int, target: int) -> int:
    """Chunk of the output along an axis: near `target`, dividing the distance between blocks where it can.

    Where it does not divide it, write boxes are rounded down to whole chunks and the rest travels with the halo.
    """
    if axis.count <= windows:
        return min(target, axis.size)
    period = windows * axis.stride
    best = max(c for c in range(1, min(target, period) + 1) if period % c == 0)
    if 2 * best >= min(target, period):
        return best
    return min(target, period)


LOOKED_AT = 64
"""Blocks of an axis by which a chunk is chosen."""


def _chunk_of_other_grid(axis: AxisGrid, windows: int, back: AxisResampling, target: int) -> int:
    """Chunk of an output on another grid than the windows': of those from three quarters of `target` up, the one of
    whose ends blocks lose least, when their edges are rounded down to it."""
    most = max(1, min(target, back.target, windows * axis.stride * back.target // back.source))
    blocks = min(-(-axis.count // windows), LOOKED_AT)
    ends = [back.settled(axis.support(j * windows)[0]) for j in range(1, blocks)]
    return min(range(most, most * 3 // 4, -1), key=lambda c: sum(end % c for end in ends))
