"""Configurations a network can run in, and what each is worth on a volume. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from unet_engine.model.file import ModelFile
from unet_engine.model.spec import ModelSpec
from unet_engine.plan.box import Box
from unet_engine.plan.grid import AxisGrid, Blend
from unet_engine.plan.poses import UPRIGHT, Pose
from unet_engine.prepare.augmentation import poses_of

Window = tuple[int, ...]

LADDER = (1.0, 0.5, 0.75, 1.5, 2.0)
"""Sizes tried first, as parts of the model's own window along every axis."""


@dataclass(frozen=True, slots=True, order=True)
class Group:
    """What decides how a window is computed, but for its size."""

    device: str
    backend: str
    precision: str


@dataclass(frozen=True, slots=True, order=True)
class Configuration:
    group: Group
    window: Window
    """Input size per axis of the model."""
    batch: int = 1

    def __str__(self) -> str:
        sizes = "×".join(map(str, self.window))
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        return f"{self.group.backend} {self.group.precision} on {self.group.device}, {sizes}{batch}"


@dataclass(frozen=True)
class Field:
    """The volume that windows are counted on, and how they overlap."""

    spec: ModelSpec
    shape: tuple[int, ...]
    """Spatial sizes of the volume, in the order of its axes; the model's axes are the last ones."""
    overlap: float = 0.5
    blend: Blend = "gaussian"
    poses: tuple[Pose, ...] = (UPRIGHT,)
    """In which each window is inferred."""
    networks: int = 1
    """That infer each of them."""
    scan: tuple[int, ...] | None = None
    """Of the volume as it is stored, where windows are cut on another grid."""

    @classmethod
    def of(
        cls,
        model: ModelFile,
        shape: tuple[int, ...],
        overlap: float,
        tta: str | None,
        scan: tuple[int, ...] | None = None,
    ) -> Field:
        """What a run with these options covers. Raises `SettingsError` for an augmentation that cannot be."""
        poses = poses_of(tta, model.spec, model.spec.window)
        return cls(model.spec, shape, overlap, poses=poses, networks=len(model.networks), scan=scan)

    @property
    def voxels(self) -> int:
        """Of the whole volume, as it is stored."""
        return prod(self.scan or self.shape)

    @property
    def calls(self) -> int:
        """How often each window is inferred."""
        return len(self.poses) * self.networks

    def axes(self, window: Window, shape: Sequence[int] | None = None) -> tuple[AxisGrid, ...]:
        """The grid of windows, as a run would lay it."""
        shape = self.shape if shape is None else shape
        planes = len(shape) - len(window)
        inner = [w - 2 * m for w, m in zip(window, self.spec.margin, strict=True)]
        return tuple(
            AxisGrid(size, 1, 1, 0, self.blend) if a < planes
            else AxisGrid.with_overlap(size, inner[a - planes], self.overlap, self.spec.margin[a - planes], self.blend)
            for a, size in enumerate(shape)
        )  # fmt: skip

    def windows(self, window: Window) -> int:
        """How many windows cover the volume."""
        return prod(axis.count for axis in self.axes(window))

    def rate(self, window: Window, windows_per_second: float) -> float:
        """Voxels of the whole volume per second at this rate, by which different windows are compared."""
        return self.voxels * windows_per_second / (self.windows(window) * self.calls)

    def flops(self, window: Window) -> float | None:
        """Floating point operations of one window; of a U-Net they grow with its voxels."""
        own = self.spec.flops
        return None if own is None else own * prod(window) / prod(self.spec.window)

    # --- windows to try ---

    def fits(self, window: Window) -> bool:
        """Whether the model takes it, and the volume is as large: a larger window would only be filled with padding.
        What is turned has to be square."""
        if any(pose.swaps for pose in self.poses) and window[-1] != window[-2]:
            return False
        axes = zip(
            window,
            self.shape[-len(window) :],
            self.spec.window_min,
            self.spec.window_step,
            self.spec.margin,
            strict=True,
        )
        return all(
            (w == least if step == 0 else w >= least and (w - least) % step == 0)
            and 2 * margin < w
            and w - 2 * margin <= size
            for w, size, least, step, margin in axes
        )

    def scaled(self, factor: float) -> Window:
        """The admissible window nearest to `factor` times the model's own, if possible no larger than the volume."""
        spec, found = self.spec, []
        axes = zip(
            spec.window, self.shape[-len(spec.window) :], spec.window_min, spec.window_step, spec.margin, strict=True
        )
        for own, size, least, step, margin in axes:
            wanted = min(own * factor, size + 2 * margin)
            k = max(0, round((wanted - least) / step)) if step else 0
            while k and least + k * step > size + 2 * margin:
                k -= 1
            found.append(least + k * step)
        return tuple(found)

    def ladder(self) -> tuple[Window, ...]:
        """Windows to try first, the model's own at the front where it fits. One at least, however small the volume."""
        tried = dict.fromkeys(map(self.scaled, LADDER))
        return tuple(w for w in tried if self.fits(w)) or (self.spec.window,)

    def finer(self) -> tuple[Window, ...]:
        """All windows between the smallest and the largest of the ladder that have about its shape."""
        sizes = [max(w) for w in self.ladder()]
        own = max(self.spec.window)
        found = dict.fromkeys(self.scaled(size / own) for size in range(min(sizes), max(sizes) + 1))
        return tuple(w for w in found if self.fits(w))


def region(field: Field, window: Window, windows: int) -> Box:
    """A box at the volume's origin that takes about so many windows, three quarters of them or all there are at least.

    The axis with the most windows loses one, again and again.
    """
    stop = list(field.shape)
    axes = field.axes(window)
    counts = [len(axis.meeting(0, size)) for axis, size in zip(axes, stop, strict=True)]
    while prod(counts) > windows:
        a = max(range(len(stop)), key=lambda i: (counts[i], stop[i]))
        fewer = prod(counts) // counts[a] * (counts[a] - 1)
        if fewer < 0.75 * windows:
            break
        # the last window that meets the box begins where the smaller box ends
        stop[a] = axes[a].support(counts[a] - 1)[0]
        counts[a] = len(axes[a].meeting(0, stop[a]))
    return Box((0,) * len(stop), tuple(stop))
