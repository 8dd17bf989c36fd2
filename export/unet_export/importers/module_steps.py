"""A network of PyTorch between other steps, or on other axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from unet_export.importers.steps import Step


class Wrapped(nn.Module):  # type: ignore[misc]  # the type checker skips torch
    """`before`, the network, `after`; of several outputs the one at `place`."""

    def __init__(self, network: Any, before: Sequence[Step], after: Sequence[Step], place: Any = None) -> None:
        super().__init__()
        self.network, self.before, self.after, self.place = network, tuple(before), tuple(after), place

    def forward(self, x: Tensor) -> Tensor:
        for step in self.before:
            x = step.on_torch(x)
        y = self.network(x)
        return _each(y if self.place is None else y[self.place], self._finished)

    def _finished(self, y: Tensor) -> Tensor:
        for step in self.after:
            y = step.on_torch(y)
        return y


def _each(returned: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """What a network returns, every tensor in it changed: which of several is meant, is told later."""
    if isinstance(returned, Tensor):
        return change(returned)
    if isinstance(returned, Mapping):
        return {key: _each(value, change) for key, value in returned.items()}
    if isinstance(returned, list | tuple):
        return tuple(_each(value, change) for value in returned)
    return returned


def wrapped_module(network: Any, before: Sequence[Step], after: Sequence[Step], place: Any = None) -> Any:
    """A module that does `before`, calls `network`, takes the output at `place`, and does `after`; `network` itself
    where there is nothing to do."""
    return Wrapped(network, before, after, place) if before or after or place is not None else network


class Transposed(nn.Module):  # type: ignore[misc]  # the type checker skips torch
    """A network for the axes in another order, on (n, c, [z,] y, x). With one axis less than `forward_axes` it
    is run on the plane across the first of them, of which there is one."""

    def __init__(self, network: nn.Module, forward_axes: Sequence[int], *, planes: bool) -> None:
        super().__init__()
        self.network, self.planes = network, planes
        self.into = (0, 1, *(2 + a for a in forward_axes))
        self.back = (0, 1, *(2 + list(forward_axes).index(a) for a in range(len(forward_axes))))

    def forward(self, image: Tensor) -> Tensor:
        held = image.permute(self.into)
        found: Tensor = self.network(held[:, :, 0]).unsqueeze(2) if self.planes else self.network(held)
        return found.permute(self.back)
