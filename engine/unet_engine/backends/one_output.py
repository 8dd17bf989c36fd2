"""A PyTorch network as the engine wants it: one tensor of floating point numbers, for any batch. Imported only where
PyTorch is."""

from __future__ import annotations

from typing import Any

import torch

from unet_engine.backends.base import Setup
from unet_engine.errors import ModelError
from unet_engine.model.outputs import Output, choose, margin, scales

PROBES = (0, 16, 32, 64)
"""By how much a second window is larger, to see what its output does; 0: twice as large."""
ROUNDING = 1e-3
"""Relative to the largest output: what the same window may give beside others."""


class OneOutput(torch.nn.Module):  # type: ignore[misc]  # the type checker skips torch
    """Takes the output that is wanted, of several; which it is, is decided by the first batch."""

    def __init__(self, network: Any, setup: Setup, saved_batch: int | None) -> None:
        """saved_batch: how many windows `network` takes at once; None: any number."""
        super().__init__()
        self.network = network
        self.head = ""
        """Name of the output that is taken; empty where there is only one."""
        self.note = ""
        self._setup, self._index, self._saved = setup, -1, saved_batch
        self._at_once = saved_batch
        """Windows of a batch that it is given together; None: all."""
        self._weights = next((p.dtype for p in network.parameters() if p.dtype.is_floating_point), torch.float32)
        self._takes = torch.float32
        self._keeps_half = setup.precision != "fp32"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._index < 0:
            self._try(x)
        x = x.to(self._takes)
        step, saved = self._at_once, self._saved
        if step in (None, x.shape[0]):
            return self._wanted(self.network(x))
        parts = [x[i : i + step] for i in range(0, x.shape[0], step)]
        found = [self._wanted(self.network(_filled(part, saved or step)))[: part.shape[0]] for part in parts]
        return torch.cat(found)

    def _try(self, x: torch.Tensor) -> None:
        """Find the type that the network takes, float32 or that of its weights, and the output that is wanted."""
        saved = self._saved
        x = x if saved is None else _filled(x[:saved], saved)
        try:
            returned = self.network(x)
        except RuntimeError:
            if self._weights is x.dtype:
                raise
            returned = self.network(x.to(self._weights))
            self._takes = self._weights
        else:
            self._takes = x.dtype
        self._choose(leaves(returned))

    def part_rows(self, x: torch.Tensor) -> None:
        """From here on give it the windows of a batch one by one, where what becomes of the first one of noise like
        `x` changes with the others, as by a BatchNorm that works as in training."""
        if x.shape[0] == 1:
            return
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
        other = torch.cat([noise[:1], 9 * noise[1:]])
        first, again = (self(batch)[:1].float() for batch in (noise, other))
        if not (first - again).abs().max() <= ROUNDING * first.abs().max():
            self._at_once = 1
            told = "its windows change one another where they share a batch: they go to it one by one"
            self.note = "; ".join(filter(None, (self.note, told)))

    def _wanted(self, returned: Any) -> torch.Tensor:
        out = leaves(returned)[self._index][1]
        return out if self._keeps_half and out.dtype.is_floating_point else out.float()

    def _choose(self, found: list[tuple[str, torch.Tensor]]) -> None:
        """Raises `ModelError` where which output is meant cannot be told, or where it is none to blend."""
        model = self._setup.model
        outputs = [Output(name, tuple(t.shape[1:]), is_labels=not t.dtype.is_floating_point) for name, t in found]
        index, self.note = choose(model.path, outputs, self._setup.window, model.head, model.spec.channels_out)
        kind = found[index][1].dtype
        if not kind.is_floating_point and (
            kind is torch.bool or len(outputs[index].shape or ()) < 1 or model.spec.channels_out < 2
        ):
            raise ModelError(
                f"{model.path}: its output holds {str(kind).removeprefix('torch.')}, and labels cannot be blended; "
                "save the network with the numbers that lie before it as its output"
            )
        self._index, self.head = index, found[index][0] if len(found) > 1 else ""

    def check_rim(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """Raises `ModelError` where the output of the batch `x` is smaller since it has another resolution, and not for
        want of a rim as its spec says."""
        window, sizes = tuple(x.shape[2:]), tuple(out.shape[2:])
        if window == sizes:
            return
        seen = [found for more in PROBES if (found := self._scales(x, sizes, more))]
        if seen:
            margin(self._setup.model.path, window, sizes, next((s for s in seen if set(s) == {1}), seen[0]))

    def _scales(self, x: torch.Tensor, sizes: tuple[int, ...], more: int) -> Any:
        window = tuple(x.shape[2:])
        larger = tuple(w + (more or w) for w in window)
        try:
            out = self(x.new_zeros((x.shape[0], x.shape[1], *larger)))
        except Exception:  # a window that it does not take tells nothing
            return None
        return scales((window, sizes), (larger, tuple(out.shape[2:])))


def leaves(returned: Any, name: str = "") -> list[tuple[str, torch.Tensor]]:
    """The tensors in what a network returns, with their names: keys, and places in lists, joined by points."""
    if isinstance(returned, torch.Tensor):
        return [(name or "0", returned)]
    if isinstance(returned, dict):
        pairs = list(returned.items())
    elif isinstance(returned, (list, tuple)):
        pairs = list(enumerate(returned))
    else:
        return []
    return [leaf for key, value in pairs for leaf in leaves(value, f"{name}.{key}".lstrip("."))]


def _filled(x: torch.Tensor, rows: int) -> torch.Tensor:
    """A batch of so many rows, its last row repeated."""
    missing = rows - x.shape[0]
    return torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x
