"""How a candidate is judged: what it is made from, the search over layers that stay, and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf, isfinite
from pathlib import Path

from unet_engine.backends.base import Setup
from unet_engine.errors import SettingsError
from unet_engine.model.file import ModelFile
from unet_engine.model.spec import Activation
from unet_engine.model.verdict import Calibration, Verdict, shortfall
from unet_engine.units import Tell
from unet_engine.volumes.pick import ANYTHING, Meant
from unet_export.quantize.fallback import Attempt, rescue
from unet_export.quantize.gate import Candidate, Exam, Infer, both_seconds, opened
from unet_export.quantize.windows import Sample

SENSITIVITY_WINDOWS = 2
"""Of those that scales are measured on, so many tell how sensitive a layer is."""


@dataclass(frozen=True)
class Request:
    """What to make and what to ask of it; see ``unet-engine quantize --help``."""

    model: str
    calibrate: str
    precision: str = "auto"
    """fp16, bf16, int8, or auto: all that the back end has."""
    backend: str | None = None
    """openvino, tensorrt or pytorch; default: tensorrt where there is a GPU and the library, else openvino."""
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
    activation: Activation | None = None
    ignore_spacing: bool = False
    """The voxels may be larger or smaller than those the model was trained on."""
    head: str | None = None
    dice: float | None = None
    dice_of: dict[str, float] = field(default_factory=dict)
    agreement: float | None = None
    max_error: float | None = None
    threads: int | None = None
    trust: bool = False
    """The user trusts a `reference` that runs code as it is opened."""
    report: str | None = None
    """HTML file; default: beside the model, with its name."""
    meant: Meant = ANYTHING
    """What of `calibrate` is meant."""

    def check(self) -> None:
        """Raise `SettingsError` naming the number that makes no sense. NaN is in no range: as a threshold, whatever is
        compared with it would pass."""
        ranges = (
            ("--windows", self.windows, 2, inf),
            ("--held-out", self.held_out, 2, inf),
            ("--seed", self.seed, 0, inf),
            ("--threads", self.threads, 1, inf),
            *(("--min-dice", dice, 0, 1) for dice in (self.dice, *self.dice_of.values())),
            ("--min-agreement", self.agreement, 0, 1),
            ("--max-error", self.max_error, 0, inf),
        )
        for option, value, least, most in ranges:
            if value is not None and not (least <= value <= most and isfinite(value)):
                wanted = f"lie between {least} and {most}" if isfinite(most) else f"be {least} or more"
                raise SettingsError(f"{option} {value} must {wanted}; leave it out for what is usual")


@dataclass(frozen=True)
class Judging:
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
    tell: Tell

    @cached_property
    def choosing(self) -> Exam:
        """On which layers are chosen, with a little more asked than in the end: a choice fits best the windows it was
        made on."""
        stricter = {precision: limits.to_spare() for precision, limits in self.held.thresholds.items()}
        return Exam(self.sample.choosing, self.infer, self.model.spec, self.folder / "choosing.npy", stricter)

    def setup(self, device: str, precision: str = "fp32", rest: str = "fp32") -> Setup:
        threads = self.threads if device == "cpu" else 1
        return Setup(self.model, self.window, device, precision, rest=rest, threads=threads)


@dataclass(frozen=True)
class Outcome:
    """What was found out about a precision on a back end, and the candidate that it rests on."""

    verdict: Verdict
    attempt: Attempt
    member: str = ""
    """Which network of a model of several it is about."""


@dataclass(frozen=True)
class Chosen:
    """The candidate that a verdict is about, and what came before it."""

    attempt: Attempt
    sensitive: tuple[str, ...] = ()
    """Layers by sensitivity, the worst first; empty if nothing had to be left out."""
    before: str = ""
    """Why the candidate with nothing left out failed."""
    windows: int = 0
    """Windows that layers were chosen on."""


def search(
    precision: str,
    attempt: Callable[[tuple[str, ...], Exam], Attempt],
    order: Callable[[], tuple[str, ...]],
    judging: Judging,
) -> Chosen:
    """The candidate with nothing left out if it passes, else the one the fallback ends with.

    `attempt` makes and judges the candidate with these layers kept in full precision, `order` gives the layers by
    sensitivity. The windows that the verdict rests on have no say in the choice of layers.
    """
    first = attempt((), judging.held)
    if not first.shortfall:
        return Chosen(first)
    judging.tell(f"{precision}: {first.shortfall}; falling back layer by layer")
    sensitive = order()
    chosen = rescue(first, sensitive, lambda kept: attempt(kept, judging.choosing), judging.tell)
    last = attempt(chosen.kept, judging.held) if chosen.kept else first
    if last.shortfall and not chosen.shortfall:
        last = replace(last, shortfall=f"{last.shortfall}; where its layers were chosen it passed")
    return Chosen(last, sensitive, first.shortfall, len(judging.choosing.windows))


def judge(candidate: Candidate, kept: tuple[str, ...], exam: Exam) -> Attempt:
    """Run a candidate on its back end over the windows of `exam`; its time and that of fp32 are taken in turn."""
    fp32 = Candidate(replace(candidate.setup, precision="fp32", rest="fp32"), candidate.backend, None)
    with opened(candidate) as backend, opened(fp32) as exact:
        compared = exam.compare(backend.infer)
        seconds, fp32_seconds = both_seconds(backend, exact, exam.windows)
    reason = shortfall(compared.figures, exam.thresholds[candidate.setup.precision])
    return Attempt(kept, compared, reason, seconds, fp32_seconds, candidate)


def by_error(errors: Mapping[str, float]) -> tuple[str, ...]:
    """Layers by the error that each brings alone, the worst first."""
    return tuple(sorted(errors, key=lambda layer: -errors[layer]))


def outcome_of(chosen: Chosen, precision: str, backend: str, library: str, judging: Judging) -> Outcome:
    """The verdict on what was chosen, which holds for `library` alone: its version, and the kind of processor or
    GPU."""
    attempt, sensitive = chosen.attempt, chosen.sensitive
    reason = attempt.shortfall
    if not reason and not attempt.gains:
        reason = (
            f"it takes {attempt.seconds or 0:.3g} s a window, fp32 {attempt.fp32_seconds or 0:.3g} s: nothing is gained"
        )
    passed = not reason
    if reason and sensitive:
        reason += f"; most sensitive: {', '.join(sensitive[:3])}"
    kept = (
        f" with {len(attempt.kept)} layer(s) in full precision ({', '.join(attempt.kept[:3])}), without: "
        f"{chosen.before}"
        if attempt.kept
        else ""
    )
    verdict = Verdict(
        precision=precision,
        backend=backend,
        library=library,
        model=judging.model.sha256,
        network=attempt.candidate.network,
        rest=attempt.candidate.setup.rest,
        window=judging.window,
        normalization=str(judging.model.spec.normalization),
        activation=judging.model.spec.activation,
        passed=passed,
        emulated=attempt.seconds is None,
        reason=f"passed{kept}" if passed else reason,
        kept=attempt.kept,
        sensitive=sensitive[:8],
        figures=attempt.figures,
        thresholds=judging.held.thresholds[precision],
        calibration=judging.calibration.model_copy(update={"choosing": chosen.windows}),
        seconds_per_window=attempt.seconds,
        fp32_seconds_per_window=attempt.fp32_seconds,
    )
    return Outcome(verdict, attempt)
