"""Peak memory of a plan, and the plan that fits a budget. Pure arithmetic on sizes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from unet_engine.errors import PlanError
from unet_engine.plan.plan import HostMemory, Plan, middle_span
from unet_engine.plan.sizing import LOOKED_AT, shrunk, sums_span
from unet_engine.units import size

SUMS_IN_FLIGHT = 3
"""Blocks being inferred, being finished by the windows still in flight, and being written."""
RAW_IN_FLIGHT = 3
"""Raw blocks being cut, read ahead, and copied while they are decoded."""
BUNDLES_IN_FLIGHT = 3
"""Bundles per worker of a cluster that are handed out and not yet committed: one in the network, one being read, one
being written."""
WORKER_BASE = 32 * 2**20
"""Bytes that a worker process takes once Dask is at work in it: connections, messages under way, logs, code. Without
it, some 23 MiB were missing from the prediction."""


@dataclass(frozen=True)
class Sizes:
    """Bytes that the memory prediction needs, most of them per voxel."""

    raw: int
    """All input channels of one voxel, as stored."""
    sums: int
    """All output channels of one voxel in float32."""
    out: int
    """What is written per voxel."""
    source: int = 0
    """Of a volume that is resampled: what a voxel of it takes, stored and normalised, while its block is read."""
    decoding: int = 0
    """Chunks that are decoded at once, whole, whatever part of them is wanted (not per voxel)."""


@dataclass(frozen=True)
class ClusterShape:
    """What of a cluster decides memory: its workers share the blocks of each column between them."""

    workers: int
    """How many there will be."""
    present: int
    """How many are sure to be there: those that hold all halos that wait, however late the others come."""
    bundle_length: int
    """Blocks that are handed out together at most (see `unet_engine.plan.bundles`)."""


def predict_memory(
    plan: Plan, sizes: Sizes, base: int, devices: int, cluster: ClusterShape | None = None
) -> HostMemory:
    """Peak bytes of one process: of a column on each of `devices` devices at once, or, with a `cluster`, of one of its
    workers.

    Waiting halos follow from Little's law: bytes times the blocks they wait for. Workers hold their share of them, at
    most twice it for want of balance, and while they are sent.
    """
    reads = [middle_span(axis, windows, plan.padding) for axis, windows in zip(plan.axes, plan.block, strict=True)]
    whole = plan.core_of(plan.roi).shape
    spans = [_sums_along(plan, a, n) for a, n in enumerate(whole)]
    writes = [min(w * axis.stride, n) for w, axis, n in zip(plan.block, plan.axes, whole, strict=True)]
    halos = _waiting_halos(plan, spans, writes) * sizes.sums
    in_flight = SUMS_IN_FLIGHT
    if cluster:
        halos = min(halos, halos * 2 // cluster.present)
        # a bundle more than the average, and in a commit the copy that is finished and the halos that came for it
        in_flight = (BUNDLES_IN_FLIGHT + 1) * cluster.bundle_length + 1
        base += WORKER_BASE
    return HostMemory(
        base=base,
        raw=devices
        * (RAW_IN_FLIGHT * _size(reads) * sizes.raw + _source_size(plan, reads) * sizes.source + sizes.decoding),
        sums=devices * min(in_flight, prod(plan.share_shape) + (cluster is not None)) * prod(spans) * sizes.sums,
        halos=devices * halos,
        commit=devices * 2 * _written(plan, writes) * sizes.out,
    )


def _size(spans: Sequence[tuple[int, int]]) -> int:
    return prod(hi - lo for lo, hi in spans)


def _source_size(plan: Plan, reads: Sequence[tuple[int, int]]) -> int:
    """Voxels of the volume that those of `reads` are made of; none where nothing is resampled."""
    return _size([axis.reach(*span) for axis, span in zip(plan.image, reads, strict=True)]) if plan.image else 0


def _sums_along(plan: Plan, a: int, whole: int) -> int:
    """Sums along axis `a` of the longest block; `whole`: of all blocks together."""
    axis, windows, chunk = plan.axes[a], plan.block[a], plan.chunk[a]
    if not plan.back:
        # an edge that was rounded down to a chunk makes the sums begin up to a chunk earlier
        even = (windows * axis.stride) % chunk == 0 and axis.blend != "crop"
        return min(whole, sums_span(axis, windows) + (0 if even else chunk - 1))
    lo, hi = plan.block_range.lo[a], plan.block_range.hi[a]
    looked_at = range(lo, hi) if hi - lo <= 2 * LOOKED_AT else (*range(lo, lo + LOOKED_AT), *range(hi - LOOKED_AT, hi))
    earlier = 0
    for j in looked_at:
        own, begins = plan.core_span(a, plan.edge(a, j), plan.edge(a, j + 1)), axis.support(j * windows)[0]
        earlier = max(earlier, begins - own.start if own else 0)
    return min(whole, sums_span(axis, windows) + earlier)


def _written(plan: Plan, writes: Sequence[int]) -> int:
    """Voxels of the output that are made of a core of `writes`."""
    if not plan.back:
        return prod(writes)
    return prod(
        min(n, -(-w * axis.target // axis.source) + c)
        for w, axis, n, c in zip(writes, plan.back, plan.roi.shape, plan.chunk, strict=True)
    )


def _waiting_halos(plan: Plan, spans: list[int], writes: list[int]) -> int:
    """Voxels of halo that wait at once in the widest column: each piece from its block's prediction to its target's
    commit."""
    boxes = [plan.column_spans(box) for box in plan.share]
    shape = [max((hi - lo for box in boxes for lo, hi in box[a]), default=1) for a in range(len(plan.axes))]
    step, later = {}, 1
    for a in reversed(plan.order):
        step[a] = later
        later *= shape[a]
    # the last block of a row writes up to the end of the volume, which counts where rows are short
    whole = plan.core_of(plan.roi).shape
    mean = [max(w, whole[a] / max(1, plan.block_range.shape[a])) for a, w in enumerate(writes)]
    waiting = 0.0
    for offset in itertools.product((0, 1), repeat=len(spans)):
        up = [a for a, o in enumerate(offset) if o]
        if not up:
            continue
        piece = prod(max(0, s - w) if o else m for o, s, w, m in zip(offset, spans, writes, mean, strict=True))
        # the last block of a row has nothing above it; along the slowest axis that matters only at the very end
        share = prod((shape[a] - 1) / shape[a] for a in up if a != plan.order[0] or shape[a] == 1)
        # and one more: a halo is made before that of the block committed then is gone
        waiting += share * piece * min(later, sum(step[a] for a in up) + 1)
    return round(waiting)


def fit(plan: Plan, sizes: Sizes, base: int, budget: int, devices: int, cluster: ClusterShape | None = None) -> Plan:
    """The plan with as few columns as fit `budget` bytes (at least one per device), shrinking blocks only where they
    must.

    Raises `PlanError` where one column of the smallest blocks needs more than the budget.
    """
    while (fitting := _columns_that_fit(plan, sizes, base, budget, devices, cluster)) is None:
        smaller = shrunk(plan)
        if smaller is None:
            need = predict_memory(cut_columns(plan, plan.share_shape), sizes, base, devices, cluster).total
            raise PlanError(
                f"the smallest plan needs {size(need)} and --memory allows {size(budget)} "
                f"({size(base)} of it for the process and the network); give more memory or a smaller --window"
            )
        plan = smaller
    return fitting


def _columns_that_fit(
    plan: Plan, sizes: Sizes, base: int, budget: int, devices: int, cluster: ClusterShape | None
) -> Plan | None:
    counts = [1] * len(plan.axes)
    blocks = plan.share_shape
    while True:
        cut = cut_columns(plan, counts)
        memory = predict_memory(cut, sizes, base, devices, cluster)
        if memory.total - memory.halos > budget:
            return None  # columns make halos fewer, and nothing else
        if cut.column_count >= min(devices, sum(box.size for box in plan.share)) and memory.total <= budget:
            return replace(cut, memory=memory)
        fits = memory.total <= budget
        # cut across the stream, where halos wait; along it only to give every device a column
        wide = [a for a in plan.order[1:] if counts[a] < blocks[a]] or ([plan.order[0]] if fits else [])
        wide = [a for a in wide if counts[a] < blocks[a]]
        if not wide:
            return None
        widest = max(wide, key=lambda a: blocks[a] / counts[a])
        counts[widest] += 1


def cut_columns(plan: Plan, counts: Sequence[int]) -> Plan:
    """The plan with up to `counts` columns per axis in each box of its share, of as equal width as blocks allow.

    Boxes of one share have the same span along an axis, or spans that do not meet, so the cuts of one leave the others
    alone.
    """
    cuts = []
    for a, c in enumerate(counts):
        found = {box.lo[a] + box.shape[a] * i // c for box in plan.share for i in range(1, c)}
        cuts.append(tuple(sorted(found - {end for box in plan.share for end in (box.lo[a], box.hi[a])})))
    return plan.cut(tuple(cuts))
