"""Whether the voxels that a network is fed look like those it was trained on, as far as the model file tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.model.file import ModelFile
from unet_engine.model.onnx_beginning import first_layer
from unet_engine.model.origins import said_beside
from unet_engine.model.verdict import LEVELS, difference
from unet_engine.volumes.normalize import Scaling

FAR = 20.0
"""Nothing that networks are fed goes so far from 0, where it was scaled at all: 99 % of z-scores lie within 10 of the
mean whatever their distribution (Chebyshev), and what is scaled to 0 to 1 lies nearer still. Grey levels do."""
FLAT = 1e-3
"""A range of all voxels below which convolutions see next to nothing: physical units that were never scaled."""
UNIT = (-2.0, 3.0, 0.02)
"""Where values are scaled to 0 to 1: how far the 1 and 99 % quantiles may lie outside, and the least they are apart."""
_TO_UNIT = ("range", "minmax", "percentile")
_DOUBTED = ("none", *_TO_UNIT)
"""Normalisations after which values may be what no network is trained on."""
UNLIKE = 1.0
"""Quantiles unlike those of training: moved by the distance from the first to the last, or that much wider."""
NARROW = 0.05
"""All voxels together span less than this part of the distance that the quantiles of training do."""
LOOKED_AT = 2**18
"""Voxels per channel whose quantiles are taken; more say nothing more."""


@dataclass(frozen=True)
class Seen:
    """Normalised voxels of one channel."""

    quantiles: tuple[float, ...]
    """At the levels of `unet_engine.model.verdict.LEVELS`."""
    span: float
    """From the least to the largest."""

    @property
    def text(self) -> str:
        return f"{self.quantiles[0]:.4g} to {self.quantiles[-1]:.4g}"


def unlikely(model: ModelFile, values: Sequence[npt.NDArray[Any]], scale: Scaling, *, said: bool) -> str:
    """Why `values` (one array of any shape per channel), normalised by `scale`, are none that `model` was trained on,
    and what to do; empty where nothing speaks against it.

    said: whether the user named the normalisation. What was said, with it or beside the file, is doubted only where the
    model tells what it was trained on.
    """
    if not model.spec.input_quantiles and (said or model.spec.normalization.mode not in _DOUBTED):
        return ""  # nobody asks
    channels = [_seen(v, scale, c) for c, v in enumerate(values)]
    if not all(c.span for c in channels):  # a volume of one value tells nothing
        return ""
    if model.spec.input_quantiles:
        return _unlike_training(channels, model)
    for number, seen in enumerate(channels):
        reason = _unlike_any(seen, model, number)
        if reason and not said_beside(model, "normalization"):
            return reason if len(channels) == 1 else f"channel {number}: {reason}"
    return ""


def _seen(values: npt.NDArray[Any], scale: Scaling, channel: int) -> Seen:
    flat = np.asarray(values).ravel()
    flat = flat[np.isfinite(flat)] if flat.dtype.kind == "f" else flat
    flat = flat[:: -(-flat.size // LOOKED_AT) or 1]
    if not flat.size:
        return Seen((0.0,) * len(LEVELS), 0.0)
    fed = scale.normalised(flat.astype(np.float64), channel)
    return Seen(tuple(float(v) for v in np.percentile(fed, LEVELS)), float(np.ptp(fed)))


def _unlike_training(channels: Sequence[Seen], model: ModelFile) -> str:
    theirs = model.spec.input_quantiles or ()
    apart = difference(tuple(c.quantiles for c in channels), theirs, UNLIKE)
    for seen, trained in zip(channels, theirs, strict=False):
        if seen.span < NARROW * (trained[-1] - trained[0]):
            apart = apart or f"values span {seen.span:.3g} here and {trained[-1] - trained[0]:.3g} there"
    if not apart:
        return ""
    return (
        f"after --normalize {model.spec.normalization} the voxels differ from those that {model.path.name} was "
        f"trained on ({apart}); check --normalize, and that it is the same kind of image"
    )


def _unlike_any(seen: Seen, model: ModelFile, channel: int) -> str:
    normalization = model.spec.normalization
    if normalization.mode == "none":
        return _unscaled(seen, model, channel)
    least, most, apart = UNIT
    low, high = seen.quantiles[0], seen.quantiles[-1]
    scaled = normalization.mode in _TO_UNIT
    if scaled and (low < least or high > most or high - low < apart):
        return f"voxels are {seen.text} after --normalize {normalization}, and 0 to 1 is meant; {_REMEDY}"
    return ""


def _unscaled(seen: Seen, model: ModelFile, channel: int) -> str:
    ends = seen.quantiles[0], seen.quantiles[-1]
    inside = first_layer(model.path, *ends, channel) if model.format == "onnx" else ends
    if inside is None:  # the network normalises what it is given
        return ""
    if max(abs(inside[0]), abs(inside[1])) > FAR:
        return f"voxels are {seen.text} and --normalize is none: networks are trained on values around 0; {_REMEDY}"
    if seen.span < FLAT and inside == ends:
        return (
            f"all voxels lie within {seen.span:.2g} and --normalize is none: a network sees next to nothing; {_REMEDY}"
        )
    return ""


_REMEDY = "use --normalize as in training, e.g. zscore, or none if that was on these very values"
