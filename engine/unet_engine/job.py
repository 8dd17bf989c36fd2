"""What a job is, and what its stages hand to one another: values, small and picklable but for the voxels in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt

from unet_engine.backends import Setup
from unet_engine.box import Box
from unet_engine.model_file import ModelFile
from unet_engine.normalize import Scaling
from unet_engine.output import Layout
from unet_engine.plan import Index, Plan, Task

Array = npt.NDArray[Any]
Kind = Literal["labels", "probabilities", "logits"]


@dataclass(frozen=True)
class Job:
    """All a worker needs to know. Small and picklable; what it names is opened by the worker itself."""

    plan: Plan
    volume: str
    volume_axes: str
    model: ModelFile
    backend: str
    setup: Setup
    scaling: Scaling
    kind: Kind
    out: str
    layout: Layout
    replace_nonfinite: float | None = None
    mask: str | None = None

    @property
    def skips(self) -> bool:
        """Whether windows of nothing but background are left out: only where the spec names what they stand for."""
        return self.model.spec.empty is not None


@dataclass(slots=True)
class Counters:
    """What a worker has done so far."""

    inferred: int = 0
    skipped: int = 0
    blocks: int = 0
    voxels_written: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


@dataclass(frozen=True, slots=True)
class Raw:
    """The voxels a task's windows are cut from: shape (channels, *box.shape)."""

    voxels: Array
    mask: Array | None


@dataclass(frozen=True, slots=True)
class Halo:
    """What a lower block adds to the write box of a higher one."""

    source: Index
    box: Box
    values: Array
    """Sums of `source` in `box`: (channels out, *box.shape) float32."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """Sums of one block: (channels out, *task.block.sums.shape) float32."""

    task: Task
    sums: Array

    def halos(self) -> Iterator[tuple[Index, Halo]]:
        """The block each halo goes to, and a copy of it, so that the sums can go."""
        for target, box in self.task.halos:
            inside = (slice(None), *box.relative_to(self.task.block.sums.lo).slices())
            yield target, Halo(self.task.block.index, box, self.sums[inside].copy())
