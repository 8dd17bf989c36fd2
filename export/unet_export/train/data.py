"""Training data: load an image with its labels, check both, normalise, cut random windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unet_engine.errors import DataError, InputError, SettingsError
from unet_engine.model.normalization import Normalization
from unet_engine.plan.box import Box
from unet_engine.volumes.normalize import scaling
from unet_export.train.augment import Augmentation, vary
from unet_export.train.geometry import UNetConfig, check_window, output_margin


@dataclass(frozen=True)
class LabelledVolume:
    """image (c, z, y, x) in raw units and labels (z, y, x) of class ids; a 2D image has one z-slice.

    `ignore` is the id of voxels that nobody labelled. Raises where the two do not fit each other.
    """

    image: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    ignore: int | None = None

    def __post_init__(self) -> None:
        if self.image.shape[1:] != self.labels.shape:
            raise InputError(
                f"the image has shape {self.image.shape[1:]}, its labels {self.labels.shape}; give both on one grid"
            )
        if not np.issubdtype(self.labels.dtype, np.integer):
            raise InputError(f"labels are {self.labels.dtype}; give integer class ids")
        if self.labels.size == 0:
            raise InputError("the label image has no voxels; give a larger one")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.labels.shape)

    def check_classes(self, classes: int) -> None:
        """Raise `DataError` unless labels are 0 … classes-1 or `ignore`, and at least two different ones occur."""
        found = np.unique(self.labels)
        found = found[found != self.ignore] if self.ignore is not None else found
        wrong = found[(found < 0) | (found >= classes)]
        if wrong.size:
            raise DataError(
                f"label {wrong[0]} is out of range for {classes} classes (0 to {classes - 1}); "
                "name more classes or pass it as --ignore"
            )
        if found.size < 2:
            what = f"hold class {found[0]} alone" if found.size else "are all ignored"
            raise DataError(f"the labels {what}, so there is nothing to learn; check the label image")

    def part(self, box: Box) -> LabelledVolume:
        inside = box.slices()
        return LabelledVolume(self.image[(slice(None), *inside)], self.labels[inside], self.ignore)


def load(image: str | Path, labels: str | Path, *, axes: str = "zyx", ignore: int | None = None) -> LabelledVolume:
    """Read TIFF, NumPy or Zarr. `axes` names those of the image in array order: zyx, yx, yxc, czyx, …

    Labels have the same axes without c. Raises `InputError` for a file that is missing, unknown or has other axes.
    """
    if len(set(axes)) != len(axes) or set(axes) - set("czyx") or not {"y", "x"} <= set(axes):
        raise SettingsError(f"axes {axes!r} are not understood; use letters of c, z, y, x, such as zyx or yxc")
    return LabelledVolume(
        _ordered(read_array(image), axes, "czyx", image),
        _ordered(read_array(labels), axes.replace("c", ""), "zyx", labels),
        ignore,
    )


def read_array(path: str | Path) -> npt.NDArray[Any]:
    """The array in a .tif, .tiff or .npy file, or in a Zarr array's folder."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path")
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            import tifffile

            return np.asarray(tifffile.imread(path))
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        if path.is_dir():
            import zarr

            node = zarr.open(path, mode="r")
            if isinstance(node, zarr.Array):
                return np.asarray(node[...])
            raise InputError(f"{path} is a Zarr group; name one array in it")
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} cannot be read ({error}); check that the file is whole") from error
    raise InputError(f"{path} is no TIFF, .npy or Zarr array; convert it to one of these")


def _ordered(array: npt.NDArray[Any], axes: str, wanted: str, path: str | Path) -> npt.NDArray[Any]:
    if array.ndim != len(axes):
        raise InputError(f"{path} has {array.ndim} axes {array.shape}, not {len(axes)} ({axes}); pass its --axes")
    present = [axes.index(axis) for axis in wanted if axis in axes]
    missing = [i for i, axis in enumerate(wanted) if axis not in axes]
    return np.expand_dims(array.transpose(present), missing)


def shift_scale(normalization: Normalization, image: npt.NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Global (shift, scale) per channel of image (c, z, y, x) for ``(x - shift) * scale``, float32 (c, 1, 1, 1).

    Raises `SettingsError` for a normalisation that is more than that, and `DataError` where voxels do not tell."""
    if not normalization.is_affine:
        raise SettingsError(
            f"--normalize {normalization}: training neither clips nor leaves a background out; prepare the image so, "
            "train with --normalize none, and name what was done in export --normalize"
        )
    if normalization.looks and not all(np.isfinite(c).all() and c.min() < c.max() for c in image):
        raise DataError(f"{normalization} needs finite voxels that differ; check the image")
    found = scaling(normalization, list(image))
    shift, scale = (torch.tensor(v, dtype=torch.float32).reshape(-1, 1, 1, 1) for v in (found.shift, found.scale))
    return shift, scale


def hold_out(volume: LabelledVolume, thickness: int) -> tuple[Box, Box]:
    """(train, held out): the last `thickness` slices of z (of y, for a single slice) are kept from training."""
    axis = 0 if volume.shape[0] > 1 else 1
    length = volume.shape[axis]
    if not 0 < thickness < length:
        raise SettingsError(f"cannot hold out {thickness} of {length} slices; choose 1 to {length - 1}")
    cut = list(volume.shape)
    cut[axis] = length - thickness
    start = [0] * 3
    start[axis] = length - thickness
    return Box((0, 0, 0), tuple(cut)), Box(tuple(start), volume.shape)


def batches(
    volume: LabelledVolume,
    config: UNetConfig,
    *,
    normalization: tuple[Tensor, Tensor],
    window: tuple[int, ...],
    batch: int,
    how: Augmentation,
    rng: np.random.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless random windows: image float32 (batch, c, *window), labels int64 (batch, *output of the network).

    A 2D network gets windows of single z-slices. Raises `SettingsError` if the volume is smaller than the window.
    """
    box = (1, *window) if config.dims == 2 else window
    check_window(config, window)
    if any(n < w for n, w in zip(volume.shape, box, strict=True)):
        raise SettingsError(f"the window {window} is larger than the volume {volume.shape}; choose a smaller one")
    shift, scale = normalization
    margin = output_margin(config)
    kept = (slice(margin, -margin or None),) * config.dims
    while True:
        images, labels = [], []
        for _ in range(batch):
            start = [int(rng.integers(0, n - w + 1)) for n, w in zip(volume.shape, box, strict=True)]
            piece = volume.part(Box(tuple(start), tuple(s + w for s, w in zip(start, box, strict=True))))
            x = (torch.from_numpy(piece.image.astype(np.float32)) - shift) * scale
            y = torch.from_numpy(piece.labels.astype(np.int64))
            if config.dims == 2:
                x, y = x[:, 0], y[0]
            x, y = vary(x, y, rng, how)
            images.append(x)
            labels.append(y[kept])
        yield torch.stack(images), torch.stack(labels)
