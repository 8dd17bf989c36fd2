"""What ``unet-engine bench`` does: the machine's limits, then a sweep per model; the demo models on synthetic volumes unless told otherwise."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from unet_engine import machine
from unet_engine.bench.meter import machine_limits
from unet_engine.bench.report import Limits, facts
from unet_engine.bench.space import Field
from unet_engine.bench.sweep import PRECISIONS, Subject, Wanted, devices, groups, space_of, sweep
from unet_engine.demo import SEED, SHAPE, shipped_model
from unet_engine.errors import SettingsError
from unet_engine.model_file import ModelFile, open_model
from unet_engine.survey import check_volume
from unet_engine.volume import Volume, open_volume

SECONDS = 60.0
LEAST_SECONDS = 10.0
"""Of one model: what starting processes and one run from end to end take."""
PLANE = (1, 1024, 1024)
"""Of the 2D demo: one plane of the tissue."""
MIRRORED = {3: 2, 2: 4}
"""By axes, how many times the tissue is repeated along each, mirrored: windows are many, and edges few, at no cost."""


@dataclass(frozen=True)
class Request:
    """What to measure; see ``unet-engine bench --help``."""

    model: str | None = None
    input: str | None = None
    axes: str | None = None
    wanted: Wanted = field(default_factory=Wanted)
    seconds: float = SECONDS


def bench(request: Request, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure, and return all there is to say as plain values (see `report.facts`). Raises before anything is measured where it can."""
    begun = time.perf_counter()
    if (request.model is None) != (request.input is None):
        raise SettingsError("--model and --in belong together; give both, or neither for the demo models")
    with _subjects(request, tell) as subjects:
        least = LEAST_SECONDS * len(subjects)
        if request.seconds < least:
            raise SettingsError(
                f"--seconds {request.seconds:g} is too short: {len(subjects)} model(s) take {least:g} at least"
            )
        for subject in subjects:  # what makes no sense is said before minutes are spent on what does
            space_of(
                subject.model, Field(subject.model.spec, subject.volume.shape, request.wanted.overlap), request.wanted
            )
        limits = [_limits(device, subjects, request, tell) for device in devices(request.wanted)]
        left = request.seconds - (time.perf_counter() - begun)
        outcomes = [sweep(s, request.wanted, s.share * left, tell) for s in subjects]
        return facts(outcomes, limits, _machine(), time.perf_counter() - begun)


def _limits(device: str, subjects: Sequence[Subject], request: Request, tell: Callable[[str], None]) -> Limits:
    used = {g.precision for s in subjects for g in groups(s.model, request.wanted) if g.device == device}
    tell(f"{device}: what matrix products and copies reach")
    found = machine_limits(device, [p for p in PRECISIONS if p in used], request.wanted.threads or machine.cpu_count())
    return Limits(device, found["flops"], found["bytes"], found.get("why", ""))


@contextmanager
def _subjects(request: Request, tell: Callable[[str], None]) -> Iterator[list[Subject]]:
    if request.model and request.input:
        # a window that only a foreign ONNX needs to be told may be the one to sweep
        model = open_model(request.model, request.wanted.windows[0] if request.wanted.windows else None)
        volume = open_volume(request.input, request.axes)
        check_volume(volume, model, [])
        yield [_subject(model.spec.name, model, volume, request, request.input, 1.0)]
        return
    with tempfile.TemporaryDirectory(prefix="unet-engine-bench-") as folder:
        yield list(_demos(Path(folder), request, tell))


def _demos(root: Path, request: Request, tell: Callable[[str], None]) -> Iterator[Subject]:
    """The shipped networks with volumes as `demo` makes them. With ``--windows`` only those that take such windows."""
    from unet_export.tissue import make_tissue

    rank = {len(w) for w in request.wanted.windows}
    demos = [("cells_3d", SHAPE, 0.6), ("cells_2d", PLANE, 0.4)]
    kept = [(name, shape, share) for name, shape, share in demos if not rank or (3 if shape[0] > 1 else 2) in rank]
    if not kept or len(rank) > 1:
        raise SettingsError("--windows: the demo models take two or three sizes, all windows as many, e.g. 64,64,64")
    for name, shape, share in kept:
        tell(f"making synthetic tissue for {name}")
        image, _ = make_tissue(shape, SEED)
        path = root / f"{name}.zarr"
        flat = image[0] if shape[0] == 1 else image
        flat = np.pad(flat, [(0, n * (MIRRORED[flat.ndim] - 1)) for n in flat.shape], mode="symmetric")
        names = "zyx"[-flat.ndim :]
        zarr.create_array(
            path,
            data=flat,
            chunks=tuple(min(256 if flat.ndim == 2 else 64, n) for n in flat.shape),
            dimension_names=list(names),
        )
        model = open_model(shipped_model(f"{name}.onnx"))
        yield _subject(name, model, open_volume(str(path)), request, "SCAN.zarr", share / sum(s for *_, s in kept))


def _subject(name: str, model: ModelFile, volume: Volume, request: Request, shown: str, share: float) -> Subject:
    options = ["--in", volume.path, "--model", str(model.path), "--overlap", f"{request.wanted.overlap:g}"]
    options += ["--axes", request.axes] if request.axes else []
    options += ["--threads", str(request.wanted.threads)] if request.wanted.threads else []
    return Subject(name, model, volume, tuple(options), shown, share)


def _machine() -> dict[str, Any]:
    return {
        "processor": machine.processor(),
        "cores": machine.cpu_count(),
        "memory": machine.available_memory(),
        "gpus": machine.gpu_count(),
        "system": platform.platform(),
        "versions": {
            name: found
            for name in ("unet-engine", "openvino", "onnxruntime", "torch", "zarrs")
            if (found := _version(name))
        },
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
