"""MONAI's own way over a whole volume: its transforms of intensity, its network, its sliding window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai import transforms
from monai.data.meta_tensor import MetaTensor
from monai.inferers.utils import sliding_window_inference
from monai.transforms.croppad.array import CropForeground
from monai.transforms.spatial.array import Spacing, SpatialResample

from unet_engine.units import silent
from unet_export.conversion.adapt import adapted
from unet_export.importers.base import Array
from unet_export.importers.monai.before import Before
from unet_export.importers.monai.transforms import CROP

ROUNDING = 1e-12
"""Of the largest output: less than that of a neighbour in a voxel that lies exactly in another one is a rounding error
of MONAI's, and next to the 0 around a box it alone would choose the label."""
_MODES = {0: "nearest", 1: "bilinear"}
"""By order."""


@dataclass(frozen=True)
class Predictor:
    """From a volume (c, [z,] y, x) to the outputs that MONAI blends, in the same order of axes; of one with a spacing,
    in that order too, brought to the network's, and its outputs back."""

    network: Any
    before: Before
    overlap: float
    mode: str
    padding: str
    x_first: bool
    back: int = 1
    """Order in which outputs come back to a volume's own grid."""
    head: str | None = None
    """Output that is meant, of several."""

    def __call__(self, volume: Array, window: tuple[int, ...], spacing: Sequence[float] | None = None) -> Array:
        image, roi, lengths = np.asarray(volume, np.float32), tuple(window), tuple(spacing or ())
        if self.x_first:
            image, roi, lengths = image.transpose(0, *range(image.ndim - 1, 0, -1)), roi[::-1], lengths[::-1]
        tensor: Any = torch.from_numpy(np.ascontiguousarray(image))
        result = self._resampled(tensor, roi, lengths) if lengths else self._cropped(tensor, roi)
        found = np.asarray(result, np.float32)
        return found.transpose(0, *range(found.ndim - 1, 0, -1)) if self.x_first else found

    def _cropped(self, tensor: Any, roi: tuple[int, ...]) -> Any:
        """Of what MONAI's CropForeground leaves of `tensor`; 0 outside."""
        boxes: list[tuple[Any, Any]] = []
        made = self._blended(self._normal(tensor, boxes), roi)
        for low, high in boxes:
            whole = torch.zeros(made.shape[0], *tensor.shape[1:])
            whole[(slice(None), *map(slice, low.tolist(), high.tolist()))] = made
            made = whole
        return made

    def _resampled(self, tensor: Any, roi: tuple[int, ...], lengths: tuple[float, ...]) -> Any:
        """Through MONAI's Spacing, and back to the grid of `tensor`."""
        assert self.before.resampling is not None
        assert self.before.spacing is not None
        affine = torch.diag(torch.tensor([*lengths, 1.0], dtype=torch.float64))
        first = self.before.resampling["first"] == "interpolated"
        there = MetaTensor(tensor if first else self._normal(tensor), affine=affine)
        mode = _MODES[self.before.resampling["image"]]
        moved = Spacing(self.before.spacing, mode=mode)(there)
        given = torch.as_tensor(np.asarray(moved), dtype=torch.float32)
        made = MetaTensor(self._cropped(given, roi) if first else self._blended(given, roi), affine=moved.affine)
        home = SpatialResample(mode=_MODES[self.back], padding_mode="border")
        found = home(made, dst_affine=affine, spatial_size=tensor.shape[1:])
        return torch.where(found.abs() < ROUNDING * found.abs().max(), torch.zeros_like(found), found)

    def _normal(self, tensor: Any, boxes: list[tuple[Any, Any]] | None = None) -> Any:
        """boxes: what is cropped to is put there; None: nothing is cropped."""
        for name, arguments in self.before.array_transforms:
            if name != CROP:
                tensor = getattr(transforms, name)(**arguments)(tensor)
            elif boxes is not None:
                tensor, low, high = CropForeground(**arguments, return_coords=True)(tensor)
                boxes.append((low, high))
        return torch.as_tensor(np.asarray(tensor), dtype=torch.float32)

    def _blended(self, tensor: Any, roi: tuple[int, ...]) -> Any:
        network = adapted(self.network, roi, tensor.shape[0], self.head, silent)
        with torch.inference_mode():
            made = sliding_window_inference(
                tensor[None], roi, 1, network, overlap=self.overlap, mode=self.mode, padding_mode=self.padding
            )
        return made[0]
