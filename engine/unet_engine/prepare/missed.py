"""How much foreground a selection of cells misses at most, from regions that were computed in full. Pure arithmetic.

A cell is kept or left out as a whole, so cells with foreground are what is counted, each by the voxels of it: of n such
cells that count differently, as many count as (Σw)² / Σw² (Kish). The bound is that of a binomial (Clopper and Pearson,
1934), or, where it is larger, the jackknife's over regions: misses may come in clumps.

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
from math import exp, lgamma, log

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Look:
    """One of the times at which it is asked what is proved."""

    error: float
    """Probability of being wrong at it; those of all looks add up to what `CONFIDENCE` leaves."""
    misses: int
    """So many cells that are missed still prove what is to be proved, where cells count alike."""

    def needed(self, target: float) -> int:
        """Cells with foreground that it takes to prove `target`."""
        low, high = self.misses, self.misses + 1
        while _at_most(self.misses, high, target) > self.error:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _at_most(self.misses, middle, target) > self.error else (low, middle)
        return high


LOOKS = (Look(0.04, 0), Look(0.01, 2))
"""The first as soon as nothing that was missed would prove it, which most volumes end at."""
LEAST_WITH = 4
"""Regions with foreground that a look takes at least: cells of one are alike."""
VAIN = 1e-3
"""Probability of as many misses, were the rate what is to be proved, below which it is not tried any further."""
MANY = 1000
"""Misses beyond which their probabilities are not added one by one."""


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
    k = int(rate(regions, 1).seen * n)
    clumped = sum(r.missed(1) > 0 for r in regions) < LEAST_WITH
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
    """The largest rate at which so few or fewer of `count` would be found with a probability of `error`; both counts
    are rounded to the safe side."""
    n = int(count)
    if n < 1:
        return 1.0
    k = int(np.ceil(seen * n - 1e-9))
    if k >= n:
        return 1.0
    if k > MANY:  # the normal distribution, three deviations: more than any `error` here asks for
        return min(1.0, (k + 3 * float(np.sqrt(k)) + 1) / n)
    low, high = seen, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(k, n, middle) > error else (low, middle)
    return high


def _at_most(k: int, n: int, p: float) -> float:
    """Probability of k or fewer of n."""
    if p <= 0:
        return 1.0
    if p >= 1:
        return 0.0
    ways = (lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1) for i in range(k + 1))
    return sum(exp(w + i * log(p) + (n - i) * log(1 - p)) for i, w in enumerate(ways))


_T = (31.82, 6.965, 4.541, 3.747, 3.365, 3.143, 2.998, 2.897, 2.822, 2.764, 2.719, 2.682, 2.651, 2.625, 2.603)
"""Student's t at 99 %, one-sided, for 1, 2, 3, … degrees of freedom: what the strictest look takes."""


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
