"""What the device pipeline leaves of a block: its core on the device, its halos on the host. As `Predicted` and `Halo`
of a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from unet_engine.backends.base import Array
from unet_engine.pipeline.gpu.buffers import SumsSlot
from unet_engine.pipeline.gpu.lane import Lane
from unet_engine.pipeline.job import Halo
from unet_engine.plan.box import Box
from unet_engine.plan.plan import Index, Task


@dataclass
class DeviceCore:
    """The sums of a block's core, on the device until `release`."""

    lane: Lane
    task: Task
    slot: SumsSlot | None

    def copy(self) -> Array:
        """The same on the host: (channels out, *task.block.core.shape) float32."""
        assert self.slot is not None
        return self.lane.download(self.task, self.slot)

    def release(self) -> None:
        """Let the next block have the memory. What was queued before still runs."""
        if self.slot is not None:
            self.lane.buffers.give_sums(self.slot)
            self.slot = None


@dataclass
class DevicePredicted:
    """Sums of one block: its core on the device, its halos on the host. See `unet_engine.pipeline.base.Predicted`."""

    task: Task
    core: DeviceCore | Array | None
    sent: tuple[tuple[Index, Halo], ...]

    def inside(self, box: Box) -> Any:
        """The sums in the core, which is all that stays."""
        assert box == self.task.block.core
        return self.core

    def halos(self) -> Iterator[tuple[Index, Halo]]:
        return iter(self.sent)

    def detached(self) -> DevicePredicted:
        """The same with nothing left on the device."""
        if isinstance(self.core, DeviceCore):
            core = self.core.copy()
            self.core.release()
            return DevicePredicted(self.task, core, self.sent)
        return self


class PinnedHalo(Halo):
    """A halo in memory of its own, page-locked."""

    __slots__ = ()

    def copied(self) -> Halo:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (Halo, (self.source, self.box, self.values))
