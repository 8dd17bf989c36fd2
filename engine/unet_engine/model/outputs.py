"""Which of a network's outputs is the one that is wanted, and on which grid it lies: one rule for every format, for
running and for exporting. Pure: names and shapes in, an answer or a refusal out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod

from unet_engine.errors import ModelError
from unet_engine.units import times

_AUXILIARY = frozenset({"aux", "auxiliary", "deep", "ds", "side", "supervision"})
"""Words in the names of outputs that only training looks at."""
_MAIN = frozenset({"out", "output", "main", "final", "logits"})
"""Words one of which alone makes up the name of the output that is meant."""


@dataclass(frozen=True)
class Output:
    """One output of a network, for one window."""

    name: str
    shape: tuple[int, ...] | None
    """(channels, *sizes); another number of axes where it is no image; None where it is not known."""
    same_as: str = ""
    """Name of another output that tells the same: one is made from the other voxel by voxel, as probabilities from
    logits."""
    is_labels: bool = False
    """Whether it holds labels, or is of a type that is no number: nothing to blend."""

    def __str__(self) -> str:
        return f"{self.name} ({'of unknown shape' if self.shape is None else times(self.shape) or 'one number'})"


# --- which output ---


def choose(
    source: object,
    outputs: Sequence[Output],
    window: Sequence[int],
    head: str | None = None,
    channels: int | None = None,
) -> tuple[int, str]:
    """Index of the output that is wanted, and what people should know of the choice; empty where there was none.

    `source` is named in errors. `window`: input sizes per axis. `head`: the name that the user or a spec says; it
    decides alone. `channels`: output channels, where a spec says them. Without a head are taken, one after the other:
    images alone; those with so many channels; those at the size of the input, else the largest that are smaller, else
    the smallest that are larger; numbers before labels; the first of those that tell the same; what a name says.

    Raises `ModelError` for a head that is not there, and where several are left; it lists names and shapes.
    """
    if not outputs:
        raise ModelError(f"{source} has no output; export it again with one")
    if head is not None:
        return _named(source, outputs, head), ""
    if len(outputs) == 1:
        return 0, ""
    left = [o for o in outputs if o.shape is None or _is_image(o.shape, window)]
    if channels is not None:
        left = [o for o in left if o.shape is None or o.shape[0] == channels]
    if not left:
        what = "an image" if channels is None else f"an image of {channels} channels"
        raise ModelError(f"{source}: none of its outputs {listed(outputs)} is {what}; name one with --head")
    if all(o.shape for o in left):  # of one that is not known nothing may be left out
        left = _by_name(_once(_numbers(_finest(left, window))))
    if len(left) > 1:
        raise ModelError(
            f"{source} has several outputs, and which is meant cannot be told: {listed(left)}; name one with --head"
        )
    others = [o for o in outputs if o is not left[0]]
    return outputs.index(left[0]), f"the output {left[0]} is taken, not {listed(others)}; --head takes another"


def listed(outputs: Sequence[Output]) -> str:
    """Names and shapes, for people."""
    return ", ".join(map(str, outputs))


def _named(source: object, outputs: Sequence[Output], head: str) -> int:
    for i, output in enumerate(outputs):
        if output.name == head:
            return i
    raise ModelError(f"{source} has no output {head!r}; use --head with one of {listed(outputs)}")


def _is_image(shape: Sequence[int], window: Sequence[int]) -> bool:
    """Whether it has channels and the axes of the window; one value per channel is a class of the whole image."""
    return len(shape) == len(window) + 1 and (prod(shape[1:]) > 1 or prod(window) == 1)


def _finest(outputs: list[Output], window: Sequence[int]) -> list[Output]:
    def rank(output: Output) -> tuple[bool, int]:
        sizes = (output.shape or ())[1:]
        larger = any(size > given for size, given in zip(sizes, window, strict=True))
        return larger, prod(sizes) if larger else -prod(sizes)

    best = min(map(rank, outputs))
    return [o for o in outputs if rank(o) == best]


def _numbers(outputs: list[Output]) -> list[Output]:
    return [o for o in outputs if not o.is_labels] or outputs


def _once(outputs: list[Output]) -> list[Output]:
    """The first of those that tell the same, also where what links them is not there."""
    by_name = {o.name: o for o in outputs}

    def root(output: Output) -> str:
        name = output.name
        for _ in outputs:
            known = by_name.get(name)
            if known is None or not known.same_as:
                break
            name = known.same_as
        return name

    return list({root(o): o for o in reversed(outputs)}.values())[::-1]


def _by_name(outputs: list[Output]) -> list[Output]:
    """Those that are not called auxiliary; of these the one that is called main, where no other is called alike."""
    left = [o for o in outputs if not _words(o.name) & _AUXILIARY] or outputs
    main = [o for o in left if len(_words(o.name)) == 1 and _words(o.name) <= _MAIN]
    alone = len(main) == 1 and all(o is main[0] or not _words(main[0].name) & _words(o.name) for o in left)
    return main if alone else left


def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z]+", name.lower()))


# --- on which grid ---


def scales(
    first: tuple[Sequence[int], Sequence[int]], second: tuple[Sequence[int], Sequence[int]]
) -> tuple[Fraction | None, ...]:
    """Output voxels per input voxel, for each axis, from (input sizes, output sizes) of two windows: 1 where the output
    only lacks a rim, whatever its size. None where the sizes of an axis do not differ.

    The windows should differ by a multiple of what the network pools by.
    """
    sides = zip(*first, *second, strict=True)
    return tuple(Fraction(o2 - o1, w2 - w1) if w1 != w2 else None for w1, o1, w2, o2 in sides)


def margin(
    source: object, window: Sequence[int], sizes: Sequence[int], scale: Sequence[Fraction | None]
) -> tuple[int, ...]:
    """By how much the output of `sizes` is smaller than `window` at each side, with `scale` as in `scales`.

    Raises `ModelError` where the output has another resolution than the input, lacks an odd number of voxels, or where
    nothing tells what a size like half the input means.
    """
    turns = f"{source} turns {times(window)} into {times(sizes)}"
    sides = list(zip(scale, window, sizes, strict=True))
    if all(s == 1 or w == o for s, w, o in sides) and any(o > w for _, w, o in sides):
        raise ModelError(
            f"{turns}: its output is larger than its input by a border that the image does not have; crop it at the end "
            "of the network"
        )
    if any(o > w or (s not in (None, 1) and w != o) for s, w, o in sides):
        raise ModelError(
            f"{turns}: its output has another resolution than its input; add a resize to the size of the input to the "
            "network, or take another of its outputs with --head"
        )
    if any(s is None and _like_a_stride(w, o) for s, w, o in sides):
        raise ModelError(
            f"{turns}, and whether its output lacks a border or has another resolution cannot be told; export it with "
            "free "
            f"sizes, or where it lacks a border write margin = {[(w - o) // 2 for _, w, o in sides]} to a .toml beside it"
        )
    if any((w - o) % 2 for _, w, o in sides):
        raise ModelError(f"{turns}; export it with an output of the same size, or smaller by as much at both sides")
    return tuple((w - o) // 2 for _, w, o in sides)


def _like_a_stride(size: int, out: int) -> bool:
    """Whether every second, third … voxel of `size` would be so many."""
    ratios = (size // max(out, 1), -(-size // max(out, 1)))
    return size != out and any(k > 1 and abs(size / k - out) < 1 for k in ratios)
