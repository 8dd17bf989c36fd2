"""How the processes of a run on this machine share its ``--memory``: the workers have what this one does not take,
which is client, scheduler and the workers' nannies in one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from unet_engine import machine
from unet_engine.errors import PlanError
from unet_engine.plan.memory import NoRoom
from unet_engine.units import size

if TYPE_CHECKING:
    from distributed import Client

GROWS = 8 * 2**20
"""Bytes that this process takes more once blocks are under way: messages, events, what is shown."""


@dataclass(frozen=True)
class Sharing:
    total: int
    """Bytes of all processes together."""
    workers: int
    office: int
    """Bytes of those that are no workers."""

    @classmethod
    def of(cls, client: Client, total: int, workers: int, least: int) -> Sharing:
        """Measured now. Raises `PlanError` where a worker would have less than `least` bytes."""
        theirs = set(client.run(os.getpid).values())
        others = [p.pid for p in psutil.Process().children(recursive=True) if p.pid not in theirs]
        office = machine.proportional_bytes() + sum(map(machine.proportional_bytes, others)) + GROWS
        found = cls(total, workers, office)
        if found.each < least:
            raise PlanError(
                f"--memory {size(total)}: scheduler and client take {size(office)}, and {workers} worker(s) need "
                f"{size(least)} each at the least; use fewer --workers, or --memory {found.enough(least)}"
            )
        return found

    @property
    def each(self) -> int:
        """Bytes of each worker, of pages that several processes share its part."""
        return (self.total - self.office) // self.workers

    def enough(self, each: int) -> str:
        """What to give as ``--memory`` for workers of so many bytes."""
        return f"{-(-(self.office + self.workers * each) // 2**20)}MiB"

    def allowed(self) -> int:
        """Bytes that this process, a worker, may hold as the system counts it: all pages that it has, shared or not."""
        return self.each + _shared()

    def refusal(self, error: NoRoom) -> PlanError:
        """What is said where the plan of a worker has no room in that."""
        need = error.need - _shared()
        return PlanError(
            f"the smallest plan needs {size(need)} in each of {self.workers} workers, and has {size(self.each)}: of "
            f"--memory {size(self.total)}, {size(self.office)} are taken by scheduler and client; use fewer --workers, a "
            f"smaller --window, or --memory {self.enough(error.enough - _shared())}"
        )


def _shared() -> int:
    return max(0, machine.resident_bytes() - machine.proportional_bytes())
