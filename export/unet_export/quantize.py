"""``unet-engine quantize``: make networks of lower precision, prove them on the user's volume, attach what passed to the model file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from unet_engine import machine
from unet_engine.backends import Setup, library, trt
from unet_engine.errors import BackendError, SettingsError
from unet_engine.model_file import ModelFile, open_model, with_attachments
from unet_engine.normalize import Scaling, quantiles, scaling
from unet_engine.spec import Normalization
from unet_engine.survey import check_volume, checked_window
from unet_engine.verdict import Calibration, Thresholds, Verdict, difference, shortfall
from unet_engine.volume import Volume, open_volume
from unet_export.fallback import Attempt, rescue
from unet_export.gate import Exam, Infer, Trial, both_seconds, class_names, opened, reference
from unet_export.metrics import labels_of, to_bf16
from unet_export.sampling import Sample, sample

LEAST_DICE = {"fp16": 0.999, "bf16": 0.999, "int8": 0.995}
SENSITIVITY_WINDOWS = 2


@dataclass(frozen=True)
class Request:
    model: str
    calibrate: str
    precision: str = "auto"
    """fp16, bf16, int8, or auto: all that the back end has."""
    backend: str | None = None
    """openvino or tensorrt; default: tensorrt where there is a GPU and the library, else openvino."""
    out: str | None = None
    """Model file to write; default: `model` itself."""
    reference: str | None = None
    """The `.pt2` or TorchScript that the model came from, to compare with instead of the ONNX in fp32."""
    windows: int = 24
    held_out: int = 16
    """Windows the verdict rests on; layers to leave out are chosen on as many others."""
    seed: int = 0
    window: tuple[int, ...] | None = None
    axes: str | None = None
    normalize: str | None = None
    dice: float | None = None
    dice_of: dict[str, float] = field(default_factory=dict)
    agreement: float | None = None
    max_error: float | None = None
    threads: int | None = None
    report: str | None = None
    """HTML file; default: beside the model, with its name."""


@dataclass(frozen=True)
class Bench:
    """All that candidates are made from and judged with."""

    request: Request
    model: ModelFile
    window: tuple[int, ...]
    threads: int
    sample: Sample
    held: Exam
    """What the verdict rests on."""
    infer: Infer
    """The reference."""
    folder: Path
    calibration: Calibration
    say: Callable[[str], None]

    @cached_property
    def choosing(self) -> Exam:
        """On which layers are chosen, with a little more asked than in the end: a choice fits the windows it was made on best."""
        stricter = {precision: limits.to_spare() for precision, limits in self.held.thresholds.items()}
        return Exam(self.sample.choosing, self.infer, self.model.spec, self.folder / "choosing.npy", stricter)

    def setup(self, device: str, precision: str = "fp32", rest: str = "fp32") -> Setup:
        threads = self.threads if device == "cpu" else 1
        return Setup(self.model, self.window, device, precision, rest=rest, threads=threads)


@dataclass(frozen=True)
class Outcome:
    verdict: Verdict
    attempt: Attempt


def quantize(request: Request, say: Callable[[str], None] = print) -> list[Outcome]:
    """Judge every candidate, write verdicts and what passed to the model file, and the report. Nothing is raised for a candidate
    that fails: the verdict says so. Raises the errors of what cannot be judged at all."""
    backend, device = _backend(request, say)
    model, volume, window, scale = _opened(request, say)
    out = Path(request.out or request.model)
    with tempfile.TemporaryDirectory() as folder:
        bench = _bench(request, model, volume, window, scale, Path(folder), say)
        outcomes = list(_candidates(backend, device, bench))
    fresh = {(o.verdict.precision, o.verdict.backend) for o in outcomes}
    older = [v for v in model.verdicts if v.model == model.sha256 and (v.precision, v.backend) not in fresh]
    networks = {o.attempt.trial.network: o.attempt.trial.data for o in outcomes if o.attempt.trial.data is not None}
    with_attachments(model, out, [*older, *(o.verdict for o in outcomes)], networks)
    from unet_export.gate_report import write_report

    write_report(Path(request.report or out.with_suffix(".gate.html")), model, outcomes)
    return outcomes


def _opened(request: Request, say: Callable[[str], None]) -> tuple[ModelFile, Volume, tuple[int, ...], Scaling]:
    model = open_model(request.model, request.window)
    if model.format != "onnx":
        raise SettingsError(
            f"{request.model} is no ONNX file; make one first: unet-engine export {request.model} --out model.onnx"
        )
    if model.outside and request.out and Path(request.out).resolve().parent != model.path.resolve().parent:
        raise SettingsError(
            f"{request.model} keeps weights in {model.outside[0]}, which stays where it is; choose --out in the same folder"
        )
    if request.windows < 2 or request.held_out < 2:
        raise SettingsError("--windows and --held-out must be 2 or more each; leave them out for 24 and 16")
    unknown = set(request.dice_of) - set(class_names(model.spec))
    if unknown:
        raise SettingsError(
            f"--min-dice names the class {min(unknown)!r}; the model has {', '.join(class_names(model.spec))}"
        )
    if request.normalize:
        spec = model.spec.model_copy(update={"normalization": Normalization.parse(request.normalize)})
        model = replace(model, spec=spec)
    volume = open_volume(request.calibrate, request.axes)
    window = checked_window(model.spec, request.window)
    notes: list[str] = []
    check_volume(volume, model, notes)
    scale = scaling(model.spec.normalization, volume.samples)
    notes += _modality(model, volume, scale)
    for note in notes:
        say(f"note: {note}")
    return model, volume, window, scale


def _modality(model: ModelFile, volume: Volume, scale: Scaling) -> Iterator[str]:
    """Whether the voxels look like those the network was made for, as far as the model file tells."""
    found = quantiles(volume.samples, scale)
    if model.spec.input_quantiles:
        apart = difference(found, model.spec.input_quantiles)
        if apart:
            yield f"the statistics of {volume.path} differ from those of training: {apart}; is it the same modality?"
    elif model.spec.normalization.mode in ("range", "minmax", "percentile"):
        for channel, levels in enumerate(found):
            if levels[0] < -2 or levels[-1] > 3 or levels[-1] - levels[0] < 0.02:
                yield (
                    f"{volume.path} lies between {levels[0]:.3g} and {levels[-1]:.3g} in channel {channel} after "
                    f"{model.spec.normalization}, and 0 to 1 is meant: its statistics differ; is it the same modality?"
                )


def _backend(request: Request, say: Callable[[str], None]) -> tuple[str, str]:
    gpus = machine.gpu_count()
    if request.backend not in (None, "openvino", "tensorrt"):
        raise BackendError(f"there is nothing to quantise for {request.backend}; use --backend openvino or tensorrt")
    wanted = request.backend or ("tensorrt" if gpus and trt.installed() and request.precision != "bf16" else "openvino")
    if wanted == "tensorrt":
        if not gpus:
            say(
                "note: no GPU here: figures for TensorRT are emulated; they permit nothing until quantize runs where there is one"
            )
        return "tensorrt", "cuda:0" if gpus else "none"
    return "openvino", "cpu"


def _bench(
    request: Request,
    model: ModelFile,
    volume: Volume,
    window: tuple[int, ...],
    scale: Scaling,
    folder: Path,
    say: Callable[[str], None],
) -> Bench:
    infer, name = reference(model, request.reference, window)
    spec = model.spec
    drawn = sample(
        volume, scale, window, (request.held_out, request.windows, request.held_out), request.seed,
        lambda w: labels_of(infer(w[None])[0], spec.activation), spec.label_count,
    )  # fmt: skip
    calibration = Calibration(
        volume=volume.path,
        fingerprint=volume.fingerprint(),
        windows=len(drawn.calibration),
        held_out=len(drawn.held_out),
        seed=request.seed,
        quantiles=quantiles(volume.samples, scale),
    )
    say(
        f"{calibration.windows} windows to calibrate on, {calibration.held_out} others to judge on (seed {request.seed}); reference: {name}"
    )
    if len(drawn.held_out) < request.held_out:
        say(
            f"note: {volume.path} has no more windows; a verdict on {len(drawn.held_out)} says less than one on {request.held_out}"
        )
    thresholds = {precision: _thresholds(request, precision) for precision in LEAST_DICE}
    held = Exam(drawn.held_out, infer, spec, folder / "held.npy", thresholds)
    threads = request.threads or machine.cpu_count()
    return Bench(request, model, window, threads, drawn, held, infer, folder, calibration, say)


def _thresholds(request: Request, precision: str) -> Thresholds:
    dice = LEAST_DICE[precision] if request.dice is None else request.dice
    return Thresholds(dice=dice, dice_of=request.dice_of, agreement=request.agreement, max_error=request.max_error)


# --- candidates ---


def _candidates(backend: str, device: str, bench: Bench) -> Iterator[Outcome]:
    wanted = bench.request.precision
    if backend == "tensorrt":
        from unet_export.quantize_gpu import candidates

        yield from candidates(device, bench)
        return
    from unet_engine.backends.openvino import precisions

    able = precisions("cpu")
    if wanted not in ("auto", *able):
        raise BackendError(
            f"this processor does not compute in {wanted}; use --precision {' or '.join(p for p in able if p != 'fp32')}"
        )
    where = library("openvino", "cpu")
    proved = {
        v.precision for v in bench.model.verdicts if v.passed and v.model == bench.model.sha256 and v.library == where
    }
    for precision in ("bf16", "fp16"):
        if wanted in ("auto", precision) and precision in able:
            outcome = _rounded(precision, bench)
            proved = proved | {precision} if outcome.verdict.passed else proved - {precision}
            yield outcome
    if wanted in ("auto", "int8") and "int8" in able:
        # layers that are not quantised must not bring an error of their own that was not proved to be harmless
        yield _int8(bench, "bf16" if "bf16" in proved else "fp32")


def _rounded(precision: str, bench: Bench) -> Outcome:
    """The file's own network, computed in another arithmetic by the library: all or nothing, no layer can be kept."""
    attempt = judge(Trial(bench.setup("cpu", precision), "openvino", None), (), bench.held)
    if attempt.shortfall and precision == "bf16" and (cause := _image_in_bf16(bench)):
        attempt = replace(attempt, shortfall=f"{attempt.shortfall}; {cause}")
    found = Found(attempt)
    return Outcome(verdict_of(found, precision, "openvino", library("openvino", "cpu"), bench), found.attempt)


