"""How much foreground a selection of cells misses at most, from regions that were computed in full. Pure arithmetic.

A cell is kept or left out as a whole, so cells with foreground are what is counted, each by the voxels of it: of n such
cells that count differently, as many count as (Σw)² / Σw² (Kish), which holds as long as no cell is missed more often
than in proportion to its foreground; and a cell that is missed counts by its part of that, so that a border's few voxels
are no whole cell. The bound is that of a binomial at such a fraction of a count (Clopper and Pearson, 1934; Korn and
Graubard, Confidence intervals for proportions with small expected number of positive counts, 1998), or, where it is
larger, the jackknife's over regions: misses may come in clumps.

Thresholds are tried from the smallest upwards until one is not proved. Since what is missed grows with the threshold, a
wrong one is taken only if the smallest of the wrong ones was taken for proved, however many are tried (Bates et al.,
Distribution-free, risk-controlling prediction sets, 2021). So all regions choose, and all prove.

Regions are computed in the order in which they were drawn, and twice it is asked whether enough is proved: see `LOOKS`.
When, the foreground found alone decides, never what of it was missed; so each look is at a sample of a size that was
given beforehand, and what both may be wrong at adds up to what `CONFIDENCE` leaves, whatever makes one go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import exp, lgamma, log, log1p

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Look:
    """One of the times at which it is asked what is proved."""

    error: float
    """Probability of being wrong at it; those of all looks add up to what `CONFIDENCE` leaves."""
    misses: float
    """So many cells that are missed still prove what is to be proved, where cells count alike."""

    def needed(self, target: float) -> int:
        """Cells with foreground that it takes to prove `target`."""
        return _needed(self, target)


LOOKS = (Look(0.045, 0.1), Look(0.005, 2))
"""The first as soon as next to nothing that was missed would prove it, which most volumes end at."""
LEAST_WITH = 4
"""Regions with foreground that a look takes at least: cells of one are alike."""
TERMS = 10_000
"""Of a continued fraction, at most: it takes about as many as the square root of the counts."""
VAIN = 1e-3
"""Probability of as many misses, were the rate what is to be proved, below which it is not tried any further."""


@dataclass(frozen=True)
class Region:
    """The cells of one region that have foreground."""

    voxels: npt.NDArray[np.int64]
    """Foreground in each."""
    scores: npt.NDArray[np.int64]
    """What each was given; it is kept from a threshold on."""

    def missed(self, threshold: int) -> int:
        return int(self.voxels[self.scores < threshold].sum())


@dataclass(frozen=True)
class Rate:
    """Foreground voxels that are missed, of all."""

    seen: float
    bound: float
    """It is surely no more, at `CONFIDENCE`."""
    cells: int
    """With foreground, that it rests on."""


@cache
def _needed(look: Look, target: float) -> int:
    low, high = int(look.misses), int(look.misses) + 1
    while _at_most(look.misses, high, target) > look.error:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _at_most(look.misses, middle, target) > look.error else (low, middle)
    return high


def settled(regions: Sequence[Region], target: float, most: float, error: float) -> tuple[int, Rate]:
    """The largest threshold at which no more than `most` is missed in these regions, and that is proved to miss no more
    than `target`, as all smaller ones are; else the smallest that there is, and what it misses. What is proved is
    `target`: that the threshold was chosen by these very regions makes its own bound too small."""
    scores = np.unique(np.concatenate([np.zeros(0, np.int64), *(r.scores for r in regions)]))
    named = threshold_of(regions, most)
    threshold, found = 1, rate(regions, 1, error)
    for larger in (int(s) for s in scores if 1 < s <= named):  # between two of them nothing changes
        if found.bound > target:
            break
        another = rate(regions, larger, error)
        if another.bound > target:
            break
        threshold, found = larger, another
    return threshold, replace(found, bound=max(found.bound, target))


def tells(regions: Sequence[Region], look: Look, target: float) -> bool:
    """Whether these hold as much foreground as a look takes."""
    return evidence(regions) >= look.needed(target) and sum(r.voxels.size > 0 for r in regions) >= LEAST_WITH


def hopeless(regions: Sequence[Region], target: float) -> bool:
    """Whether so much is missed by the smallest threshold that more regions would hardly prove it: giving up is no way
    to be wrong."""
    n = int(evidence(regions))
    missed = [r.missed(1) for r in regions]
    k = int(sum(missed) / max(1, sum(int(r.voxels.sum()) for r in regions)) * n)
    clumped = sum(m > 0 for m in missed) < LEAST_WITH
    return not clumped and k > 0 and 1 - _at_most(k - 1, n, target) < VAIN


def evidence(regions: Sequence[Region]) -> float:
    """Cells with foreground, as many as count where they differ."""
    voxels = _joined(regions)
    return float(voxels.sum()) ** 2 / float((voxels**2).sum()) if voxels.size else 0.0


def _joined(regions: Sequence[Region]) -> npt.NDArray[np.float64]:
    """Foreground in each cell of all regions."""
    return np.concatenate([np.zeros(0), *(r.voxels.astype(float) for r in regions)])


def rate(regions: Sequence[Region], threshold: int, error: float = 1 - CONFIDENCE) -> Rate:
    """What a threshold misses, and what it surely does, but for a probability of `error`."""
    voxels = _joined(regions)
    total = float(voxels.sum())
    if not total:
        return Rate(0.0, 1.0, 0)
    missed = [r.missed(threshold) for r in regions]
    seen = sum(missed) / total
    bound = upper(seen, evidence(regions), error)
    if sum(missed):
        bound = max(bound, _jackknifed(regions, missed, seen))
    return Rate(seen, min(1.0, bound), len(voxels))


def upper(seen: float, count: float, error: float) -> float:
    """The largest rate at which so few or fewer of `count` would be found with a probability of `error`."""
    missed = seen * count
    if count < 1 or count - missed < 1e-9:
        return 1.0
    low, high = seen, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(missed, count, middle) > error else (low, middle)
    return high


def _at_most(k: float, n: float, p: float) -> float:
    """Probability of k or fewer of n, of which neither has to be whole: the regularised incomplete beta function."""
    if p <= 0:
        return 1.0
    if p >= 1:
        return 0.0
    a, b = n - k, k + 1
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log1p(-p) + b * log(p))
    if 1 - p < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, 1 - p) / a
    return 1 - front * _fraction(b, a, p) / b


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method (Press et al., Numerical Recipes)."""
    c, d = 1.0, 1 / _apart(1 - (a + b) * x / (a + 1))
    found = d
    for m in range(1, TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d, c = 1 / _apart(1 + term * d), _apart(1 + term / c)
            found *= d * c
        if abs(d * c - 1) < 1e-12:
            break
    return found


def _apart(value: float) -> float:
    """Not 0, so that it can be divided by."""
    return value if abs(value) > 1e-300 else 1e-300


_T = (63.66, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169, 3.106, 3.055, 3.012, 2.977, 2.947)
"""Student's t at 99.5 %, one-sided, for 1, 2, 3, … degrees of freedom: what the strictest look takes."""


def _jackknifed(regions: Sequence[Region], missed: Sequence[int], seen: float) -> float:
    totals = np.array([int(r.voxels.sum()) for r in regions], float)
    without = [(sum(missed) - m) / (totals.sum() - t) for m, t in zip(missed, totals, strict=True) if totals.sum() > t]
    if len(without) < 2:
        return 1.0
    n = len(without)
    deviation = float(np.sqrt((n - 1) / n * np.sum((np.array(without) - np.mean(without)) ** 2)))
    return seen + _T[min(n - 1, len(_T)) - 1] * deviation


def threshold_of(regions: Sequence[Region], most: float) -> int:
    """The largest threshold at which no more than `most` of these regions' foreground is missed; 0 where there is no
    foreground."""
    scores = np.concatenate([np.zeros(0, np.int64), *(r.scores for r in regions)])
    voxels = np.concatenate([np.zeros(0, np.int64), *(r.voxels for r in regions)])
    if not voxels.sum():
        return 0
    order = np.argsort(scores, kind="stable")
    below = np.concatenate([[0], np.cumsum(voxels[order])])[:-1]
    allowed = order[below <= most * voxels.sum()]
    return int(scores[allowed[-1]])
