"""What regions prove about a tiling: agreement and Dice with a lower confidence bound, by leaving out one region after
the other. Pure arithmetic.

The bound is that of the jackknife (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 11) with Student's
t, one-sided: figures of voxels next to one another say little more than one does, so regions are what is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.prepare.agreement import Confusion

Counts = npt.NDArray[np.int64]
"""Voxels by region, label of the reference and label found: (regions, labels, labels)."""

CONFIDENCE = 0.95
_T = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771, 1.761, 1.753)
"""Student's t at `CONFIDENCE`, one-sided, for 1, 2, 3, … degrees of freedom."""


@dataclass(frozen=True)
class Figures:
    """Of all regions together."""

    agreement: float
    dice: tuple[float | None, ...]
    """Of each label; None where it is in neither image."""

    @property
    def least_dice(self) -> float:
        return min((d for d in self.dice if d is not None), default=1.0)


def figures(counts: npt.NDArray[Any]) -> Figures:
    """counts: (labels, labels)."""
    confusion = Confusion(len(counts))
    confusion.counts = counts
    return Figures(confusion.agreement, confusion.dice)


def spare(found: Counts, needed: Counts | float, *, dice_alone: bool = False) -> float:
    """By how much `found` reaches what is needed, at least and surely: the least, over agreement and the Dice
    coefficient of every label, of the lower bounds of what it has more. Negative: it may not reach it.

    needed: what another tiling has on the same regions, or a figure. Needs two regions or more.
    """
    whole = _apart(found, needed)
    without = [_apart(*_left_out(found, needed, i)) for i in range(len(found))]
    least = np.inf
    for name, apart in whole.items():
        if dice_alone and name == "agreement":
            continue
        least = min(least, _lower(apart, [w[name] for w in without if name in w]))
    return float(least)


def _left_out(found: Counts, needed: Counts | float, i: int) -> tuple[Counts, Counts | float]:
    return np.delete(found, i, 0), needed if isinstance(needed, float) else np.delete(needed, i, 0)


def _apart(found: Counts, needed: Counts | float) -> Mapping[str, float]:
    ours = _named(figures(found.sum(0)))
    theirs = dict.fromkeys(ours, needed) if isinstance(needed, float) else _named(figures(needed.sum(0)))
    return {name: value - theirs[name] for name, value in ours.items() if name in theirs}


def _named(found: Figures) -> dict[str, float]:
    dice = {str(k): d for k, d in enumerate(found.dice) if d is not None}
    return {"agreement": found.agreement, **dice}


def _lower(value: float, replicates: list[float]) -> float:
    n = len(replicates)
    if n < 2:
        return -np.inf  # a label that is in one region alone: nothing is known of how it varies
    spread = np.asarray(replicates) - np.mean(replicates)
    deviation = float(np.sqrt((n - 1) / n * np.sum(spread**2)))
    return value - student(n - 1) * deviation


def student(freedom: int) -> float:
    """Student's t at `CONFIDENCE`, one-sided, for 1 or more degrees of freedom; at most that of the largest known."""
    return _T[min(freedom, len(_T)) - 1]
