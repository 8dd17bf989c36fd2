"""How far a candidate's output lies from the reference's, window by window. Pure arithmetic on NumPy arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.model.verdict import Figures
from unet_engine.prepare.agreement import Confusion
from unet_engine.stitching import operations

Array = npt.NDArray[Any]
EXPONENTS = np.arange(-10, 4.01, 0.25)
"""Edges of the histogram of absolute errors, as powers of ten."""


@dataclass(frozen=True)
class Worst:
    """The middle plane (y, x) of the window in which most labels differ, for a picture."""

    index: int
    image: Array
    reference: Array
    candidate: Array
    error: Array
    """Largest absolute difference of the logits over the channels."""


def labels_of(logits: Array, activation: str, threshold: float | None = None) -> Array:
    """Labels (*window) uint16 of logits (channels, *window), by the rule that ``run`` writes labels with."""
    sums = np.ascontiguousarray(logits, np.float32)
    out = np.empty(sums.shape[1:], np.uint16)
    operations.labels(sums, out, activation, threshold=threshold)
    return out


def to_bf16(values: Array) -> Array:
    """float32 rounded to the nearest BF16, ties to even (IEEE 754), as float32. Finite values alone."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def distance(reference: Array, candidate: Array, activation: str) -> float:
    """How much one window's logits (channels, *window) differ, to rank layers by: the fraction of labels that differ,
    which is what the gate asks about, and a millionth of the relative squared error to order those that change no
    label. Infinite for NaN and Inf."""
    if not np.isfinite(candidate).all():
        return float("inf")
    differ = np.mean(labels_of(reference, activation) != labels_of(candidate, activation))
    squared = np.mean(np.square(candidate.astype(np.float64) - reference)) / max(
        1e-30, float(np.mean(np.square(reference)))
    )
    return float(differ + 1e-6 * squared)


@dataclass
class Comparison:
    """Collects windows with `add`; `figures` is what they come to."""

    classes: tuple[str, ...]
    activation: str
    threshold: float | None = None
    windows: int = 0
    voxels: int = 0
    nonfinite: int = 0
    largest: float = 0.0
    """Largest absolute logit of the reference."""
    largest_error: float = 0.0
    error_sum: float = 0.0
    values: int = 0
    histogram: Array = field(default_factory=lambda: np.zeros(len(EXPONENTS) - 1, np.int64))
    worst: Worst | None = None
    _most_different: int = -1

    def __post_init__(self) -> None:
        self.confusion = Confusion(len(self.classes))

    def add(self, image: Array, reference: Array, candidate: Array) -> None:
        """One window: image (channels in, *window), logits of both (channels out, *output)."""
        bad = ~np.isfinite(candidate) & np.isfinite(reference)
        self.nonfinite += int(bad.sum())
        error = np.abs(np.where(bad, 0, candidate) - reference, dtype=np.float32)
        self.largest = max(self.largest, float(np.abs(reference).max()))
        self.largest_error = max(self.largest_error, float(error.max()))
        self.error_sum += float(error.sum(dtype=np.float64))
        self.values += error.size
        exponents = np.log10(np.clip(error, 10.0 ** EXPONENTS[0], 10.0 ** (EXPONENTS[-1] - 0.01)))
        self.histogram += np.histogram(exponents, EXPONENTS)[0]
        truth, found = (labels_of(values, self.activation, self.threshold) for values in (reference, candidate))
        self.confusion.add(truth, found)
        different = int((truth != found).sum())
        if different > self._most_different:
            self._most_different = different
            self.worst = Worst(self.windows, _plane(image[0]), _plane(truth), _plane(found), _plane(error.max(axis=0)))
        self.windows += 1
        self.voxels += truth.size

    @property
    def figures(self) -> Figures:
        rows, columns = self.confusion.counts.sum(1), self.confusion.counts.sum(0)
        scale = self.largest or 1.0
        return Figures(
            windows=self.windows,
            voxels=self.voxels,
            nonfinite=self.nonfinite,
            max_error=self.largest_error / scale,
            mean_error=self.error_sum / max(1, self.values) / scale,
            agreement=self.confusion.agreement,
            classes=self.classes,
            dice=self.confusion.dice,
            lost=tuple(name for name, r, c in zip(self.classes, rows, columns, strict=True) if r and not c),
            one_class=bool((columns > 0).sum() == 1 and (rows > 0).sum() > 1),
        )


def _plane(array: Array) -> Array:
    """The middle plane (y, x) of ([z,] y, x), copied."""
    return np.array(array[array.shape[0] // 2] if array.ndim == 3 else array)
