"""A region run like any volume, but kept in memory: what tilings are compared by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Event

import numpy as np

from unet_engine.backends.base import Array, Backend
from unet_engine.pipeline.columns import run_column, run_columns
from unet_engine.pipeline.host import Watch, unwatched
from unet_engine.pipeline.job import Job
from unet_engine.pipeline.worker import Opened, Worker
from unet_engine.plan.box import Box
from unet_engine.prepare.decisions import Decisions
from unet_engine.prepare.draft import Draft


def labels_of(draft: Draft, decisions: Decisions) -> Array:
    """Labels (*decisions.roi.shape), by the way of every run."""
    return values_of(draft, draft.job(decisions, draft.plan(decisions)))


def labels_of_each(draft: Draft, decisions: Decisions, boxes: Sequence[Box], watch: Watch = unwatched) -> list[Array]:
    """Labels of each of some boxes, (*box.shape): in one stream, where each is what one window of the host gives alone,
    so that the network never waits between them, and `watch` sees what it gives."""
    if decisions.tiling.blend != "crop" or not isinstance(draft.network, Backend):
        return [labels_of(draft, decisions.labels_of(draft.survey.model.spec, box, decisions.tiling)) for box in boxes]
    whole = Box.of_shape(draft.survey.volume.shape)
    plan = draft.plan(decisions.labels_of(draft.survey.model.spec, whole, decisions.tiling))
    ones = (1,) * len(plan.axes)
    memory = replace(plan.memory, under_way=draft.network.slots)
    alone = replace(plan, block=ones, chunk=ones, memory=memory)
    column, wanted = next(alone.columns()), {alone.meeting(box).lo: box for box in boxes}
    kept = _Each()
    job = draft.job(decisions.labels_of(draft.survey.model.spec, whole, decisions.tiling), alone)
    worker = Worker(job, Opened(draft.survey.volume, draft.survey.mask, draft.network, kept))
    worker.watch = watch
    tasks = (
        worker.settle(task, column, wanted.__contains__)
        for index in sorted(wanted)
        if (task := alone.task(index, column, wanted.__contains__))
    )
    run_column(worker, filter(None, tasks), Event())
    worker.leave()
    return [kept.values[box] for box in boxes]


def values_of(draft: Draft, job: Job) -> Array:
    """What `job` writes, (*job.plan.roi.shape): of one that writes labels on the grid of windows."""
    kept = _Kept(job)
    worker = Worker(job, Opened(draft.survey.volume, draft.survey.mask, draft.network, kept))
    run_columns([worker], lambda _: True)
    worker.leave()
    return kept.values


class _Sink:
    """Takes the place of an `Output`."""

    def mark(self, index: tuple[int, ...], stored: object = None) -> None:
        """Nobody will resume it."""

    def doubt(self, blocks: Sequence[tuple[int, ...]], what: str) -> None:
        """It is said when the run itself reads there."""

    def settle(self) -> None:
        """Nothing is recorded."""

    def pending(self) -> Callable[[tuple[int, ...]], bool]:
        """All of it: nothing is kept of what was done."""
        return lambda _: True


class _Kept(_Sink):
    """One region."""

    def __init__(self, job: Job) -> None:
        self.values: Array = np.zeros(job.plan.roi.shape, job.layout.dtype)

    def write(self, box: Box, values: Array) -> None:
        self.values[box.slices()] = values


class _Each(_Sink):
    """Blocks, each by itself."""

    def __init__(self) -> None:
        self.values: dict[Box, Array] = {}

    def write(self, box: Box, values: Array) -> None:
        self.values[box] = values
