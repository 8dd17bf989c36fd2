"""What a network of unknown layout promises, found by asking it: sizes it takes, margin, channels, work.

Shapes alone are asked for, on PyTorch's ``meta`` device, where a forward pass computes nothing. A network that cannot
run there (its code looks at values) is asked on the CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from unet_engine.errors import ModelError, SettingsError, first_line
from unet_engine.model import outputs
from unet_engine.units import times

STEPS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Lattice steps that are tried, in multiples of what the network pools by; deeper poolings than seven do not occur."""
OTHER_SIZES = (64, 32, 16, 8, 128, 48, 24)
"""By how much larger windows are tried that shall tell what changes with a window; most poolings divide the first."""
_FAR = 768
"""By how much windows differ of which the network's strides are told: whole multiples of 2 and 3 stay whole."""
DEFAULT_WINDOW = {2: (256, 256), 3: (64, 64, 64)}


@dataclass(frozen=True)
class Geometry:
    """Sizes per axis, as in `ModelSpec`."""

    axes: Literal["yx", "zyx"]
    channels_in: int
    channels_out: int
    window: tuple[int, ...]
    window_min: tuple[int, ...]
    window_step: tuple[int, ...]
    margin: tuple[int, ...]
    flops: int | None


class Prober:
    """Asks `network` for the shape of its output."""

    def __init__(self, network: Any, channels: int) -> None:
        self._channels = channels
        self._network, self._device = network, "cpu"
        try:
            meta = copy.deepcopy(network).to("meta")
            self._network, self._device = meta, "meta"
        except Exception:  # TorchScript and exported programs refuse in their own ways
            self._device = "cpu"

    def shape(self, window: Sequence[int]) -> tuple[int, ...]:
        """(channels, *sizes) of the output for one window. Raises what the network raises."""
        if self._device == "meta":
            try:
                return self._asked(window)
            except (NotImplementedError, RuntimeError) as error:
                if "meta" not in str(error).lower():
                    raise
                raise _NeedsValues from error
        return self._asked(window)

    def _asked(self, window: Sequence[int]) -> tuple[int, ...]:
        x = torch.zeros((1, self._channels, *window), device=self._device)
        with torch.no_grad():
            output = self._network(x)
        if not isinstance(output, Tensor):
            raise ModelError(f"the network returns {type(output).__name__}, no tensor; return logits")
        return tuple(output.shape[1:])

    def on_values(self, network: Any) -> Prober:
        self._network, self._device = network, "cpu"
        return self

    def takes(self, window: Sequence[int], margin: Sequence[int]) -> bool:
        """Whether the output for `window` is smaller by `margin` at each side. Any error of the network is a no."""
        if any(w <= 2 * m for w, m in zip(window, margin, strict=True)):
            return False
        try:
            return self.shape(window)[1:] == tuple(w - 2 * m for w, m in zip(window, margin, strict=True))
        except Exception:
            return False

    def strides(self, window: Sequence[int]) -> tuple[int, ...]:
        """By how much the coarsest features of the network are coarser than its input, per axis: the change of every
        tensor's sizes between two windows tells its stride. 1 where the network cannot be followed."""
        unknown = (1,) * len(window)
        if self._device != "meta":
            return unknown
        try:
            near, far = self._features(window), self._features([size + _FAR for size in window])
        except Exception:  # a network may well refuse the other size
            return unknown
        if len(near) != len(far):
            return unknown
        found = list(unknown)
        for first, second in zip(near, far, strict=True):
            for axis, (a, b) in enumerate(zip(first, second, strict=True)):
                ratio = Fraction(b - a, _FAR)
                if 0 < ratio <= 1 and ratio.denominator <= STEPS[-1]:  # other ones are of windows of attention and such
                    found[axis] = lcm(found[axis], ratio.denominator)
        return tuple(n if n <= STEPS[-1] else 1 for n in found)

    def _features(self, window: Sequence[int]) -> list[tuple[int, ...]]:
        """Sizes of all images that the network makes of one window."""
        seen: list[tuple[int, ...]] = []

        class Watch(TorchDispatchMode):  # type: ignore[misc]  # the type checker skips torch
            def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                result = function(*args, **(kwargs or {}))
                if isinstance(result, Tensor) and result.dim() == len(window) + 2:
                    seen.append(tuple(result.shape[2:]))
                return result

        with Watch():
            self.shape(window)
        return seen

    def flops(self, window: Sequence[int]) -> int | None:
        """Two per multiply-add, as PyTorch counts them."""
        from torch.utils.flop_counter import FlopCounterMode

        try:
            with FlopCounterMode(display=False) as counter:
                self.shape(window)
            return int(counter.get_total_flops()) or None
        except Exception:  # a script's operators are not seen
            return None


