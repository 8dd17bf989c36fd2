"""What the output array looks like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.output.header import ARRAY
from unet_engine.output.label import KEY, Label
from unet_engine.plan.box import Box
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.turn import Turn


@dataclass(frozen=True)
class Layout:
    """What the output array looks like. Spatial tuples follow `names`; the stored order is `stored`."""

    names: str
    stored: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    channels: int | None
    """None for labels, which have no channel axis; it is the first one otherwise."""
    dtype: str
    spacing: tuple[float, ...]
    translation: tuple[float, ...]
    unit: str | None
    classes: tuple[str, ...]
    frame: Frame | None = None
    """Where its voxels lie in the world, where spacing and translation do not say all of it."""
    turn: Turn | None = None
    """How the blocks that are written lie; None: as the output. All else here is as the output lies."""
    start: tuple[int, ...] | None = None
    """The voxel of the volume that its first one lies on; None where it is on a grid of its own."""
    begin: tuple[int, ...] | None = None
    """Where in the array what is written begins, which may be a part of it; None: with it. All else stays 0."""
    label: Label | None = None
    """What its labels are; None where voxels are something else."""

    def in_stored_order(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(values[self.names.index(a)] for a in self.stored)

    def target(self, box: Box) -> tuple[slice, ...]:
        """`box` of what is written, relative to the first voxel, in the array."""
        box = self.turn.stored_box(box) if self.turn else box
        box = box.shift(self.begin) if self.begin else box
        return (slice(None),) * (self.channels is not None) + self.in_stored_order(box.slices())

    def as_stored(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Values of a block, (*box.shape) or (channels, *box.shape), as a view in stored order."""
        lead = 0 if self.channels is None else 1
        values = self.turn.stored_view(values) if self.turn else values
        return values.transpose([*range(lead), *(lead + self.names.index(a) for a in self.stored)])

    @property
    def voxel_bytes(self) -> int:
        """Bytes written per voxel, all channels together."""
        return np.dtype(self.dtype).itemsize * (self.channels or 1)

    def ome(self, name: str) -> dict[str, Any]:
        """Multiscales metadata of OME-Zarr 0.5 with one resolution."""
        channel = self.channels is not None
        space = [{"name": a, "type": "space", **({"unit": self.unit} if self.unit else {})} for a in self.stored]
        ones, zeros = ([1.0], [0.0]) if channel else ([], [])
        transforms = [
            {"type": "scale", "scale": ones + list(self.in_stored_order(self.spacing))},
            {"type": "translation", "translation": zeros + list(self.in_stored_order(self.translation))},
        ]
        dataset = {"path": ARRAY, "coordinateTransformations": transforms}
        axes = ([{"name": "c", "type": "channel"}] if channel else []) + space
        scales = [{"name": name, "axes": axes, "datasets": [dataset]}]
        return {"version": "0.5", "multiscales": scales, **({KEY: self.label.facts()} if self.label else {})}
