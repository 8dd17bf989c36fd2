"""What `--overlap auto` took and on what grounds: as stored in the output, and taken up again by whoever resumes it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from unet_engine.errors import ResumeError
from unet_engine.plan.grid import Blend
from unet_engine.prepare.survey import Survey

TOLERANCE = 0.999


KEY = "overlap_choice"
"""Key of the choice in the header of an output."""


class Overlap(BaseModel):
    """An overlap fraction with the way to blend."""

    model_config = ConfigDict(defer_build=True, frozen=True)

    overlap: float
    blend: Blend = "gaussian"

    def __str__(self) -> str:
        return f"overlap {self.overlap:.3g}, {self.blend}"


REFERENCE = Overlap(overlap=0.5)


class OverlapTrial(BaseModel):
    """What was found about a candidate. One that fails on the first regions is not tried on the others."""

    model_config = ConfigDict(defer_build=True, frozen=True)

    candidate: Overlap
    windows: int
    """Windows it takes for the region of interest, seams of columns and parts left out."""
    regions: int
    """Regions it was compared on."""
    agreement: float
    """Fraction of voxels there with the same label as the reference's."""
    dice: dict[str, float | None]
    """Dice coefficient of each class against the reference; None for a class that is not there."""
    passed: bool

    @property
    def worst(self) -> tuple[str, float]:
        """The class with the least Dice coefficient."""
        return min(((name, d) for name, d in self.dice.items() if d is not None), key=lambda pair: pair[1])


class OverlapChoice(BaseModel):
    """The overlap that ``auto`` took, and on what grounds; as stored in the output."""

    model_config = ConfigDict(defer_build=True, frozen=True)

    chosen: Overlap
    reference: Overlap = REFERENCE
    tolerance: float
    agreement: float
    """Measured for what was chosen, as are the Dice coefficients; 1 for the reference itself."""
    dice: dict[str, float | None]
    windows: int
    windows_of_reference: int
    """Windows of both for the region of interest, seams of columns and parts left out."""
    seed: int
    regions: tuple[str, ...]
    """Boxes to compare, in voxels of the volume, in this order."""
    receptive_radius: tuple[int, ...] | None
    """Per axis of the model; None where the network sees farther than half a window."""
    trials: tuple[OverlapTrial, ...]

    @property
    def line(self) -> str:
        """The choice in a sentence."""
        where = f"on {len(self.regions)} regions of this volume"
        if self.chosen == self.reference:
            best = max(self.trials, key=lambda t: min(t.agreement, t.worst[1]))
            where = "on regions of this volume"
            return (
                f"overlap 0.5 is kept: no smaller one reaches {self.tolerance:g} {where}; the nearest is "
                f"{best.candidate} with {best.agreement:.5f} of the labels and a Dice of {best.worst[1]:.5f} for "
                f"{best.worst[0]}; see --overlap-tolerance"
            )
        name, worst = min(((n, d) for n, d in self.dice.items() if d is not None), key=lambda pair: pair[1])
        return (
            f"{self.chosen} takes {self.windows:,} windows instead of {self.windows_of_reference:,} "
            f"({self.windows_of_reference / self.windows:.2f} times fewer); {where} {self.agreement:.5f} of the "
            f"labels agree with overlap 0.5, least Dice {worst:.5f} ({name})"
        )


def stored(survey: Survey) -> OverlapChoice | None:
    """The choice in the output that is to be resumed; None where there is none. Raises `ResumeError` for another
    tolerance."""
    choice = survey.chosen_before(KEY, OverlapChoice)
    if choice is None:
        return None
    wanted = survey.settings.overlap_tolerance or TOLERANCE
    if choice.tolerance != wanted:
        raise ResumeError(
            f"{survey.out} was begun with --overlap-tolerance {choice.tolerance:g}, now {wanted:g}: repeat that run's "
            "settings or use --overwrite"
        )
    return choice


def facts(choice: OverlapChoice | None) -> dict[str, Any] | None:
    """The choice as JSON values."""
    return choice.model_dump(mode="json") if choice else None
