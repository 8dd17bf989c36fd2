"""Whether a model file computes what its source does: values and labels of both on the same input, in float32."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from unet_engine.api import run
from unet_engine.backends.base import Setup
from unet_engine.backends.libraries import choose_backend, open_backend
from unet_engine.errors import ModelError
from unet_engine.model.credit import Certificate
from unet_engine.model.file import ModelFile
from unet_engine.model.spec import ModelSpec
from unet_engine.stitching import operations
from unet_engine.units import times
from unet_engine.version import version_of
from unet_engine.volumes.normalize import scaling
from unet_export.importers.base import Array, Imported, Sample

EQUAL_LABELS = 0.999
"""Least part of equal labels, and least Dice of the classes on average, that a model file is written with."""
FEW = 1e-3
"""Part of the values that may be further apart than the source allows."""


def certified(found: Imported, model: ModelFile) -> tuple[Certificate, ...]:
    """What comparing `model` with its source gives. Raises `ModelError` where it computes something else."""
    made = [_of_sample(found, model, sample) for sample in found.samples]
    if found.predictor is not None and found.example is not None:
        made.append(_of_predictor(found, model, found.example))
    return tuple(made)


def _of_sample(found: Imported, model: ModelFile, sample: Sample) -> Certificate:
    spec = model.spec
    try:
        spec.check_window(sample.given.shape[1:])
        ours = through_network(model, sample.given)
        margin = spec.margin
    except ModelError:  # of no size that the network takes: windows of it are blended
        ours, margin = through_run(model, sample.given), (0,) * len(spec.axes)
    inside = (slice(None), *(slice(m, n - m) for m, n in zip(margin, sample.expected.shape[1:], strict=True)))
    expected = np.asarray(sample.expected[inside], np.float32)
    got = np.asarray(found.finish(ours), np.float32)
    if got.shape != expected.shape:
        raise ModelError(
            f"{found.credit.source}: of its own test input the network makes {times(got.shape)}, and its test output is "
            f"{times(expected.shape)}; the source contradicts itself"
        )
    finished = spec.model_copy(update={"activation": found.finished_as}) if found.finished_as else spec
    certificate = compared("its own test tensors", got, expected, finished, versions_of(model, found.versions))
    relative, absolute = found.tolerance
    apart = np.abs(got - expected) > absolute + relative * np.abs(expected)
    if apart.mean() > FEW and not _labels_hold(certificate):
        raise ModelError(_other(found, certificate, f"of values {apart.mean():.1%} differ by more than it allows"))
    if certificate.equal_labels is not None and not _labels_hold(certificate):
        raise ModelError(_other(found, certificate, "labels differ"))
    return certificate


def _of_predictor(found: Imported, model: ModelFile, volume: Array) -> Certificate:
    assert found.predictor is not None
    theirs = np.asarray(found.predictor(volume), np.float32)
    ours = through_run(model, volume, **found.run_as)
    certificate = compared(found.predicted_by, ours, theirs, model.spec, versions_of(model, found.versions))
    if certificate.equal_labels is not None and not _labels_hold(certificate):
        raise ModelError(_other(found, certificate, "labels differ"))
    return certificate


def _labels_hold(certificate: Certificate) -> bool:
    dice = list(certificate.dice.values())
    equal = certificate.equal_labels
    return equal is not None and equal >= EQUAL_LABELS and (not dice or float(np.mean(dice)) >= EQUAL_LABELS)


def _other(found: Imported, certificate: Certificate, why: str) -> str:
    return (
        f"{found.credit.source}: the model file would not give what the source does, {why}: {certificate}; "
        "--uncertified writes it all the same"
    )


def versions_of(model: ModelFile, theirs: Mapping[str, str] | None) -> dict[str, str]:
    """Of unet-engine, the library that runs the file, and those of the source."""
    library = choose_backend(model, "cpu")
    found = {name: version_of(name) for name in ("unet-engine", library)}
    return {name: version for name, version in found.items() if version} | dict(theirs or {})


def compared(against: str, ours: Array, theirs: Array, spec: ModelSpec, versions: Mapping[str, str]) -> Certificate:
    """The figures of two results (c, [z,] y, x) of a network with this spec: values relative to the largest absolute
    one of `theirs`, labels as a run makes them of either."""
    apart = np.abs(np.asarray(ours, np.float64) - theirs)
    largest = max(float(np.abs(theirs).max()), 1e-30)
    equal, dice = _labels(ours, theirs, spec)
    return Certificate(
        against=against,
        shape=theirs.shape,
        equal_labels=equal,
        dice=dice,
        largest_difference=float(f"{apart.max() / largest:.3g}"),
        mean_difference=float(f"{apart.mean() / largest:.3g}"),
        versions=dict(versions),
    )


def _labels(ours: Array, theirs: Array, spec: ModelSpec) -> tuple[float | None, dict[str, float]]:
    if spec.channels in ("image", "offsets") or (spec.activation == "none" and spec.channels != "classes"):
        return None, {}
    a, b = (label_of(values, spec) for values in (ours, theirs))
    dice = {}
    for label, name in enumerate(spec.class_names):
        first, second = a == label, b == label
        together = int(first.sum()) + int(second.sum())
        if together:
            dice[name] = float(2 * np.count_nonzero(first & second) / together)
    return float((a == b).mean()), dice


def label_of(values: Array, spec: ModelSpec) -> Array:
    """Labels ([z,] y, x) of outputs (c, [z,] y, x)."""
    labels = np.empty(values.shape[1:], np.uint16)
    operations.labels(np.ascontiguousarray(values, np.float32), labels, spec.activation)
    return labels


# --- what our side makes of an input ---


def through_network(model: ModelFile, given: Array) -> Array:
    """The network's output (c, [z,] y, x) float32 for all of `given` as one window, in the library that runs it."""
    scale = scaling(model.spec.normalization, list(given))
    backend = open_backend(choose_backend(model, "cpu"), Setup(model, given.shape[1:]))
    try:
        backend.input(0)[0] = np.stack([scale.normalised(channel, c) for c, channel in enumerate(given)])
        backend.start(0)
        return np.array(backend.result(0)[0], np.float32)
    finally:
        backend.close()


def through_run(model: ModelFile, volume: Array, **settings: Any) -> Array:
    """What a run writes as logits (c, [z,] y, x) float32 for `volume` (c, [z,] y, x)."""
    with tempfile.TemporaryDirectory(prefix="unet-engine-import-") as folder:
        source, out = Path(folder, "volume.zarr"), Path(folder, "out.zarr")
        names = ["c", *model.spec.axes]
        stored = zarr.create_array(
            str(source), shape=volume.shape, dtype=volume.dtype, chunks=(1, *(min(256, n) for n in volume.shape[1:])),
            dimension_names=names,
        )  # fmt: skip
        stored[...] = volume
        run(
            str(source), model=str(model.path), out=str(out), output="logits", device="cpu", precision="fp32",
            ignore_spacing=True, **settings,
        )  # fmt: skip
        return np.asarray(zarr.open_group(str(out), mode="r")["0"][...], np.float32)
