"""Whether a model file computes what its source does: values and labels of both on the same input, in float32."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from unet_engine.api import run
from unet_engine.backends.base import Setup
from unet_engine.backends.libraries import choose_backend
from unet_engine.backends.opening import as_host, open_network
from unet_engine.errors import ModelError
from unet_engine.model.credit import Certificate
from unet_engine.model.file import ModelFile
from unet_engine.model.normalization import Normalization
from unet_engine.model.spec import ARE_PROBABILITIES, ModelSpec
from unet_engine.stitching import operations
from unet_engine.units import silent, times
from unet_engine.version import version_of
from unet_engine.volumes.holes import outside_of
from unet_engine.volumes.normalize import scaling
from unet_export.conversion.adapt import adapted
from unet_export.importers.base import Array, Imported, Sample

EQUAL_LABELS = 0.999
"""Least part of equal labels, and least Dice of the classes on average, that a model file is written with."""
LARGEST = 1e-3
"""Difference of values, relative to the largest, where there are no labels."""
VALUES = 2**26
"""Of a predictor's answer, which it and a run hold several times over: of more, smaller windows are compared."""
WORK = 4e12
"""Floating-point operations of a predictor, about a minute of two processor cores."""
FEW = 1e-3
"""Part of the values that may be further apart than the source allows."""


def certified(found: Imported, model: ModelFile) -> tuple[Certificate, ...]:
    """What comparing `model` with its source gives. Raises `ModelError` where it computes something else."""
    made = [_of_sample(found, model, sample) for sample in found.samples]
    if found.predictor is not None:
        made.append(_of_predictor(found, model))
    if not made and not hasattr(found.members[0].network, "SerializeToString"):
        made.append(_of_network(found, model))
    return tuple(made)


def _of_network(found: Imported, model: ModelFile) -> Certificate:
    """The network in PyTorch, or the mean of several, over a whole image, one step larger than the window where it may
    be, against a run without mirrors."""
    import torch

    spec = model.spec
    window = tuple(w + s for w, s in zip(spec.window, spec.window_step, strict=True))
    volume = example_of(spec)
    volume = volume[(slice(None), *(slice(0, min(w, n)) for w, n in zip(window, volume.shape[1:], strict=True)))]
    window = tuple(volume.shape[1:]) if _takes(spec, volume.shape[1:]) else spec.window
    volume = np.ascontiguousarray(volume[(slice(None), *(slice(0, w) for w in window))])
    if spec.crop is not None:  # a run takes a box of it, and the network here is given the whole
        volume.reshape(spec.channels_in, -1)[:, 0] = volume.max()
    given, total = torch.from_numpy(_normalised(spec, volume))[None], sum(member.weight for member in found.members)
    with torch.inference_mode():
        answers = (
            member.weight
            / total
            * adapted(member.network, window, spec.channels_in, found.head, silent)(given)[0].numpy()
            for member in found.members
        )
        theirs = np.sum(np.stack(list(answers)), axis=0)
    ours = through_network(model, volume) if any(spec.margin) else through_run(model, volume, window=window, tta="none")
    what = "its network" if len(found.members) == 1 else f"the mean of its {len(found.members)} networks"
    certificate = compared(
        f"{what} in PyTorch, of a whole image", ours, theirs, spec, versions_of(model, found.versions)
    )
    if certificate.largest_difference > LARGEST and not _labels_hold(certificate):
        raise ModelError(_other(found, certificate, "values differ"))
    return certificate


def _normalised(spec: ModelSpec, image: Array) -> Array:
    """All of an image (c, [z,] y, x) as the spec has it, float32."""
    scale = scaling(spec.normalization, list(image))
    found = np.stack([scale.normalised(channel, c) for c, channel in enumerate(image)]).astype(np.float32)
    if scale.filled:
        found[np.array(scale.filled)[:, *[np.newaxis] * (image.ndim - 1)] & outside_of(image)] = 0
    return found


def _takes(spec: ModelSpec, window: tuple[int, ...]) -> bool:
    try:
        spec.check_window(window)
    except ModelError:
        return False
    return True


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
            f"{times(expected.shape)}; get the package again, or leave the comparison out with --uncertified"
        )
    # a threshold is among what is done behind it
    known = {"activation": found.finished_as, "threshold": None}
    finished = spec.model_copy(update=known) if found.finished_as else spec
    certificate = compared("its own test tensors", got, expected, finished, versions_of(model, found.versions))
    relative, absolute = found.tolerance
    apart = np.abs(got - expected) > absolute + relative * np.abs(expected)
    if apart.mean() > FEW and not _labels_hold(certificate):
        raise ModelError(_other(found, certificate, f"of values {apart.mean():.1%} differ by more than it allows"))
    if certificate.equal_labels is not None and not _labels_hold(certificate):
        raise ModelError(_other(found, certificate, "labels differ"))
    return certificate


