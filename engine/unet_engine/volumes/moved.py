"""A volume seen from another corner: what lies before it is left out, so that windows lie elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

from unet_engine.plan.box import Box
from unet_engine.profiling.recorder import PLAIN, Recorder
from unet_engine.volumes.base import Array
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.lens import Lens


@dataclass(frozen=True, eq=False)
class Moved(Lens):
    offset: tuple[int, ...]
    """Voxels left out in front, along each axis."""

    def there(self, box: Box) -> Box:
        return box.shift(self.offset)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(n - o for n, o in zip(self.scan.shape, self.offset, strict=True))

    @property
    def chunks(self) -> tuple[int, ...]:
        return self.scan.chunks

    @property
    def spacing(self) -> tuple[float, ...] | None:
        return self.scan.spacing

    @property
    def translation(self) -> tuple[float, ...]:
        spacing = self.scan.spacing or (1.0,) * len(self.offset)
        return tuple(t + s * o for t, s, o in zip(self.scan.translation, spacing, self.offset, strict=True))

    @property
    def frame(self) -> Frame | None:
        return self.scan.frame and self.scan.frame.moved(self.offset)

    def read(self, box: Box, recorder: Recorder = PLAIN) -> Array:
        return self.scan.read(self.there(box), recorder)
