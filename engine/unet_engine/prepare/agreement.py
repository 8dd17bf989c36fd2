"""How far two label images agree: a confusion matrix and what follows from it. Pure arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


class Confusion:
    """Voxels by label of the reference (row) and label found (column), for labels 0 to `label_count` - 1."""

    def __init__(self, label_count: int) -> None:
        self.counts = np.zeros((label_count, label_count), np.int64)

    def add(self, reference: npt.NDArray[Any], found: npt.NDArray[Any]) -> None:
        """Count two label images of one shape, of any unsigned or signed integer type."""
        n = len(self.counts)
        pairs = reference.ravel().astype(np.int64) * n + found.ravel()
        self.counts += np.bincount(pairs, minlength=n * n).reshape(n, n)

    @property
    def voxels(self) -> int:
        return int(self.counts.sum())

    @property
    def differing(self) -> int:
        """Voxels whose labels differ."""
        return self.voxels - int(np.diagonal(self.counts).sum())

    @property
    def agreement(self) -> float:
        """Fraction of voxels with the same label."""
        return 1 - self.differing / max(1, self.voxels)

    @property
    def dice(self) -> tuple[float | None, ...]:
        """Dice coefficient 2|A∩B| / (|A| + |B|) of each label; None where it is in neither image."""
        rows, columns, same = self.counts.sum(1), self.counts.sum(0), np.diagonal(self.counts)
        return tuple(float(2 * s / (r + c)) if r + c else None for s, r, c in zip(same, rows, columns, strict=True))
