"""Which configurations to measure, and how often: successive halving (Jamieson and Talwalkar, 2016) in rounds over all that are left.

    1  every way to compute (device, back end, precision) with the model's own window
    2  windows of several sizes with those of them that came near the best
    3  the sizes in between that should be better still, by what is known of the time per voxel; batches
    4  the better half again, and again the better half of it

Within a round each is measured once before any is measured again, so that a machine that becomes slower is so for all. Decisions are by
medians; what lies within `NOISE` of the last one kept is kept, too. Pure: measuring is a function, and so is the clock.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from unet_engine.commands.bench.space import Configuration, Field, Group, Window, neighbours

NOISE = 0.03
"""Two medians that differ by less are taken for equal."""
NEAR = 0.7
"""Ways to compute that reach this part of the best one's rate with the model's own window get other windows, too."""
REFINED = 3
"""Sizes in between that are tried for each of the best ways."""
LOADED = 2
"""Configurations that are made ready together."""
LEAST = 3
"""Measurements the best have in the end, if time allows."""

Measure = Callable[[Configuration], float | None]
"""Windows per second of one measurement; None where the configuration cannot run."""


@dataclass
class Ranking:
    """Windows per second of every measurement, by configuration."""

    field: Field
    samples: dict[Configuration, list[float]] = dataclasses.field(default_factory=dict)

    def median(self, candidate: Configuration) -> float:
        return statistics.median(self.samples[candidate])

    def worth(self, candidate: Configuration) -> float:
        """Voxels of the volume per second."""
        return self.field.rate(candidate.window, self.median(candidate))

    def best(self, among: Sequence[Configuration] | None = None) -> list[Configuration]:
        """From the best to the worst."""
        return sorted(self.samples if among is None else among, key=self.worth, reverse=True)


@dataclass(frozen=True)
class Space:
    """What may be tried."""

    groups: tuple[Group, ...]
    windows: tuple[Window, ...]
    """The first one is that of stage 1."""
    batches: tuple[int, ...]
    free: Callable[[Configuration], bool]
    """Whether a run would accept it. Others are measured for comparison, and ranked among themselves."""
    refine: bool = True
    """Whether windows beside `windows` may be tried."""

    def all(self) -> list[Configuration]:
        return [Configuration(g, w, b) for g in self.groups for w in self.windows for b in self.batches]

    def kinds(self, candidates: Iterable[Configuration]) -> list[list[Configuration]]:
        """Those that may be proposed, then the others; a kind that has none is left out."""
        both: tuple[list[Configuration], list[Configuration]] = ([], [])
        for candidate in candidates:
            both[not self.free(candidate)].append(candidate)
        return [kind for kind in both if kind]


def search(
    space: Space,
    where: Field,
    measure: Measure,
    enough: Callable[[], bool],
    load: Callable[[Sequence[Configuration]], None] = lambda _: None,
) -> Ranking:
    """Measure until the best is known well enough, or time is up.

    enough: whether no time is left; asked before every measurement but the first of each way to compute
    load: makes ready what is measured next, a few at a time
    """
    found = Ranking(where)
    run = _Rounds(found, measure, enough, load)
    first = space.batches[0]
    run.over([Configuration(group, space.windows[0], first) for group in space.groups], least=True)
    for kind in space.kinds(found.samples):
        near = [c.group for c in _near(found, kind)]
        run.over([Configuration(group, window, first) for window in space.windows[1:] for group in near])
    for kind in space.kinds(found.samples)[:1]:  # what may not be proposed is not looked into any further
        best = found.best(kind)[0]
        run.over([c for c in _between_windows(space, found, best) if space.free(c) == space.free(best)])
        top = found.best([c for c in found.samples if c.group == best.group and c.batch == first])[:2]
        run.over([Configuration(c.group, c.window, batch) for c in top for batch in space.batches[1:]])
    for kind in space.kinds(found.samples):
        _halve(run, found, kind)
    return found


def _between_windows(space: Space, found: Ranking, best: Configuration) -> list[Configuration]:
    """Sizes that were not tried and should be better than `best`, computed as it is."""
    rates = {c.window: found.median(c) for c in found.samples if c.group == best.group and c.batch == best.batch}
    if not space.refine or len(rates) < 2:
        return []
    return [Configuration(best.group, window, best.batch) for window in neighbours(found.field, rates, REFINED)]


def _halve(run: _Rounds, found: Ranking, left: list[Configuration]) -> None:
    count = len(left)
    while count > 1 and not run.over_time:
        count = ceil(count / 2)
        left = kept(found, left, count)
        run.over(left)
    while left and not run.over_time and min(len(found.samples[c]) for c in left) < LEAST:
        run.over(left)


def kept(found: Ranking, left: Sequence[Configuration], count: int) -> list[Configuration]:
    """The best `count`, and those that are no worse than the last of them but for noise (at most as many again)."""
    ranked = found.best(left)
    bar = found.worth(ranked[count - 1]) * (1 - NOISE)
    return [c for i, c in enumerate(ranked[: 2 * count]) if i < count or found.worth(c) >= bar]


class _Rounds:
    def __init__(
        self,
        found: Ranking,
        measure: Measure,
        enough: Callable[[], bool],
        load: Callable[[Sequence[Configuration]], None],
    ) -> None:
        self._found, self._measure, self._enough, self._load = found, measure, enough, load
        self._failed: set[Configuration] = set()
        self.over_time = False

    def over(self, candidates: Sequence[Configuration], *, least: bool = False) -> None:
        """One measurement of each."""
        left = [c for c in dict.fromkeys(candidates) if c not in self._failed]
        for i, candidate in enumerate(left):
            if not least and self._enough():
                self.over_time = True
                return
            if i % LOADED == 0:
                self._load(left[i : i + LOADED])
            rate = self._measure(candidate)
            if rate is None:
                self._failed.add(candidate)
            else:
                self._found.samples.setdefault(candidate, []).append(rate)


def _near(found: Ranking, kind: Sequence[Configuration]) -> list[Configuration]:
    best = found.worth(found.best(kind)[0])
    return [c for c in kind if found.worth(c) >= NEAR * best]
