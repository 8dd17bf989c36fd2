"""What ``unet-engine bench`` does: the machine's limits, then a sweep per model; the demo models on synthetic volumes
unless told otherwise."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from unet_engine import machine
from unet_engine.commands.bench.meter import machine_limits
from unet_engine.commands.bench.offer import PRECISIONS, Wanted, devices, groups, space_of
from unet_engine.commands.bench.report import Limits, facts, larger
from unet_engine.commands.bench.space import Field
from unet_engine.commands.bench.sweep import Subject, sweep
from unet_engine.commands.bench.tilings import tilings
from unet_engine.commands.demo import SEED, SHAPE
from unet_engine.errors import SettingsError
from unet_engine.model.file import ModelFile, open_model
from unet_engine.model.shipped import shipped_model
from unet_engine.prepare.channels import meant_for
from unet_engine.prepare.crop import taken
from unet_engine.prepare.resampling import seen
from unet_engine.prepare.survey import check_volume
from unet_engine.units import Tell
from unet_engine.version import version_of
from unet_engine.volumes.formats import located, open_stored, open_volume
from unet_engine.volumes.pick import ANYTHING, Meant

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
    ignore_spacing: bool = False
    """The voxels may be larger or smaller than those the model was trained on."""
    trust: bool = False
    """The user trusts a model that runs code as it is opened."""
    head: str | None = None
    """Name of the output that is meant, of several."""
    tilings: float | None = None
    """Part of a run that may be computed to see how tilings agree; None: that is not looked at."""
    meant: Meant = ANYTHING
    """What of `input` is meant."""


def bench(request: Request, tell: Tell) -> dict[str, Any]:
    """Measure, and return all there is to say as plain values (see `report.facts`). Raises before anything is measured
    where it can."""
    begun = time.perf_counter()
    if (request.model is None) != (request.input is None):
        raise SettingsError("--model and --in belong together; give both, or neither for the demo models")
    if request.head and not request.model:
        raise SettingsError(f"--head {request.head}: the demo models have one output; give --model and --in too")
    if request.meant != ANYTHING and not request.model:
        raise SettingsError(f"{request.meant.options[0]} is of a volume of yours; give --model and --in too")
    if request.tilings and not request.model:
        raise SettingsError("--tilings looks at a volume and a model of yours; give --model and --in too")
    demos = [] if request.model else _demos(request)
    least = LEAST_SECONDS * max(1, len(demos))
    if not least <= request.seconds < inf:
        raise SettingsError(
            f"--seconds {request.seconds:g} is too short, or no number; give {least:g} at least, {LEAST_SECONDS:g} for "
            "each model"
        )
    for demo in demos:  # what makes no sense is said before anything is made
        space_of(demo.model, _field(demo.model, demo.mirrored, request), request.wanted)
    with tempfile.TemporaryDirectory(prefix="unet-engine-bench-") as folder:
        subjects = [demo.subject(Path(folder), request, tell) for demo in demos] or [own_subject(request, tell)]
        asked = time.perf_counter()
        before = [_limits(device, subjects, request, tell) for device in devices(request.wanted)]
        left = request.seconds - (time.perf_counter() - begun) - (time.perf_counter() - asked)
        whole = sum(s.share for s in subjects)
        outcomes = [sweep(s, request.wanted, s.share / whole * left, tell) for s in subjects]
        # once more, as the machine may have been busy with something else: of a peak, the larger one is meant
        after = [_limits(device, subjects, request, tell) for device in devices(request.wanted)]
        limits = [larger(*pair) for pair in zip(before, after, strict=True)]
        found = facts(outcomes, limits, _machine(), time.perf_counter() - begun)
    return found | ({"tilings": _tilings(request, tell)} if request.tilings else {})


def _tilings(request: Request, tell: Tell) -> dict[str, Any]:
    """On the first device and library, in the precision that a run takes."""
    assert request.tilings is not None
    given = {"axes": request.axes, "head": request.head, "tta": request.wanted.tta, "threads": request.wanted.threads}
    given |= asdict(request.meant)
    return tilings(
        tell,
        request.tilings,
        input=request.input,
        model=request.model,
        ignore_spacing=request.ignore_spacing,
        trust=request.trust,
        device=request.wanted.devices[0] if request.wanted.devices else "auto",
        backend=request.wanted.backends[0] if request.wanted.backends else None,
        **given,
    )


def own_subject(request: Request, tell: Tell) -> Subject:
    """The user's model and volume."""
    assert request.model is not None
    assert request.input is not None
    # a window that only a foreign ONNX needs to be told may be the one to sweep
    windows = request.wanted.windows
    model = open_model(request.model, windows[0] if windows else None, head=request.head)
    model = model.trust() if request.trust else model
    model.check_trust()
    notes: list[str] = []
    place = located(request.input, request.meant.image, request.meant.level)
    stored = open_stored(place, request.axes)
    _, volume, _ = meant_for(stored, request.meant.pick, model.spec, notes, place=place, axes=request.axes)
    notes += volume.notes
    check_volume(volume, model)
    given = taken(volume, model.spec, notes, ignore=request.ignore_spacing)
    volume = seen(given.volume, given.grids, model.spec)
    for note in notes:
        tell(f"note: {note}")
    space_of(model, _field(model, volume.shape, request), request.wanted)
    return Subject(model.spec.name, model, volume, _options(request, model), request.input)


