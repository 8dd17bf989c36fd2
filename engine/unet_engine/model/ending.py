"""From what bounds a network's outputs to the activation of its spec, and what the user is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from unet_engine.model.spec import ARE_PROBABILITIES, Activation

SLACK = 1e-3
"""Probabilities may leave 0 to 1 by rounding, and sum to 1 as badly."""


@dataclass(frozen=True)
class Ending:
    """What the graph proves of a network's outputs."""

    low: float = -inf
    high: float = inf
    end: str = ""
    """The operator that bounds them, as its library calls it."""
    exclusive: bool | None = None
    """Whether the channels of a voxel sum to 1. None: nothing makes them; False: something does so along another axis,
    or did."""
    whole: bool = False
    """Whether outputs are whole numbers: labels, or masks of 0 and 1. Logits are not."""

    @property
    def are_probabilities(self) -> bool:
        return self.low >= -SLACK and self.high <= 1 + SLACK

    def activation(self, channels: int) -> tuple[Activation | None, str]:
        """The activation of a network with so many output channels, and why. None: the graph contradicts every guess;
        the reason says how."""
        if self.are_probabilities:
            return self._of_probabilities(channels)
        if self.whole:
            return None, f"the network ends in {self.end}, with whole numbers, which are labels rather than logits"
        if self.low >= -SLACK and self.high < inf:
            return None, f"the network ends in {self.end}, with outputs from {self.low:.4g} to {self.high:.4g}"
        if channels == 1 and self.high <= SLACK:
            return None, f"the network ends in {self.end}, with outputs that are never above 0"
        if self.high < inf and self.end == "LogSoftmax":
            # softmax(log p) = p / sum(p) = p, so logarithms of probabilities are logits like any others
            return "softmax", f"the network ends in {self.end}"
        return ("softmax" if channels > 1 else "sigmoid"), ""

    def _of_probabilities(self, channels: int) -> tuple[Activation | None, str]:
        if channels > 1 and self.exclusive is False:
            return None, f"the network ends in {self.end}, but not over all its {channels} channels"
        each = channels > 1 and self.exclusive is None
        return "probabilities_each" if each else "probabilities", f"the network ends in {self.end}"


UNPROVED = Ending()
"""Of a graph that bounds nothing, or was not looked at."""


def outputs_note(activation: Activation, why: str) -> str:
    """What people are told of an activation that was found in the graph; empty where nothing was."""
    if not why:
        return ""
    what = {
        "probabilities": "its outputs are taken as probabilities",
        "probabilities_each": "its outputs are taken as probabilities of each channel on its own",
        "softmax": "its outputs are taken as logits of a softmax",
    }[activation]
    return f"{why}: {what}; --activation says otherwise"


def applied_again(end: Ending, activation: Activation, channels: int) -> str:
    """Whether `activation` would be applied to what are probabilities already, in words; empty where it would not.

    With `none` a single channel would be held against 0, which probabilities never fall below.
    """
    harmless = activation in ARE_PROBABILITIES or (activation == "none" and channels > 1)
    if not end.are_probabilities or harmless:
        return ""
    found, why = end.activation(channels)
    what = "a label is set above 0" if activation == "none" else f"{activation} would be applied again"
    return f"{why} already, and {what}; use --activation {found or 'probabilities'}"


def no_logits(end: Ending, channels: int) -> str:
    """Why outputs can be no logits, in words that follow "outputs"; empty where they can.

    Logits of one channel lie on both sides of 0, and those of a trained network do not all stay within 1 of it.
    """
    if channels == 1 and end.low >= -SLACK:
        return "are never below 0"
    if end.low >= -1 - SLACK and end.high <= 1 + SLACK:
        return f"lie from {end.low:.4g} to {end.high:.4g}"
    return ""


def guess_refusal(end: Ending, channels: int, output: str) -> str:
    """Why `output` cannot be had of outputs that were merely guessed to be logits, and what to do; empty where it
    can."""
    found = no_logits(end, channels)
    if not found or (output != "probabilities" and not (channels == 1 and end.low >= -SLACK)):
        return ""
    return (
        f"{output} are asked for, and the network ends in {end.end}, whose outputs {found}, so they are no logits; use "
        "--output logits, which are the numbers themselves, or say what they are with --activation (none: a label is "
        "set above 0)"
    )


def refusal(path: object, why: str) -> str:
    """The error where it has to be asked for."""
    return f"{path}: {why}; say what its outputs are with --activation, or export what lies before it"
