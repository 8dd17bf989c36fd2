"""MONAI's own way over a whole volume: its transforms of intensity, its network, its sliding window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai import transforms
from monai.inferers.utils import sliding_window_inference

from unet_export.importers.base import Array
from unet_export.importers.monai.transforms import Before


@dataclass(frozen=True)
class Predictor:
    """From a volume (c, [z,] y, x) to the outputs that MONAI blends, in the same order of axes."""

    network: Any
    before: Before
    overlap: float
    mode: str
    padding: str
    x_first: bool

    def __call__(self, volume: Array, window: tuple[int, ...]) -> Array:
        image, roi = np.asarray(volume, np.float32), tuple(window)
        if self.x_first:
            image, roi = image.transpose(0, *range(image.ndim - 1, 0, -1)), roi[::-1]
        tensor: Any = torch.from_numpy(np.ascontiguousarray(image))
        for name, arguments in self.before.array_transforms:
            tensor = getattr(transforms, name)(**arguments)(tensor)
        tensor = torch.as_tensor(np.asarray(tensor), dtype=torch.float32)
        with torch.inference_mode():
            made = sliding_window_inference(
                tensor[None], roi, 1, self._first, overlap=self.overlap, mode=self.mode, padding_mode=self.padding
            )
        result = np.asarray(made[0], np.float32)
        return result.transpose(0, *range(result.ndim - 1, 0, -1)) if self.x_first else result

    def _first(self, x: Any) -> Any:
        made = self.network(x)
        while isinstance(made, list | tuple):
            made = made[0]
        return made[:, 0] if made.dim() == x.dim() + 1 else made
