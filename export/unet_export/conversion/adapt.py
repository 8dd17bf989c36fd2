"""Networks that take or give something else than float32 (batch, channel, [z,] y, x): seen by running one window, and
wrapped, or refused by name."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from unet_engine.errors import ModelError, first_line
from unet_engine.model.outputs import Output, choose
from unet_engine.units import Tell, times
from unet_export.conversion.probe import DEFAULT_WINDOW, OTHER_SIZES, layout

_TYPES = (torch.float32, torch.float64, torch.float16)
"""What networks may take; most take the first."""

_BATCHES = (2, 3, 4, 8, 16)
"""That networks were saved for which take no single window."""

_TOLD_BY: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda t: t,
    lambda t: t.softmax(1),
    torch.sigmoid,
    lambda t: t.argmax(1),
    lambda t: t.argmax(1, keepdim=True),
)
"""What makes of one output another that tells no more."""


class Adapted(nn.Module):  # type: ignore[misc]  # the type checker skips torch
    """A network with one output, called with float32 (n, c, [z,] y, x) and giving the same."""

    def __init__(self, network: Any, kind: torch.dtype, *, last_in: bool) -> None:
        super().__init__()
        self.network = network
        self.kind, self.gives, self.last_in = kind, torch.float32, last_in
        self.place: tuple[Any, ...] = ()
        self.last_out = self.lacks_channel = False

    def raw(self, x: Tensor) -> Any:
        """What the network itself returns."""
        x = x.to(self.kind)
        return self.network(x.movedim(1, -1).contiguous() if self.last_in else x)

    def forward(self, x: Tensor) -> Tensor:
        y = self.raw(x)
        for step in self.place:
            y = _inside(y, step)
        if self.lacks_channel:
            y = y.unsqueeze(1)
        return (y.movedim(-1, 1).contiguous() if self.last_out else y).to(self.gives)

    def double(self) -> Adapted:
        """All of it in float64, to be compared with."""
        self.kind = self.gives = torch.float64
        return super().double()  # type: ignore[no-any-return]

    @property
    def is_plain(self) -> bool:
        """Whether it does nothing that the network does not."""
        as_it_is = self.kind == torch.float32 and not (self.last_in or self.last_out or self.lacks_channel)
        return as_it_is and not self.place


class Repeated(nn.Module):  # type: ignore[misc]  # the type checker skips torch
    """A network that was saved for a batch of `rows` windows and takes no other, called with one, which all rows are."""

    def __init__(self, network: Any, rows: int) -> None:
        super().__init__()
        self.network, self.rows = network, rows
        self.training = False  # set here: programs know no eval()

    def forward(self, x: Tensor) -> Any:
        returned = self.network(x.expand(self.rows, *x.shape[1:]))
        return tree_map(lambda t: t[:1] if isinstance(t, Tensor) and t.dim() else t, returned)


class GivesLabels(ModelError):
    """The network ends in an argmax or a threshold, or seems to."""

    def __init__(self, text: str, network: Any) -> None:
        """network: as `adapted` would give it; its output is labels in float32"""
        super().__init__(text)
        self.network = network


def adapted(
    network: Any, window: Sequence[int] | None, channels: int | None, head: str | None = None, tell: Tell = print
) -> Any:
    """`network`, or a wrapper of it that takes and gives what the engine does. What was found is told.

    Raises `ModelError` where the network does not take the window in any order of axes, gives no image, or gives labels
    or several images of which none is told by its name to be meant.
    """
    count, channels = layout(network, window, channels)
    window = tuple(window or DEFAULT_WINDOW[count])
    x = torch.from_numpy(_noise((1, channels, *window)))
    try:
        found, returned = _taking(network, x)
    except ModelError:
        rows = _only_batch(network, x)
        if rows is None:
            raise
        tell(
            f"note: the network takes batches of {rows} windows alone, so each is computed {rows} times; save it with a batch of 1, "
            "or a free one, to spare that"
        )
        network = Repeated(network, rows)
        found, returned = _taking(network, x)
    parts = list(_parts(returned))
    if not parts:
        raise ModelError(f"the network returns {type(returned).__name__} without a tensor; return logits")
    found.place, tensor = _chosen(parts, window, found, head, tell)
    found.last_out = tensor.dim() == count + 2 and _is_last(found, tensor, x)
    found.lacks_channel = tensor.shape[1:] == window
    if not tensor.dtype.is_floating_point:
        raise GivesLabels(
            f"the network gives {str(tensor.dtype).removeprefix('torch.')}, labels it seems, and labels of windows "
            "cannot be blended; export what lies before its argmax or threshold",
            found,
        )
    if found.last_in or found.last_out:
        which = "takes and gives" if found.last_in and found.last_out else "takes" if found.last_in else "gives"
        tell(f"note: the network {which} channels last; the file has them first, as all model files")
    if returned is tensor and found.network is network and found.is_plain and tensor.dtype == torch.float32:
        return network
    return found


def _noise(shape: tuple[int, ...]) -> Any:
    import numpy as np

    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _taking(network: Any, x: Tensor) -> tuple[Adapted, Any]:
    """The first way in which the network takes a window, and what it returns."""
    problems = []
    channels, window = x.shape[1], tuple(x.shape[2:])
    for last in (False, True) if window[0] != channels else (False,):
        for kind in _TYPES:
            way = Adapted(network, kind, last_in=last)
            try:
                with torch.inference_mode():
                    returned = way.raw(x)
            except Exception as error:  # networks refuse in their own ways
                problems.append(error)
                continue
            return (way, returned) if kind == torch.float32 else _in_float32(way, returned, x)
    if mixing := _mixing(network, x):
        raise ModelError(mixing) from problems[0]
    raise ModelError(
        f"the network does not take a window of {times(window)} with {channels} channel(s): {first_line(problems[0])}; "
        "use --window and --channels"
    ) from problems[0]


def _only_batch(network: Any, x: Tensor) -> int | None:
    """The batch that a network takes alone, and not one window; None where it is none of those that are usual. What takes
    any batch but one measures something over it."""
    for rows in _BATCHES:
        if _takes(network, x, rows):
            return None if _takes(network, x, rows + 1) else rows
    return None


def _takes(network: Any, x: Tensor, rows: int) -> bool:
    try:
        with torch.inference_mode():
            network(x.expand(rows, *x.shape[1:]))
    except Exception:  # networks refuse in their own ways
        return False
    return True


def _mixing(network: Any, x: Tensor) -> str:
    """What is told of a network that takes the window and fails inside, as a layer is given another type of numbers
    than its weights are; empty of others."""
    if not hasattr(network, "named_modules"):
        return ""
    inside: list[tuple[str, nn.Module, tuple[Any, ...]]] = []

    def entered(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda module, given: inside.append((name, module, given))

    hooks: list[Any] = []
    try:
        for name, module in network.named_modules():
            hooks.append(module.register_forward_pre_hook(entered(name)))
            hooks.append(module.register_forward_hook(lambda *_: inside.pop() and None))
        with torch.inference_mode():
            network(x)
    except Exception:  # it is known to fail
        pass
    finally:
        for hook in hooks:
            hook.remove()
    if not inside or not inside[-1][0]:
        return ""
    name, module, given = inside[-1]
    kinds = {t.dtype for t in given if isinstance(t, Tensor) and t.dtype.is_floating_point}
    weights = {p.dtype for p in module.parameters(recurse=False)} - kinds
    if not kinds or not weights:
        return ""
    got, has = (str(min(found, key=str)).removeprefix("torch.") for found in (kinds, weights))
    return (
        f"the network mixes types of numbers: its layer {name} ({type(module).__name__}) holds {has} and is given {got}; "
        "let both be float32: cast what goes into it with .float(), and leave out .double()"
    )


def _in_float32(way: Adapted, returned: Any, x: Tensor) -> tuple[Adapted, Any]:
    """The same with weights in float32, which all libraries have layers for, where it runs like that."""
    try:
        other = Adapted(copy.deepcopy(way.network).float(), torch.float32, last_in=way.last_in)
        with torch.inference_mode():
            return other, other.raw(x)
    except Exception:  # the type may be written into the network
        return way, returned


def _parts(returned: Any, place: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Tensor]]:
    """Every tensor in what a network returns (a tensor; lists, dictionaries and data classes of such), with the way to
    it."""
    if isinstance(returned, Tensor):
        return [(place, returned)]
    if isinstance(returned, Mapping):
        inside: list[tuple[Any, Any]] = list(returned.items())
    elif hasattr(returned, "_fields"):  # a named tuple
        inside = [(name, getattr(returned, name)) for name in returned._fields]
    elif isinstance(returned, (list, tuple)):
        inside = list(enumerate(returned))
    elif dataclasses.is_dataclass(returned):
        inside = [(f.name, getattr(returned, f.name)) for f in dataclasses.fields(returned)]
    else:
        return []
    return [part for key, value in inside for part in _parts(value, (*place, key))]


def _chosen(
    parts: list[tuple[tuple[Any, ...], Tensor]], window: tuple[int, ...], way: Adapted, head: str | None, tell: Tell
) -> tuple[tuple[Any, ...], Tensor]:
    """The output that is meant, by the one rule that running has too."""
    names = [".".join(map(str, place)) or "0" for place, _ in parts]
    tensors = [tensor for _, tensor in parts]
    listed = [
        Output(name, _shape(tensor, window, way), _same_as(i, names, tensors), not tensor.dtype.is_floating_point)
        for i, (name, tensor) in enumerate(zip(names, tensors, strict=True))
    ]
    index, note = choose("the network", listed, window, head)
    if note:
        highest = "; that of the highest resolution is kept" if len({o.shape for o in listed}) > 1 else ""
        tell(f"note: the network has {len(parts)} outputs{highest}: {note}")
    return parts[index]


def _shape(tensor: Tensor, window: tuple[int, ...], way: Adapted) -> tuple[int, ...]:
    shape = tuple(tensor.shape[1:])
    if shape == window:
        return (1, *shape)
    last = way.last_in or (shape[:-1] == window and shape[1:] != window)
    return (shape[-1], *shape[:-1]) if last and len(shape) == len(window) + 1 else shape


def _same_as(index: int, names: list[str], tensors: list[Tensor]) -> str:
    """Name of an earlier output that tells the same: its probabilities or labels, or itself."""
    own = tensors[index]
    for name, other in zip(names[:index], tensors[:index], strict=True):
        for made in _TOLD_BY:
            result = made(other) if other.dim() > 1 and other.dtype.is_floating_point else other
            if result.shape == own.shape and torch.allclose(result.double(), own.double(), atol=1e-5):
                return name
    return ""


def _is_last(way: Adapted, tensor: Tensor, x: Tensor) -> bool:
    """Whether the channels of `tensor` come last: the axis tells that changes with the first axis of the window, and
    where no other window is taken, the sizes."""
    sizes, window = tuple(tensor.shape[1:]), tuple(x.shape[2:])
    if sizes[1:] == window:
        return False
    for more in OTHER_SIZES:
        other = torch.zeros((1, x.shape[1], window[0] + more, *window[1:]))
        with suppress(Exception), torch.inference_mode():  # a size that is not taken tells nothing
            y = way.raw(other)
            for step in way.place:
                y = _inside(y, step)
            return bool(y.shape[1] != tensor.shape[1])
    return sizes[:-1] == window


def _inside(returned: Any, step: Any) -> Any:
    return returned[step] if isinstance(returned, Mapping) or isinstance(step, int) else getattr(returned, step)
