"""A volume seen through something: what it says of itself is what lies behind, unless the lens says otherwise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from unet_engine.plan.box import Box
from unet_engine.plan.fetching import Fetching
from unet_engine.volumes.base import Volume
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.nodata import Missing
from unet_engine.volumes.pick import Pick


@dataclass(frozen=True, eq=False)
class Lens(ABC):
    """What a volume says of itself when it is seen on another grid, or turned. Spatial tuples follow `spatial`."""

    scan: Volume
    """What is looked at."""

    @abstractmethod
    def there(self, box: Box) -> Box:
        """The voxels of the scan that those of `box` are made of."""

    @property
    def path(self) -> str:
        return self.scan.path

    @property
    def axes(self) -> str:
        return self.scan.axes

    @property
    def opened_by_axes(self) -> str:
        return self.scan.opened_by_axes

    @property
    def supposed(self) -> str:
        return self.scan.supposed

    @property
    def spatial(self) -> str:
        return self.scan.spatial

    @property
    def stored_spatial(self) -> str:
        return self.scan.stored_spatial

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """As it is stored."""
        return self.scan.stored_shape

    @property
    def channels(self) -> int:
        return self.scan.channels

    @property
    def channel_names(self) -> tuple[str, ...]:
        return self.scan.channel_names

    @property
    def timepoints(self) -> int:
        return self.scan.timepoints

    def picked(self, pick: Pick) -> Volume:
        return replace(self, scan=self.scan.picked(pick))  # type: ignore[return-value]  # `read` is the subclass's

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.scan.dtype

    @property
    def voxel_bytes(self) -> int:
        return self.dtype.itemsize * self.channels

    @property
    def chunk_bytes(self) -> int:
        return self.scan.chunk_bytes

    @property
    def unit(self) -> str | None:
        return self.scan.unit

    @property
    def frame(self) -> Frame | None:
        return self.scan.frame

    @property
    def fill_value(self) -> float:
        return self.scan.fill_value

    @property
    def missing(self) -> Missing:
        return self.scan.missing

    @property
    def alpha(self) -> int | None:
        return self.scan.alpha

    @cached_property
    def validity(self) -> Volume | None:
        return self.scan.validity and replace(self, scan=self.scan.validity)  # type: ignore[return-value]

    @cached_property
    def gaps(self) -> Volume | None:
        return self.scan.gaps and replace(self, scan=self.scan.gaps)  # type: ignore[return-value]

    @property
    def drawback(self) -> str | None:
        return self.scan.drawback

    @property
    def notes(self) -> tuple[str, ...]:
        return self.scan.notes

    def with_missing(self, values: Missing) -> Volume:
        return replace(self, scan=self.scan.with_missing(values))  # type: ignore[return-value]  # `read` is the subclass's

    def taken_whole(self) -> Volume:
        return replace(self, scan=self.scan.taken_whole())  # type: ignore[return-value]

    def has_data(self, box: Box) -> bool:
        return self.scan.has_data(self.there(box))

    def changed(self, box: Box, since: float) -> str | None:
        return self.scan.changed(self.there(box), since)

    def token(self, box: Box) -> tuple[str, str] | None:
        return self.scan.token(self.there(box))

    def confirm(self) -> None:
        self.scan.confirm()

    @property
    def units(self) -> tuple[int, ...] | None:
        return self.scan.units

    @property
    def pieces(self) -> tuple[int, ...] | None:
        return self.scan.pieces

    def begins(self, pieces: tuple[int, ...]) -> tuple[int, ...]:
        return self.scan.begins(pieces)

    @property
    def packed(self) -> float:
        return self.scan.packed

    @property
    def fetches(self) -> int:
        return self.scan.fetches

    def keep(self, most: int, reads: Fetching | None) -> None:
        self.scan.keep(most, None)  # who sees another grid says what of `reads` is meant

    def fetch(self, box: Box) -> None:
        self.scan.fetch(self.there(box))

    def hold(self, most: int) -> None:
        self.scan.hold(most)

    @property
    def held_bytes(self) -> int:
        return self.scan.held_bytes

    def release(self) -> None:
        self.scan.release()

    def facts(self) -> dict[str, Any]:
        return self.scan.facts()
