"""From a survey to a job: load the network, time it, decide the grid, fit the plan to memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from unet_engine import machine
from unet_engine.backends.base import Setup
from unet_engine.backends.batch_probe import answers
from unet_engine.backends.device import DeviceBackend
from unet_engine.backends.opening import Network, network_bytes, open_fitting
from unet_engine.devices.opening import is_pipelined
from unet_engine.output.layout import Layout
from unet_engine.pipeline.job import Job
from unet_engine.plan.box import Box
from unet_engine.plan.bundles import bundle_length
from unet_engine.plan.device_memory import DeviceMemory, device_memory, fit_device
from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.memory import ClusterShape, Sizes, fit, predict_memory
from unet_engine.plan.plan import Plan
from unet_engine.plan.sizing import NO_MEMORY, default_block, default_chunk
from unet_engine.prepare.decoding import Reading, reading
from unet_engine.prepare.overlap import REFERENCE, Overlap, OverlapChoice, search, stored
from unet_engine.prepare.survey import Survey
from unet_engine.settings import parse_part
from unet_engine.units import Tell, silent
from unet_engine.volumes.normalize import Scaling, scaling

FORMAT = 1
"""Changes whenever the same settings would give other bytes than an earlier version's."""


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start: its job, and the network loaded and warm unless that was done on a worker of a cluster."""

    found: Survey
    job: Job
    backend: Network | None
    budget: int
    """Bytes of RAM the plan was fitted to."""
    seconds_per_window: float
    overlap: OverlapChoice | None = None
    """What ``--overlap auto`` chose, and why."""
    cluster: ClusterShape | None = None
    """The workers it is planned for; None where this process does it all."""
    reading: Reading | None = None
    """Whether reading keeps up, where a GPU computes."""
    device_memory: DeviceMemory | None = None


def prepare(found: Survey, workers: int = 0, present: int = 1, tell: Tell = silent) -> Prepared:
    """Load the network once and plan, for this process or for the `workers` of a cluster, of whom so many are `present`.
    `tell` hears of what takes long.

    Raises `ModelError`, `BackendError` or `PlanError` where that does not work."""
    machine.return_freed_blocks()
    settings, volume, model, devices = found.settings, found.volume, found.model, found.devices
    threads = (
        1 if devices[0].startswith("cuda") or is_pipelined(devices[0]) else settings.threads or machine.cpu_count()
    )
    choice = found.choice
    setup = Setup(model, found.window, devices[0], choice.precision, choice.network, choice.rest, threads)
    # the samples are read before memory is measured: what reading takes once, threads and caches, belongs to the base
    fingerprint = volume.fingerprint()
    scale = _scaling(found)
    before = machine.resident_bytes()
    notes: list[str] = []
    # how many windows a block has decides the batch; other overlaps than the reference's make fewer
    drafted = _overlapping(found, REFERENCE) if settings.overlap == "auto" else found
    windows = prod(default_block(_grid(drafted), model.spec.channels_out))
    backend, seconds = open_fitting(
        found.backend, setup, windows, None if settings.window else notes.append, settings.batch
    )
    setup = backend.setup
    found = replace(found, window=setup.window, notes=(*found.notes, *notes))
    overlap = _chosen_overlap(found, fingerprint, scale, backend, tell)
    if overlap:
        found = _overlapping(found, overlap.chosen)
    loaded = machine.resident_bytes()
    plan = _plan(found, fingerprint, scale, backend)
    job = _job(found, plan, scale, setup)
    sizes = Sizes(
        volume.voxel_bytes,
        4 * model.spec.channels_out,
        job.layout.voxel_bytes,
        machine.cpu_count() * volume.chunk_bytes,
    )
    if isinstance(backend, DeviceBackend):
        plan = fit_device(plan, sizes, network_bytes(backend), backend.device.free_bytes() + network_bytes(backend))
    budget = settings.memory or loaded + machine.available_memory() // 2
    base = loaded + (len(devices) - 1) * max(0, loaded - before)
    cluster = (
        _cluster(plan, sizes, base, budget, ClusterShape(workers, present, bundle_length(plan, seconds, workers)))
        if workers
        else None
    )
    job = replace(job, plan=fit(plan, sizes, base, budget, len(devices), cluster))
    prepared = Prepared(_with_note(found, job.plan), job, backend, budget, seconds, overlap, cluster)
    return _about_device(prepared, backend, sizes) if isinstance(backend, DeviceBackend) else prepared


def _job(found: Survey, plan: Plan, scale: Scaling, setup: Setup) -> Job:
    settings = found.settings
    return Job(
        plan=plan,
        volume=settings.input,
        volume_axes=found.volume.axes,
        model=found.model,
        backend=found.backend,
        setup=setup,
        scaling=scale,
        kind=settings.output,
        out=found.out,
        layout=_layout(found, plan),
        replace_nonfinite=settings.replace_nonfinite,
        mask=settings.mask,
        profiled=settings.profile is not None,
    )


def _about_device(prepared: Prepared, backend: DeviceBackend, sizes: Sizes) -> Prepared:
    """The same with what a GPU needs of reading and of its memory."""
    job, found = prepared.job, prepared.found
    rates = reading(job.plan, found.volume, prepared.seconds_per_window, len(found.devices))
    memory = device_memory(job.plan, sizes, network_bytes(backend))
    if backend.note:
        prepared = replace(prepared, found=replace(found, notes=(*found.notes, backend.note)))
    told = answers(backend) if job.setup.batch > 1 else frozenset[str]()
    job = replace(job, decoders=rates.threads, answers=told)
    return replace(prepared, job=job, reading=rates, device_memory=memory)


def _overlapping(found: Survey, candidate: Overlap) -> Survey:
    settings = found.settings.model_copy(update={"overlap": candidate.overlap, "blend": candidate.blend})
    return replace(found, settings=settings)


def _chosen_overlap(
    found: Survey, fingerprint: str, scale: Scaling, backend: Network, tell: Tell
) -> OverlapChoice | None:
    """What ``--overlap auto`` takes: what the output was begun with, else what a search finds; None where it was not asked for."""
    if found.settings.overlap != "auto":
        return None

    def draft(candidate: Overlap, roi: Box) -> Job:
        tried = _overlapping(found, candidate)
        labels = tried.settings.model_copy(update={"output": "labels", "dtype": None, "part": None})
        tried = replace(tried, roi=roi, settings=labels)
        return _job(tried, _plan(tried, fingerprint, scale, backend), scale, backend.setup)

    return stored(found) or search(found, scale, backend, draft, tell)


def _cluster(plan: Plan, sizes: Sizes, base: int, budget: int, wanted: ClusterShape) -> ClusterShape:
    """Bundles as long as they should be, but no longer than fits without more columns: one too many costs more than short bundles."""
    for length in range(wanted.bundle_length, 1, -1):
        cluster = replace(wanted, bundle_length=length)
        if predict_memory(plan, sizes, base, 1, cluster).total <= budget:
            return cluster
    return replace(wanted, bundle_length=1)


def _with_note(found: Survey, plan: Plan) -> Survey:
    """Tells the user of a part that there is nothing for it to do."""
    if plan.block_count:
        return found
    blocks = prod(map(len, plan.writing))
    idle = (
        f"part {found.settings.part} has nothing to do: there are only {blocks} blocks, so use no more parts than that"
    )
    return replace(found, notes=(*found.notes, idle))


def _scaling(found: Survey) -> Scaling:
    normalization, volume = found.model.spec.normalization, found.volume
    fixed = normalization.mode in ("none", "range")
    return scaling(normalization, [np.zeros(1)] * volume.channels if fixed else volume.samples)


def _grid(found: Survey) -> tuple[AxisGrid, ...]:
    """One axis per spatial axis of the volume; axes the model does not have are walked plane by plane."""
    settings, spec, shape = found.settings, found.model.spec, found.volume.shape
    overlap = settings.overlap
    assert overlap != "auto", "chosen before anything is planned"
    planes = len(shape) - len(spec.axes)
    sizes = [w - 2 * m for w, m in zip(found.window, spec.margin, strict=True)]
    return tuple(
        AxisGrid(size, 1, 1, 0, settings.blend) if a < planes
        else AxisGrid.with_overlap(size, sizes[a - planes], overlap, spec.margin[a - planes], settings.blend)
        for a, size in enumerate(shape)
    )  # fmt: skip


def _plan(found: Survey, fingerprint: str, scale: Scaling, backend: Network) -> Plan:
    """The plan of a single column; `fit` deals it into columns."""
    settings, volume, spec, setup = found.settings, found.volume, found.model.spec, backend.setup
    axes = _grid(found)
    block = default_block(axes, spec.channels_out)
    identity: dict[str, Any] = {
        "format": FORMAT,
        "input": fingerprint,
        "shape": list(volume.shape),
        "roi": str(found.roi),
        "model": found.model.sha256,
        "spec": spec.model_dump_json(
            exclude={"name", "classes", "flops", "spacing", "spacing_unit", "input_quantiles"}
        ),
        "backend": backend.version,
        "device": setup.device.partition(":")[0],
        "precision": setup.precision,
        **({"batch": setup.batch} if isinstance(backend, DeviceBackend) else {}),
        "network": [setup.network or found.model.sha256, setup.rest],
        "window": list(setup.window),
        "overlap": settings.overlap,
        "blend": settings.blend,
        "padding": settings.padding,
        "normalization": [str(spec.normalization), list(scale.shift), list(scale.scale)],
        "output": [settings.output, _dtype(found)],
        "block": list(block),
        "replace_nonfinite": settings.replace_nonfinite,
        "mask": found.mask.fingerprint() if found.mask else None,
    }
    flops = None if spec.flops is None else round(spec.flops * prod(setup.window) / prod(spec.window))
    return Plan(
        names=volume.spatial,
        axes=axes,
        roi=found.roi,
        block=block,
        chunk=default_chunk(axes, block),
        cuts=((),) * len(axes),
        padding=settings.padding,
        memory=NO_MEMORY,
        identity=identity,
        flops_per_window=flops,
        part=parse_part(settings.part) if settings.part else (1, 1),
    )


def _dtype(found: Survey) -> str:
    settings = found.settings
    if settings.output == "labels":
        return "uint8" if found.model.spec.label_count <= 256 else "uint16"
    return settings.dtype or ("uint8" if settings.output == "probabilities" else "float32")


def _layout(found: Survey, plan: Plan) -> Layout:
    settings, volume, spec = found.settings, found.volume, found.model.spec
    spacing = volume.spacing or (1.0,) * len(plan.axes)
    return Layout(
        names=plan.names,
        stored=volume.stored_spatial,
        shape=plan.roi.shape,
        chunk=plan.chunk,
        channels=None if settings.output == "labels" else spec.channels_out,
        dtype=_dtype(found),
        spacing=spacing,
        translation=tuple(t + s * l for t, s, l in zip(volume.translation, spacing, plan.roi.lo, strict=True)),
        unit=volume.unit,
        classes=spec.classes,
    )
