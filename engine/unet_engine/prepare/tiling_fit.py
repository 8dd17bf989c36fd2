"""From what was learnt of a model to a tiling of one volume: the cheapest windows that fit its shape and keep what
passed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

from unet_engine.plan.fitting import AxisNeeds, fitted
from unet_engine.prepare.decisions import Decisions
from unet_engine.prepare.survey import Survey
from unet_engine.prepare.tiling_choice import Learnt, Measured, Point, TilingChoice, frontier
from unet_engine.units import times


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

    @property
    def _work(self) -> float:
        return self.run / prod(self.survey.volume.shape)

    def chosen(self, learnt: Learnt, *, searched: bool) -> TilingChoice:
        """The cheapest tiling that keeps what passed, unless the model's own is as cheap."""
        points = [point for measured in learnt.measured for point in self._points(measured, learnt.most)]
        passing = [point for point in points if point.passed]
        brief, shown = learnt.model_copy(update={"measured": ()}), frontier(points)
        if not passing:
            best = max(learnt.measured, key=lambda m: m.spare)
            return self.kept(
                f"nothing that was looked at surely reaches the bar; the nearest is {best.agreement:.5f} of the labels, "
                f"least Dice {best.least_dice:.5f}, of windows of {times(best.context)} kept {times(best.margin)} off "
                "their border",
                brief, shown, searched=searched,
            )  # fmt: skip
        best_point = min(passing, key=lambda p: (p.work, -p.agreement))
        if best_point.work >= self._work:
            return self.kept("nothing that passes is cheaper on this volume", brief, shown, searched=searched)
        return TilingChoice(
            window=best_point.window, overlap=None, shared=best_point.shared, blend="crop", work=best_point.work,
            work_of_default=self._work, agreement=best_point.agreement, least_dice=best_point.least_dice, kept="",
            searched=searched, frontier=shown, learnt=brief, tolerance=self.survey.settings.tolerance,
            truth=bool(self.survey.settings.truth),
        )  # fmt: skip

    def kept(
        self, why: str, learnt: Learnt | None = None, shown: tuple[Point, ...] = (), *, searched: bool = False
    ) -> TilingChoice:
        """The model's own tiling."""
        tiling = self.decisions.tiling
        return TilingChoice(
            window=tiling.window, overlap=tiling.overlap, shared=None, blend=tiling.blend, work=self._work,
            work_of_default=self._work, agreement=learnt.bar_agreement if learnt else None,
            least_dice=learnt.bar_dice if learnt else None, kept=why, searched=searched, frontier=shown,
            learnt=learnt, tolerance=self.survey.settings.tolerance, truth=bool(self.survey.settings.truth),
        )  # fmt: skip

    def _points(self, measured: Measured, most: int) -> Iterator[Point]:
        """The cheapest windows that keep what was measured; none where none are as small as `most` voxels."""
        spec, own = self.survey.model.spec, self.decisions.tiling.window
        sizes = self.survey.volume.shape[-len(own) :]
        needs = [
            AxisNeeds(
                size=sizes[a],
                context=measured.context[a],
                shared=2 * measured.margin[a],
                least=spec.window_min[a] if spec.window_step[a] else own[a],
                step=spec.window_step[a],
                margin=spec.margin[a],
            )
            for a in range(len(own))
        ]
        found = fitted(needs, max(most, prod(own)), self.admits)
        if found is None:
            return
        yield Point(
            window=found.window,
            shared=tuple(0 if n == 1 else axis.shared for axis, n in zip(needs, found.counts, strict=True)),
            work=found.work,
            agreement=measured.agreement,
            least_dice=measured.least_dice,
            passed=measured.passed,
        )
