"""Which configurations to measure, and how often: successive halving in rounds over all that are left.

    1  every way to compute (device, back end, precision) with the model's own window
    2  windows of several sizes with those of them that came near the best
    3  batches of the best, then what should be better still, by what is known by then: sizes in between, in any batch
    4  the better half again, and again the better half of it (Jamieson and Talwalkar, 2016)

Within a round each is measured once before any is measured again, so that a machine that becomes slower is so for all.
Decisions are by medians; what lies within `NOISE` of the last one kept is kept, too. Pure: measuring is a function, and
so is the clock.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil

from unet_engine.commands.bench.promise import promising
from unet_engine.commands.bench.space import Configuration, Field, Group, Window

NOISE = 0.03
"""Two medians that differ by less are taken for equal."""
NEAR = 0.7
"""Ways to compute that reach this part of the best one's rate with the model's own window get other windows, too."""
LOADED = 2
"""Configurations that are made ready together."""
REFINED = 3
"""Times that so many are tried because of what all others promise."""
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

    def like(self, one: Configuration, candidates: Iterable[Configuration]) -> list[Configuration]:
        """Those that may be proposed if `one` may, and may not if it may not."""
        return [c for c in candidates if self.free(c) == self.free(one)]

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
        _other_batches(run, space, found, best)
        _refine(run, space, found, best)
        _other_batches(run, space, found, found.best(space.like(best, found.samples))[0])
    for kind in space.kinds(found.samples):
        _halve(run, found, kind)
    return found


def _other_batches(run: _Rounds, space: Space, found: Ranking, best: Configuration) -> None:
    run.over([c for batch in space.batches if (c := replace(best, batch=batch)) not in found.samples])


def _refine(run: _Rounds, space: Space, found: Ranking, best: Configuration) -> None:
    """Try what should be better than the best so far, computed as it is, each time by all that is known."""
    windows = found.field.finer() if space.refine else ()
    for _ in range(REFINED):
        measured = {c: found.median(c) for c in found.samples if c.group == best.group}
        bar = max(map(found.worth, space.like(best, measured))) * (1 - NOISE)
        better = promising(found.field, measured, windows, space.batches, bar)
        run.over(space.like(best, run.possible(better))[:LOADED])


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

    def possible(self, candidates: Iterable[Configuration]) -> list[Configuration]:
        """Each once, without those that are known not to run."""
        return [c for c in dict.fromkeys(candidates) if c not in self._failed]

    def over(self, candidates: Sequence[Configuration], *, least: bool = False) -> None:
        """One measurement of each."""
        left = self.possible(candidates)
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
