"""What a MONAI bundle puts around volumes, and whether that is what a run does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unet_export.importers.monai.before import Before
from unet_export.importers.monai.loading import odd_pad, of_pad
from unet_export.importers.monai.transforms import before_of

Kwargs = Mapping[str, Any]


def about_pads(found: Before, roi: Sequence[int] | None) -> list[str]:
    """Padding that makes other labels: all but zeros, as the network sees them, that make an image as large as the
    window, which a run puts there itself."""
    other = []
    for kwargs, done in found.pads:
        size, window = kwargs.get("spatial_size"), tuple(roi or ())
        sizes = [size] * len(window) if isinstance(size, int) else size
        listed = list(sizes) if isinstance(sizes, list | tuple) else []
        whole = len(listed) == len(window) > 0 and all(n <= w for n, w in zip(listed, window, strict=True))
        if not whole:
            other.append(
                f"padding of the whole volume ({of_pad(kwargs)}): windows at its border are of the volume as it is"
            )
        elif odd_pad(kwargs) or not _zero_behind(found.array_transforms[done:]):
            other.append(
                f"padding ({of_pad(kwargs)}) with what is not 0 for the network: around volumes smaller than the window "
                "there are zeros here, and larger ones are the same"
            )
    return other


def _zero_behind(transforms: Sequence[tuple[str, dict[str, Any]]]) -> bool:
    """Whether a voxel of 0 is 0 behind these. What is measured of voxels that are not 0 leaves it so, and what is
    measured of others is told by `about_measured_pads`."""
    said = before_of(
        [{"_target_": name, **arguments} for name, arguments in transforms if _is_fixed(name, arguments)]
    ).intensity
    if said.steps:
        return False
    clip = said.clip or ((-float("inf"), float("inf")),)
    low, high, gain, offset = np.broadcast_arrays(*np.transpose(clip), said.gain, said.offset)
    return bool((np.abs(np.clip(0.0, low, high) * gain + offset) < _SLIGHT).all())


def _is_fixed(name: str, arguments: Kwargs) -> bool:
    """Whether a transform gives all voxels of 0 the same value in any volume."""
    given = arguments.get("subtrahend") is not None and arguments.get("divisor") is not None
    fixed = name == "NormalizeIntensity" and given and not arguments.get("nonzero")
    return fixed or name in ("ScaleIntensityRange", "ThresholdIntensity", "ShiftIntensity")


_SLIGHT = 1e-6
