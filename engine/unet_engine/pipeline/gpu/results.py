"""What the device pipeline leaves of a block: its core on the device, its halos there or on the host. As `Predicted`
and `Halo` of a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from unet_engine.backends.base import Array
from unet_engine.pipeline.gpu.buffers import SumsSlot
from unet_engine.pipeline.gpu.kept import Kept
from unet_engine.pipeline.gpu.lane import Lane
from unet_engine.pipeline.job import Halo
from unet_engine.pipeline.sharing import ALONE, Sharing
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
    """Sums of one block: its core on the device, its halos there or on the host. See
    `unet_engine.pipeline.base.Predicted`."""

    task: Task
    core: DeviceCore | Array | None
    sent: tuple[tuple[Index, PinnedHalo | DeviceHalo], ...]

    def inside(self, box: Box) -> Any:
        """The sums in the core, which is all that stays."""
        assert box == self.task.block.core
        return self.core

    def halos(self) -> Iterator[tuple[Index, Halo]]:
        return iter(self.sent)

    def detached(self) -> DevicePredicted:
        """The same with nothing left on the device."""
        core, sent = self.core, tuple((to, halo.detached()) for to, halo in self.sent)
        if isinstance(core, DeviceCore):
            held, core = core, core.copy()
            held.release()
        return DevicePredicted(self.task, core, sent)


class PinnedHalo(Halo):
    """A halo in memory of its own, page-locked."""

    __slots__ = ()

    def copied(self, sharing: Sharing = ALONE) -> Halo:
        return self

    def detached(self) -> PinnedHalo:
        """The same on the host."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (Halo, (self.source, self.box, self.values))


class DeviceHalo(Halo):
    """A halo that stays on the device until it is merged there."""

    __slots__ = ("kept", "lane")
    kept: Kept
    lane: Lane

    def __init__(self, source: Index, box: Box, lane: Lane, kept: Kept) -> None:
        for name, value in (("source", source), ("box", box), ("lane", lane), ("kept", kept)):
            object.__setattr__(self, name, value)

    @property
    def values(self) -> Array:  # type: ignore[override]  # computed where it is a field
        """A copy on the host."""
        return self.lane.fetched(self.kept, self.box)

    def copied(self, sharing: Sharing = ALONE) -> Halo:
        return self

    def detached(self) -> PinnedHalo:
        """The same on the host; its room is given back."""
        values = self.values
        self.kept.release()
        return PinnedHalo(self.source, self.box, values)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Halo, (self.source, self.box, self.values))
