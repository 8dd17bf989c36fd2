"""What is read again of a volume that is seen turned, or as a box of it: counted by its own chunks, wherever they begin."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.plans import make
from unet_engine.plan.box import Box
from unet_engine.plan.fetching import Fetching
from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.tubes import counted
from unet_engine.volumes.cropped import Cropped
from unet_engine.volumes.turn import Turn
from unet_engine.volumes.turned import Turned

UNITS, SHAPE = (4, 5, 6), (28, 20, 30)
Chunk = tuple[int, ...]


class Scan:
    """Remembers what it is told to keep."""

    shape, units, told = (0, 0, 0), UNITS, None

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def keep(self, most: int, reads: Fetching | None) -> None:
        self.told = reads

    def begins(self, pieces: tuple[int, ...]) -> tuple[int, ...]:
        return (0,) * len(pieces)


@st.composite
def lenses(draw: st.DrawFn) -> tuple[Scan, list[Any]]:
    """A scan, and what it is seen through, from the last to the first."""
    scan = Scan(tuple(draw(st.integers(20, 30)) for _ in UNITS))
    seen: list[Any] = [scan]
    for kind in draw(
        st.sampled_from(["turned", "cropped", "turned cropped", "cropped turned", "turned turned"])
    ).split():
        below = seen[-1]
        if kind == "turned":
            backwards = tuple(draw(st.booleans()) for _ in UNITS)
            turn = Turn(tuple(draw(st.permutations(range(3)))), backwards, below.shape)
            seen.append(Turned(below, turn))
        else:
            lo = tuple(draw(st.integers(0, 9)) for _ in UNITS)
            hi = tuple(draw(st.integers(low + 10, n)) for low, n in zip(lo, below.shape, strict=True))
            seen.append(Cropped(below, Box(lo, hi)))
    return scan, seen[:0:-1]


def _seen(*wrap: Any) -> tuple[Scan, list[Any]]:
    scan = Scan(SHAPE)
    found: list[Any] = [scan]
    for one in wrap:
        found.append(one(found[-1]))
    return scan, found[:0:-1]


def off_border(scan: Any) -> Any:
    return Cropped(scan, Box((1, 2, 3), (27, 19, 28)))


def far_end(scan: Any) -> Any:
    return Turned(scan, Turn((2, 0, 1), (True, False, True), scan.shape))


@example(_seen(off_border))
@example(_seen(off_border, far_end))
@example(_seen(far_end, off_border))
@given(lenses())
@settings(max_examples=25)
def test_chunks_are_needed_again_when_blocks_read_them(made: tuple[Scan, list[Any]]) -> None:
    scan, seen = made
    volume = seen[0]
    plan = make(tuple(AxisGrid.with_overlap(n, 6, 0.5, 0, "gaussian") for n in volume.shape), block=(2, 2, 2))
    reads = Fetching.of(plan, volume.units, volume.begins(volume.units))
    volume.keep(1, reads)
    uses, turns = Counter[Chunk](), dict[Chunk, list[int]]()
    for number, task in enumerate(plan.tasks(next(plan.columns()), lambda _: True)):
        box = task.read
        for lens in seen:
            box = lens.there(box)
        for cell in box.cells(UNITS):
            chunk = tuple(l // u for l, u in zip(cell.lo, UNITS, strict=True))
            uses[chunk] += 1
            turns.setdefault(chunk, []).append(number)
    kept = scan.told
    assert kept is not None
    assert {chunk: kept.uses(chunk) for chunk in uses} == uses
    due = {chunk: [kept.due(chunk, use) for use in range(n)] for chunk, n in uses.items()}
    order = {moment: n for n, moment in enumerate(sorted({m for moments in due.values() for m in moments}))}
    assert {chunk: [order[moment] for moment in moments] for chunk, moments in due.items()} == turns
    assert counted(reads, 0) * len(uses) <= sum(uses.values()), "of what is read in one block, some may be there"
    assert reads.chunks == len(uses)


def test_of_an_array_in_memory_nothing_is_kept() -> None:
    scan: Any = SimpleNamespace(shape=SHAPE, units=None, keep=lambda most, reads: told.append(reads))
    told: list[Any] = []
    off_border(scan).keep(1, None)
    far_end(scan).keep(1, None)
    assert told == [None, None]
