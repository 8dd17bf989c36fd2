"""Where the windows of one task lie, as the arrays that the GPU's kernels take: see `Entry` and `Span` in
``cpp_ext/kernels.hpp``.

Tables are made once per block, in one piece of pinned memory that is copied over with the raw voxels. A window is then
four numbers: its place in the table of each axis, and its row in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.plan.box import Box
from unet_engine.plan.device_memory import aligned
from unet_engine.plan.plan import Index, Plan, Task
from unet_engine.plan.poses import UPRIGHT, Pose
from unet_engine.stitching.weights import axis_weights, covers

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Batch:
    """Consecutive windows of a task: the entries [first, stop), of which `rows` from number `at` of the order on are
    inferred."""

    first: int
    stop: int
    at: int
    rows: int
    lo: tuple[int, ...]
    """The box of the sums, three axes, that holds all they add to."""
    hi: tuple[int, ...]
    network: int = 0
    """Which of the networks infers them."""


@dataclass(frozen=True)
class Piece:
    """One array inside the memory of all tables."""

    start: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return int(prod(self.shape)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Tables:
    spans: tuple[Piece, ...]
    weights: tuple[Piece, ...]
    positions: tuple[Piece, ...]
    covers: tuple[Piece, ...]
    """Of three axes, see `weights.covers`; none where sums are not divided."""
    entries: Piece
    order: Piece
    batches: tuple[Batch, ...]
    size: int
    inferred: int
    poses: Piece | None = None
    shares: Piece | None = None
    """Of every entry; None where all are upright, and each is all that is added for its window."""


@dataclass(frozen=True)
class Calls:
    """How often each window is inferred."""

    poses: Sequence[Pose]
    shares: Sequence[float]
    """By network, what one of its answers counts."""


ONCE = Calls((UPRIGHT,), (1.0,))


def fill_tables(
    plan: Plan,
    task: Task,
    is_empty: Callable[[Index], bool],
    batch: int,
    most: int,
    memory: Array,
    calls: Calls = ONCE,
) -> Tables:
    """Write the tables of `task` to `memory` (bytes) and say where each lies.

    is_empty: whether a window is skipped. batch: windows that are inferred at once. most: entries that one kernel
    takes. A window that is skipped is a single entry.
    """
    axes = len(plan.axes)
    windows = np.array(task.windows, np.int64).reshape(-1, axes)
    skipped = np.array([is_empty(window) for window in task.windows], bool)
    writer = _Writer(memory)
    spans, weights, positions = [], [], []
    ranks = np.zeros((len(windows), 3), np.int64)
    boxes = np.zeros((3, 2, len(windows)), np.int64)
    for i in range(3):
        a = i - (3 - axes)
        if a < 0:
            table, weight, position = np.array([[0, 0, 1]]), np.ones((1, 1), np.float32), np.zeros((1, 1), np.int64)
        else:
            ks, ranks[:, i] = np.unique(windows[:, a], return_inverse=True)
            table, weight, position = _axis(plan, a, ks.tolist(), task.block.sums, task.read)
        spans.append(writer.put(table, "int64"))
        weights.append(writer.put(weight, "float32"))
        positions.append(writer.put(position, "int32"))
        chosen = table[ranks[:, i]]
        boxes[i] = chosen[:, 0] + chosen[:, 1], chosen[:, 0] + chosen[:, 2]
    called = _called(skipped, len(calls.poses), len(calls.shares))
    skipped = skipped[called.window]
    batches, rows, order = _batches(skipped, called.network, batch, most, boxes[:, :, called.window])
    entries = writer.put(np.concatenate([ranks[called.window], rows[:, None]], 1), "int32")
    placed = writer.put(order, "int32")
    pose = share = None
    if len(calls.poses) * len(calls.shares) > 1:
        pose = writer.put(np.array([p.bits for p in calls.poses])[called.pose], "int32")
        share = writer.put(np.where(skipped, 1, np.array(calls.shares, np.float32)[called.network]), "float32")
    over = tuple(writer.put(cover, "float32") for cover in _covers(plan, task.block.sums))
    tables = tuple(spans), tuple(weights), tuple(positions), over
    return Tables(*tables, entries, placed, batches, writer.end, len(order), pose, share)


def _covers(plan: Plan, box: Box) -> list[Array]:
    """The weights that lie over each voxel of `box` along three axes; none where sums are not divided by them."""
    if not plan.axes[0].divides:
        return []
    found = [covers(axis, lo, hi) for axis, lo, hi in zip(plan.axes, box.lo, box.hi, strict=True)]
    return [np.ones((1, 1), np.float32)] * (3 - len(found)) + found


@dataclass(frozen=True)
class _Called:
    """Per entry, the number of its window, of its pose and of its network."""

    window: Array
    pose: Array
    network: Array


def _called(skipped: Array, poses: int, networks: int) -> _Called:
    """The entries in the order in which they are added: for each network all windows, each in all poses. A window that
    is skipped comes once, with the first."""
    each = np.concatenate([np.where(skipped, n == 0, poses) for n in range(networks)])
    which = np.repeat(np.arange(len(each)), each)
    pose = np.arange(len(which)) - np.repeat(np.cumsum(each) - each, each)
    return _Called(which % max(1, len(skipped)), pose, which // max(1, len(skipped)))


def _axis(plan: Plan, a: int, ks: Sequence[int], sums: Box, read: Box) -> tuple[Array, Array, Array]:
    """Per window k of axis `a`: its span in the sums, its weights, and where its input voxels lie in the raw block."""
    axis = plan.axes[a]
    table, weight, position = [], [], []
    for k in ks:
        start, (lo, hi) = axis.start(k), axis.support(k)
        table.append((start - sums.lo[a], max(lo, sums.lo[a]) - start, min(hi, sums.hi[a]) - start))
        weight.append(axis_weights(axis, k))
        source = np.asarray(axis.source(*axis.input(k), plan.padding), np.int64)
        position.append(np.where(source < 0, -1, source - read.lo[a]))
    return np.array(table, np.int64), np.stack(weight), np.stack(position)


def _batches(
    skipped: Array, network: Array, size: int, most: int, boxes: Array
) -> tuple[tuple[Batch, ...], Array, Array]:
    """Cut the entries, in their order, into batches of one network of which `size` are inferred, and that have no more
    than `most` entries.

    Returns the batches, the row of every window in its batch (-1: skipped), and the numbers of those inferred.
    """
    rows = np.full(len(skipped), -1, np.int64)
    batches, first, at, inferred = [], 0, 0, 0
    for n, skip in enumerate(skipped):
        if not skip:
            rows[n] = inferred
            inferred += 1
        last = n + 1 == len(skipped) or network[n + 1] != network[n]
        if inferred == size or n + 1 - first == most or last:
            batches.append(_batch(first, n + 1, at, inferred, boxes, int(network[n])))
            first, at, inferred = n + 1, at + inferred, 0
    return tuple(batches), rows, np.flatnonzero(~skipped)


def _batch(first: int, stop: int, at: int, rows: int, boxes: Array, network: int) -> Batch:
    lo, hi = boxes[:, 0, first:stop].min(axis=1), boxes[:, 1, first:stop].max(axis=1)
    return Batch(first, stop, at, rows, tuple(map(int, lo)), tuple(map(int, hi)), network)


class _Writer:
    """Puts arrays one behind the other."""

    def __init__(self, memory: Array) -> None:
        self._memory, self.end = memory, 0

    def put(self, array: Array, dtype: str) -> Piece:
        piece = Piece(self.end, array.shape, dtype)
        self._memory[piece.start : piece.start + piece.size].view(dtype).reshape(array.shape)[...] = array
        self.end = aligned(piece.start + piece.size)
        return piece
