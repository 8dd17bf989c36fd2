"""Random variations of a training window. Every choice is drawn from the NumPy generator that is passed in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """How strongly windows vary. Lengths in voxels, intensities in normalised units; 0 switches a step off.

    isotropic        quarter turns mix all axes; otherwise only y and x, and z is only flipped
    elastic          standard deviation of the displacement at the nodes of a coarse lattice
    elastic_spacing  distance of those nodes
    gain, offset     half-width of the uniform range of contrast (around 1) and brightness (around 0)
    noise            largest standard deviation of the white noise added
    """

    isotropic: bool = True
    elastic: float = 1.5
    elastic_spacing: int = 16
    elastic_probability: float = 0.5
    gain: float = 0.15
    offset: float = 0.08
    noise: float = 0.02


NO_AUGMENTATION = Augmentation(isotropic=False, elastic=0, gain=0, offset=0, noise=0)


def vary(image: Tensor, labels: Tensor, rng: np.random.Generator, how: Augmentation) -> tuple[Tensor, Tensor]:
    """One random variation: image float32 (c, [z,] y, x) and labels int64 ([z,] y, x), same shapes out.

    Flips and quarter turns, then elastic deformation (image linear, labels nearest), then intensity of the image.
    """
    image, labels = flip_and_turn(image, labels, rng, how)
    if how.elastic > 0 and rng.random() < how.elastic_probability:
        image, labels = deform(image, labels, rng, how)
    return change_intensity(image, rng, how), labels


def flip_and_turn(image: Tensor, labels: Tensor, rng: np.random.Generator, how: Augmentation) -> tuple[Tensor, Tensor]:
    """Flip each axis with probability 1/2, then permute the axes of equal size that may be mixed.

    A permutation with flips is every quarter turn and mirror of the square or cube, each equally likely.
    """
    n = labels.dim()
    flipped = [axis for axis in range(-n, 0) if rng.random() < 0.5]
    order = list(range(n))
    mixed = order if how.isotropic else order[-2:]
    if len({labels.shape[a] for a in mixed}) == 1:
        for axis, source in zip(mixed, rng.permutation(mixed), strict=True):
            order[axis] = int(source)
    labels = labels.flip(flipped).permute(order)
    image = image.flip(flipped).permute([0, *(a + 1 for a in order)])
    return image.contiguous(), labels.contiguous()


def deform(image: Tensor, labels: Tensor, rng: np.random.Generator, how: Augmentation) -> tuple[Tensor, Tensor]:
    """Move voxels by a smooth random displacement: normal at the lattice nodes, (bi-, tri-)linear in between."""
    shape = labels.shape
    n = len(shape)
    nodes = [max(2, round(size / how.elastic_spacing) + 1) for size in shape]
    coarse = torch.from_numpy(rng.normal(0, how.elastic, (1, n, *nodes)).astype(np.float32))
    mode = "bilinear" if n == 2 else "trilinear"
    moved = F.interpolate(coarse, size=tuple(shape), mode=mode, align_corners=True)[0]
    rows = torch.meshgrid(*[torch.arange(size, dtype=torch.float32) for size in shape], indexing="ij")
    # grid_sample wants coordinates from -1 to 1, the last axis first.
    unit = [2 * (row + m) / max(1, size - 1) - 1 for row, m, size in zip(rows, moved, shape, strict=True)]
    grid = torch.stack(unit[::-1], dim=-1)[None]
    image = F.grid_sample(image[None], grid, mode="bilinear", padding_mode="reflection", align_corners=True)[0]
    nearest = F.grid_sample(
        labels[None, None].float(), grid, mode="nearest", padding_mode="reflection", align_corners=True
    )
    return image, nearest[0, 0].round().long()


def change_intensity(image: Tensor, rng: np.random.Generator, how: Augmentation) -> Tensor:
    """Random contrast about the window's mean and random brightness, per channel; then white noise."""
    channels = (image.shape[0], *[1] * (image.dim() - 1))
    gain = torch.from_numpy(rng.uniform(1 - how.gain, 1 + how.gain, channels).astype(np.float32))
    offset = torch.from_numpy(rng.uniform(-how.offset, how.offset, channels).astype(np.float32))
    mean = image.mean(dim=tuple(range(1, image.dim())), keepdim=True)
    image = (image - mean) * gain + mean + offset
    if how.noise > 0:
        strength = rng.uniform(0, how.noise)
        image = image + torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32)) * strength
    return image