class _NeedsValues(Exception):
    """The network cannot run on the meta device."""


def probe(network: Any, window: Sequence[int] | None, channels: int | None, *, fixed: bool) -> Geometry:
    """The geometry of `network` around `window` (default: 64 voxels per axis in 3D, 256 in 2D).

    `fixed`: no other sizes are looked for. Raises `ModelError` where the network does not take the window or gives no
    smaller or equally large output, `SettingsError` where axes or channels cannot be told.
    """
    axes_count, channels = layout(network, window, channels)
    window = tuple(window or DEFAULT_WINDOW[axes_count])
    prober = Prober(network, channels)
    try:
        shape = _first(prober, network, window)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"the network does not take a window of {times(window)} with {channels} channel(s): {first_line(error)}; "
            "use --window and --channels"
        ) from error
    margin = _margin(prober, window, shape)
    least, step = (window, (0,) * len(window)) if fixed else _lattice(prober, window, margin)
    return Geometry(
        "yx" if axes_count == 2 else "zyx", channels, shape[0], window, least, step, margin, prober.flops(window)
    )


def _first(prober: Prober, network: Any, window: tuple[int, ...]) -> tuple[int, ...]:
    try:
        shape = prober.shape(window)
    except _NeedsValues:
        shape = prober.on_values(network).shape(window)
    if len(shape) != len(window) + 1:
        raise ModelError(
            f"the network gives {len(shape) - 1} spatial axes for a window of {len(window)}; export one "
            "that gives an image of an image"
        )
    return shape


def layout(network: Any, window: Sequence[int] | None, channels: int | None) -> tuple[int, int]:
    """Number of spatial axes and of input channels, from the first convolution's weights where not given."""
    weights = [p for p in network.parameters() if p.dim() in (4, 5)] if hasattr(network, "parameters") else []
    n = len(window) if window else weights[0].dim() - 2 if weights else 0
    if n not in (2, 3):
        raise SettingsError("whether the network is 2D or 3D cannot be told; use --window, e.g. --window 64,64,64")
    if channels is None:
        first = next((m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))), None)
        channels = first.in_channels if first is not None else int(weights[0].shape[1]) if weights else 1
    return n, channels


def _margin(prober: Prober, window: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """What the output lacks at each side. A second size tells a rim, which stays, from a stride, which keeps the
    ratio."""
    sizes = shape[1:]
    if sizes == window:
        return (0,) * len(window)
    scale: list[Fraction | None] = [None] * len(window)
    for axis in range(len(window)):
        for more in OTHER_SIZES:
            other = _with(window, axis, window[axis] + more)
            with suppress(Exception):  # a size that is not taken tells nothing
                scale[axis] = outputs.scales((window, sizes), (other, prober.shape(other)[1:]))[axis]
                break
    # a stride leaves half and a little, so that more is a rim even where no other size is taken
    told = [1 if s is None and 0.6 * w < o <= w else s for s, w, o in zip(scale, window, sizes, strict=True)]
    return outputs.margin("the network", window, sizes, [Fraction(s) if s is not None else None for s in told])


def _lattice(
    prober: Prober, window: tuple[int, ...], margin: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(least, step) per axis: every combination of sizes least + k·step is taken, as far as asked.

    Steps are multiples of what the network pools by: others make it resample by odd ratios, which training never
    showed it, and exporters need minutes for them. A step counts when one, two and three of them more are taken; the
    least size is walked up to.
    """
    strides = prober.strides(window)
    steps = tuple(_step(prober, window, margin, a, stride) for a, stride in enumerate(strides))
    least = [_least(prober, window, margin, a, step) for a, step in enumerate(steps)]
    # sizes that are taken one axis at a time may be too small together, e.g. for statistics over a single voxel
    while not prober.takes(least, margin) and tuple(least) != window:
        least = [min(l + s, w) for l, s, w in zip(least, steps, window, strict=True)]
    return tuple(least), steps


def _step(prober: Prober, window: tuple[int, ...], margin: tuple[int, ...], axis: int, stride: int) -> int:
    for step in (stride * k for k in STEPS if stride * k <= max(STEPS[-1], stride)):
        if all(prober.takes(_with(window, axis, window[axis] + k * step), margin) for k in (1, 2, 3)):
            return step
    return 0


def _least(prober: Prober, window: tuple[int, ...], margin: tuple[int, ...], axis: int, step: int) -> int:
    """The smallest size above one step from which on sizes are taken."""
    if not step:
        return window[axis]
    first = window[axis] % step + step if window[axis] % step else 2 * step
    for size in range(first, window[axis], step):
        if all(prober.takes(_with(window, axis, size + k * step), margin) for k in (0, 1, 2)):
            return size
    return window[axis]


def _with(window: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*window[:axis], size, *window[axis + 1 :])
