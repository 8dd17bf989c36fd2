"""What a network of unknown layout promises, found by asking it: sizes it takes, margin, channels, work.

Shapes alone are asked for, on PyTorch's ``meta`` device, where a forward pass computes nothing. A network that cannot
run there (its code looks at values) is asked on the CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unet_engine.errors import ModelError, SettingsError, first_line
from unet_engine.units import times

STEPS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Lattice steps that are tried; deeper poolings than seven do not occur."""
DEFAULT_WINDOW = {2: (256, 256), 3: (64, 64, 64)}


class FullResolution(nn.Module):  # type: ignore[misc]  # the type checker skips torch
    """A network whose one output is that of the highest resolution: heads for deep supervision are dropped."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return full_resolution(self.network(x))


def full_resolution(output: Any) -> Tensor:
    """The tensor with most voxels among those in `output` (a tensor, or lists and dicts of such); the first of
    equals."""
    tensors = _tensors(output)
    if not tensors:
        raise ModelError(f"the network returns {type(output).__name__} without a tensor; return logits")
    return max(tensors, key=lambda t: t.shape[2:].numel())


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    inside = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return [t for item in inside for t in _tensors(item)]


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
            return tuple(full_resolution(self._network(x)).shape[1:])

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


def head_count(network: Any, window: Sequence[int] | None, channels: int | None) -> int:
    """How many tensors `network` returns; 1 where it does not take the window, which `probe` then explains."""
    axes_count, channels = _layout(network, window, channels)
    try:
        with torch.no_grad():
            return len(_tensors(network(torch.zeros((1, channels, *(window or DEFAULT_WINDOW[axes_count]))))))
    except Exception:
        return 1


def probe(network: Any, window: Sequence[int] | None, channels: int | None, *, fixed: bool) -> Geometry:
    """The geometry of `network` around `window` (default: 64 voxels per axis in 3D, 256 in 2D).

    `fixed`: no other sizes are looked for. Raises `ModelError` where the network does not take the window or gives no
    smaller or equally large output, `SettingsError` where axes or channels cannot be told.
    """
    axes_count, channels = _layout(network, window, channels)
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
    margin = tuple((w - o) // 2 for w, o in zip(window, shape[1:], strict=True))
    if any(m < 0 or w - o != 2 * m for m, w, o in zip(margin, window, shape[1:], strict=True)):
        raise ModelError(
            f"the network turns {times(window)} into {times(shape[1:])}; an output of the same size, or smaller evenly, is needed"
        )
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
            f"the network gives {len(shape) - 1} spatial axes for a window of {len(window)}; an image-to-image network is needed"
        )
    return shape


def _layout(network: Any, window: Sequence[int] | None, channels: int | None) -> tuple[int, int]:
    """Number of spatial axes and of input channels, from the first convolution's weights where not given."""
    weights = [p for p in network.parameters() if p.dim() in (4, 5)] if hasattr(network, "parameters") else []
    n = len(window) if window else weights[0].dim() - 2 if weights else 0
    if n not in (2, 3):
        raise SettingsError("whether the network is 2D or 3D cannot be told; use --window, e.g. --window 64,64,64")
    if channels is None:
        first = next((m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))), None)
        channels = first.in_channels if first is not None else int(weights[0].shape[1]) if weights else 1
    return n, channels


def _lattice(
    prober: Prober, window: tuple[int, ...], margin: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(least, step) per axis: every combination of sizes least + k·step is taken, as far as asked.

    A step counts when one, two and three of them more are taken; the least size is walked down to from the window.
    """
    steps = tuple(_step(prober, window, margin, a) for a in range(len(window)))
    least = list(window)
    for a, step in enumerate(steps):
        while step and least[a] > 2 * step and prober.takes(_with(window, a, least[a] - step), margin):
            least[a] -= step
    # sizes that are taken one axis at a time may be too small together, e.g. for statistics over a single voxel
    while not prober.takes(least, margin) and tuple(least) != window:
        least = [min(l + s, w) for l, s, w in zip(least, steps, window, strict=True)]
    return tuple(least), steps


def _step(prober: Prober, window: tuple[int, ...], margin: tuple[int, ...], axis: int) -> int:
    for step in STEPS:
        if all(prober.takes(_with(window, axis, window[axis] + k * step), margin) for k in (1, 2, 3)):
            return step
    return 0


def _with(window: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*window[:axis], size, *window[axis + 1 :])
