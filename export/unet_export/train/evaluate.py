"""Predict a box of a volume in windows, to judge a network. Small and plain; the engine does this at speed."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unet_engine.plan.box import Box
from unet_export.train.data import LabelledVolume
from unet_export.train.geometry import output_margin
from unet_export.train.loss import dice_per_class
from unet_export.train.nets import UNet

TRIM = 8
"""A window's outer 1/TRIM on each side is replaced by a neighbour's centre, where there is one."""


def predict(
    model: UNet, volume: LabelledVolume, target: Box, *, normalization: tuple[Tensor, Tensor], window: tuple[int, ...]
) -> npt.NDArray[np.uint8]:
    """Class ids uint8 of the voxels in `target`.

    Windows may reach into the rest of the volume: context is input, not truth. Beyond the volume's edge they are
    filled by its outermost voxels.
    """
    config = model.config
    margin = output_margin(config)
    box = (1, *window) if config.dims == 2 else window
    margins = (0, margin, margin) if config.dims == 2 else (margin,) * 3
    inner = tuple(w - 2 * m for w, m in zip(box, margins, strict=True))
    trims = tuple(0 if m or n == 1 else n // TRIM for n, m in zip(inner, margins, strict=True))
    result = np.zeros(target.shape, np.uint8)
    shift, scale = normalization
    starts = [_starts(*axis) for axis in zip(target.lo, target.hi, volume.shape, inner, trims, strict=True)]
    model.eval()
    for start in itertools.product(*starts):
        x = (torch.from_numpy(_cut(volume.image, start, box, margins)) - shift) * scale
        with torch.inference_mode():
            y = model(x[None, :, 0] if config.dims == 2 else x[None])[0].argmax(0)
        labels = y.numpy().astype(np.uint8).reshape(inner)
        whole = Box(start, tuple(s + n for s, n in zip(start, inner, strict=True)))
        kept = Box(
            tuple(s + t if s > 0 else 0 for s, t in zip(start, trims, strict=True)),
            tuple(h - t if h < n else h for h, t, n in zip(whole.hi, trims, volume.shape, strict=True)),
        )
        kept &= target
        if not kept.is_empty:
            result[kept.relative_to(target.lo).slices()] = labels[kept.relative_to(start).slices()]
    return result


def held_out_dice(
    model: UNet, volume: LabelledVolume, held_out: Box, *, normalization: tuple[Tensor, Tensor], window: tuple[int, ...]
) -> tuple[float, ...]:
    """Dice per class on the held-out box."""
    predicted = predict(model, volume, held_out, normalization=normalization, window=window)
    truth = volume.labels[held_out.slices()]
    return dice_per_class(predicted, truth, model.config.classes, volume.ignore)


def _starts(low: int, high: int, size: int, inner: int, trim: int) -> list[int]:
    """Starts of output windows on one axis whose kept centres cover low … high."""
    last = max(0, min(size, high + trim) - inner)
    first = max(0, min(low - trim, last))
    return sorted({*range(first, last, max(1, inner - 2 * trim)), last})


def _cut(
    image: npt.NDArray[np.generic], start: tuple[int, ...], box: tuple[int, ...], margins: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    indices = [
        np.clip(np.arange(s - m, s - m + n), 0, size - 1)
        for s, m, n, size in zip(start, margins, box, image.shape[1:], strict=True)
    ]
    return image[np.ix_(np.arange(image.shape[0]), *indices)].astype(np.float32)
