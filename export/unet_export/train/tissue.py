"""Synthetic 3D tissue with its truth, from NumPy alone: something to train on and to demonstrate with.

    +-----------------+   0 on the image: beyond the cut of the specimen
    |  .---. bright   |   bright: resin around the tissue          label 0
    | / o|  \         |   grey: cytoplasm, nuclei, organelles      label 1
    | \__|o_/         |   dark lines: membranes                    label 2
    +-----------------+

Cells are the Voronoi regions of jittered lattice points, with a size added per cell and smooth noise on the distances
so that membranes bend. Each z-slice has its own noise generator and every field is a function of the seed, so
the work goes slab by slab in bounded memory and does not depend on the slabs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.errors import SettingsError

OUTSIDE, CELL, MEMBRANE = 0, 1, 2
PITCH = 32.0
"""Distance of cell centres in voxels."""
JITTER = 0.3
THICKNESS = 1.7
"""Half thickness of a membrane in voxels."""
SLAB = 16
HALO = 4
"""Slices computed beyond a slab: three for the blur, one for slopes."""
REACH = 3
"""Half width of the blur's kernel."""
BLUR = 0.8
NOISE = 9.0
GREY = {"resin": 212.0, "cytoplasm": 158.0, "nucleus": 176.0, "envelope": 120.0, "organelle": 118.0, "membrane": 62.0}

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Tissue:
    """Everything random of one volume: per cell and organelle, and the coarse nodes of the smooth fields."""

    shape: tuple[int, int, int]
    seed: int
    cells: npt.NDArray[Any]
    organelles: npt.NDArray[Any]
    bends: tuple[Floats, Floats]
    texture: Floats


def make_tissue(shape: Sequence[int], seed: int = 0) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """(image, labels), both uint8 (z, y, x): labels 0 outside, 1 cell interior, 2 membrane.

    The image is 0 beyond the specimen's cut (its corners), where labels are 0 too. The same shape and seed give the
    same voxels. Takes about 4 s per 10 million voxels on one core and holds little beside the two arrays.
    Raises `SettingsError` for a shape that is not three sizes.
    """
    if len(shape) != 3 or any(int(n) < 1 for n in shape):
        raise SettingsError(f"tissue shape {tuple(shape)} is not understood; give three sizes (z, y, x) of 1 or more")
    tissue = _scatter((int(shape[0]), int(shape[1]), int(shape[2])), seed)
    image = np.empty(tissue.shape, np.uint8)
    labels = np.empty(tissue.shape, np.uint8)
    for low in range(0, tissue.shape[0], SLAB):
        high = min(low + SLAB, tissue.shape[0])
        grey, truth, cut = _draw(tissue, low - HALO, high + HALO)
        inner = slice(HALO, HALO + high - low)
        grey = _blur(grey)[inner]
        for z in range(low, high):
            rng = np.random.default_rng([seed, 3, z])
            grey[z - low] += NOISE * rng.standard_normal(tissue.shape[1:], dtype=np.float32)
        np.clip(grey, 1, 255, out=grey)
        grey[cut[inner]] = 0
        image[low:high] = grey
        labels[low:high] = truth[inner]
    return image, labels


_CELL = np.dtype(
    [("centre", "f4", 3), ("size", "f4"), ("bend", "f4", 2), ("tone", "i1"), ("nucleus", "f4"), ("alive", "?")]
)
_ORGANELLE = np.dtype([("centre", "f4", 3), ("radius", "f4", 3), ("tone", "f4")])


