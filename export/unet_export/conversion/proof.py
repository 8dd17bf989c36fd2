"""Whether an exported file computes what its network computes, and which window sizes that is shown for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unet_engine.errors import ModelError
from unet_engine.model.spec import ModelSpec
from unet_engine.units import times
from unet_export.conversion.exporters import example_sizes

TOLERANCE = 1e-4
"""Largest difference from the network, relative to the largest absolute output, that an exported file may show where
the network itself rounds little."""
ROUNDINGS = 8
"""Of a network that rounds more: as many times its own distance of float32 from float64. Networks that subtract large
numbers lie 1.2 to 4.3 times as far from ONNX Runtime, most on small windows."""
LARGEST_TOLERANCE = 1e-3
"""However much a network rounds."""
COARSEST = 128
"""Largest step between sizes that is tried; deeper poolings than seven do not occur."""
LARGEST = 3
"""Windows that stand for others have at most as many times the voxels of the file's own."""

Run = Callable[[Tensor], Tensor]


@dataclass
class Comparison:
    """A network and the file that was made of it, on windows of noise and of smooth structures."""

    reference: Any
    """A callable on tensors: what the file has to compute."""
    run: Run
    spec: ModelSpec
    origin: str = "PyTorch"
    """What the reference is, for people."""

    def __post_init__(self) -> None:
        self._limits: dict[tuple[int, ...], float] = {}
        self._known: dict[tuple[int, ...], float] = {}
        self._double: Any = None
        self._last: tuple[tuple[int, ...], Tensor, Tensor] | None = None
        self.worst = 0.0

    def difference(self, window: tuple[int, ...], batch: int = 1) -> float:
        """Largest relative difference on `window`. Raises `ModelError` where the file gives another shape or another
        result than `limit` allows, and whatever the library that runs it raises."""
        if window in self._known:
            return self._known[window]
        found = []
        for x in _windows(self.spec, window, batch):
            with torch.inference_mode():
                expected, got = self.reference(x), self.run(x)
            if got.shape != expected.shape:
                shapes = f"{tuple(got.shape)}, not {tuple(expected.shape)}"
                raise ModelError(f"the exported {self.spec.name} gives {shapes}; please report the network's layout")
            found.append(_distance(got, expected))
        if batch == 1:
            self._last = window, x, expected
        worst = float(np.max(found))  # unlike Python's max, it keeps a NaN
        if not worst <= TOLERANCE and not worst <= (limit := self.limit(window)):
            raise ModelError(
                f"the exported {self.spec.name} differs from {self.origin} by {worst:.1e} (limit {limit:.0e}) on "
                f"windows of {times(window)}; check the weights for NaN or very large values"
            )
        self._known[window] = worst
        self.worst = max(self.worst, worst)
        return worst

    def smooth(self, window: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """One window of smooth structures and what the network gives for it, to compare others with the network too.
        Those of the last comparison are kept: of a large network nothing takes longer."""
        if self._last is None or self._last[0] != window:
            x = list(_windows(self.spec, window, 1))[-1]
            self._last = window, x, self.expected(x)
        return self._last[1:]

    def noise(self) -> Tensor:
        """White noise for the file's own window."""
        return next(_windows(self.spec, self.spec.window, 1))

    def expected(self, x: Tensor) -> Tensor:
        """What the network gives for `x`."""
        with torch.inference_mode():
            result: Tensor = self.reference(x)
        return result

    def limit(self, window: tuple[int, ...]) -> float:
        """The difference that is allowed on `window`, relative to the largest absolute output.

        ``min(max(TOLERANCE, ROUNDINGS * d), LARGEST_TOLERANCE)`` where d is the largest of ``max|f32(x) - f64(x)| /
        max|f64(x)|`` over the compared windows x: what the network rounds away in its own library, in float32. Two
        libraries that add the same products in another order are apart by little more than each is from float64. Where
        the network does not run in float64, d is 0.
        """
        if window not in self._limits:
            own = [self._rounding(x) for x in _windows(self.spec, window, 1)]
            self._limits[window] = min(max(TOLERANCE, ROUNDINGS * max(own)), LARGEST_TOLERANCE)
        return self._limits[window]

    def _rounding(self, x: Tensor) -> float:
        if not isinstance(self.reference, nn.Module):
            return 0.0
        try:
            self._double = self._double or copy.deepcopy(self.reference).double()
            with torch.inference_mode():
                exact = self._double(x.double())
                if exact.dtype != torch.float64:
                    return 0.0
                found = _distance(self.reference(x).double(), exact)
        except Exception:  # float32 may be written into the network, or it is a program
            return 0.0
        return found if isfinite(found) else 0.0


def _distance(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def _windows(spec: ModelSpec, window: tuple[int, ...], batch: int) -> Iterator[Tensor]:
    """Smooth structures as images have them, in the range that the normalisation of `spec` leaves; for its own window
    white noise before."""
    rng = np.random.default_rng(0)
    shape = (batch, spec.channels_in, *window)
    if window == spec.window:
        yield torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    grains = (batch, spec.channels_in, *(-(-size // 8) + 1 for size in window))
    coarse = torch.from_numpy(rng.standard_normal(grains, dtype=np.float32))
    mode = "bilinear" if len(window) == 2 else "trilinear"
    image = nn.functional.interpolate(coarse, size=window, mode=mode, align_corners=True)
    image = image + 0.1 * torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    span = spec.normalization.span
    if span is None:
        yield image / image.std().clamp(min=1e-6)
    else:
        yield span[0] + (image - image.min()) / (image.max() - image.min()) * (span[1] - span[0])


# --- sizes ---


def tried(spec: ModelSpec) -> list[tuple[int, ...]]:
    """Windows that stand for all that `spec` admits: its own, the smallest, odd and even numbers of steps, mixed."""
    if not any(spec.window_step):
        return [spec.window]
    least, step = spec.window_min, spec.window_step
    odd = tuple(l + s for l, s in zip(least, step, strict=True))
    mixed = tuple(l + s * (2, 1, 3)[a] for a, (l, s) in enumerate(zip(least, step, strict=True)))
    more = [
        tuple(w + s * (a == b) for b, (w, s) in enumerate(zip(spec.window, step, strict=True)))
        for a in (0, len(step) - 1)
    ]
    most = LARGEST * prod(spec.window)
    fitting = [w for w in (least, odd, mixed, *more) if prod(w) <= most and _is_seen(w, spec.margin)]
    return list(dict.fromkeys([spec.window, *fitting]))


def _is_seen(window: tuple[int, ...], margin: tuple[int, ...]) -> bool:
    return all(n > 2 * m for n, m in zip(window, margin, strict=True))


def proved(comparison: Comparison, more: Callable[[tuple[int, ...]], None] | None = None) -> ModelSpec | None:
    """The spec of `comparison` with the sizes that the file is shown to be right for: its own, else every second,
    fourth, … of them, else larger ones. None: nothing but its window. `more` raises where another library that may run
    the file does not take a window.

    Raises `ModelError` where the file is wrong on its own window.
    """
    spec = comparison.spec
    _own(comparison)
    if not any(spec.window_step):
        return spec
    refused: set[tuple[int, ...]] = set()

    def holds(window: tuple[int, ...]) -> bool:
        if window in refused:
            return False
        try:
            comparison.difference(window)
            if more is not None:
                more(window)
        except Exception:  # libraries refuse a size in their own ways; a wrong result is no better
            refused.add(window)
            return False
        return True

    for lattice in _lattices(spec):
        if all(holds(window) for window in tried(lattice)):
            return lattice
    return None


def _own(comparison: Comparison) -> None:
    try:
        comparison.difference(comparison.spec.window)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"the exported {comparison.spec.name} does not run on its own window of {times(comparison.spec.window)}: "
            f"{short(error)}; try another --window or --sizes static"
        ) from error


def _lattices(spec: ModelSpec) -> Iterator[ModelSpec]:
    """`spec`, and ever fewer of its sizes; its window is always one of them."""
    factor = 1
    while any(spec.window_step) and max(spec.window_step) * factor <= min(COARSEST, *spec.window):
        step = tuple(s * factor for s in spec.window_step)
        whole = [(w - l) // s if s else 0 for w, l, s in zip(spec.window, spec.window_min, step, strict=True)]
        for share in (1.0, 0.5):
            least = tuple(w - int(n * share) * s for w, n, s in zip(spec.window, whole, step, strict=True))
            yield spec.model_copy(update={"window_min": least, "window_step": step})
        factor *= 2


def two_sizes(spec: ModelSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Windows that stand for a file whose layout is ours: another size, and its own."""
    return spec.window_min if spec.window != spec.window_min else example_sizes(spec), spec.window


def short(error: BaseException) -> str:
    """What a library says, as far as people can use it: without its codes, places in source and names of nodes."""
    text = " ".join(str(error).split())
    for mark in ("Status Message: ", "what(): ", "Exception: "):
        text = text.rpartition(mark)[2]
    return text[:200] or type(error).__name__
