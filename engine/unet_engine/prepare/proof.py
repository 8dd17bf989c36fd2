"""What regions prove about a tiling: agreement and Dice with a lower confidence bound, by leaving out one region after
the other, or by swapping tilings region by region. Pure arithmetic.

The bound is that of the jackknife (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 11) with Student's
t, one-sided: figures of voxels next to one another say little more than one does, so regions are what is counted.

Where most errors lie in one region, what a tiling has more than another varies as the errors do, and that bound is below
0 even where the tiling is better in every region. Beside it stands a randomisation test (Fisher, Pitman): were both
tilings alike, either could have been the other in each region, so of all ways to swap them no more than `SWAPPED` may
give as much. That is exact however uneven the regions are. In simulation either of the two lets tilings that are alike
pass in one case of twenty or fewer (tests/prepare/test_proof.py). Neither sees what is in none of the regions.
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
SWAPPED = 0.025
"""Part of the ways to swap: half of what the bound leaves, as there are two ways to pass."""
MOST_SWAPPED = 10
"""Regions of which all ways to swap are tried; of more, as many as these have, drawn at random."""
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
    coefficient of every label, of the lower bounds of what it has more, which is 0 where only swapping proves it.
    Negative: it may not reach it.

    needed: what another tiling has on the same regions, or a figure. Needs two regions or more.
    """
    whole = _apart(found, needed)
    without = [_apart(*_left_out(found, needed, i)) for i in range(len(found))]
    least, proved = np.inf, set() if isinstance(needed, float) else _proved(found, needed)
    for name, apart in whole.items():
        if dice_alone and name == "agreement":
            continue
        bound = _lower(apart, [w[name] for w in without if name in w])
        least = min(least, max(bound, 0.0) if name in proved else bound)
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


def _proved(found: Counts, needed: Counts) -> set[str]:
    """The figures by which `found` is better than `needed`, by swapping them region by region."""
    n = len(found)
    if n <= MOST_SWAPPED:
        swaps = np.arange(2**n)[:, None] >> np.arange(n) & 1
    else:
        swaps = np.random.default_rng(0).integers(0, 2, (2**MOST_SWAPPED, n))
        swaps[0] = 0  # as they are
    ours, theirs = _by_name(found, needed, swaps), _by_name(needed, found, swaps)
    with np.errstate(invalid="ignore"):
        apart = {name: values - theirs[name] for name, values in ours.items()}
    # what cannot be told of a swap counts as if it gave as much
    return {name for name, more in apart.items() if more[0] > 0 and np.mean(~(more < more[0])) <= SWAPPED}


def _by_name(one: Counts, other: Counts, swaps: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.float64]]:
    """Agreement and Dice of all regions together, for each way to take some of them from `other`; NaN where a label is
    in neither image."""
    same, rows, columns = (
        part(one).sum(0) + swaps @ (part(other) - part(one))
        for part in (lambda c: np.diagonal(c, axis1=1, axis2=2), lambda c: c.sum(2), lambda c: c.sum(1))
    )
    with np.errstate(invalid="ignore"):
        dice = 2 * same / (rows + columns)
        return {"agreement": same.sum(1) / rows.sum(1), **{str(k): dice[:, k] for k in range(dice.shape[1])}}


def student(freedom: int) -> float:
    """Student's t at `CONFIDENCE`, one-sided, for 1 or more degrees of freedom; at most that of the largest known."""
    return _T[min(freedom, len(_T)) - 1]
