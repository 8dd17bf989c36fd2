"""Taking a candidate that fails back to full precision, layer by layer, until it passes or gains nothing any more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from unet_engine.model.verdict import Figures
from unet_engine.units import Tell
from unet_export.quantize.metrics import Comparison

GAIN = 1.02
"""A candidate that is not this much faster than fp32 gains nothing: two measurements differ by as much."""


@dataclass(frozen=True)
class Attempt:
    """A candidate that was judged."""

    kept: tuple[str, ...]
    """Layers in full precision, the most sensitive first."""
    comparison: Comparison
    shortfall: str
    """Why it does not pass; empty if it does."""
    seconds: float | None
    """Per window; None where it was emulated."""
    fp32_seconds: float | None
    candidate: Any = None
    """A `gate.Candidate`, or whatever else is tried."""

    @property
    def figures(self) -> Figures:
        return self.comparison.figures

    @property
    def gains(self) -> bool:
        return self.seconds is None or not self.fp32_seconds or self.fp32_seconds / self.seconds > GAIN


def rescue(first: Attempt, order: Sequence[str], attempt: Callable[[tuple[str, ...]], Attempt], tell: Tell) -> Attempt:
    """The candidate with the fewest layers kept, in `order`, that passes; else the last one tried.

    Doubles the number of kept layers until one passes or gains nothing, then halves the interval: a network of n layers
    is judged about 2·log2(n) times.
    """
    last, failing, count = first, 0, 1
    passing: Attempt | None = None
    while passing is None and failing < len(order):
        last = attempt(tuple(order[:count]))
        tell(f"with {count} layer(s) kept ({', '.join(order[: min(count, 3)])}): {last.shortfall or 'passes'}")
        if not last.shortfall:
            passing = last
        elif not last.gains:
            return last
        else:
            failing, count = count, min(2 * count, len(order))
    if passing is None:
        return last
    while len(passing.kept) - failing > 1:
        middle = (failing + len(passing.kept)) // 2
        tried = attempt(tuple(order[:middle]))
        if tried.shortfall:
            failing = middle
        else:
            passing = tried
    return passing
