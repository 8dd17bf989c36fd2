"""What ``--coarse auto`` found, and on what grounds: as stored in the output."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from unet_engine.errors import ResumeError
from unet_engine.prepare.missed import CONFIDENCE
from unet_engine.prepare.survey import Survey
from unet_engine.volumes.cells import CellMask, parsed

KEY = "coarse_choice"
"""Key of the choice in the header of an output."""
MISS = 1e-3
"""Part of the foreground that may be missed."""


class CoarseChoice(BaseModel):
    """Where foreground can be, and how surely."""

    model_config = ConfigDict(defer_build=True, frozen=True)

    kept: str
    """Why nothing is skipped; empty where something is."""
    target: float
    """Part of the foreground's voxels that may be missed."""
    background: str
    """The class that is written where nothing is computed."""
    factors: tuple[int, ...] = ()
    """Voxels to one of the coarse pass, per axis of the volume."""
    threshold: int = 0
    """Windows are computed that give something to a cell whose score reaches it: of 255 the largest probability of
    foreground there or next to it; where that is 255, with the cell's own added."""
    seed: int = 0
    """By which regions were drawn."""
    regions: tuple[str, ...] = ()
    """Computed in full, in voxels of the volume, in the order in which they were drawn."""
    proving: int = 0
    """How many of them prove the threshold."""
    cells: int = 0
    """With foreground, in those."""
    missed: float = 0.0
    """Of the foreground in those."""
    bound: float = 1.0
    """What is missed at most, at `confidence`."""
    confidence: float = CONFIDENCE
    left: float = 1.0
    """Part of the volume that is looked at in full."""
    share: float = 0.0
    """What the coarse pass and the regions computed, of a run that skips nothing."""
    shape: tuple[int, ...] = ()
    cell: tuple[int, ...] = ()
    mask: str = ""
    """The cells that are looked at: bits in C order, compressed by zlib, as base64."""

    @property
    def inside(self) -> CellMask | None:
        """None where nothing is skipped."""
        return None if self.kept else parsed(self.mask, self.shape, self.cell)

    @property
    def line(self) -> str:
        """The choice in a sentence."""
        cost = f"finding out took {self.share:.1%} of such a run"
        if self.kept:
            return f"nothing is skipped: {self.kept}; {cost}"
        return (
            f"{1 - self.left:.1%} of the volume is {self.background} without being computed: of the foreground's voxels "
            f"at most {self.bound:.2g} are missed, at {self.confidence:.0%} confidence, by {self.proving} regions "
            f"computed in full with {self.cells:,} cells of foreground ({self.missed:.2g} missed there), where misses of "
            f"cells do not hang together; {cost}"
        )


def stored(survey: Survey) -> CoarseChoice | None:
    """The choice in the output that is to be resumed; None where there is none. Raises `ResumeError` where it was
    begun for another rate."""
    choice = survey.chosen_before(KEY, CoarseChoice)
    if choice is None:
        return None
    wanted = survey.settings.coarse_miss or MISS
    if choice.target != wanted:
        raise ResumeError(
            f"{survey.out} was begun with --coarse-miss {choice.target:g}, now {wanted:g}: repeat that run's settings or "
            "use --overwrite"
        )
    return choice


def facts(choice: CoarseChoice | None) -> dict[str, Any] | None:
    """The choice as JSON values."""
    return choice.model_dump(mode="json") if choice else None


def told(choice: CoarseChoice | None) -> dict[str, Any] | None:
    """The same for people, without the cells."""
    return choice.model_dump(mode="json", exclude={"mask"}) if choice else None