def _scatter(shape: tuple[int, int, int], seed: int) -> _Tissue:
    rng = np.random.default_rng([seed, 1])
    counts = [int(np.ceil(n / PITCH)) + 4 for n in shape]
    lattice = np.stack(np.meshgrid(*map(np.arange, counts), indexing="ij"), -1).reshape(-1, 3)
    cells = np.zeros(len(lattice), _CELL)
    cells["centre"] = (lattice - 1.5 + rng.uniform(-JITTER, JITTER, lattice.shape)) * PITCH
    cells["size"] = rng.normal(0, 2.0, len(cells)).clip(-4, 4)
    cells["bend"] = rng.uniform(-1, 1, (len(cells), 2))
    cells["tone"] = rng.integers(-20, 21, len(cells))
    cells["nucleus"] = np.where(rng.random(len(cells)) < 0.6, rng.uniform(5, 7.5, len(cells)), 0)
    outward = _outward(cells["centre"].T, shape) + rng.normal(0, 0.05, len(cells))
    # Some regions inside stay empty too: vessels and gaps.
    cells["alive"] = (outward < 0.9) & (rng.random(len(cells)) < 0.94)

    organelles = np.zeros(int(7 * len(cells)), _ORGANELLE)
    organelles["centre"] = rng.uniform(-4, 1, organelles["centre"].shape) + rng.random(
        organelles["centre"].shape
    ) * np.add(shape, 8)
    organelles["radius"] = rng.uniform(1.5, 4.0, organelles["radius"].shape)
    organelles["tone"] = rng.uniform(-25, 25, len(organelles))
    return _Tissue(
        shape,
        seed,
        cells,
        organelles,
        (_nodes(rng, shape, PITCH / 2), _nodes(rng, shape, PITCH / 2)),
        _nodes(rng, shape, 4.0),
    )


def _outward(point: Any, shape: tuple[int, ...]) -> Any:
    """0 at the volume's centre, 1 on a rounded box that touches its faces: sum of cubes of the half-axes' shares."""
    return sum(np.abs((x - (n - 1) / 2) / (n / 2)) ** 3 for x, n in zip(point, shape, strict=True))


