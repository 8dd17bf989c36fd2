"""What is decided for a run where its settings leave it open. The settings themselves stay as the user gave them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from unet_engine.model.spec import ModelSpec
from unet_engine.pipeline.reduction import Kind
from unet_engine.plan.box import Box
from unet_engine.plan.grid import Blend
from unet_engine.plan.poses import UPRIGHT, Pose
from unet_engine.plan.resampling import AxisResampling
from unet_engine.prepare.augmentation import poses_of
from unet_engine.settings.settings import Settings
from unet_engine.settings.text import parse_part
from unet_engine.settings.values import KEEP


@dataclass(frozen=True)
class Tiling:
    """How windows lie over the volume, and how they are put together."""

    window: tuple[int, ...]
    """Input size per axis of the model."""
    overlap: float | None
    """Fraction by which neighbours overlap. None: `shared` says it."""
    blend: Blend
    shared: tuple[int, ...] | None = None
    """Per axis of the model, the least voxels that neighbours share: windows are then spread evenly."""

    def __str__(self) -> str:
        """As ``--tiling`` takes it, where windows are spread evenly."""
        window = ",".join(map(str, self.window))
        if self.shared is None:
            return f"{window}, overlap {self.overlap:g}, {self.blend}"
        return f"{window}:{','.join(map(str, self.shared))}:{self.blend}"


@dataclass(frozen=True)
class Decisions:
    """What runs, over which part of the volume, and what is written."""

    tiling: Tiling
    roi: Box
    part: tuple[int, int]
    """Which of how many parts, counted from 1."""
    kind: Kind
    dtype: str
    """Type of the voxels that are written."""
    poses: tuple[Pose, ...] = (UPRIGHT,)
    """In which each window is inferred."""
    back: tuple[AxisResampling, ...] = ()
    """From the grid of windows to that of the output; empty where they are the same."""
    asked: Box | None = None
    """What the output is of where that is more than `roi`: it is 0 there. In the same voxels; None: no more."""

    @classmethod
    def of(
        cls,
        settings: Settings,
        spec: ModelSpec,
        roi: Box,
        tiling: Tiling,
        back: tuple[AxisResampling, ...],
        asked: Box | None = None,
    ) -> Decisions:
        part = parse_part(settings.part) if settings.part else (1, 1)
        poses = poses_of(settings.tta, spec, tiling.window)
        return cls(tiling, roi, part, settings.output, dtype_of(settings, spec), poses, back, asked)

    def labels_of(self, spec: ModelSpec, roi: Box, tiling: Tiling) -> Decisions:
        """The same for the labels of a region of the grid of windows with another tiling, whatever is written in the
        end."""
        return replace(
            self, tiling=tiling, roi=roi, part=(1, 1), kind="labels", dtype=label_dtype(spec), back=(), asked=None
        )


def label_dtype(spec: ModelSpec) -> str:
    """The smallest unsigned type that holds the labels."""
    return "uint8" if spec.label_count <= 256 else "uint16"


def dtype_of(settings: Settings, spec: ModelSpec) -> str:
    """Type of the voxels that a run writes."""
    if settings.output == "labels":
        outside = 0.0 if settings.outside in (None, KEEP) else float(str(settings.outside))
        return "uint16" if outside > 255 else label_dtype(spec)
    return settings.dtype or ("float32" if settings.output == "logits" else "uint8")
