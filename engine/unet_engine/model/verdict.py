"""What the accuracy gate found out about a network in one precision on one back end. Stored in the model file, read by
``run``."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

Quantiles = tuple[tuple[float, ...], ...]
"""Per channel the 1, 25, 50, 75 and 99 % quantiles of normalised voxels."""
LEVELS = (1, 25, 50, 75, 99)
SPARE = 0.2
"""Part of the error allowed that layers are chosen to leave unused."""
DIFFERENT = 0.5
"""Two volumes are told apart where a quantile moves by this part of the distance from the first to the last."""


class _Frozen(BaseModel):
    model_config = ConfigDict(defer_build=True, frozen=True, extra="forbid")


class Thresholds(_Frozen):
    """What a candidate must reach against fp32 on the held-out windows."""

    model_config = ConfigDict(defer_build=True, frozen=True, extra="forbid", allow_inf_nan=False)

    dice: float
    """Least Dice coefficient of every class."""
    dice_of: dict[str, float] = {}
    """Instead of `dice`, for classes named here."""
    agreement: float | None = None
    """Least fraction of voxels with the same label."""
    max_error: float | None = None
    """Largest difference of any logit, relative to the largest absolute logit of fp32."""

    def of(self, name: str) -> float:
        return self.dice_of.get(name, self.dice)

    def to_spare(self) -> Thresholds:
        """Stricter by `SPARE`: what passes these on some windows should pass the others on other windows."""

        def nearer(one: float) -> float:
            return 1 - (1 - one) * (1 - SPARE)

        return Thresholds(
            dice=nearer(self.dice),
            dice_of={name: nearer(dice) for name, dice in self.dice_of.items()},
            agreement=None if self.agreement is None else nearer(self.agreement),
            max_error=None if self.max_error is None else self.max_error * (1 - SPARE),
        )


class Figures(_Frozen):
    """How far a candidate's logits and labels lie from fp32's. Errors are relative to the largest absolute logit of
    fp32."""

    windows: int
    voxels: int
    nonfinite: int
    """Output values that are NaN or infinite where fp32's are not."""
    max_error: float
    mean_error: float
    agreement: float
    classes: tuple[str, ...]
    dice: tuple[float | None, ...]
    """Per class 2·|A ∩ B| / (|A| + |B|); None where neither has a voxel of it."""
    lost: tuple[str, ...]
    """Classes that fp32 finds and the candidate nowhere."""
    one_class: bool
    """All voxels got one label although fp32 has several."""

    @property
    def worst_dice(self) -> float | None:
        known = [d for d in self.dice if d is not None]
        return min(known) if known else None


class Calibration(_Frozen):
    """The windows that scales were measured on, and those the verdict rests on."""

    volume: str
    fingerprint: str
    windows: int
    choosing: int = 0
    """Windows on which layers to leave in full precision were chosen; 0: none were, or the verdict is an older one."""
    held_out: int
    seed: int
    quantiles: Quantiles


class Verdict(_Frozen):
    precision: str
    """fp16, bf16 or int8."""
    backend: str
    library: str
    """Version, and kind of processor or GPU: the verdict holds nowhere else."""
    model: str
    """SHA-256 of the model file without attachments."""
    network: str | None
    """SHA-256 of the attached network that was judged; None: the file's own, run in another arithmetic."""
    rest: str
    """Arithmetic of the layers that are not quantised: fp32, fp16 or bf16."""
    window: tuple[int, ...]
    normalization: str
    activation: str | None = None
    """What the outputs were taken for; None in verdicts from before there were networks that give probabilities."""
    passed: bool
    emulated: bool
    """Judged by computing as the back end would, elsewhere: figures only, no permission to run."""
    reason: str
    """Why it did not pass, or how it did."""
    kept: tuple[str, ...] = ()
    """Layers left in fp32, the most sensitive first."""
    sensitive: tuple[str, ...] = ()
    """The layers that cost most accuracy, the worst first."""
    figures: Figures
    thresholds: Thresholds
    calibration: Calibration
    seconds_per_window: float | None
    fp32_seconds_per_window: float | None

    @property
    def speedup(self) -> float | None:
        if not self.seconds_per_window or not self.fp32_seconds_per_window:
            return None
        return self.fp32_seconds_per_window / self.seconds_per_window


def shortfall(figures: Figures, thresholds: Thresholds) -> str:
    """The first reason why `figures` do not pass, empty if they do. What is worse comes first."""
    return next(_shortfalls(figures, thresholds), "")


def _shortfalls(figures: Figures, thresholds: Thresholds) -> Iterator[str]:
    if figures.nonfinite:
        yield f"{figures.nonfinite:,} output values are NaN or infinite"
    if figures.one_class:
        yield "every voxel gets the same label"
    if figures.lost:
        yield f"the class {figures.lost[0]} is lost"
    for name, dice in zip(figures.classes, figures.dice, strict=True):
        if dice is not None and dice < thresholds.of(name):
            yield f"Dice of {name} is {dice:.5f}, below {thresholds.of(name):g}"
    if thresholds.agreement is not None and figures.agreement < thresholds.agreement:
        yield f"{figures.agreement:.5f} of the labels agree, fewer than {thresholds.agreement:g}"
    if thresholds.max_error is not None and not figures.max_error <= thresholds.max_error:
        yield f"the largest error is {figures.max_error:.2e}, above {thresholds.max_error:g}"


def difference(ours: Quantiles, theirs: Quantiles, part: float = DIFFERENT) -> str:
    """In words, how the statistics of two volumes differ, or empty where no quantile moves by more than `part` of the
    distance from the first to the last."""
    for channel, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        spread = max(b[-1] - b[0], 1e-12)
        worst = max(range(len(b)), key=lambda i: abs(a[i] - b[i]))
        if abs(a[worst] - b[worst]) > part * spread:
            return f"channel {channel}: the {LEVELS[worst]} % quantile is {a[worst]:.3g} here and {b[worst]:.3g} there"
    return ""
