"""From normalisation schemes of nnU-Net, one per channel, to the one of a spec."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unet_engine.errors import ModelError
from unet_engine.model.normalization import Normalization, Pair
from unet_export.importers.nnunet.plans import PLANS, Configuration, Intensities, Plans

_ANY: Pair = (-3.0e38, 3.0e38)
"""Of a channel that is not clipped."""
_WORDS = {
    "CTNormalization": "ct",
    "NoNormalization": "none",
    "RGBTo01Normalization": "rgb",
    "ZScoreNormalization": "zscore",
    "RescaleTo01Normalization": "minmax",
}
_LEAST = 1e-8
"""Of a deviation, as nnU-Net divides."""


def normalization_of(folder: Path, plans: Plans, configuration: Configuration) -> tuple[Normalization, list[str]]:
    """What becomes of voxels, and what of that is not as nnU-Net does it. Raises `ModelError` for a scheme that is not
    known, and for channels of which some are measured and others not."""
    schemes = configuration.normalization_schemes
    unknown = [s for s in schemes if s not in _WORDS]
    advice = "say --normalize, see docs/normalisation.md"
    if unknown or not schemes:
        raise ModelError(
            f"{folder}: {PLANS}: the normalisation {', '.join(unknown) or 'of no channel'} is not known; {advice}"
        )
    words = [_WORDS[s] for s in schemes]
    if all(word in ("ct", "none", "rgb") for word in words):
        return _fixed(folder, plans, words), []
    if len(set(words)) > 1:
        raise ModelError(
            f"{folder}: its channels are normalised in different ways ({', '.join(schemes)}), some by what is measured of "
            f"the volume, and a model file has one way for all; normalise them yourself and {advice.replace('say', 'say how with')}"
        )
    if words[0] == "minmax":
        return Normalization(mode="minmax"), []
    return _zscore(configuration)


def _fixed(folder: Path, plans: Plans, words: Sequence[str]) -> Normalization:
    if set(words) == {"none"}:
        return Normalization(mode="none")
    mean, std, clip = [], [], []
    for channel, word in enumerate(words):
        known = plans.intensities.get(str(channel))
        if word == "ct" and known is None:
            raise ModelError(
                f"{folder}: {PLANS} lacks the intensities of channel {channel}, which CTNormalization needs; get the "
                "folder again"
            )
        if word == "ct":
            assert known is not None
            mean.append(known.mean)
            std.append(max(known.std, _LEAST))
            clip.append(_bounds(folder, channel, known))
        else:
            mean.append(0.0)
            std.append(255.0 if word == "rgb" else 1.0)
            clip.append(_ANY)
    clipped = any(pair != _ANY for pair in clip)
    return Normalization(mode="fixed", mean=tuple(mean), std=tuple(std), clip=tuple(clip) if clipped else None)


def _bounds(folder: Path, channel: int, known: Intensities) -> Pair:
    low, high = known.percentile_00_5, known.percentile_99_5
    if not low < high:
        raise ModelError(
            f"{folder}: {PLANS}: intensities of channel {channel} lie between {low:g} and {high:g}; get the folder again"
        )
    return low, high


def _zscore(configuration: Configuration) -> tuple[Normalization, list[str]]:
    masked = set(configuration.use_mask_for_norm)
    if masked == {True}:
        note = (
            "the mask of its z-score: here it is of each channel what is not 0, there what is not 0 in any, with holes "
            "filled"
        )
        return Normalization(mode="zscore", foreground="nonzero"), [note]
    if masked == {True, False}:
        note = "the mask of its z-score, which only some channels have: here all voxels of the volume count"
        return Normalization(mode="zscore"), [note]
    return Normalization(mode="zscore"), []
