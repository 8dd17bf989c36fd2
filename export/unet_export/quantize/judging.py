"""How a candidate is judged: what it is made from, the search over layers that stay, and the verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from unet_engine.backends.base import Setup
from unet_engine.model.file import ModelFile
from unet_engine.model.verdict import Calibration, Verdict, shortfall
from unet_export.quantize.fallback import Attempt, rescue
from unet_export.quantize.gate import Exam, Infer, Trial, both_seconds, opened
from unet_export.quantize.windows import Sample

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
