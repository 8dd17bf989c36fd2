"""Corners in a volume's inside: what is compared there lies in the volume, on the lattice, and in its yardstick."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unet_engine.plan.box import Box
from unet_engine.prepare.corners import AxisSizes, corner_near


@st.composite
def scenes(draw: st.DrawFn):
    """Axes of a volume, lengths of windows that fit, and a box to look near."""
    axes, shorter, longer, lo = [], [], [], []
    for _ in range(draw(st.integers(2, 3))):
        lattice, margin = draw(st.sampled_from([1, 2, 4, 8])), draw(st.integers(0, 3))
        axis = AxisSizes(draw(st.integers(30, 90)), draw(st.integers(8, 12)), lattice, lattice, margin)
        lengths = sorted(axis.at_least(draw(st.integers(8, 24))) for _ in range(2))
        axes.append(axis)
        shorter.append(lengths[0])
        longer.append(lengths[1])
        lo.append(draw(st.integers(0, axis.size - 1)))
    box = Box(tuple(lo), tuple(min(x + 8, axis.size) for x, axis in zip(lo, axes, strict=True)))
    return axes, shorter, longer, box, draw(st.integers(0, 2**20))


@given(scenes())
def test_windows_at_a_corner_lie_in_the_volume_on_the_lattice_with_a_border_in_its_inside(scene) -> None:
    axes, shorter, longer, box, seed = scene
    corner = corner_near(box, longer, axes, [16] * len(axes), np.random.default_rng(seed))
    for lengths in (shorter, longer):
        window = corner.box(lengths)
        for a, axis in enumerate(axes):
            assert axis.margin <= window.lo[a]
            assert window.hi[a] <= axis.size - axis.margin
            if corner.signs[a]:
                assert window.lo[a] % axis.lattice == 0
                assert 0 < corner.at[a] < axis.size


@given(scenes(), st.integers(0, 20))
def test_a_yardstick_that_fits_holds_the_octant_and_begins_on_the_lattice(scene, reach) -> None:
    axes, _, longer, box, seed = scene
    corner = corner_near(box, longer, axes, [16] * len(axes), np.random.default_rng(seed))
    if not all(corner.signs):
        return
    octant = corner.box([-(-n // 2) for n in longer])
    wanted = [-(-n // 2) + 2 * reach + axis.lattice for n, axis in zip(longer, axes, strict=True)]
    lengths = [axis.at_least(n) for n, axis in zip(wanted, axes, strict=True)]
    around = corner.around(octant, lengths, axes)
    for a, axis in enumerate(axes):
        assert around.lo[a] % axis.lattice == 0
        assert axis.margin <= around.lo[a]
        assert around.hi[a] <= axis.size - axis.margin or axis.size - lengths[a] < 2 * axis.margin + axis.lattice
        if lengths[a] >= wanted[a] and longer[a] // 2 >= axis.lattice:
            assert around.lo[a] <= octant.lo[a]
            assert octant.hi[a] <= around.hi[a]
