"""Which of the tilings that pass is taken: the fastest in which the precision of the run holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from unet_engine.prepare.tiling_choice import Learnt, Point, Proof, TilingChoice, Timed
from unet_engine.prepare.tiling_looking import SEED, Looking
from unet_engine.prepare.tiling_proof import (
    FASTER,
    LEAST,
    ROUNDS,
    Case,
    Cases,
    Judge,
    cases_around,
    known_proof,
    proved,
    remember_proof,
    timed,
    untimed,
)
from unet_engine.units import times
from unet_engine.volumes import windows

FOR_PROOF = 0.5
"""Part of the budget that is kept for proving a lower precision in the windows that are taken."""
PLACES, TRIES = 4, 3
"""Places that a precision is proved at, and sizes of windows that are tried."""
SIZES, SLOWER = 3, 1.5
"""Sizes of windows that are timed, and by how much more they may compute than the cheapest."""


class Settling(Looking):
    """Settles what is taken."""

    def settled(
        self, candidates: Sequence[Point], points: Sequence[Point], learnt: Learnt | None, *, searched: bool
    ) -> TilingChoice:
        """The fastest of the candidates, the cheapest first, in which the precision of the run holds."""
        before = self.computed
        spent = 0.0 if not searched else before
        times_of = self._timed(candidates, self.budget - spent)
        ranked = _by_time(candidates, times_of)
        proof: Proof | None = None
        reasons: list[str] = []
        for point in ranked:
            if not self._is_low or point.window == self.window or self.is_judged(point.window):
                proof = None
            elif len(reasons) == TRIES:
                continue
            else:
                proof = self._proof(point.window, self.budget - spent - (self.computed - before), reasons)
                if proof is None:
                    continue
            choice = self.fit.taken(point, points, learnt, searched=searched)
            return choice.model_copy(
                update={
                    "reach": self.reach if point.full else None,
                    "proof": proof,
                    "timed": times_of,
                    "proving": round((self.computed - before) / self.run(), 4),
                }
            )
        return self.fit.kept(reasons[0], learnt, points, searched=searched)

    @property
    def _is_low(self) -> bool:
        return self.survey.choice.precision != "fp32" and self.provable

    def _timed(self, candidates: Sequence[Point], budget: float) -> tuple[Timed, ...]:
        """The cheapest sizes of windows, timed; nothing where that would take too much."""
        sizes = [p.window for p in candidates if p.lasts <= SLOWER * candidates[0].lasts][:SIZES]
        if len(sizes) < 2 or self.survey.model.format == "fake":  # whose time is no network's
            return ()
        key = {**self.made, "threads": self.threads}
        fresh = untimed(key, sizes)
        cost = sum((1 + ROUNDS) * self.threads * prod(window) for window in fresh)
        if cost > budget * (1 - FOR_PROOF if self._is_low else 1):
            return ()
        if fresh:
            self.tell(f"windows of {', '.join(map(times, fresh))} are timed")
        self.computed += cost
        rng = np.random.default_rng(SEED)
        return tuple(timed(key, sizes, self, lambda window: rng.standard_normal(self._shape(window), np.float32)))

    def _shape(self, window: tuple[int, ...]) -> tuple[int, ...]:
        return (self.spec.channels_in, *window)

    def _proof(self, window: tuple[int, ...], budget: float, reasons: list[str]) -> Proof | None:
        """That the precision holds in these windows; else None, and why."""
        precision = self.survey.choice.precision
        found = known_proof(self.asked, window)
        if found is None:
            cases = self._cases(window)
            each = prod(window) + self.dearer * prod(cases.reference)
            count = min(len(cases.places), int(budget / each))
            if count < LEAST:
                reasons.append(
                    f"{precision} is not proved in windows of {times(window)}, and proving it would take "
                    f"{LEAST * each / self.run():.0%} of the run; see --tiling-budget"
                )
                return None
            self.tell(f"{precision} is proved in windows of {times(window)}")
            self.computed += count * each
            found = self._judged(window, cases.reference, cases.places[:count])
            remember_proof(self.asked, found)
        if found.reason:
            reasons.append(f"{precision} fails in windows of {times(window)}: {found.reason}")
            return None
        return found

    def _judged(self, window: tuple[int, ...], reference: tuple[int, ...], places: Sequence[Case]) -> Proof:
        verdict = self.survey.choice.proved
        assert verdict is not None
        names = self.spec.class_names
        if len(names) != self.spec.label_count:
            names = tuple(f"class {k}" for k in range(self.spec.label_count))
        labels = replace(self.reduced, last=None).on_host
        judge = Judge(names, lambda logits: np.asarray(labels(logits)), verdict.thresholds, self.survey.model.ahead)
        return proved(places, window, reference, self, self.cut, judge)

    def _cases(self, window: tuple[int, ...]) -> Cases:
        """Places to compare at, around cells of contrast; windows in fp32 are as small as show all they see."""
        lengths = (1,) * self.planes + tuple(w - 2 * m for w, m in zip(window, self.spec.margin, strict=True))
        rng = np.random.default_rng(SEED + 1)
        cells = windows.pool(
            self.survey.volume, self.draft.scale, self.own[self.planes :], PLACES, rng,
            lambda box: all(mask.read(box).any() for mask in self.survey.seen_masks),
        )  # fmt: skip
        reach = None if self.reach is None else (0,) * self.planes + self.reach
        return cases_around(cells, lengths, self.own, reach, self.axes(), self.inputs)


def _by_time(candidates: Sequence[Point], found: Sequence[Timed]) -> list[Point]:
    """The fastest first; those that were not timed, and those that are hardly faster, by what they compute."""
    speeds = {entry.window: entry.nanoseconds for entry in found}
    first = candidates[0]
    if first.window not in speeds:
        return list(candidates)
    most = FASTER * speeds[first.window] * first.lasts
    faster = [p for p in candidates if p.window in speeds and speeds[p.window] * p.lasts < most]
    faster.sort(key=lambda p: speeds[p.window] * p.lasts)
    return faster + [p for p in candidates if p not in faster]
