"""Which of the tilings that pass is taken: the fastest in which the precision of the run holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf, prod

import numpy as np

from unet_engine.prepare.precision_proof import Proof, known_proof, remember_proof
from unet_engine.prepare.tiling_choice import Learnt, Point, TilingChoice, Timed
from unet_engine.prepare.tiling_looking import SEED, Keeps, Looking
from unet_engine.prepare.tiling_proof import LEAST, Case, Cases, Judge, cases_around, proved
from unet_engine.prepare.tiling_speed import APART, Race, Speeds
from unet_engine.redaction import redacted
from unet_engine.units import times
from unet_engine.volumes import windows

FOR_PROOF = 0.5
"""Part of the budget that is kept for proving a lower precision in the windows that are taken."""
PLACES, TRIES = 4, 3
"""Places that a precision is proved at, and sizes of windows that are tried."""
SIZES = 4
"""Sizes of windows that are timed."""


class Settling(Looking):
    """Settles what is taken."""

    def settled(
        self, candidates: Sequence[Point], points: Sequence[Point], learnt: Learnt | None, *, searched: bool
    ) -> TilingChoice:
        """The fastest of the candidates, the cheapest first, in which the precision of the run holds, where it is
        faster than the model's own tiling."""
        before = self.computed
        budget = self.budget - (before if searched else 0.0)
        speeds, timed = self._speeds(candidates, budget * (1 - FOR_PROOF if self._is_low else 1))
        proof: Proof | None = None
        reasons: list[str] = []
        ranked = speeds.ranked(candidates, self.fit.lasts)
        for point in ranked:
            if not self._is_low or point.window == self.window or self.is_judged(point.window):
                proof = None
            elif len(reasons) == TRIES:
                continue
            else:
                proof = self._proof(point.window, budget - (self.computed - before), reasons)
                if proof is None:
                    continue
            choice = self.fit.taken(point, points, learnt, searched=searched)
            lasts = speeds.time(point) / self.fit.lasts if point.window in speeds.relative else None
            found = {"reach": self.reach if point.full else None, "proof": proof, "lasts": lasts}
            break
        else:
            reason = reasons[0] if ranked else self._why_own(candidates, speeds)
            choice = self.fit.kept(reason, learnt, points, searched=searched)
            found = {"settled": not ranked}
        cost = round((self.computed - before) / self.run(), 4)
        return choice.model_copy(update={**found, "timed": timed, "proving": cost})

    def _why_own(self, candidates: Sequence[Point], speeds: Speeds) -> str:
        """Why nothing is known to be faster than the model's own tiling."""
        best = min(candidates, key=lambda p: (p.window not in speeds.relative, speeds.time(p)))
        if best.window in speeds.relative:
            part = speeds.time(best) / self.fit.lasts
            return f"of what passes, windows of {times(best.window)} are next, and take {part:.2f} of the time"
        if best.lasts >= self.fit.lasts:
            return "nothing that passes computes less on this volume"
        return (
            f"windows of {times(best.window)} compute {best.work:.2f} voxels for one instead of {self.fit.work:.2f}, "
            "which is too little to take them without timing them, and that would take "
            f"{self._race.cost(best.window, 1) / self.run():.0%} of the run; see --tiling-budget"
        )

    @property
    def _is_low(self) -> bool:
        return self.survey.choice.precision != "fp32" and self.provable

    def _speeds(self, candidates: Sequence[Point], budget: float) -> tuple[Speeds, tuple[Timed, ...]]:
        """How fast the windows are that may be fastest, as far as the budget goes: timed beside the model's own."""
        if self.survey.model.format == "fake":  # whose time is no network's
            return Speeds({}, otherwise=1.0), ()
        race, known = self._race, self._race.known()
        others = [point for point in candidates if point.window != self.window]
        question = {
            "candidates": [[p.window, round(p.lasts, 6)] for p in candidates],
            "budget": self.survey.settings.tiling_budget,
        }
        before, tried = race.tried(question), []
        rounds = race.rounds([point.window for point in others[:SIZES] if point.window not in known], budget)
        best = min([self.fit.lasts, *(p.lasts for p in candidates if p.window == self.window)])
        found: list[Timed] = []
        relative = {self.window: 1.0}
        for point in others:
            window, cost = point.window, race.cost(point.window, rounds)
            if len(relative) > SIZES or point.lasts >= APART * best:
                break
            if before is not None and window not in before:
                continue
            if window in known:
                found.append(known[window])
            elif cost > budget:
                continue
            else:
                self.tell(f"windows of {times(window)} are timed beside those of {times(self.window)}")
                budget, self.computed = budget - cost, self.computed + cost
                try:
                    found.append(race.run(window, rounds))
                except Keeps:  # they do not fit the memory
                    relative[window] = inf
                    continue
            tried.append(window)
            relative[window] = found[-1].relative
            best = min(best, point.lasts * relative[window])
        if before is None:
            race.remember(question, tried)
        own = [
            Timed(window=self.window, nanoseconds=entry.beside, beside=entry.beside)
            for entry in found[:1]
            if entry.beside
        ]
        slowest = max(value for value in relative.values() if value < inf)
        return Speeds(relative, max(APART, slowest)), (*own, *found)

    @property
    def _race(self) -> Race:
        rng = np.random.default_rng(SEED)
        return Race(
            self.window,
            self.threads,
            self.made,
            self,
            lambda window: rng.standard_normal(self._shape(window), np.float32),
        )

    def _shape(self, window: tuple[int, ...]) -> tuple[int, ...]:
        return (self.spec.channels_in, *window)

    def _proof(self, window: tuple[int, ...], budget: float, reasons: list[str]) -> Proof | None:
        """That the precision holds in these windows; else None, and why."""
        precision = self.survey.choice.precision
        found = known_proof(self.asked, window, self.quantiles)
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
            found = self._judged(window, cases.reference, cases.places[:count]).model_copy(
                update={"volume": redacted(self.survey.scan.path), "quantiles": self.quantiles}
            )
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
