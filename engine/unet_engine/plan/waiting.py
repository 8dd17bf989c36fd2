"""How many voxels of halo wait at once in a column, counted block by block. Pure arithmetic.

A piece of halo lies between a block and one further up: a box, whose length along an axis depends on where the lower
block lies there, and on how many blocks further up the other one is. So a few lengths per axis are all that is asked
of a plan; what is made, and what goes, are sums of their outer products.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import prod

import numpy as np
import numpy.typing as npt

from unet_engine.plan.box import Box
from unet_engine.plan.plan import Plan

COUNTED = 16
"""Blocks of a column that are looked at along an axis, from both ends. Longer ones go on in the same way: along the
slowest axis no more wait than after a few layers, along others as many more as they are longer."""
SPANS = 4
"""Columns that are looked at along an axis, from both ends, and the widest."""

WRITTEN, FINISHED = 2, 3
"""Blocks after which what came for one is gone: once that was written, and where blocks are queued ahead."""

Lengths = npt.NDArray[np.float64]


def waiting_halos(plan: Plan) -> int:
    """The most voxels of halo that wait at once in any column of the plan.

    A halo waits from when its block is predicted until its target was written, which is awaited as the block after
    that is there. Lower blocks of other columns, whose windows reach in, count like others. An upper bound where
    columns differ: along each axis the longest of all.
    """
    return max((_most(plan, box, range(len(plan.order)), WRITTEN) for box in plan.share), default=0)


def waiting_by_axis(plan: Plan) -> tuple[int, ...]:
    """The same of halos on a device, apart for each axis of the stream, from the fastest to the slowest: those for
    blocks further up along it, and along no slower one. They wait from when their block is queued until that of their
    target is finished, which may be as the block after the next is queued."""
    axes = range(len(plan.order))
    return tuple(max((_most(plan, box, [a], FINISHED) for box in plan.share), default=0) for a in reversed(axes))


def blocks_to_infer(plan: Plan) -> int:
    """Blocks of the share, with those below whose windows reach into it."""
    first = plan.block_range.lo
    return max(
        (prod(hi - max(low, lo - r) for lo, hi, low, r in zip(box.lo, box.hi, first, plan.reach, strict=True))
         for box in plan.share),
        default=0,
    )  # fmt: skip


def _most(plan: Plan, box: Box, slowest: Sequence[int], gone: int) -> int:
    """The most that waits of the halos whose slowest axis, by its place in the stream's order, is one of `slowest`, and
    that are gone so many blocks after their target."""
    spans = plan.column_spans(box)
    if any(plan.walls):  # in an order of its own for each column
        return max(_most_of(plan, [[span] for span in one], slowest, gone, None) for one in itertools.product(*spans))
    faster = plan.order[1 + min(slowest) :]
    longer = prod(max(1.0, max(hi - lo for lo, hi in spans[a]) / COUNTED) for a in faster)
    return round(longer * _most_of(plan, spans, slowest, gone, COUNTED))


def _most_of(
    plan: Plan, spans: Sequence[list[tuple[int, int]]], slowest: Sequence[int], gone: int, counted: int | None
) -> int:
    """The same in columns of these spans, looking at `counted` blocks along an axis; None: at all."""
    lengths = [_lengths(plan, a, spans[a], counted) for a in plan.order]
    made = coming = np.zeros((0,) * len(lengths))
    for ups in itertools.product(*(range(len(found)) for found in lengths)):
        if any(ups) and next(n for n, up in enumerate(ups) if up) in slowest:
            now = _outer([found[up] for found, up in zip(lengths, ups, strict=True)])
            then = _outer([_by_target(found[up], up) for found, up in zip(lengths, ups, strict=True)])
            made, coming = (made + now, coming + then) if made.size else (now, then)
    tubes = [_tubes(plan, a, spans[a], found.shape[1]) for a, found in zip(plan.order, lengths, strict=True)]
    made, coming = np.cumsum(_walked(made, tubes)), np.cumsum(_walked(coming, tubes))
    return round(float(np.max(made - np.concatenate([np.zeros(gone), coming])[: made.size], initial=0)))


def _tubes(plan: Plan, axis: int, spans: Sequence[tuple[int, int]], blocks: int) -> list[slice]:
    """The blocks of each tube along an axis, among so many, the last of which is the column's last."""
    if not any(plan.walls):
        return [slice(None)]
    end = spans[0][1]
    return [slice(lo - end + blocks, hi - end + blocks) for lo, hi in plan.tube_spans(axis, end - blocks, end)]


def _walked(values: Lengths, tubes: Sequence[list[slice]]) -> Lengths:
    """Values of blocks in the order in which these come."""
    return np.concatenate([values[tube].ravel() for tube in itertools.product(*tubes)])


def _outer(vectors: list[Lengths]) -> Lengths:
    found = vectors[0]
    for vector in vectors[1:]:
        found = np.multiply.outer(found, vector)
    return found


def _by_target(vector: Lengths, up: int) -> Lengths:
    """Lengths in the order of the upper blocks, from those in the order of the lower ones."""
    return np.concatenate([np.zeros(up), vector])[: len(vector)]


def _lengths(plan: Plan, axis: int, spans: list[tuple[int, int]], counted: int | None) -> Lengths:
    """Lengths of halos along an axis in voxels, (blocks further up, blocks of a column), the longest of all columns;
    of `counted` blocks, None: of all. The first blocks are those below the column whose windows reach in, where there are any."""
    reach, first = plan.reach[axis], plan.block_range.lo[axis]
    looked_at = {*spans[:SPANS], *spans[-SPANS:], max(spans, key=lambda span: span[1] - span[0])}
    longest = max(hi - lo for lo, hi in looked_at)
    count = longest if counted is None else min(counted, longest)
    found = np.zeros((reach + 1, reach + count))
    for lo, hi in looked_at:
        inside = range(lo, hi) if hi - lo <= count else [*range(lo, lo + count // 2), *range(hi - (count + 1) // 2, hi)]
        for place, j in enumerate([*range(lo - reach, lo), *inside]):
            for up in range(reach + 1):
                if j >= first and lo <= j + up < hi:
                    found[up, place] = max(found[up, place], _shared(plan, axis, j, up))
    below = next((i for i in range(reach) if found[:, i].any()), reach)
    return found[:, below:]


def _shared(plan: Plan, axis: int, j: int, up: int) -> int:
    """Voxels along an axis that the sums of block j share with the core of the block `up` further up."""
    last = min((j + 1) * plan.block[axis], plan.window_range.hi[axis]) - 1
    own, there = (plan.core_span(axis, plan.edge(axis, i), plan.edge(axis, i + 1)) for i in (j, j + up))
    end = plan.core_span(axis, plan.roi.lo[axis], plan.roi.hi[axis]).stop
    top = max(own.stop, min(plan.axes[axis].support(last)[1], end))
    return max(0, min(top, there.stop) - there.start)
