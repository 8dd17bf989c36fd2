"""What is read again of a volume that is seen turned, or as a box of it: counted by its own chunks."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from support.plans import make
from unet_engine.plan.box import Box
from unet_engine.plan.fetching import Fetching
from unet_engine.plan.grid import AxisGrid
from unet_engine.volumes.cropped import Cropped
from unet_engine.volumes.turn import Turn
from unet_engine.volumes.turned import Turned

UNITS, SHAPE = (4, 5, 6), (28, 20, 30)
TURN = Turn((2, 0, 1), (True, False, True), SHAPE)


def _scan(kept: list[Any]) -> Any:
    return SimpleNamespace(shape=SHAPE, units=UNITS, keep=lambda most, reads: kept.append(reads))


@pytest.mark.parametrize("lens", [
    lambda scan: Turned(scan, TURN), lambda scan: Cropped(scan, Box((8, 5, 12), (28, 20, 30))),
    lambda scan: Cropped(Turned(scan, TURN), Box((6, 8, 5), (30, 28, 20))),
])  # fmt: skip
def test_chunks_are_needed_again_when_blocks_read_them(lens: Any) -> None:
    kept: list[Any] = []
    volume = lens(_scan(kept))
    plan = make(tuple(AxisGrid.with_overlap(n, 6, 0.5, 0, "gaussian") for n in volume.shape), block=(2, 2, 2))
    volume.keep(1, Fetching.of(plan, volume.units))
    uses, turns = Counter[tuple[int, ...]](), dict[tuple[int, ...], list[int]]()
    for number, task in enumerate(plan.tasks(next(plan.columns()), lambda _: True)):
        box = volume.there(task.read)
        box = TURN.stored_box(box) if isinstance(volume, Cropped) and isinstance(volume.scan, Turned) else box
        for cell in box.cells(UNITS):
            chunk = tuple(l // u for l, u in zip(cell.lo, UNITS, strict=True))
            uses[chunk] += 1
            turns.setdefault(chunk, []).append(number)
    assert {chunk: kept[0].uses(chunk) for chunk in uses} == uses
    due = {chunk: [kept[0].due(chunk, use) for use in range(n)] for chunk, n in uses.items()}
    order = {moment: n for n, moment in enumerate(sorted({m for moments in due.values() for m in moments}))}
    assert {chunk: [order[moment] for moment in moments] for chunk, moments in due.items()} == turns


def test_chunks_that_lie_otherwise_from_the_far_end_are_not_counted() -> None:
    kept: list[Any] = []
    scan = _scan(kept)
    scan.shape = (29, 20, 31)
    Turned(scan, Turn((2, 0, 1), (True, False, False), scan.shape)).keep(1, Fetching(((), (), ()), (0, 1, 2)))
    Cropped(scan, Box((1, 0, 0), (29, 20, 31))).keep(1, Fetching(((), (), ()), (0, 1, 2)))
    assert kept == [None, None]
