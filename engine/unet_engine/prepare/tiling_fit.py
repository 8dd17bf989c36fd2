"""From what is known of a model to tilings of one volume: the cheapest windows that fit its shape and keep what passed,
or that leave no voxel without any of the context that the network sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from unet_engine.plan.fitting import AxisNeeds, Fitted, filled, fitted, lattice_of
from unet_engine.prepare.decisions import Decisions
from unet_engine.prepare.survey import Survey
from unet_engine.prepare.tiling_choice import Learnt, Measured, Point, TilingChoice, frontier
from unet_engine.prepare.tiling_speed import APART
from unet_engine.units import times

SMALLER = (1, 2, 4)
"""Of what is cheapest, windows of at most a half and a quarter are offered too: they may run faster."""


@dataclass(frozen=True)
class Fit:
    """A volume that is to be tiled."""

    survey: Survey
    decisions: Decisions
    """With the model's own tiling."""
    run: int
    """Voxels of input that a run with that computes."""
    admits: Callable[[tuple[int, ...]], bool]
    """Whether a run may have such windows, input sizes per axis of the model."""
    at_once: int = 1
    """Windows that are inferred at the same time."""

    @property
    def work(self) -> float:
        """Voxels that the model's own tiling computes for one."""
        return self.run / prod(self.survey.volume.shape)

    @property
    def lasts(self) -> float:
        """The same, with threads that the last windows leave idle."""
        windows = self.run // prod(self.decisions.tiling.window)
        return self.work * filled(windows, self.at_once) / windows

    # --- what there is ---

    def measured(self, learnt: Learnt, most: int) -> list[Point]:
        """Of all that was measured, the cheapest windows of at most `most` voxels that keep it."""
        return [point for measured in learnt.measured for point in self._keeping(measured, most)]

    def full(self, reach: Sequence[int], most: int) -> list[Point]:
        """Windows of which each voxel that is kept has all the context the network sees. reach: how far that is, per
        axis of the model, beyond what the network loses."""
        needs = self._needs([1] * len(reach), [2 * r for r in reach])
        found = []
        for windows in self._offered(needs, most):
            exact = all(
                n == 1 or self._on_lattice(a, w)
                for a, (n, w) in enumerate(zip(windows.counts, windows.window, strict=True))
            )
            figure = 1.0 if exact else None
            found.append(self._point(needs, windows, figure, figure, passed=True).model_copy(update={"full": True}))
        return found

    def _on_lattice(self, a: int, window: int) -> bool:
        """Whether the last window along axis `a` of the model begins on the lattice, as all others do."""
        spec, own = self.survey.model.spec, self.decisions.tiling.window
        lattice = lattice_of(spec.window_step[a], own[a])
        return (self.survey.volume.shape[a - len(own)] - window + 2 * spec.margin[a]) % lattice == 0

    def _keeping(self, measured: Measured, most: int) -> Iterator[Point]:
        needs = self._needs(measured.context, [2 * m for m in measured.margin])
        for found in self._offered(needs, most):
            yield self._point(needs, found, measured.agreement, measured.least_dice, passed=measured.passed)

    def _needs(self, context: Sequence[int], shared: Sequence[int]) -> list[AxisNeeds]:
        spec, own = self.survey.model.spec, self.decisions.tiling.window
        sizes = self.survey.volume.shape[-len(own) :]
        return [
            AxisNeeds(
                size=sizes[a],
                context=context[a],
                shared=shared[a],
                least=spec.window_min[a] if spec.window_step[a] else own[a],
                step=spec.window_step[a],
                margin=spec.margin[a],
            )
            for a in range(len(own))
        ]

    def _offered(self, needs: Sequence[AxisNeeds], most: int) -> Iterator[Fitted]:
        """The cheapest windows, and the cheapest of those that are far smaller."""
        own = prod(self.decisions.tiling.window)
        best = fitted(needs, max(most, own), self.admits, self.at_once)
        if best is None:
            return
        seen = set()
        for part in SMALLER:
            found = best if part == 1 else fitted(needs, prod(best.window) // part, self.admits, self.at_once)
            if found and found.window not in seen:
                seen.add(found.window)
                yield found

    def _point(
        self, needs: Sequence[AxisNeeds], found: Fitted, agreement: float | None, dice: float | None, *, passed: bool
    ) -> Point:
        planes = self.survey.volume.shape[: -len(found.window)]
        windows = prod(found.counts) * prod(planes)
        return Point(
            window=found.window,
            shared=tuple(0 if n == 1 else axis.shared for axis, n in zip(needs, found.counts, strict=True)),
            work=found.work,
            agreement=agreement,
            least_dice=dice,
            passed=passed,
            effort=found.work * filled(windows, self.at_once) / windows,
        )

    # --- what is taken ---

    def candidates(self, points: Sequence[Point]) -> list[Point]:
        """What passes and may be faster than the model's own tiling, the cheapest first; of each size of window one."""
        near = (p for p in points if p.passed and p.lasts < APART * self.lasts)
        passing = sorted(near, key=lambda p: (p.lasts, p.work, -(p.agreement or 1.0), p.shared))
        found: dict[tuple[int, ...], Point] = {}
        for point in passing:
            found.setdefault(point.window, point)
        return list(found.values())

    def taken(self, point: Point, points: Sequence[Point], learnt: Learnt | None, *, searched: bool) -> TilingChoice:
        return TilingChoice(
            window=point.window, overlap=None, shared=point.shared, blend="crop", work=point.work,
            work_of_default=self.work, agreement=point.agreement, least_dice=point.least_dice, kept="",
            searched=searched, frontier=frontier(points, point), learnt=_brief(learnt),
            tolerance=self.survey.settings.tolerance, truth=bool(self.survey.settings.truth),
        )  # fmt: skip

    def kept(
        self, why: str, learnt: Learnt | None = None, points: Sequence[Point] = (), *, searched: bool = False
    ) -> TilingChoice:
        """The model's own tiling."""
        tiling = self.decisions.tiling
        return TilingChoice(
            window=tiling.window, overlap=tiling.overlap, shared=None, blend=tiling.blend, work=self.work,
            work_of_default=self.work, agreement=learnt.bar_agreement if learnt else None,
            least_dice=learnt.bar_dice if learnt else None, kept=why, searched=searched, frontier=frontier(points),
            learnt=_brief(learnt), tolerance=self.survey.settings.tolerance, truth=bool(self.survey.settings.truth),
        )  # fmt: skip

    def why_none(self, learnt: Learnt | None, points: Sequence[Point]) -> str:
        """Why there is no candidate."""
        if any(point.passed for point in points):
            return "nothing that passes is cheaper on this volume"
        if learnt is None or not learnt.measured:
            return "no windows fit the memory"
        best = max(learnt.measured, key=lambda m: m.spare)
        return (
            f"nothing that was looked at surely reaches the bar; the nearest is {best.agreement:.5f} of the labels, "
            f"least Dice {best.least_dice:.5f}, of windows of {times(best.context)} kept {times(best.margin)} off "
            "their border"
        )


def _brief(learnt: Learnt | None) -> Learnt | None:
    return learnt.model_copy(update={"measured": ()}) if learnt else None