def _image_in_bf16(bench: Bench) -> str:
    """Whether the image itself, rounded to BF16 after normalisation, already fails in fp32; in words.

    BF16 has 8 bits of mantissa: of grey levels from 0 to 1 it merges neighbours above 0.5, of the same centred on 0 none.
    """
    rounded = bench.held.compare(lambda windows: bench.infer(to_bf16(windows)))
    short = shortfall(rounded.figures, bench.held.thresholds["bf16"])
    if not short:
        return ""
    return (
        f"with the image alone rounded to BF16 after {bench.model.spec.normalization} it is no better ({short}): a network trained on "
        "values centred on 0 (--normalize zscore, or range:128,192 for 8-bit images) loses less"
    )


def _int8(bench: Bench, rest: str) -> Outcome:
    from unet_export.int8_openvino import OpenVINOInt8

    bench.say("quantising with NNCF")
    network = OpenVINOInt8(bench.model, bench.window, bench.sample.calibration)
    setup = bench.setup("cpu", "int8", rest)

    def attempt(kept: tuple[str, ...], exam: Exam) -> Attempt:
        return judge(Trial(setup, "openvino", network.network(kept)), kept, exam)

    def order() -> tuple[str, ...]:
        bench.say(f"int8: measuring the sensitivity of {len(network.layers)} layers")
        errors = network.errors_alone(bench.sample.calibration[:SENSITIVITY_WINDOWS])
        return tuple(sorted(errors, key=lambda label: -errors[label]))

    found = search("int8", attempt, order, bench)
    return Outcome(verdict_of(found, "int8", "openvino", library("openvino", "cpu"), bench), found.attempt)