def _field(model: ModelFile, shape: tuple[int, ...], request: Request) -> Field:
    """Raises `SettingsError` where ``--tta`` is none, or none of this model's."""
    try:
        return Field.of(model, shape, request.wanted.overlap, request.wanted.tta)
    except ValueError as error:
        raise SettingsError(f"--tta {request.wanted.tta!r}: {error}") from error


def _options(request: Request, model: ModelFile) -> tuple[str, ...]:
    options = ["--model", model.asked[0]]
    options += ["--overlap", f"{request.wanted.overlap:g}"] if request.wanted.overlap != 0.5 else []
    options += ["--tta", request.wanted.tta] if request.wanted.tta else []
    options += ["--head", request.head] if request.head else []
    options += ["--axes", request.axes] if request.axes else []
    options += request.meant.options
    options += ["--ignore-spacing"] if request.ignore_spacing else []
    options += ["--threads", str(request.wanted.threads)] if request.wanted.threads else []
    return tuple(options)


def _limits(device: str, subjects: Sequence[Subject], request: Request, tell: Tell) -> Limits:
    used = {g.precision for s in subjects for g in groups(s.model, request.wanted) if g.device == device}
    tell(f"{device}: what matrix products and copies reach")
    found = machine_limits(device, [p for p in PRECISIONS if p in used], request.wanted.threads or machine.cpu_count())
    return Limits(device, found["flops"], found["bytes"], found.get("why", ""))


@dataclass(frozen=True)
class _Demo:
    """A shipped network, and a volume as `demo` makes it."""

    model: ModelFile
    shape: tuple[int, ...]
    """Of the tissue that is made: (z, y, x)."""
    share: float

    @property
    def mirrored(self) -> tuple[int, ...]:
        """Of the volume, in the model's axes."""
        n = len(self.model.spec.axes)
        return tuple(size * MIRRORED[n] for size in self.shape[-n:])

    def subject(self, folder: Path, request: Request, tell: Tell) -> Subject:
        from unet_export.train.tissue import make_tissue

        name, axes = self.model.spec.name, self.model.spec.axes
        tell(f"making synthetic tissue for {name}")
        image, _ = make_tissue(self.shape, SEED)
        image = image.reshape(self.shape[-len(axes) :])
        image = np.pad(
            image, [(0, large - n) for large, n in zip(self.mirrored, image.shape, strict=True)], mode="symmetric"
        )
        path, chunk = str(folder / f"{name}.zarr"), 256 if len(axes) == 2 else 64
        zarr.create_array(path, data=image, chunks=(chunk,) * len(axes), dimension_names=list(axes))
        return Subject(name, self.model, open_volume(path), _options(request, self.model), "SCAN.zarr", self.share)


def _demos(request: Request) -> list[_Demo]:
    """Both of them; where windows are given, the one whose windows have as many sizes."""
    ranks = {len(w) for w in request.wanted.windows}
    if len(ranks) > 1:
        raise SettingsError("--windows: some have two sizes and some three; give windows of one model, e.g. 64,64,64")
    demos = [("cells_3d.onnx", SHAPE, 0.6), ("cells_2d.onnx", PLANE, 0.4)]
    found = [_Demo(open_model(shipped_model(name)), shape, share) for name, shape, share in demos]
    return [demo for demo in found if not ranks or len(demo.model.spec.axes) in ranks]


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
            if (found := version_of(name))
        },
    }
