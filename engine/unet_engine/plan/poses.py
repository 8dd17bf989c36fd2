"""How a window is held to the network: upright, mirrored, or turned by right angles in the plane of its last two axes.
Test-time augmentation infers each window in several poses and averages the answers, each put upright again. Pure
integers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

_SWAP = 8
_TURNS = (0, 4 | _SWAP, 2 | 4, 2 | _SWAP)
"""By no, one, two and three right angles in the plane."""


@dataclass(frozen=True, slots=True)
class Pose:
    """One way to hold a window: which axes are mirrored, and whether y and x change places before that."""

    bits: int = 0
    """1, 2, 4: mirrored along z, y, x; 8: y and x change places. As `kMirrorZ` and so on in arithmetic.hpp."""

    @property
    def swaps(self) -> bool:
        return bool(self.bits & _SWAP)

    def mirrors(self, axis: int, axes: int) -> bool:
        """Whether axis number `axis` of `axes` spatial ones is mirrored."""
        return bool(self.bits >> (axis + 3 - axes) & 1)

    def upright(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """What a network made of a window in this pose, (channels, *window), as a view in the order of the volume."""
        axes = values.ndim - 1
        turned = values.swapaxes(-1, -2) if self.swaps else values
        return turned[(slice(None), *(slice(None, None, -1 if self.mirrors(a, axes) else None) for a in range(axes)))]

    def __str__(self) -> str:
        if self.swaps:
            return {4 | _SWAP: "turned by 90°", 2 | _SWAP: "turned by 270°"}.get(
                self.bits & ~1, "mirrored at a diagonal"
            ) + (" and along z" if self.bits & 1 else "")
        along = "".join(name for a, name in enumerate("zyx") if self.bits >> a & 1)
        return f"mirrored along {along}" if along else "upright"


UPRIGHT = Pose()


def poses(mirrored: str, turns: bool) -> tuple[Pose, ...]:  # noqa: FBT001
    """All combinations, the upright one first, in one order: mirrors along each of the axes `mirrored` (of ``zyx``),
    and with `turns` by right angles in the plane."""
    along = [1 << "zyx".index(name) for name in mirrored]
    flips = [
        sum(bit for bit, on in zip(along, chosen, strict=True) if on) for chosen in product((0, 1), repeat=len(along))
    ]
    return tuple(map(Pose, sorted({flip ^ turn for flip in flips for turn in (_TURNS if turns else _TURNS[:1])})))
