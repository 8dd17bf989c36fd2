"""How the axes of plans lie in a volume (z, y, x), and what sizes and spacing then are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Axes:
    """The axes that a network sees, in its own order, as axes of the volume."""

    seen: tuple[int, ...]
    """Axis of the volume (0 for z) by axis of the network."""
    across: int | None
    """Axis of the volume across which a 2D network is run plane by plane; None: of a 3D network."""

    @classmethod
    def of(cls, forward: Sequence[int], dims: int) -> Axes:
        return cls(tuple(forward), None) if dims == 3 else cls(tuple(forward[1:]), forward[0])

    @property
    def names(self) -> str:
        """Axes of the spec. Planes across y or x are windows of one voxel along it."""
        return "yx" if self.across == 0 else "zyx"

    @property
    def is_plain(self) -> bool:
        """Whether the network takes what the spec says as it is."""
        return self.seen in ((0, 1, 2), (1, 2)) and self.across in (None, 0)

    @property
    def forward(self) -> tuple[int, ...]:
        """By axis of the network, the axis of the spec; first the one across which it is run where that is one."""
        first = () if self.across in (None, 0) else (self.across,)
        return tuple(a - (1 if self.names == "yx" else 0) for a in (*first, *self.seen))

    def in_spec(self, values: Sequence[Any], across: Any) -> tuple[Any, ...]:
        """Values by axis of the network in the order of the spec; `across` where the network has no such axis."""
        by_axis = dict(zip(self.seen, values, strict=True))
        return tuple(by_axis.get("zyx".index(name), across) for name in self.names)

    def in_network(self, values: Sequence[Any]) -> list[Any]:
        """Values by axis of the spec in the order of the network, which may lack one of them."""
        return [values[self.names.index("zyx"[a])] for a in self.seen]

    def mirrored(self, axes: Sequence[int]) -> str:
        """Names of axes of the network."""
        return "".join(sorted(("zyx"[self.seen[a]] for a in axes), key="zyx".index))
