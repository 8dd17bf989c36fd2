"""A run that ends in objects: its labels are written to a group beside the output, and once that is complete its
objects are numbered in the output, and it goes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from math import prod
from typing import Any

from unet_engine.errors import InputError, OutputError, ResumeError
from unet_engine.execution.hands import Hands
from unet_engine.output import output
from unet_engine.output.header import read_header
from unet_engine.postprocess.components import VOXEL_BYTES, components
from unet_engine.postprocess.source import Source
from unet_engine.postprocess.target import Wish
from unet_engine.postprocess.working import is_handed_over, labels_of, work_of
from unet_engine.prepare.prepare import Prepared
from unet_engine.storage import stores
from unet_engine.units import Tell


def are_there(named: str, digest: str) -> bool:
    """Whether the group `named` has all objects of the run `digest`; its labels are then taken away. Raises
    `ResumeError` where it is another run's, unless a run to replace it was begun."""
    header = read_header(named)
    labels = labels_of(named)
    if header is None:
        return False
    if header.get("run") == digest:
        if header.get("complete") and stores.exists(labels):
            output.remove(labels)
        return bool(header.get("complete"))
    if stores.exists(labels):
        return False
    raise ResumeError(
        f"{named} was made by another run ({header.get('run') or header.get('digest')}, now {digest}): repeat that run's "
        "settings or use --overwrite"
    )


def number(prepared: Prepared, hands: Hands, tell: Tell) -> dict[str, Any]:
    """Number the objects of the labels that a run has written; what is known of them. Raises what
    `unet_engine.postprocess.components.components` raises."""
    survey, job = prepared.survey, prepared.job
    assert survey.objects is not None
    target = work_of(survey.named) if is_handed_over(survey.named) else survey.named
    begun = read_header(target)
    ours = begun is not None and begun.get("run") == job.plan.digest
    if begun is None and stores.exists(target):
        raise OutputError(f"{target} exists and is not an output of unet-engine; choose another --out")
    wish = Wish(target, resume=ours, overwrite=not ours, durable=survey.settings.durable)
    least = (
        prod(job.layout.chunk) * VOXEL_BYTES
    )  # after hours of inference nothing is refused for want of some megabytes
    try:
        found = components(
            Source.of(job.out), survey.objects, wish, hands.crew,
            memory=max(least, hands.memory), run=job.plan.digest, tell=tell,
        )  # fmt: skip
    except (OutputError, InputError):
        if not survey.settings.part or not (by_another := _numbered_by_another(target, job.plan.digest)):
            raise
        return dict(by_another)
    if stores.exists(job.out):
        with (
            suppress(OutputError) if survey.settings.part else nullcontext()
        ):  # another part may be at it; what is left, the next attempt takes away
            output.remove(job.out)
    return found


PATIENCE, PAUSE = 60.0, 0.2
"""Seconds that a part waits for the objects that another one numbers, and between two looks."""


def _numbered_by_another(target: str, digest: str) -> Mapping[str, Any] | None:
    """What is known of the objects of the run `digest`, where another part that ended at the same moment numbers them;
    None where none does."""
    until = time.monotonic() + PATIENCE
    while True:
        header = read_header(target)
        if header is None or header.get("run") != digest:
            return None
        if header.get("complete"):
            return {"out": target, **(header.get("summary") or {})}
        if time.monotonic() > until:
            return None
        time.sleep(PAUSE)
