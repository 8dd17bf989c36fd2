"""A volume seen as a network wants it to lie. What is read is a view of what is stored: windows are cut from it along
other axes, and backwards."""

from __future__ import annotations

from dataclasses import dataclass

from unet_engine.plan.box import Box
from unet_engine.plan.fetching import Fetching
from unet_engine.profiling.recorder import PLAIN, Recorder
from unet_engine.volumes.base import Array, Volume
from unet_engine.volumes.cropped import Cropped
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.lens import Lens
from unet_engine.volumes.turn import Turn


@dataclass(frozen=True, eq=False)
class Turned(Lens):
    turn: Turn

    def there(self, box: Box) -> Box:
        return self.turn.stored_box(box)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.turn.seen(self.scan.shape)

    @property
    def chunks(self) -> tuple[int, ...]:
        return self.turn.seen(self.scan.chunks)

    @property
    def units(self) -> tuple[int, ...] | None:
        return self.scan.units and self.turn.seen(self.scan.units)

    @property
    def pieces(self) -> tuple[int, ...] | None:
        return self.scan.pieces and self.turn.seen(self.scan.pieces)

    def begins(self, pieces: tuple[int, ...]) -> tuple[int, ...]:
        sides = zip(self._stored_begins(pieces), self.shape, pieces, self.turn.backwards, strict=True)
        return tuple(-(begin + n) % piece if back else begin for begin, n, piece, back in sides)

    def _stored_begins(self, pieces: tuple[int, ...]) -> tuple[int, ...]:
        return self.turn.seen(self.scan.begins(self.turn.stored(pieces)))

    def keep(self, most: int, reads: Fetching | None) -> None:
        if reads is None or self.units is None:
            self.scan.keep(most, None)
            return
        sides = zip(self._stored_begins(self.units), self.shape, self.units, self.turn.backwards, strict=True)
        counts = [-(-(begin + n) // unit) if back else 0 for begin, n, unit, back in sides]
        self.scan.keep(most, reads.turned(self.turn.order, counts))

    @property
    def spacing(self) -> tuple[float, ...] | None:
        spacing = self.scan.spacing
        if spacing is None:
            return None
        return tuple(-s if b else s for s, b in zip(self.turn.seen(spacing), self.turn.backwards, strict=True))

    @property
    def translation(self) -> tuple[float, ...]:
        spacing = self.scan.spacing or (1.0,) * len(self.scan.shape)
        ends = [t + s * (n - 1) for t, s, n in zip(self.scan.translation, spacing, self.scan.shape, strict=True)]
        both = zip(self.turn.seen(self.scan.translation), self.turn.seen(ends), self.turn.backwards, strict=True)
        return tuple(end if back else begin for begin, end, back in both)

    @property
    def frame(self) -> Frame | None:
        return self.scan.frame and self.scan.frame.turned(self.turn.order, self.turn.backwards, self.scan.shape)

    def read(self, box: Box, recorder: Recorder = PLAIN) -> Array:
        """As `Volume.read`, but with any strides."""
        return self.turn.view(self.scan.read(self.there(box), recorder))


def turn_of(volume: Volume) -> Turn | None:
    """How a volume is turned; None where it is as it is stored."""
    volume = uncropped(volume)
    return volume.turn if isinstance(volume, Turned) else None


def as_stored(volume: Volume) -> Volume:
    """All of it, as it lies in its file."""
    volume = uncropped(volume)
    return volume.scan if isinstance(volume, Turned) else volume


def uncropped(volume: Volume) -> Volume:
    return volume.scan if isinstance(volume, Cropped) else volume
