"""Pictures of places in a volume and what came out there, as PNG."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from unet_engine.output.colours import colour_of
from unet_engine.plan.box import Box
from unet_engine.prepare.prepare import Prepared
from unet_engine.volumes.base import Array, Volume
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.pick import ALL, Pick
from unet_engine.volumes.turned import as_stored

PLACES, DRAWN = 6, 3
"""Pictures, and how many of them are drawn without a look at what is there."""
LOOKED_AT = 24
"""Places looked at for others, with several labels."""
SIDE, LEAST_SIDE = 256, 192
"""Voxels of a picture along its sides at most; smaller ones are enlarged to the other."""
_STRENGTH = 0.55
"""Of a label's colour over the voxel's grey."""

Rgb = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    title: str
    voxels: bytes
    """PNG."""
    result: bytes
    """PNG: the result over the voxels."""


def pictures(prepared: Prepared, out: str, digest: str, pick: Pick = ALL) -> Iterator[Picture]:
    """Places of the finished output `out`, the same ones for the same run: some drawn, some of those looked at that
    have several labels. Raises what reading raises."""
    scan, result = as_stored(prepared.survey.scan), open_volume(out, None, pick)
    rng = np.random.default_rng(int(digest[:16], 16))
    drawn = 0
    for i in range(PLACES + LOOKED_AT):
        if drawn == PLACES:
            return
        box = _plane(result, rng)
        values = result.read(box)
        if drawn >= DRAWN and i < PLACES + LOOKED_AT - (PLACES - drawn) and values.min() == values.max():
            continue
        drawn += 1
        there = _there(prepared, scan, result, box)
        grey = _grey(scan.read(there)[:, *(0 if _thin(there, a) else slice(None) for a in range(there.ndim))])
        shown = values[:, *(0 if _thin(box, a) else slice(None) for a in range(box.ndim))]
        grey = _fitted(grey, shown.shape[1:])
        over = _coloured(prepared, shown, grey)
        where = ", ".join(
            f"{name} {lo}" if hi - lo == 1 else f"{name} {lo} to {hi}"
            for name, lo, hi in zip(result.spatial, box.lo, box.hi, strict=True)
        )
        yield Picture(f"{where} of the result", _png(grey), _png(over))


def _thin(box: Box, axis: int) -> bool:
    return axis < box.ndim - 2


def _plane(volume: Volume, rng: np.random.Generator) -> Box:
    """A piece of a plane along the two fastest axes."""
    sizes = [1] * (len(volume.shape) - 2) + [min(SIDE, n) for n in volume.shape[-2:]]
    lo = tuple(int(rng.integers(0, n - s + 1)) for n, s in zip(volume.shape, sizes, strict=True))
    return Box(lo, tuple(l + s for l, s in zip(lo, sizes, strict=True)))


def _there(prepared: Prepared, scan: Volume, result: Volume, box: Box) -> Box:
    """The same place in the volume that was read."""
    start = prepared.job.layout.start
    if start is not None:
        return box.shift(start)
    ratios = [n / m for n, m in zip(scan.shape, result.shape, strict=True)]  # a result on a grid of its own
    lo = tuple(min(n - 1, int(l * r)) for l, r, n in zip(box.lo, ratios, scan.shape, strict=True))
    hi = [max(l + 1, min(n, round(h * r))) for l, h, r, n in zip(lo, box.hi, ratios, scan.shape, strict=True)]
    return Box(lo, tuple(l + 1 if _thin(box, a) else h for a, (l, h) in enumerate(zip(lo, hi, strict=True))))


def _grey(voxels: Array) -> Rgb:
    """(channels, y, x) of any type as (y, x, 3): red, green and blue where there are three or four channels of bytes,
    else the first channel, from its 1st to its 99th percentile."""
    if voxels.dtype == np.uint8 and voxels.shape[0] in (3, 4):
        return np.ascontiguousarray(np.moveaxis(voxels[:3], 0, -1))
    values = voxels[0].astype(np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return np.zeros((*values.shape, 3), np.uint8)
    low, high = np.percentile(finite, (1, 99))
    scaled = np.nan_to_num((values - low) / max(high - low, 1e-12), nan=0.0, posinf=1.0, neginf=0.0)
    return np.repeat((np.clip(scaled, 0, 1) * 255).astype(np.uint8)[..., None], 3, -1)


def _fitted(image: Rgb, shape: Sequence[int]) -> Rgb:
    """Nearest voxels, where the result is on another grid."""
    if image.shape[:2] == tuple(shape):
        return image
    rows, columns = (np.arange(n) * m // n for n, m in zip(shape, image.shape[:2], strict=True))
    return np.ascontiguousarray(image[np.ix_(rows, columns)])


def _coloured(prepared: Prepared, values: Array, grey: Rgb) -> Rgb:
    """The result (channels, y, x) over the grey of its place."""
    spec, kind = prepared.job.model.spec, prepared.job.kind
    if spec.channels in ("image", "offsets"):
        return _grey(values)
    if kind == "labels":
        return _over(values[0], grey, spec.colours or ())
    if kind == "masks":
        last = values.shape[0] - np.argmax(values[::-1] != 0, axis=0)
        return _over(np.where((values != 0).any(0), last, 0), grey, ())
    if values.shape[0] > 1 and not spec.overlaps:
        return _over(np.argmax(values, 0), grey, spec.colours or ())
    return _grey(values.max(0, keepdims=True))


def _over(labels: Array, grey: Rgb, named: Sequence[str]) -> Rgb:
    shown, where = np.unique(labels, return_inverse=True)
    colours = np.array([colour_of(int(label), named) for label in shown], np.float64)
    strength = np.where(shown == 0, 0.0, _STRENGTH)[where.reshape(labels.shape)][..., None]
    mixed = grey * (1 - strength) + colours[where.reshape(labels.shape)] * strength
    found: Rgb = mixed.round().astype(np.uint8)
    return found


def _png(image: Rgb) -> bytes:
    from PIL import Image

    times = max(1, LEAST_SIDE // max(1, *image.shape[:2]))
    if prod(image.shape[:2]) and times > 1:
        image = np.repeat(np.repeat(image, times, 0), times, 1)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png", optimize=True)
    return file.getvalue()
