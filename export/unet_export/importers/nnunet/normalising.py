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
"""Of a deviation: nnU-Net divides by no less, so that channels whose voxels are all alike become 0."""


def normalization_of(folder: Path, plans: Plans, configuration: Configuration) -> Normalization:
    """What becomes of voxels. Raises `ModelError` for a scheme that is not known."""
    schemes = configuration.normalization_schemes
    unknown = [s for s in schemes if s not in _WORDS]
    advice = "say --normalize, see docs/normalisation.md"
    if unknown or not schemes:
        raise ModelError(
            f"{folder}: {PLANS}: the normalisation {', '.join(unknown) or 'of no channel'} is not known; {advice}"
        )
    words = [_WORDS[s] for s in schemes]
    if all(word in ("ct", "none", "rgb") for word in words):
        return _fixed(folder, plans, words)
    if len(set(words)) > 1:
        return _of_each(folder, plans, configuration, words)
    if words[0] == "minmax":
        return _measured("minmax")
    return _zscore(configuration)


def _fixed(folder: Path, plans: Plans, words: Sequence[str], first: int = 0) -> Normalization:
    """Of the channels from `first` on."""
    if set(words) == {"none"}:
        return Normalization(mode="none")
    mean, std, clip = [], [], []
    for channel, word in enumerate(words, first):
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


def _zscore(configuration: Configuration) -> Normalization:
    masked = set(configuration.use_mask_for_norm)
    if masked == {True, False} and len(configuration.use_mask_for_norm) == len(configuration.normalization_schemes):
        ways = [_masked() if masked else _measured("zscore") for masked in configuration.use_mask_for_norm]
        return Normalization(mode="each", each=tuple(ways))
    return _masked() if True in masked else _measured("zscore")


def _masked() -> Normalization:
    """Of what is not 0 in any channel, with holes filled: what nnU-Net crops to."""
    return Normalization(mode="zscore", foreground="filled", eps=_LEAST)


def _measured(mode: str) -> Normalization:
    return Normalization.model_validate({"mode": mode, "eps": _LEAST})


def _of_each(folder: Path, plans: Plans, configuration: Configuration, words: Sequence[str]) -> Normalization:
    """Of channels of which some are measured and others not."""
    masks = configuration.use_mask_for_norm
    ways = []
    for channel, word in enumerate(words):
        if word == "zscore" and bool(masks[channel : channel + 1] == (True,)):
            ways.append(_masked())
        elif word in ("zscore", "minmax"):
            ways.append(_measured(word))
        else:
            ways.append(_fixed(folder, plans, [word], channel))
    return Normalization(mode="each", each=tuple(ways))
