"""A region run like any volume, but kept in memory: what tilings are compared by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from unet_engine.backends.base import Array
from unet_engine.pipeline.columns import run_columns
from unet_engine.pipeline.job import Job
from unet_engine.pipeline.worker import Opened, Worker
from unet_engine.plan.box import Box
from unet_engine.prepare.decisions import Decisions
from unet_engine.prepare.draft import Draft


def labels_of(draft: Draft, decisions: Decisions) -> Array:
    """Labels (*decisions.roi.shape), by the way of every run."""
    return values_of(draft, draft.job(decisions, draft.plan(decisions)))


def values_of(draft: Draft, job: Job) -> Array:
    """What `job` writes, (*job.plan.roi.shape): of one that writes labels on the grid of windows."""
    kept = _Kept(job)
    worker = Worker(job, Opened(draft.survey.volume, draft.survey.mask, draft.network, kept))
    run_columns([worker], lambda _: True)
    worker.leave()
    return kept.values


class _Kept:
    """Takes the place of an `Output`."""

    def __init__(self, job: Job) -> None:
        self.values: Array = np.zeros(job.plan.roi.shape, job.layout.dtype)

    def write(self, box: Box, values: Array) -> None:
        self.values[box.slices()] = values

    def mark(self, index: tuple[int, ...], stored: object = None) -> None:
        """Nobody will resume it."""

    def doubt(self, blocks: Sequence[tuple[int, ...]], what: str) -> None:
        """It is said when the run itself reads there."""

    def settle(self) -> None:
        """Nothing is recorded."""

    def pending(self) -> Callable[[tuple[int, ...]], bool]:
        """All of it: nothing is kept of what was done."""
        return lambda _: True
