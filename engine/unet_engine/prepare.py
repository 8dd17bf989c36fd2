"""From settings to a job: open, check, decide. Everything that can be refused is refused here, before the first block."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from unet_engine import halo, machine
from unet_engine.backends import Backend, Setup, choose_backend, open_backend
from unet_engine.box import Box
from unet_engine.errors import BackendError, InputError, ModelError, SettingsError
from unet_engine.grid import AxisGrid
from unet_engine.job import Job
from unet_engine.layout import NO_MEMORY, Sizes, default_block, default_chunk, fit
from unet_engine.model_file import ModelFile, open_model
from unet_engine.normalize import Scaling, scaling
from unet_engine.output import Layout
from unet_engine.plan import Plan
from unet_engine.settings import CONFIG, Settings, parse_roi
from unet_engine.spec import ModelSpec, Normalization
from unet_engine.volume import Volume, open_volume

FORMAT = 1
"""Changes whenever the same settings would give other bytes than an earlier version's."""


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start: its job, the network loaded and warm, and what was decided on the way."""

    job: Job
    volume: Volume
    backend: Backend
    devices: tuple[str, ...]
    budget: int
    seconds_per_window: float
    notes: tuple[str, ...]
    """Things the user should know: fallbacks, mismatches."""


def prepare(settings: Settings) -> Prepared:
    """Open the volume and the model, load the network once, and plan. Raises the error of whatever does not fit."""
    notes: list[str] = []
    machine.return_freed_blocks()
    if settings.model is None:
        raise SettingsError(
            f'no model: use --model FILE.onnx, or write model = "FILE.onnx" to {CONFIG} here or beside the input'
        )
    volume = open_volume(settings.input, settings.axes)
    window = _window_for_model(settings.window, volume)
    model = open_model(settings.model, window)
    if settings.normalize:
        model = _with_spec(model, normalization=Normalization.parse(settings.normalize))
    window = _checked_window(model.spec, window)
    _check_volume(volume, model, notes)
    devices = _devices(settings, model, notes)
    name = choose_backend(model, devices[0].partition(":")[0], settings.backend)
    precision = "fp32" if settings.precision == "auto" else settings.precision
    if precision == "int8":
        raise BackendError(
            f"{settings.model} holds no INT8 network that was proved on your data; use --precision fp32 or bf16"
        )
    if halo.IMPLEMENTATION != "native":
        _fall_back(
            settings,
            notes,
            "the native extension is missing, so stitching runs in NumPy; reinstall with a C++ compiler",
        )
    setup = Setup(model, window, devices[0], precision, _threads(settings, devices))
    axes = _grid(settings, volume, model.spec, window)
    scale = _scaling(model.spec, volume)
    before = machine.resident_bytes()
    backend = open_backend(name, setup)
    seconds = _warm_up(backend)
    loaded = machine.resident_bytes()
    plan = _planned(settings, volume, model, axes, scale, backend)
    layout = _layout(settings, volume, model.spec, plan)
    sizes = Sizes(volume.voxel_bytes, 4 * model.spec.channels_out, _bytes_per_voxel(layout))
    budget = settings.memory or loaded + machine.available_memory() // 2
    plan = fit(plan, sizes, loaded + (len(devices) - 1) * max(0, loaded - before), budget, len(devices))
    job = Job(
        plan, settings.input, volume.axes, model, name, setup, scale, settings.output, _out(settings, volume, model), layout,
        settings.replace_nonfinite, settings.mask,
    )  # fmt: skip
    _check_mask(job, volume)
    return Prepared(job, volume, backend, devices, budget, seconds, tuple(notes))


# --- model and volume ---


def _window_for_model(window: tuple[int, ...] | None, volume: Volume) -> tuple[int, ...] | None:
    if window is not None and len(window) not in (2, 3):
        raise SettingsError(f"--window has {len(window)} sizes; give one per axis, e.g. 64,64,64")
    return window


def _checked_window(spec: ModelSpec, window: tuple[int, ...] | None) -> tuple[int, ...]:
    window = window or spec.window
    if len(window) == len(spec.axes) + 1 and window[0] == 1:
        window = window[1:]  # a 2D network over a 3D volume, its window given with the one plane it has
    spec.check_window(window)
    return window


def _with_spec(model: ModelFile, **changes: Any) -> ModelFile:
    return replace(model, spec=model.spec.model_copy(update=changes))


def _check_volume(volume: Volume, model: ModelFile, notes: list[str]) -> None:
    spec = model.spec
    if not set(spec.axes) <= set(volume.spatial):
        raise InputError(
            f"{volume.path} has the axes {volume.axes}, the model {spec.name} needs {spec.axes}; use a 2D model, or --axes"
        )
    if volume.channels != spec.channels_in:
        raise InputError(
            f"{volume.path} has {volume.channels} channel{'s' * (volume.channels != 1)} and the model {spec.name} takes "
            f"{spec.channels_in}; use another model, or name the channel axis with --axes, e.g. czyx"
        )
    if spec.spacing and volume.spacing:
        ratios = [a / b for a, b in zip(volume.spacing[-len(spec.axes) :], spec.spacing, strict=True)]
        if max(ratios) > 1.2 or min(ratios) < 1 / 1.2:
            notes.append(
                f"voxels are {volume.spacing} {volume.unit or ''}, the model was trained on {spec.spacing} {spec.spacing_unit}"
            )


def _check_mask(job: Job, volume: Volume) -> None:
    if job.mask is None:
        return
    mask = open_volume(job.mask)
    if mask.shape != volume.shape or mask.channels != 1:
        raise InputError(f"--mask {job.mask} has the shape {mask.shape}, the volume {volume.shape}; they must agree")
    if not job.skips:
        raise ModelError(f"--mask: {job.model.path} names no output for what is left out; add 'empty' to its spec")


def _scaling(spec: ModelSpec, volume: Volume) -> Scaling:
    if spec.normalization.mode in ("none", "range"):
        return scaling(spec.normalization, [np.zeros(1)] * volume.channels)
    return scaling(spec.normalization, volume.samples)


# --- devices ---


def _devices(settings: Settings, model: ModelFile, notes: list[str]) -> tuple[str, ...]:
    """``cpu`` once, or every GPU asked for."""
    wanted, found = settings.device, machine.gpu_count()
    if settings.gpus:
        if settings.gpus > found:
            raise BackendError(
                f"--gpus {settings.gpus}: this machine shows {found}; use --gpus {found}" if found else _NO_GPU
            )
        return tuple(f"cuda:{i}" for i in range(settings.gpus))
    if wanted == "cpu" or model.format == "fake":
        return ("cpu",) if model.format != "fake" or not wanted.startswith("fake") else tuple(wanted.split(","))
    if wanted == "auto":
        if not found:
            return ("cpu",)
        if settings.backend == "openvino" or not _runs_on_gpu(model):
            _fall_back(
                settings,
                notes,
                f"{found} GPU(s) found, but no installed back end runs {model.path.name} there: running on the CPU",
            )
            return ("cpu",)
        return tuple(f"cuda:{i}" for i in range(found))
    kind, _, numbers = wanted.partition(":")
    if kind != "cuda" or not all(n.isdigit() for n in numbers.split(",") if numbers):
        raise SettingsError(f"--device {wanted!r} is not understood; use cpu, cuda, cuda:0,1 or auto")
    chosen = [int(n) for n in numbers.split(",")] if numbers else list(range(found))
    if not found or max(chosen) >= found:
        raise BackendError(
            f"--device {wanted}: this machine shows {found} GPU(s); count them from 0" if found else _NO_GPU
        )
    return tuple(f"cuda:{i}" for i in chosen)


_NO_GPU = "this machine shows no NVIDIA GPU; leave out --gpus and --device to run on the CPU"


def _runs_on_gpu(model: ModelFile) -> bool:
    """Whether an installed library can run the format on CUDA. Asked only where there is a GPU: the imports are heavy."""
    try:
        if model.format == "onnx":
            import onnxruntime

            return "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        import torch

        return bool(torch.cuda.is_available())
    except ImportError:
        return False


def _threads(settings: Settings, devices: tuple[str, ...]) -> int:
    return 1 if devices[0].startswith("cuda") else settings.workers or machine.cpu_count()


def _fall_back(settings: Settings, notes: list[str], what: str) -> None:
    if settings.strict:
        raise BackendError(f"--strict: {what}")
    notes.append(what)


def _warm_up(backend: Backend) -> float:
    """Run every slot once, so that the memory the network takes is taken, and time it: seconds per window."""
    begun = time.perf_counter()
    for slot in range(backend.slots):
        backend.input(slot)[...] = 0
        backend.start(slot)
    for slot in range(backend.slots):
        backend.result(slot)
    return (time.perf_counter() - begun) / (backend.slots * backend.setup.batch)


# --- plan ---


def _grid(settings: Settings, volume: Volume, spec: ModelSpec, window: tuple[int, ...]) -> tuple[AxisGrid, ...]:
    """One axis per spatial axis of the volume; axes the model does not have are walked plane by plane."""
    planes = len(volume.shape) - len(spec.axes)
    sizes = [w - 2 * m for w, m in zip(window, spec.margin, strict=True)]
    return tuple(
        AxisGrid(size, 1, 1, 0, settings.blend) if a < planes
        else AxisGrid.with_overlap(size, sizes[a - planes], settings.overlap, spec.margin[a - planes], settings.blend)
        for a, size in enumerate(volume.shape)
    )  # fmt: skip


def _planned(
    settings: Settings, volume: Volume, model: ModelFile, axes: tuple[AxisGrid, ...], scale: Scaling, backend: Backend
) -> Plan:
    spec, setup = model.spec, backend.setup
    roi = parse_roi(settings.roi, volume.spatial, volume.shape) if settings.roi else Box.of_shape(volume.shape)
    block = default_block(axes, spec.channels_out)
    identity = {
        "format": FORMAT,
        "input": volume.fingerprint(),
        "shape": list(volume.shape),
        "roi": str(roi),
        "model": model.sha256,
        "spec": spec.model_dump_json(exclude={"name", "classes", "flops", "spacing", "spacing_unit"}),
        "backend": backend.version,
        "device": setup.device.partition(":")[0],
        "precision": setup.precision,
        "window": list(setup.window),
        "overlap": settings.overlap,
        "blend": settings.blend,
        "padding": settings.padding,
        "normalization": [str(spec.normalization), list(scale.shift), list(scale.scale)],
        "output": [settings.output, _dtype(settings, spec)],
        "block": list(block),
        "replace_nonfinite": settings.replace_nonfinite,
        "mask": open_volume(settings.mask).fingerprint() if settings.mask else None,
    }
    flops = None if spec.flops is None else round(spec.flops * prod(setup.window) / prod(spec.window))
    return Plan(
        volume.spatial,
        axes,
        roi,
        block,
        default_chunk(axes, block),
        ((),) * len(axes),
        settings.padding,
        NO_MEMORY,
        identity,
        flops,
    )


def _dtype(settings: Settings, spec: ModelSpec) -> str:
    if settings.output == "labels":
        return "uint8" if spec.label_count <= 256 else "uint16"
    return settings.dtype or ("uint8" if settings.output == "probabilities" else "float32")


def _layout(settings: Settings, volume: Volume, spec: ModelSpec, plan: Plan) -> Layout:
    spacing = volume.spacing or (1.0,) * len(plan.axes)
    return Layout(
        names=plan.names,
        stored=volume.stored_spatial,
        shape=plan.roi.shape,
        chunk=plan.chunk,
        channels=None if settings.output == "labels" else spec.channels_out,
        dtype=_dtype(settings, spec),
        spacing=spacing,
        translation=tuple(t + s * l for t, s, l in zip(volume.translation, spacing, plan.roi.lo, strict=True)),
        unit=volume.unit,
        classes=spec.classes,
    )


def _bytes_per_voxel(layout: Layout) -> int:
    return np.dtype(layout.dtype).itemsize * (layout.channels or 1)


def _out(settings: Settings, volume: Volume, model: ModelFile) -> str:
    """Beside the input (the outermost .zarr folder of its path), named after both. Never the input or inside it."""
    root = volume.path.rstrip("/")
    if "://" not in root:
        root = os.path.abspath(root)  # noqa: PTH100  # no symlinks resolved: beside where the user says it is
    parts = root.split("/")
    outermost = next((i for i, part in enumerate(parts) if part.endswith((".zarr", ".n5"))), len(parts) - 1)
    top = "/".join(parts[: outermost + 1])
    if settings.out is None:
        return f"{top.removesuffix('.zarr')}-{model.spec.name}.zarr"
    for other in (top, settings.mask):
        if other and _overlap(settings.out, other):
            raise SettingsError(f"--out {settings.out} overlaps the input {other}; choose a folder of its own")
    return settings.out


def _overlap(a: str, b: str) -> bool:
    """Whether one of two paths is the other or lies in it, however they are written."""
    if "://" in a or "://" in b:
        return a.rstrip("/") == b.rstrip("/")
    a, b = os.path.realpath(a), os.path.realpath(b)
    return f"{a}/".startswith(f"{b}/") or f"{b}/".startswith(f"{a}/")
