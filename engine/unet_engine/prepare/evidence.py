"""What a network makes of real windows, and whether that can be what its spec says its outputs are.

Each value tells a little, and no value of a trained network's logits would stay where probabilities do: a single one
outside 0 to 1 refutes `probabilities`; that all lie inside, with some near 0 or far apart, refutes logits of any
network that was trained.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.model.ending import SLACK
from unet_engine.model.spec import ARE_PROBABILITIES, Activation, ModelSpec

Array = npt.NDArray[Any]
WINDOWS = 2
"""Windows that are looked at."""
ROUNDED = 2e-2
"""How far probabilities may lie outside 0 to 1, or sum to another number than 1, whatever they were computed in."""
LEAST_VOXELS = 2**9
"""Fewer say nothing."""
NEAR_ZERO, APART = 1e-2, 0.5
"""All outputs lie within 0 and 1: they are probabilities where one of them is so small, or two are so far apart.
Weights that were never trained give values of one size, which may lie anywhere."""
OFTEN = 0.1
"""Part of the voxels whose probabilities do not sum to 1, of classes that do not exclude one another."""


@dataclass
class Outputs:
    """What was seen of a network's outputs, window by window."""

    low: float = inf
    high: float = -inf
    voxels: int = 0
    nonfinite: int = 0
    """Values that are NaN or infinite."""
    graded: bool = False
    """Whether any value lies between 0 and 1; labels do not."""
    varies: bool = False
    """Whether any channel has two values."""
    furthest: float = 0.0
    """Of the sums over the channels of a voxel, from 1."""
    apart: int = 0
    """Voxels whose channels do not sum to 1."""
    logs: bool = True
    """Whether all outputs are logarithms of values that sum to 1."""
    first: list[float] = field(default_factory=list)
    """The least of each channel in the first window."""

    def look(self, output: Array) -> None:
        """Take in one window's output, (channels, *spatial) of any float type; nothing of it is kept."""
        total = np.zeros(output.shape[1:], np.float32)
        lows = []
        for channel in output:
            values = np.asarray(channel, np.float32)
            low, high = float(values.min()), float(values.max())
            if not np.isfinite((low, high)).all():
                self.nonfinite += int(np.count_nonzero(~np.isfinite(values)))
            self.varies |= low != high
            self.low, self.high = min(self.low, low), max(self.high, high)
            self.graded = self.graded or bool(((values > 0) & (values < 1)).any())
            lows.append(low)
            total += values
        self.varies |= bool(self.first) and self.first != lows
        self.first = self.first or lows
        self.voxels += total.size
        if self.nonfinite:
            return
        distance = np.abs(total - 1)
        self.furthest = max(self.furthest, float(distance.max()))
        self.apart += int(np.count_nonzero(distance > ROUNDED))
        self.logs = self.logs and self.high <= SLACK and _are_logs(output)

    @property
    def inside(self) -> bool:
        return self.low >= 0 and self.high <= 1

    @property
    def exclusive(self) -> bool:
        """Whether the channels of every voxel sum to 1."""
        return self.furthest <= SLACK and self.inside

    @property
    def probabilities(self) -> bool:
        """Whether these can be nothing but probabilities of channels on their own."""
        return self.inside and self.graded and (self.low < NEAR_ZERO or self.high - self.low > APART)


def _are_logs(output: Array) -> bool:
    total = np.zeros(output.shape[1:], np.float32)
    for channel in output:
        total += np.exp(np.asarray(channel, np.float32))
    return bool(np.abs(total - 1).max() <= SLACK)


def contradiction(seen: Outputs, spec: ModelSpec, *, labels: bool) -> str:
    """Why `seen` cannot be the outputs that `spec` says, and what to do; empty where nothing speaks against it.

    labels: whether labels are wanted of outputs that are mere numbers (`none`).
    """
    if seen.nonfinite:
        return f"{seen.nonfinite:,} outputs are NaN or infinite; check the weights, --normalize and --precision"
    if seen.voxels < LEAST_VOXELS:
        return ""
    if not seen.varies:
        return (
            f"the network gives {seen.low:.4g} for every voxel, whatever the image; check the weights, and --normalize"
            if seen.low == seen.high
            else "the network gives the same for every voxel, whatever the image; check the weights, and --normalize"
        )
    found = _refuted(seen, spec) if spec.activation in ARE_PROBABILITIES else _already(seen, spec, labels=labels)
    if not found and labels and spec.activation == "none" and spec.channels_out == 1 and seen.low > 0:
        return (
            f"outputs lie between {seen.low:.4g} and {seen.high:.4g}, and a label is set above 0, so that all are 1; "
            "use --output logits, which are the numbers themselves, and choose where labels begin"
        )
    if not found:
        return ""
    activation, why = found
    return f"outputs lie between {seen.low:.4g} and {seen.high:.4g}{why}; use --activation {activation}"


def cut_off(seen: Outputs, spec: ModelSpec) -> str:
    """What is lost where numbers (`none`) are written as probabilities, and what to do; empty where nothing is."""
    if spec.activation != "none" or (seen.low >= -ROUNDED and seen.high <= 1 + ROUNDED):
        return ""
    return (
        f"outputs lie between {seen.low:.4g} and {seen.high:.4g}, and what is below 0 or above 1 is cut off in "
        "probabilities; use --output logits, or --activation softmax or sigmoid"
    )


Finding = tuple[Activation | str, str]


def _refuted(seen: Outputs, spec: ModelSpec) -> Finding | None:
    """Of outputs that are said to be probabilities."""
    several = spec.channels_out > 1
    if seen.low < -ROUNDED or seen.high > 1 + ROUNDED:
        return "softmax or sigmoid" if several else "sigmoid", f", so they are no {_WORDS[spec.activation]}"
    if not several:
        return None
    if spec.activation == "probabilities" and seen.apart > OFTEN * seen.voxels:
        return "probabilities_each", ", and do not sum to 1 over the channels: the classes do not exclude one another"
    if spec.activation == "probabilities_each" and seen.exclusive:
        return "probabilities", ", and sum to 1 over the channels: the classes exclude one another"
    return None


def _already(seen: Outputs, spec: ModelSpec, *, labels: bool) -> Finding | None:
    """Of outputs that are said to be logits, or numbers."""
    several = spec.channels_out > 1
    if spec.activation == "none":
        # the largest channel is the same; a single one is held against 0
        again = "" if several or not labels else ", and a label is set above 0"
    else:
        again = f", and {spec.activation} would be applied to what are probabilities already"
    if not again:
        return None
    if several and seen.exclusive:
        return "probabilities", f", sum to 1 over the channels{again}"
    if seen.probabilities:
        return "probabilities_each" if several else "probabilities", again
    if several and spec.activation == "sigmoid" and seen.logs:
        return "softmax", ", logarithms of probabilities, and a label is set above 0"
    return None


_WORDS: dict[str, str] = {"probabilities": "probabilities", "probabilities_each": "probabilities of each channel"}
