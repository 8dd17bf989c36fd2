"""Where objects lie in the world."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unet_engine.postprocess.base import Array
from unet_engine.volumes.base import Volume


@dataclass(frozen=True)
class World:
    """``world = origin + matrix @ voxel``, voxels in the order z, y, x, the world in the order x, y, z."""

    matrix: Array
    origin: Array
    unit: str | None
    crs: str | None
    space: str

    @classmethod
    def of(cls, volume: Volume) -> World:
        """By its frame, else by spacing and translation; voxels of one unit where neither is known."""
        frame, n = volume.frame, len(volume.shape)
        if frame:
            return cls(np.array(frame.matrix), np.array(frame.origin), volume.unit, frame.crs, frame.space)
        sizes = volume.spacing or (1.0,) * n
        matrix = np.zeros((n, n))
        for axis, size in enumerate(sizes):
            matrix[n - 1 - axis, axis] = size
        unit = volume.unit or ("voxel" if all(size == 1 for size in sizes) else None)
        return cls(matrix, np.array(volume.translation[::-1]), unit, None, "")

    @property
    def axes(self) -> str:
        return "xyz"[: len(self.origin)]

    @property
    def voxel(self) -> float:
        """The volume of a voxel, in 2D its area."""
        along = np.abs(self.matrix).max(0)
        if np.count_nonzero(self.matrix) == len(self.origin):
            return float(np.prod(along))  # as people would multiply it, without what a determinant rounds
        return float(abs(np.linalg.det(self.matrix)))

    def points(self, voxels: Array) -> Array:
        """The world's places of `voxels` (n, axes); a voxel's number is its middle."""
        return np.asarray(voxels @ self.matrix.T + self.origin)

    def boxes(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        """The least and greatest coordinates of half-open boxes of voxels, to the outer faces of their voxels."""
        middle, half = (lo + hi - 1) / 2, (hi - lo) / 2
        reach = half @ np.abs(self.matrix).T
        centre = self.points(middle)
        return centre - reach, centre + reach
