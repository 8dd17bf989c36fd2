"""What a MONAI bundle does to a volume before its network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from unet_export.importers.intensity import Intensity


@dataclass
class Before:
    """What is done to a volume before the network."""

    intensity: Intensity = field(default_factory=Intensity)
    array_transforms: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Those of intensity, as classes of `monai.transforms` for arrays and their arguments, and ``CropForeground``."""
    spacing: tuple[float, ...] | None = None
    """In MONAI's order of axes, millimetres."""
    resampling: dict[str, Any] | None = None
    """How that is reached: fields of `Resampling` that concern the image; None: in a way that is not known."""
    orientation: str | None = None
    crop: float | None = None
    """What raw voxels exceed whose box is the volume from there on."""
    crop_margin: tuple[int, ...] = ()
    """By how many voxels that box is larger at each side, along each axis in MONAI's order, or along all."""
    pads: list[tuple[dict[str, Any], int]] = field(default_factory=list)
    """Padding of the whole volume, and how many of `array_transforms` come before it."""
    x_first: bool | None = None
    """Whether files are read with x first; None: nothing is read."""
    left_out: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    """What is not done here and makes other labels."""
