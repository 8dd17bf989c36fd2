"""One pane as Neuroglancer asks for it: pieces of it in any of its resolutions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from neuroglancer.coordinate_space import CoordinateSpace
from neuroglancer.local_volume import LocalVolume, MeshesNotSupportedForVolume

from unet_engine.errors import UnetEngineError
from unet_engine.plan.box import Box
from unet_engine.viewing.levels import ANSWER
from unet_engine.viewing.panes import Pane
from unet_engine.volumes.base import Array

PLANE = 17
"""Voxels of a piece of a plane, as a power of two."""
MESHED = 2**25
"""Voxels of labels up to which the viewer gets the surfaces of objects; they are made of all of them at once."""

Asked = Callable[[Box, tuple[int, ...]], None]
"""Told of each piece that is asked for: in voxels of the full resolution, and how many of these one voxel spans."""


Over = Callable[[Box, tuple[int, ...], Array], None]
"""Changes the labels of a box of a resolution, (*box.shape)."""


class ServedVolume(LocalVolume):  # type: ignore[misc]  # the package has no types
    """Its axes are x, y, z and the channel, which is how C order of channel, z, y, x looks from the other end."""

    def __init__(self, pane: Pane, spacing: tuple[float, ...], unit: str, asked: Asked | None = None) -> None:
        """spacing: of the voxels that all panes are shown on, per axis z, y, x"""
        self._pane, self._asked = pane, asked
        self._over: Over | None = None
        volume = pane.volume
        channels = (volume.channels,) if pane.kind != "labels" and volume.channels > 1 else ()
        self._type = _shown_type(volume.dtype, pane.kind)
        self._array = _Shape((*reversed(volume.shape), *channels), self._type)
        self._meshing = threading.Lock()
        names = ["xyz"["zyx"[::-1].index(a)] for a in reversed(volume.spatial)]
        super().__init__(
            self._array,
            dimensions=CoordinateSpace(
                names=[*names, *(["c^"] if channels else [])],
                units=[*([unit] * len(names)), *([""] if channels else [])],
                scales=[*reversed(spacing), *([1] if channels else [])],
            ),
            volume_type="segmentation" if pane.kind == "labels" else "image",
            encoding="raw",
            # planes are shown: of cubes most would be fetched and drawn for nothing
            chunk_layout="flat",
            max_voxels_per_chunk_log2=PLANE,
            max_downsampling=pane.levels.coarsest,
        )

    def overlaid(self, over: Over) -> None:
        """Have `over` change what is answered."""
        self._over = over

    def get_encoded_subvolume(self, data_format: str, start: Any, end: Any, scale_key: str) -> tuple[bytes, str]:
        """What is between `start` and `end` of the resolution that `scale_key` names. Raises `ValueError` for what
        there is not, which is answered with 400."""
        rank = len(self._pane.volume.shape)
        given = [int(f) for f in scale_key.split(",")]
        if len(given) != self.rank or len(start) != self.rank or len(end) != self.rank:
            raise ValueError("of another number of axes")
        factors = tuple(reversed(given[:rank]))
        shape = self._pane.volume.shape
        box = Box(tuple(int(x) for x in reversed(start[:rank])), tuple(int(x) for x in reversed(end[:rank])))
        there = Box.of_shape([-(-n // f) for n, f in zip(shape, factors, strict=True)]) if min(given) > 0 else None
        if there is None or prod(factors) > self.max_downsampling or box.is_empty or not there.contains(box):
            raise ValueError("outside of the volume")
        if box.size > 8 * ANSWER or data_format != "raw":
            raise ValueError("more than is given at once")
        try:
            return self._voxels(box, factors).tobytes(), "application/octet-stream"
        except UnetEngineError as error:
            raise ValueError(str(error)) from error

    def _voxels(self, box: Box, factors: tuple[int, ...]) -> Array:
        """(channels, *box.shape), or of labels (*box.shape)."""
        if self._asked:
            self._asked(_full(box, factors, self._pane.volume.shape), factors)
        labels = self._pane.kind == "labels"
        voxels = self._pane.levels.read(box, factors, mean=not labels)
        if not labels:
            return np.ascontiguousarray(voxels, self._type)
        found = np.ascontiguousarray(voxels[0], self._type)
        if self._over:
            self._over(box, factors, found)
        return found

    def get_object_mesh(self, object_id: int) -> bytes:
        """Of small volumes alone: it takes all voxels at once."""
        volume = self._pane.volume
        if self._asked or prod(volume.shape) > MESHED or len(volume.shape) != 3:
            raise MeshesNotSupportedForVolume
        # One at a time: who comes while the package makes surfaces waits for it inside, for ever where that fails.
        with self._meshing:
            try:
                if self._mesh_generator is None:
                    self._mesh_generator_pending = None
                    self._array.whole = self._voxels(Box.of_shape(volume.shape), (1, 1, 1))
                mesh: bytes = super().get_object_mesh(object_id)
            except UnetEngineError as error:
                raise MeshesNotSupportedForVolume from error
            finally:
                self._array.whole = None
        return mesh


class _Shape:
    """What `LocalVolume` wants to know of an array."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        self.whole: Array | None = None

    def transpose(self) -> Array:
        """All voxels, z, y, x: asked for surfaces alone."""
        assert self.whole is not None
        return self.whole


def _full(box: Box, factors: tuple[int, ...], shape: tuple[int, ...]) -> Box:
    return Box(
        tuple(l * f for l, f in zip(box.lo, factors, strict=True)),
        tuple(min(h * f, n) for h, f, n in zip(box.hi, factors, shape, strict=True)),
    )


def _shown_type(dtype: np.dtype[Any], kind: str) -> np.dtype[Any]:
    """What the viewer knows of. Labels are never negative."""
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if kind == "labels":
        return np.dtype(f"u{dtype.itemsize}") if dtype.kind in "iu" else np.dtype(np.uint32)
    return np.dtype(np.float32) if dtype.kind == "f" or dtype.itemsize == 8 else dtype
