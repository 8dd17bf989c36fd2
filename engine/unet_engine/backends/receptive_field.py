"""How far a network sees, measured on the network itself: where its spec does not say it."""

from __future__ import annotations

import itertools

import numpy as np

from unet_engine.backends.base import Backend

STEP = 100.0
"""What is added to a voxel of normalised input: far outside of the noise, so that what it reaches changes visibly."""
LEAST_CHANGE = 1e-6
"""Changes below this part of the largest output do not count: they are rounding, or too little to matter."""
OFFSETS = (-1, 0, 3, -5)
"""Voxels that are changed, from a corner of the pooling lattice in the middle of the window. The two on either side of
the corner reach farthest down and up; the others are for lattices that lie elsewhere."""
DEEPEST = 32
"""Largest step of a pooling lattice that is allowed for: five poolings."""


def radius(backend: Backend) -> tuple[int, ...] | None:
    """Per axis, the largest distance at which an input voxel changes an output voxel. None where it reaches the
    window's edge.

    Single voxels of a window of noise are changed, and the extent of what changes in the output is taken. Reach from
    input to output and from output to input are one relation, so the largest of one is the largest of the other.
    """
    setup = backend.setup
    noise = np.random.default_rng(0).normal(size=setup.input_shape[1:]).astype(np.float32)
    before = backend.infer(noise)[0].astype(np.float32)
    margin = setup.model.spec.margin
    reach = [0] * len(setup.window)
    for offset, step in itertools.product(OFFSETS, (STEP, -STEP)):  # a rectifier may stop one sign of it
        place = [min(w - 1, max(0, _corner(w) + offset)) for w in setup.window]
        changed = noise.copy()
        changed.reshape(len(changed), -1)[:, np.ravel_multi_index(place, setup.window)] += step
        after = backend.infer(changed)[0].astype(np.float32)
        apart = ~(np.abs(after - before) <= LEAST_CHANGE * np.abs(before).max())  # NaN counts as changed
        hit = apart.any(axis=0)
        for a, (p, m) in enumerate(zip(place, margin, strict=True)):
            along = np.flatnonzero(hit.any(axis=tuple(b for b in range(hit.ndim) if b != a)))
            if not along.size:
                continue
            if along[0] == 0 or along[-1] == hit.shape[a] - 1:
                return None
            reach[a] = max(reach[a], p - (int(along[0]) + m), int(along[-1]) + m - p)
    return tuple(reach)


def _corner(size: int) -> int:
    """The corner of the deepest pooling lattice next to the middle of `size` voxels."""
    step = min(DEEPEST, 1 << max(0, size.bit_length() - 2))
    return (size // 2 + step // 2) // step * step
