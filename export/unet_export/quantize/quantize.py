"""``unet-engine quantize``: make networks of lower precision, prove them on the user's volume, attach what passed to
the model file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from unet_engine import machine
from unet_engine.backends.libraries import record
from unet_engine.errors import BackendError, SettingsError
from unet_engine.model.ending import outputs_note
from unet_engine.model.file import ModelFile, open_model
from unet_engine.model.verdict import Calibration, Thresholds, difference
from unet_engine.model.writing import with_attachments
from unet_engine.paths import roots_of
from unet_engine.prepare.channels import meant_for
from unet_engine.prepare.crop import taken
from unet_engine.prepare.inputs import unlikely
from unet_engine.prepare.places import keep_out
from unet_engine.prepare.resampling import scaling_seen, seen
from unet_engine.prepare.survey import check_volume, checked_window
from unet_engine.redaction import redacted
from unet_engine.units import Tell
from unet_engine.volumes import samples
from unet_engine.volumes.base import Volume
from unet_engine.volumes.formats import located, open_stored
from unet_engine.volumes.normalize import Scaling, quantiles
from unet_engine.volumes.resampled import Interpolated
from unet_export.quantize import openvino_candidates, pytorch_candidates, tensorrt_candidates
from unet_export.quantize.gate import Exam, reference
from unet_export.quantize.judging import Judging, Outcome, Request
from unet_export.quantize.metrics import labels_of
from unet_export.quantize.report import write_report
from unet_export.quantize.windows import sample

LEAST_DICE = {"fp16": 0.999, "bf16": 0.999, "int8": 0.995}
"""Of every class against fp32, unless the user asks for something else."""


def quantize(request: Request, tell: Tell = print) -> list[Outcome]:
    """Judge every candidate, write verdicts and what passed to the model file, and the report. Nothing is raised for a
    candidate that fails: the verdict says so. Raises the errors of what cannot be judged at all."""
    request.check()
    backend, device = _backend(request, tell)
    model, volume, window, scale = _opened(request, tell)
    out = Path(request.out or request.model)
    report = Path(request.report or out.with_suffix(".gate.html"))
    for option, file in (("--out", out), ("--report", report)):
        keep_out(option, str(file), roots_of(request.calibrate))
    outcomes: list[Outcome] = []
    for network in model.networks:
        with tempfile.TemporaryDirectory() as folder:
            if network.label:
                tell(f"{network.label}:")
            judging = _judging(request, network, volume, window, scale, Path(folder), tell)
            outcomes += [replace(o, member=network.label) for o in _candidates(backend, device, judging)]
    fresh = {(o.verdict.model, o.verdict.precision, o.verdict.backend) for o in outcomes}
    older = [
        v for network in model.networks for v in network.verdicts
        if v.model == network.sha256 and (v.model, v.precision, v.backend) not in fresh
    ]  # fmt: skip
    networks = {
        o.attempt.candidate.network: o.attempt.candidate.data for o in outcomes if o.attempt.candidate.data is not None
    }
    with_attachments(model, out, [*older, *(o.verdict for o in outcomes)], networks)
    write_report(report, model, outcomes)
    return outcomes


def table(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """One row per candidate, for people and for ``--json``."""
    rows = []
    for o in outcomes:
        v = o.verdict
        dice = v.figures.worst_dice
        rows.append({
            **({"member": o.member} if o.member else {}),
            "precision": v.precision, "backend": v.backend, "passed": v.passed, "emulated": v.emulated,
            "speedup": None if v.speedup is None else round(v.speedup, 3),
            "least_dice": None if dice is None else round(dice, 6),
            "agreement": round(v.figures.agreement, 6), "max_error": v.figures.max_error,
            "mean_error": v.figures.mean_error, "kept": list(v.kept), "reason": v.reason,
        })  # fmt: skip
    return rows


def _opened(request: Request, tell: Tell) -> tuple[ModelFile, Volume, tuple[int, ...], Scaling]:
    """Model, volume, window and normalisation that the request names, checked against one another."""
    model = open_model(request.model, request.window, request.activation, request.head)
    if model.format != "onnx":
        raise SettingsError(
            f"{request.model} is no ONNX file; make one first: unet-engine export {request.model} --out model.onnx"
        )
    if len({network.path for network in model.networks}) > 1:
        raise SettingsError(f"{request.model}: several files are judged one by one; quantize each by itself")
    if model.members and request.reference:
        raise SettingsError("--reference is what one network came from, and this file holds several; leave it out")
    if model.outside and request.out and Path(request.out).resolve().parent != model.path.resolve().parent:
        raise SettingsError(
            f"{request.model} keeps weights in {model.outside[0]}, which stays where it is; choose --out in the same "
            "folder"
        )
    if model.spec.channels in ("image", "offsets"):
        raise SettingsError(
            f"{request.model}: precisions are compared by the labels that they give, and the channels of this model are "
            f"{model.spec.channels}; run it in fp32"
        )
    unknown = set(request.dice_of) - set(model.spec.class_names)
    if unknown:
        raise SettingsError(
            f"--min-dice names the class {min(unknown)!r}, which {request.model} lacks; name one of {', '.join(model.spec.class_names)}"
        )
    model = model.normalized(request.normalize)
    place = located(request.calibrate, request.meant.image, request.meant.level)
    stored = open_stored(place, request.axes)
    window = checked_window(model.spec, request.window)
    notes = list(model.notes)
    notes += [outputs_note(model.spec.activation, model.ends_in)] if model.ends_in else []
    notes += [model.contradiction] if model.contradiction else []
    if model.spec.mirror_axes:
        notes.append(
            f"judged by single windows, without the mirrors along {model.spec.mirror_axes} that a run averages over"
        )
    _, volume, _ = meant_for(stored, request.meant.pick, model.spec, notes, place=place, axes=request.axes)
    notes += volume.notes
    check_volume(volume, model)
    given = taken(volume, model.spec, notes, ignore=request.ignore_spacing)
    volume = given.volume
    scale = scaling_seen(volume, given.grids, model.spec)
    notes += _modality(model, volume, scale, said=request.normalize is not None)
    for note in notes:
        tell(f"note: {note}")
    return model, seen(volume, given.grids, model.spec), window, scale


def _modality(model: ModelFile, volume: Volume, scale: Scaling, *, said: bool) -> Iterator[str]:
    """Whether the voxels look like those the network was made for, as far as the model file tells. said: the user named
    the normalisation."""
    found = quantiles(samples.measured(volume), scale)
    if model.spec.input_quantiles:
        apart = difference(found, model.spec.input_quantiles)
        if apart:
            yield f"the statistics of {volume.path} differ from those of training: {apart}; is it the same modality?"
    elif span := model.spec.normalization.span:
        low, width = min(span), abs(span[1] - span[0])
        for channel, levels in enumerate(found):
            first, last = (levels[0] - low) / width, (levels[-1] - low) / width
            if first < -2 or last > 3 or last - first < 0.02:
                yield (
                    f"{volume.path} lies between {levels[0]:.3g} and {levels[-1]:.3g} in channel {channel} after "
                    f"{model.spec.normalization}, and {min(span):g} to {max(span):g} is meant: its statistics differ; "
                    "is it the same modality?"
                )
    elif doubt := unlikely(model, samples.measured(volume), scale, said=said):
        yield doubt


def _backend(request: Request, tell: Tell) -> tuple[str, str]:
    """The back end that candidates are made for, and the device they are judged on."""
    gpus = machine.gpu_count()
    if request.backend not in (None, "openvino", "tensorrt", "pytorch"):
        raise BackendError(
            f"there is nothing to quantise for {request.backend}; use --backend openvino, tensorrt or pytorch"
        )
    wanted = request.backend or (
        "tensorrt" if gpus and record("tensorrt").installed and request.precision != "bf16" else "openvino"
    )
    if wanted == "pytorch":
        if not gpus:
            raise BackendError(
                "lower precisions in PyTorch are proved on a GPU, and there is none here; leave out --backend to prove "
                "those of the CPU"
            )
        return "pytorch", "cuda:0"
    if wanted == "tensorrt":
        if not gpus:
            tell(
                "note: no GPU here: figures for TensorRT are emulated; they permit nothing until quantize runs where "
                "there is one"
            )
        return "tensorrt", "cuda:0" if gpus else tensorrt_candidates.NO_GPU
    return "openvino", "cpu"


def _candidates(backend: str, device: str, judging: Judging) -> Iterator[Outcome]:
    if backend == "tensorrt":
        return tensorrt_candidates.candidates(device, judging)
    if backend == "pytorch":
        return pytorch_candidates.candidates(device, judging)
    return openvino_candidates.candidates(judging)


def _judging(
    request: Request,
    model: ModelFile,
    volume: Volume,
    window: tuple[int, ...],
    scale: Scaling,
    folder: Path,
    tell: Tell,
) -> Judging:
    """Runs the reference on the windows that it draws; its logits lie in `folder`."""
    if request.reference and request.trust:
        open_model(request.reference, window, model.spec.activation).trust()
    infer, name = reference(model, request.reference, window)
    spec = model.spec
    scan = volume.scan if isinstance(volume, Interpolated) else volume
    drawn = sample(
        volume, scale, window, (request.held_out, request.windows, request.held_out), request.seed,
        lambda w: labels_of(infer(w[None])[0], spec.activation, spec.threshold), spec.label_count,
    )  # fmt: skip
    calibration = Calibration(
        volume=redacted(volume.path),
        fingerprint=samples.fingerprint(scan),
        windows=len(drawn.calibration),
        held_out=len(drawn.held_out),
        seed=request.seed,
        quantiles=quantiles(samples.measured(scan), scale),
    )
    tell(
        f"{calibration.windows} windows to calibrate on, {calibration.held_out} others to judge on (seed "
        f"{request.seed}); reference: {name}"
    )
    if len(drawn.held_out) < request.held_out:
        tell(
            f"note: {volume.path} has no more windows; a verdict on {len(drawn.held_out)} says less than one on "
            f"{request.held_out}"
        )
    thresholds = {precision: _thresholds(request, precision) for precision in LEAST_DICE}
    held = Exam(drawn.held_out, infer, spec, folder / "held.npy", thresholds)
    threads = request.threads or machine.cpu_count()
    return Judging(request, model, window, threads, drawn, held, infer, folder, calibration, tell)


def _thresholds(request: Request, precision: str) -> Thresholds:
    dice = LEAST_DICE[precision] if request.dice is None else request.dice
    return Thresholds(dice=dice, dice_of=request.dice_of, agreement=request.agreement, max_error=request.max_error)
