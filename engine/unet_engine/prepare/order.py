"""In which order blocks come where a volume is unpacked in large pieces, such as whole slices: what unpacking them again
costs is weighed against the windows of the columns that longer waiting halos may take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import permutations

from unet_engine.plan.memory import NoRoom, Sizes, fit
from unet_engine.plan.plan import Plan
from unet_engine.prepare.keeping import steps_to_keep, to_keep_unpacked, unpacked_bytes
from unet_engine.volumes.base import Volume

BYTES_A_SECOND = 300e6
"""That one core unpacks, about. An assumption: what is weighed differs by factors, and no byte depends on it."""
WORTH = 0.01
"""Part of a run's time that another order has to spare."""


@dataclass(frozen=True)
class Room:
    """What a plan has to fit, in one process on one device."""

    without_shelves: Sizes
    base: int
    budget: int
    seconds_per_window: float
    shelves: Callable[[Plan, Sizes], tuple[int, ...]] | None
    """Memory of the device for halos; None: they wait on the host."""

    def sizes(self, plan: Plan) -> Sizes:
        if self.shelves is None:
            return self.without_shelves
        return replace(self.without_shelves, shelves=self.shelves(plan, self.without_shelves))

    def fitted(self, plan: Plan, reserved: int) -> Plan | None:
        """The plan in as many columns as leave so many bytes; None where its blocks do not fit."""
        try:
            found = fit(plan, self.sizes(plan), self.base + reserved, self.budget, 1)
        except NoRoom:
            return None
        memory = replace(found.memory, base=found.memory.base - reserved)
        # other blocks would give other bytes
        return replace(found, memory=memory) if found.block == plan.block else None

    def seconds(self, scan: Volume, plan: Plan) -> float:
        """What windows and unpacking take together."""
        kept = to_keep_unpacked(scan, plan, self.budget - plan.memory.total)
        return plan.call_count * self.seconds_per_window + unpacked_bytes(scan, plan, kept) / BYTES_A_SECOND


def in_order(scan: Volume, plan: Plan, fitted: Plan, room: Room) -> Plan:
    """What is `fitted` of the plan, or the same blocks in the order and the columns that take least time; no byte
    changes. Where unpacking each piece again takes next to no time, nothing else is looked at."""
    if scan.units is not None or scan.pieces is None:
        return fitted
    least = (1 - WORTH) * room.seconds(scan, fitted)
    if least <= plan.call_count * room.seconds_per_window:
        return fitted
    for found in _others(scan, replace(plan, block=fitted.block), room):
        if (seconds := room.seconds(scan, found)) < least:
            fitted, least = found, seconds
    return fitted


def _others(scan: Volume, plan: Plan, room: Room) -> Iterator[Plan]:
    for order in permutations(range(len(plan.axes))):
        streamed = replace(plan, stream=order)
        for reserved in (0, *steps_to_keep(scan, streamed)):
            if (found := room.fitted(streamed, reserved)) is not None:
                yield found
