"""Single windows, inferred to be shown: what they look like before their block is there. Nothing is written."""

from __future__ import annotations

import numpy as np

from unet_engine.pipeline.job import Job, Raw
from unet_engine.pipeline.worker import Worker
from unet_engine.plan.box import Box
from unet_engine.plan.plan import Block, Index, Plan, Task, read_span
from unet_engine.stitching.operations import label_threshold
from unet_engine.volumes.base import Array


def tells_labels(job: Job) -> bool:
    """Whether one window says what its labels are: the largest of several numbers is, whatever they are weighted with.
    Not where voxels are interpolated or thresholds count."""
    spec = job.model.spec
    exclusive = spec.regions is None and label_threshold(spec.activation, spec.channels_out, spec.threshold) is None
    return job.kind == "labels" and exclusive and not job.plan.back


def task_of(plan: Plan, window: Index, within: Box) -> Task:
    """Infer one window alone, and of it what lies in `within`, which is the task's write box."""
    one = Box(window, tuple(k + 1 for k in window))
    spans = [read_span(axis, k, k, plan.padding) for axis, k in zip(plan.axes, window, strict=True)]
    box = plan.support(one) & within
    block = Block(
        tuple(k // n for k, n in zip(window, plan.block, strict=True)), one, plan.support(one) & plan.roi, box, box
    )
    return Task(block, commits=False, windows=(window,), read=Box(*map(tuple, zip(*spans, strict=True))), halos=())


def labels_of(worker: Worker, task: Task, raw: Raw | None) -> Array:
    """Of a task of one window, the labels in its write box, (*box.shape), made of `raw`."""
    found = [
        worker.pipeline.finish(task, done.inside(task.block.write), [])[0] for done in worker.predict([(task, raw)])
    ]
    return np.array(found[0])
