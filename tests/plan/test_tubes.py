"""Blocks tube by tube, so that what neighbours share of a volume behind a network stays where little may be kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.plans import make, plans
from unet_engine.plan.box import Box
from unet_engine.plan.fetching import Fetching
from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.plan import Plan
from unet_engine.plan.tubes import ONCE, counted, tubes

Reads = list[list[tuple[int, ...]]]


def _reads(plan: Plan, chunks: tuple[int, ...]) -> Reads:
    """The chunks that each task of a fresh run reads, one after the other."""
    return [
        list(Box(tuple(l // c for l, c in zip(task.read.lo, chunks, strict=True)),
                 tuple(-(-h // c) for h, c in zip(task.read.hi, chunks, strict=True))).points())
        for column in plan.columns() for task in plan.tasks(column, lambda _: True) if task.windows
    ]  # fmt: skip


def _fetched(reads: Reads, most: int) -> int:
    """Chunks that are fetched where `most` are kept beside those that are being read, and what is needed last goes."""
    later: dict[tuple[int, ...], list[int]] = {}
    for n, chunks in enumerate(reads):
        for chunk in chunks:
            later.setdefault(chunk, []).append(n)
    kept, fetches = set[tuple[int, ...]](), 0
    for n, chunks in enumerate(reads):
        fetches += len(set(chunks) - kept)
        kept |= set(chunks)
        needed = {chunk: min((m for m in later[chunk] if m > n), default=None) for chunk in kept - set(chunks)}
        _leave(kept, needed, most)
        needed = {chunk: min((m for m in later[chunk] if m > n), default=None) for chunk in kept}
        kept = {chunk for chunk in kept if needed[chunk] is not None}
        _leave(kept, needed, most)
    return fetches


def _leave(kept: set[tuple[int, ...]], needed: dict[tuple[int, ...], int | None], most: int) -> None:
    while len(kept) > most and (rest := [chunk for chunk in needed if chunk in kept]):
        kept.remove(max(rest, key=lambda chunk: (needed[chunk], [-i for i in chunk])))


def _whole(plan: Plan) -> Plan:
    """Of the whole volume, in one column: what is left out of those is nothing that has rows."""
    return replace(plan, roi=Box.of_shape([axis.size for axis in plan.axes]), cuts=((),) * len(plan.axes))


@given(plans(), st.integers(1, 7), st.integers(0, 60))
@settings(max_examples=60)
def test_what_is_counted_is_what_tasks_read_one_after_the_other(plan: Plan, chunk: int, kept: int) -> None:
    plan = replace(plan, cuts=((),) * len(plan.axes))
    chunks = (chunk,) * len(plan.axes)
    reads, fetching = _reads(plan, chunks), Fetching.of(plan, chunks)
    found = {}
    for n, read in enumerate(reads):
        for one in read:
            found.setdefault(one, []).append(n)
    assert fetching.chunks == len(found)
    due = {one: [fetching.due(one, use) for use in range(fetching.uses(one))] for one in found}
    at = {moment: n for n, moment in enumerate(sorted({moment for moments in due.values() for moment in moments}))}
    assert {one: [at[moment] for moment in moments] for one, moments in due.items()} == found
    fetched = _fetched(reads, kept)
    assert counted(fetching, kept) * len(found) >= fetched - 1e-6
    assert fetching.fetches(kept) >= fetched - 1e-6
    assert fetching.factor(fetching.wanted(1), 1) == pytest.approx(1.0)


@pytest.mark.parametrize("counts", [(1, 1), (2, 3)])
def test_reads_are_counted_one_by_one(counts: tuple[int, int]) -> None:
    plan = _long()
    ends = [round(n * i / c) for n, c in zip(plan.block_range.shape[1:], counts, strict=True) for i in range(1, c)]
    plan = replace(plan, walls=((), tuple(ends[: counts[0] - 1]), tuple(ends[counts[0] - 1 :])))
    reads, fetching = _reads(plan, CHUNK), Fetching.of(plan, CHUNK)
    for kept in (40, 90):
        assert counted(fetching, kept) * fetching.chunks == pytest.approx(_fetched(reads, kept), rel=0.005)


CHUNK = (8, 8, 8)


def _long(size: int = 96) -> Plan:
    """Of windows of 16 that overlap by a quarter, in blocks of two."""
    return make((AxisGrid.with_overlap(size, 16, 0.25, 0, "gaussian"),) * 3, block=(2, 2, 2))


def test_tubes_fetch_what_layers_fetch_again() -> None:
    plan, kept = _long(144), 200
    layers = _fetched(_reads(plan, CHUNK), kept) / 18**3
    assert layers > 1.15
    found = next(tubes(plan, Fetching.of(plan, CHUNK), kept))
    assert Counter(_indices(found)) == Counter(_indices(plan))
    assert _indices(found) != _indices(plan)
    assert found.digest == plan.digest
    assert _fetched(_reads(found, CHUNK), kept) / 18**3 < 1 + (layers - 1) / 2
    assert not list(tubes(plan, Fetching.of(plan, CHUNK), 800)), "a layer can be kept"


def _indices(plan: Plan) -> list[tuple[int, ...]]:
    return [task.block.index for column in plan.columns() for task in plan.tasks(column, lambda _: True)]


@pytest.mark.parametrize(
    ("window", "overlap", "chunk", "kept"),
    [*((*grid, 64, kept) for grid in [(96, 0.25), (128, 0.5), (160, 0.25), (96, 0.125)] for kept in (4096, 2048)),
     (96, 0.25, 128, 1024)],
)  # fmt: skip
def test_a_gibibyte_is_enough_for_4096_voxels_along_each_axis(
    window: int, overlap: float, chunk: int, kept: int
) -> None:
    """Of one byte and of two in chunks of 64, and of one byte in chunks of 128 that are packed to half."""
    plan = make((AxisGrid.with_overlap(4096, window, overlap, 0, "gaussian"),) * 3)
    chunks = (chunk,) * 3
    plan = next(tubes(plan, Fetching.of(plan, chunks), kept), plan)
    assert Fetching.of(plan, chunks).factor(kept, 1) <= ONCE