def _of_predictor(found: Imported, model: ModelFile) -> Certificate:
    assert found.predictor is not None
    window, volume = affordable(found, model.spec)
    given = (found.example_spacing,) if found.example_spacing else ()
    theirs = np.asarray(found.predictor(volume, window, *given), np.float32)
    ours = through_run(model, volume, window=window, spacing=found.example_spacing, **found.inference)
    against = found.predicted_by + (" of voxels of another size" if found.example_spacing else "")
    if window != model.spec.window:
        against += f", in windows of {times(window)}"
    certificate = compared(against, ours, theirs, model.spec, versions_of(model, found.versions))
    if certificate.equal_labels is not None and not _labels_hold(certificate):
        raise ModelError(_other(found, certificate, "labels differ"))
    if certificate.equal_labels is None and not certificate.largest_difference <= LARGEST:
        raise ModelError(_other(found, certificate, "values differ"))
    return certificate


def affordable(found: Imported, spec: ModelSpec) -> tuple[tuple[int, ...], Array]:
    """The largest windows, at most the spec's, with which a predictor's answer fits `VALUES` and takes `WORK`, and a
    volume for them; the smallest ones where none do."""
    poses = 2 ** len(spec.mirror_axes or "") * len(found.members)
    for eighths in range(8, 0, -1):
        window = tuple(
            w if eighths == 8 or not s else max(least, least + (w * eighths // 8 - least) // s * s)
            for w, least, s in zip(spec.window, spec.window_min, spec.window_step, strict=True)
        )
        volume = example_of(spec, window, found.example_spacing) if found.example is None else found.example(window)
        spans = _ratios(spec, found.example_spacing)
        windows = 2 ** sum(n > r * w + 1 for n, r, w in zip(volume.shape[1:], spans, window, strict=True))
        work = (spec.flops or 0) * np.prod(window) / np.prod(spec.window) * windows * poses
        if spec.channels_out * volume[0].size <= VALUES and work <= WORK:
            break
    return window, volume


def _ratios(spec: ModelSpec, spacing: Sequence[float] | None) -> tuple[float, ...]:
    """Voxels of a volume of this spacing that one of the network's spans, by axis; 1 where the network's may be any."""
    if spacing is None or spec.spacing is None:
        return (1.0,) * len(spec.axes)
    return tuple(a / b if a else 1.0 for a, b in zip(spec.spacing, spacing, strict=True))


def example_of(
    spec: ModelSpec, window: tuple[int, ...] | None = None, spacing: tuple[float, ...] | None = None
) -> Array:
    """A volume (c, [z,] y, x) float32 of smooth structures, half as large again as the window along its first axis, in
    the range that the spec normalises from; a part of it is 0, as where nothing was scanned.

    window: the spec's where it is None. spacing: of the volume, where it is not the network's."""
    spans = [round(r * w) for r, w in zip(_ratios(spec, spacing), window or spec.window, strict=True)]
    shape = (spans[0] * 3 // 2, *spans[1:])
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((spec.channels_in, *(n // 8 + 2 for n in shape)), np.float32)
    image: Array = coarse
    for axis, size in enumerate(shape, start=1):
        at = np.arange(size, dtype=np.float32) / 8
        first = at.astype(np.intp)
        weight = (at - first).reshape(-1, *(1,) * (image.ndim - axis - 1))
        image = np.take(image, first, axis) * (1 - weight) + np.take(image, first + 1, axis) * weight
    image = image + 0.1 * rng.standard_normal(image.shape, np.float32)
    low, high = _range_of(spec.normalization)
    image = low + (image - image.min()) / np.ptp(image) * (high - low)
    image[:, : shape[0] // 8] = min(0.0, spec.crop) if isinstance(spec.crop, float) else 0
    return np.asarray(image, np.float32)


def _range_of(normalization: Normalization) -> tuple[float, float]:
    """What raw values lie between where this normalisation makes sense, and a little beyond."""
    if normalization.mode == "fixed" and normalization.mean and normalization.std:
        mean, std = normalization.mean[0] * normalization.divide, normalization.std[0] * normalization.divide
        return mean - 2 * std, mean + 3 * std
    if normalization.low is not None and normalization.high is not None and normalization.mode == "range":
        width = normalization.high - normalization.low
        return normalization.low - width / 8, normalization.high + width / 8
    return (-3.0, 3.0) if normalization.mode == "none" else (0.0, 1000.0)


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
    largest = max(float(np.maximum(theirs.max(), -theirs.min())), 1e-30)
    worst, total = np.float64(0), 0.0
    for a, b in zip(np.moveaxis(ours, 1, 0), np.moveaxis(theirs, 1, 0), strict=True):  # float64 of all is too much
        apart = np.abs(np.asarray(a, np.float64) - b)
        worst, total = np.maximum(worst, apart.max()), total + float(apart.sum())
    equal, dice = _labels(ours, theirs, spec)
    return Certificate(
        against=against,
        shape=theirs.shape,
        equal_labels=equal,
        dice=dice,
        largest_difference=float(f"{worst / largest:.3g}"),
        mean_difference=float(f"{total / theirs.size / largest:.3g}"),
        versions=dict(versions),
    )


def _labels(ours: Array, theirs: Array, spec: ModelSpec) -> tuple[float | None, dict[str, float]]:
    if spec.channels in ("image", "offsets") or (spec.activation == "none" and spec.channels != "classes"):
        return None, {}
    a, b = (label_of(values, spec) for values in (ours, theirs))
    if b.min() == b.max():  # one label alone is reached by anything: then values decide
        return None, {}
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
    sums = np.ascontiguousarray(values, np.float32)
    if spec.regions is None:
        operations.labels(sums, labels, spec.activation, threshold=spec.threshold)
    else:
        operations.regions(sums, labels, spec.regions, spec.activation, threshold=spec.threshold)
    if spec.kept_labels is not None:
        operations.keep(labels, spec.kept_labels)
    return labels


# --- what our side makes of an input ---


def through_network(model: ModelFile, given: Array) -> Array:
    """The network's output (c, [z,] y, x) float32 for all of `given` as one window, in the library that runs it; the
    mean of several networks."""
    window = _normalised(model.spec, given)
    network = open_network(choose_backend(model, "cpu"), Setup(model, given.shape[1:]))
    try:
        with as_host(network) as host:
            return np.array(host.infer(window[np.newaxis])[0], np.float32)
    finally:
        network.close()


def through_run(model: ModelFile, volume: Array, *, spacing: Sequence[float] | None = None, **settings: Any) -> Array:
    """What a run writes of the network's outputs (c, [z,] y, x) float32 for `volume` (c, [z,] y, x).

    spacing: of the volume, in the unit of the spec; None: whatever the network has."""
    with tempfile.TemporaryDirectory(prefix="unet-engine-import-") as folder:
        source, out = Path(folder, "volume.zarr"), Path(folder, "out.zarr")
        kind = "probabilities" if model.spec.activation in ARE_PROBABILITIES else "logits"
        _store(source, volume, model.spec, spacing)
        run(
            str(source), model=str(model.path), out=str(out), output=kind, dtype="float32", device="cpu", precision="fp32",
            ignore_spacing=spacing is None, **settings,
        )  # fmt: skip
        return np.asarray(zarr.open_group(str(out), mode="r")["0"][...], np.float32)


def _store(path: Path, volume: Array, spec: ModelSpec, spacing: Sequence[float] | None) -> None:
    """As an array; with its spacing as an image of OME-Zarr."""
    into: dict[str, Any] = {"store": str(path)}
    if spacing:
        space = [{"name": a, "type": "space", "unit": spec.spacing_unit} for a in spec.axes]
        moves = [{"type": "scale", "scale": [1.0, *spacing]}]
        scales = [
            {
                "axes": [{"name": "c", "type": "channel"}, *space],
                "datasets": [{"path": "0", "coordinateTransformations": moves}],
            }
        ]
        group = zarr.create_group(str(path), attributes={"ome": {"version": "0.5", "multiscales": scales}})
        into = {"store": group.store, "name": "0"}
    stored = zarr.create_array(
        **into, shape=volume.shape, dtype=volume.dtype, chunks=(1, *(min(256, n) for n in volume.shape[1:])),
        dimension_names=["c", *spec.axes],
    )  # fmt: skip
    stored[...] = volume
