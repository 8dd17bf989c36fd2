"""Axes of a volume in another order, some of them backwards: boxes and views, never a copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy.typing as npt

from unet_engine.plan.box import Box

Array = npt.NDArray[Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Turn:
    """How a volume of `shape` is seen. Its own axes are *stored* here, those that are looked at *seen*."""

    order: tuple[int, ...]
    """By seen axis, which of the stored axes it is."""
    backwards: tuple[bool, ...]
    """By seen axis, whether it runs against the stored one."""
    shape: tuple[int, ...]
    """By stored axis."""

    @property
    def is_none(self) -> bool:
        return self.order == tuple(range(len(self.order))) and not any(self.backwards)

    def of(self, shape: Sequence[int]) -> Turn:
        """The same of another volume, `shape` by stored axis."""
        return replace(self, shape=tuple(shape))

    def seen(self, values: Sequence[T]) -> tuple[T, ...]:
        return tuple(values[a] for a in self.order)

    def stored(self, values: Sequence[T]) -> tuple[T, ...]:
        return tuple(values[self.order.index(a)] for a in range(len(self.order)))

    def seen_box(self, box: Box) -> Box:
        turned = Box(self.seen(box.lo), self.seen(box.hi))
        return self._mirrored(turned, self.backwards, self.seen(self.shape))

    def stored_box(self, box: Box) -> Box:
        turned = Box(self.stored(box.lo), self.stored(box.hi))
        return self._mirrored(turned, self.stored(self.backwards), self.shape)

    @staticmethod
    def _mirrored(box: Box, backwards: Sequence[bool], shape: Sequence[int]) -> Box:
        """`box` of a volume of `shape`, counted from the other end along the axes that are `backwards`."""
        sides = list(zip(box.lo, box.hi, shape, backwards, strict=True))
        return Box(
            tuple(n - hi if back else lo for lo, hi, n, back in sides),
            tuple(n - lo if back else hi for lo, hi, n, back in sides),
        )

    def view(self, stored: Array) -> Array:
        """Any part of the volume, (..., *its stored axes), as it is seen."""
        lead = stored.ndim - len(self.order)
        seen = stored.transpose(*range(lead), *(lead + a for a in self.order))
        place: tuple[Any, ...] = (..., *(slice(None, None, -1) if back else slice(None) for back in self.backwards))
        turned: Array = seen[place]
        return turned

    def stored_view(self, seen: Array) -> Array:
        """The way back of `view`."""
        lead = seen.ndim - len(self.order)
        place: tuple[Any, ...] = (..., *(slice(None, None, -1) if back else slice(None) for back in self.backwards))
        turned: Array = seen[place].transpose(*range(lead), *(lead + a for a in self.stored(range(len(self.order)))))
        return turned
