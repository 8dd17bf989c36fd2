"""Objects of a label volume as SciPy finds them, by no code of the engine."""

import numpy as np
from scipy import ndimage

STEPS = {4: 1, 8: 2, 6: 1, 18: 2, 26: 3}


def filled(labels):
    """Holes filled: background that is connected by faces, away from the edge, and touches one class alone."""
    found = labels.copy()
    empty, count = ndimage.label(labels == 0)
    for number in range(1, count + 1):
        hole = empty == number
        around = np.unique(labels[ndimage.binary_dilation(hole) & ~hole])
        at_edge = any(hole.take(end, axis).any() for axis in range(labels.ndim) for end in (0, -1))
        if not at_edge and len(around) == 1:
            found[hole] = around[0]
    return found


def numbered(labels, connectivity, *, min_size=1, fill_holes=False, largest=None):
    """Numbers of objects by their first voxel in C order, and the class of each from 0 on."""
    labels = filled(labels) if fill_holes else labels
    structure = ndimage.generate_binary_structure(labels.ndim, STEPS[connectivity])
    found = []
    for kind in np.unique(labels[labels > 0]):
        parts, count = ndimage.label(labels == kind, structure)
        voxels = [np.flatnonzero(parts == number) for number in range(1, count + 1)]
        voxels = [one for one in voxels if len(one) >= min_size]
        if largest is not None:
            voxels = sorted(voxels, key=lambda one: (-len(one), one[0]))[:largest]
        found += [(one, kind) for one in voxels]
    found.sort(key=lambda one: one[0][0])
    numbers = np.zeros(labels.shape, np.int64)
    for number, (voxels, _) in enumerate(found, 1):
        numbers.reshape(-1)[voxels] = number
    return numbers, [0, *(int(kind) for _, kind in found)]