# --- judging ---


@dataclass(frozen=True)
class Found:
    """The candidate that a verdict is about, and what came before it."""

    attempt: Attempt
    sensitive: tuple[str, ...] = ()
    """Layers by sensitivity, the worst first; empty if nothing had to be left out."""
    before: str = ""
    """Why the candidate with nothing left out failed."""
    chosen: int = 0
    """Windows that layers were chosen on."""


def search(
    precision: str,
    attempt: Callable[[tuple[str, ...], Exam], Attempt],
    order: Callable[[], tuple[str, ...]],
    bench: Bench,
) -> Found:
    """The candidate with nothing left out if it passes, else the one the fallback ends with. The windows that the verdict rests on have
    no say in the choice of layers."""
    first = attempt((), bench.held)
    if not first.shortfall:
        return Found(first)
    bench.say(f"{precision}: {first.shortfall}; falling back layer by layer")
    sensitive = order()
    chosen = rescue(first, sensitive, lambda kept: attempt(kept, bench.choosing), bench.say)
    last = attempt(chosen.kept, bench.held) if chosen.kept else first
    if last.shortfall and not chosen.shortfall:
        last = replace(last, shortfall=f"{last.shortfall}; where its layers were chosen it passed")
    return Found(last, sensitive, first.shortfall, len(bench.choosing.windows))