def _draw(tissue: _Tissue, low: int, high: int) -> tuple[Floats, npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Grey values before blur and noise, labels, and what lies beyond the cut, for the slices low … high."""
    shape = (high - low, *tissue.shape[1:])
    nearest, second, gap = (np.full(shape, 1e6, np.float32) for _ in range(3))
    tone = np.zeros(shape, np.int8)
    inside = np.zeros(shape, np.float32)  # grey of the nucleus and its envelope, 0 elsewhere
    bends = [5.0 * _smooth(nodes, PITCH / 2, low, shape) for nodes in tissue.bends]
    reach = 1.5 * PITCH
    for cell in tissue.cells:
        found = _around(cell["centre"], (reach,) * 3, low, shape)
        if found is None:
            continue
        at, (dz, dy, dx) = found
        plain = np.sqrt(dz * dz + dy * dy + dx * dx)
        distance = plain - cell["size"]
        distance += cell["bend"][0] * bends[0][at]
        distance += cell["bend"][1] * bends[1][at]
        if not cell["alive"]:
            np.minimum(gap[at], distance, out=gap[at])
            continue
        closer = distance < nearest[at]
        np.minimum(second[at], np.maximum(nearest[at], distance), out=second[at])
        np.minimum(nearest[at], distance, out=nearest[at])
        np.copyto(tone[at], cell["tone"], where=closer)
        if cell["nucleus"]:
            _paint_nucleus(inside[at], plain, cell["nucleus"])
    truth, margin = _label(nearest, second, gap)
    grey = np.where(truth == OUTSIDE, np.float32(GREY["resin"]), GREY["cytoplasm"] + tone).astype(np.float32)
    cell_here = truth == CELL
    grey += np.where(cell_here, 9.0, 2.5) * _smooth(tissue.texture, 4.0, low, shape)
    # Nuclei and organelles stay clear of membranes, so that those are seen for what they are.
    clear = cell_here & (margin > THICKNESS + 1)
    np.copyto(grey, inside, where=clear & (inside > 0))
    _paint_organelles(grey, tissue.organelles, clear, low)
    grey[truth == MEMBRANE] = GREY["membrane"]
    rows = np.meshgrid(np.arange(low, high), *map(np.arange, shape[1:]), indexing="ij", sparse=True)
    cut = np.asarray(_outward(rows, tissue.shape) > 1.15) & (truth == OUTSIDE)
    return grey, truth, cut


def _label(nearest: Floats, second: Floats, gap: Floats) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Labels, and roughly the distance to the next region's boundary in voxels."""
    other = np.where(nearest < gap, np.minimum(second, gap), nearest)
    margin = np.minimum(other - np.minimum(nearest, gap), np.float32(PITCH))  # bounded where no cell is near
    truth = np.where(nearest < gap, CELL, OUTSIDE).astype(np.uint8)
    # The two distances part at a speed that depends on where their centres lie; dividing by it gives voxels.
    slopes = [np.gradient(margin, axis=a) for a in range(3) if margin.shape[a] > 1]
    steepness = np.sqrt(sum(np.square(slope) for slope in slopes))
    margin /= np.maximum(steepness, 0.7)
    truth[margin < THICKNESS] = MEMBRANE
    return truth, margin


def _around(
    centre: Any, reach: Sequence[float], low: int, shape: tuple[int, ...]
) -> tuple[tuple[slice, ...], list[Floats]] | None:
    """Index of the box centre ± reach in the slab that starts at `low`, and the offsets from the centre in it."""
    at, offsets = [], []
    for axis, (c, r, n, origin) in enumerate(zip(centre, reach, shape, (low, 0, 0), strict=True)):
        first, last = max(0, int(np.ceil(c - r)) - origin), min(n, int(np.floor(c + r)) - origin + 1)
        if first >= last:
            return None
        at.append(slice(first, last))
        row = np.arange(first + origin, last + origin, dtype=np.float32) - np.float32(c)
        offsets.append(row.reshape([-1 if a == axis else 1 for a in range(3)]))
    return tuple(at), offsets


def _paint_nucleus(inside: Floats, distance: Floats, radius: float) -> None:
    np.copyto(inside, np.float32(GREY["envelope"]), where=distance < radius)
    np.copyto(inside, np.float32(GREY["nucleus"]), where=distance < radius - 1.2)


def _paint_organelles(grey: Floats, organelles: Any, clear: npt.NDArray[np.bool_], low: int) -> None:
    """Dark ellipsoids: like membrane in grey value, unlike in form."""
    for organelle in organelles:
        found = _around(organelle["centre"], organelle["radius"], low, grey.shape)
        if found is None:
            continue
        at, offsets = found
        unit = sum((o / r) ** 2 for o, r in zip(offsets, organelle["radius"], strict=True))
        np.copyto(grey[at], np.float32(GREY["organelle"] + organelle["tone"]), where=(unit < 1) & clear[at])


def _nodes(rng: np.random.Generator, shape: Sequence[int], pitch: float) -> Floats:
    counts = [int(np.ceil((n + 2 * HALO) / pitch)) + 4 for n in shape]
    return rng.standard_normal(counts, dtype=np.float32) * np.float32(1.8)


def _smooth(nodes: Floats, pitch: float, low: int, shape: tuple[int, ...]) -> Floats:
    """Cubic B-spline through-field of the nodes on the slices that start at `low`; spread about 1."""
    field = nodes
    for axis, (n, origin) in enumerate(zip(shape, (low, 0, 0), strict=True)):
        position = (np.arange(origin, origin + n) + HALO) / pitch + 1
        base = np.floor(position).astype(int)
        t = (position - base).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        total = weights[0] / 6 * field.take(base - 1, axis)
        for k in (1, 2, 3):
            total += weights[k] / 6 * field.take(base - 1 + k, axis)
        field = total
    return field


def _blur(grey: Floats) -> Floats:
    """Gaussian of `BLUR` voxels, edges repeated. Directly, since seven taps are cheaper than a transform."""
    taps = np.exp(-0.5 * (np.arange(-REACH, REACH + 1) / BLUR) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in range(3):
        n = grey.shape[axis]
        padded = np.pad(grey, [(REACH, REACH) if a == axis else (0, 0) for a in range(3)], mode="edge")
        grey = np.zeros_like(grey)
        for k, tap in enumerate(taps):
            grey += tap * padded[tuple(slice(k, k + n) if a == axis else slice(None) for a in range(3))]
    return grey