def judge(trial: Trial, kept: tuple[str, ...], exam: Exam) -> Attempt:
    """Run a candidate on its back end over the windows of `exam`; its time and that of fp32 are taken in turn."""
    fp32 = Trial(replace(trial.setup, precision="fp32", rest="fp32"), trial.backend, None)
    with opened(trial) as backend, opened(fp32) as exact:
        compared = exam.compare(backend.infer)
        seconds, fp32_seconds = both_seconds(backend, exact, exam.windows)
    reason = shortfall(compared.figures, exam.thresholds[trial.setup.precision])
    return Attempt(kept, compared, reason, seconds, fp32_seconds, trial)


def verdict_of(found: Found, precision: str, backend: str, where: str, bench: Bench) -> Verdict:
    attempt, sensitive = found.attempt, found.sensitive
    reason = attempt.shortfall
    if not reason and not attempt.gains:
        reason = (
            f"it takes {attempt.seconds or 0:.3g} s a window, fp32 {attempt.fp32_seconds or 0:.3g} s: nothing is gained"
        )
    passed = not reason
    if reason and sensitive:
        reason += f"; most sensitive: {', '.join(sensitive[:3])}"
    kept = (
        f" with {len(attempt.kept)} layer(s) in full precision ({', '.join(attempt.kept[:3])}), without: {found.before}"
        if attempt.kept
        else ""
    )
    return Verdict(
        precision=precision,
        backend=backend,
        library=where,
        model=bench.model.sha256,
        network=attempt.trial.network,
        rest=attempt.trial.setup.rest,
        window=bench.window,
        normalization=str(bench.model.spec.normalization),
        passed=passed,
        emulated=attempt.seconds is None,
        reason=f"passed{kept}" if passed else reason,
        kept=attempt.kept,
        sensitive=sensitive[:8],
        figures=attempt.figures,
        thresholds=bench.held.thresholds[precision],
        calibration=bench.calibration.model_copy(update={"choosing": found.chosen}),
        seconds_per_window=attempt.seconds,
        fp32_seconds_per_window=attempt.fp32_seconds,
    )


def table(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """One row per candidate, for people and for ``--json``."""
    rows = []
    for v in (o.verdict for o in outcomes):
        dice = v.figures.worst_dice
        rows.append({
            "precision": v.precision, "backend": v.backend, "passed": v.passed, "emulated": v.emulated,
            "speedup": None if v.speedup is None else round(v.speedup, 3),
            "least_dice": None if dice is None else round(dice, 6),
            "agreement": round(v.figures.agreement, 6), "max_error": v.figures.max_error,
            "mean_error": v.figures.mean_error, "kept": list(v.kept), "reason": v.reason,
        })  # fmt: skip
    return rows
