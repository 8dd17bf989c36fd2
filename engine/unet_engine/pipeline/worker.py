"""What one worker does for one block: `read`, `predict`, `commit`. The same three under every executor.

read(task)     the block's part of the volume, or None where nothing is stored
predict(work)  windows cut, normalised, inferred and added, in order, without a pause between blocks  => sums
commit(...)    halos of lower blocks merged, activation, argmax or cast, written, marked
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, cast

import numpy as np

from unet_engine.backends.batch_probe import agree, answers
from unet_engine.backends.device import DeviceBackend
from unet_engine.backends.opening import Network, open_network
from unet_engine.backends.out_of_memory import is_out_of_memory, no_memory, other_bits, smaller
from unet_engine.devices.opening import is_pipelined
from unet_engine.errors import BackendError, DataError, PlanError
from unet_engine.model.spec import ModelSpec
from unet_engine.output.output import Output
from unet_engine.pipeline import timed
from unet_engine.pipeline.gpu.pipeline import DevicePipeline
from unet_engine.pipeline.gpu.results import DeviceCore, DevicePredicted
from unet_engine.pipeline.host import emptiness, predict
from unet_engine.pipeline.job import Array, Halo, Job, Predicted, Raw, Tally
from unet_engine.pipeline.recycling import Recycler
from unet_engine.plan.box import Box
from unet_engine.plan.plan import Column, Index, Task
from unet_engine.profiling.recorder import PLAIN
from unet_engine.profiling.stages import OTHER, Stages
from unet_engine.storage.codecs import decoding
from unet_engine.volumes.base import Volume
from unet_engine.volumes.formats import open_volume


@dataclass
class Worker:
    """Executes tasks of one job on one device. Handles are opened when first used and dropped on pickling."""

    job: Job
    tally: Tally = field(default_factory=Tally)
    stages: Stages | None = None
    """Where the time goes; there only where the job is profiled."""
    sums: Recycler = field(default_factory=Recycler, repr=False)
    """Memory for sums. Halos get memory of their own from the system: they come in so many sizes, and wait so differently long, that gaps
    between them took a third more memory (measured with 104 classes)."""
    _opening: threading.RLock = field(default_factory=threading.RLock, repr=False)
    _pipeline: DevicePipeline | None = field(default=None, repr=False)

    shrunk: bool = False
    """Whether memory ran out once and fewer windows are inferred at once since."""

    def __post_init__(self) -> None:
        if self.job.profiled and self.stages is None:
            self.stages = Stages()
        self.tools = timed.tools(self.stages)
        if self.stages:  # what is in no other stage of these is `other`, and not waiting
            for name in ("settle", "read", "commit"):
                setattr(self, name, self.stages.timed(OTHER, getattr(self, name), starts_group=name != "settle"))

    def shrink(self, error: BaseException, where: str) -> None:
        """Go on with half the windows at once, after memory ran out with `error`, if the bytes are the same so.

        Raises `PlanError` with the figures where it ran out before, or does as the network is opened again, and where a GPU's smaller
        batch gives other bits.
        """
        before = self.job.setup
        fewer = None if self.shrunk else smaller(before)
        if fewer is None:
            raise no_memory(error, before, where, retried=self.shrunk) from error
        with self._opening:
            self.close()
            self.job, self.shrunk = replace(self.job, setup=fewer), True
            if not is_pipelined(fewer.device):
                return  # windows are inferred one by one there
            try:
                if not agree(self.job.answers, answers(cast(DeviceBackend, self.backend))):
                    raise other_bits(error, before, fewer, where) from error
            except Exception as again:
                # nothing may go through a batch that was not found to give the same
                self.close()
                self.job = replace(self.job, setup=before)
                if isinstance(again, PlanError) or not is_out_of_memory(again):
                    raise
                raise no_memory(again, fewer, where, retried=True) from again

    def __reduce__(self) -> tuple[Any, ...]:
        return (Worker, (self.job,))

    @cached_property
    def volume(self) -> Volume:
        with decoding(self.job.decoders):
            return open_volume(self.job.volume, self.job.volume_axes)

    @cached_property
    def mask(self) -> Volume | None:
        return open_volume(self.job.mask) if self.job.mask else None

    @cached_property
    def backend(self) -> Network:
        """Raises `BackendError` where the library here is another one than the run was planned with: it may give other bytes."""
        backend = open_network(self.job.backend, self.job.setup)
        planned = self.job.plan.identity.get("backend", backend.version)
        if backend.version != planned:
            backend.close()
            raise BackendError(
                f"{platform.node()} has {backend.version}, the run was planned with {planned}; install the same version everywhere"
            )
        return backend

    @property
    def pipeline(self) -> DevicePipeline | None:
        """What a GPU does of the work, opened with its network when first asked for; None on a CPU."""
        if not is_pipelined(self.job.setup.device):
            return None
        with self._opening:  # readers, writers and the device's thread may all be first
            if self._pipeline is None:
                backend = self.backend
                assert isinstance(backend, DeviceBackend)
                self._pipeline = DevicePipeline(self.job, backend, self.tally, self.volume.voxel_bytes, self.stages)
            return self._pipeline

    @cached_property
    def output(self) -> Output:
        return Output(self.job.out, self.job.layout, self.job.plan.digest, self.stages or PLAIN)

    def close(self) -> None:
        with self._opening:
            if self._pipeline:
                self._pipeline.close()
            self._pipeline = None
            if "backend" in self.__dict__:
                self.__dict__.pop("backend").close()

    # --- emptiness ---

    def has_data(self, box: Box) -> bool:
        """Whether `box` holds anything but background, as far as stored chunks tell."""
        if self.mask is not None and not (self.mask.has_data(box) or self.mask.fill_value):
            return False
        return self.volume.fill_value != self.job.model.spec.background or self.volume.has_data(box)

    @cached_property
    def is_void(self) -> Callable[[Index], bool]:
        """``is_void(block)``: whether the labels of its write box are known without reading or adding anything.

        That is so where nothing is stored in reach of any window that meets it. Depends on the input alone, so it is the same in every
        run. Only for labels, and only where one class wins clearly: sums of weighted constants differ from the constant by rounding.
        """
        certain = self.job.skips and self.job.kind == "labels" and _clear_winner(self.job.model.spec)

        @lru_cache(maxsize=4096)
        def void(index: Index) -> bool:
            return certain and not self.has_data(self.job.plan.write_read_box(index))

        return void

    def settle(self, task: Task, column: Column, pending: Callable[[Index], bool]) -> Task | None:
        """Write the block here and now if it is void, and leave out of the task what void blocks do not need; None if nothing is left.

        `pending` says which blocks are still to be committed, as in `Plan.tasks`; all of the task's targets are.
        """
        if not self.job.skips:
            return task
        if task.commits and self.is_void(task.block.index):
            self.commit_void(task)
        left = self.job.plan.task(task.block.index, column, lambda index: pending(index) and not self.is_void(index))
        self.tally.add(skipped=len(task.windows) - len(left.windows if left else ()))
        return left

    # --- read ---

    def read(self, task: Task) -> Raw | None:
        """The voxels of ``task.read``; None where no window is to be inferred or nothing is stored there.

        Raises `DataError` on NaN or Inf, naming block and box, unless the job replaces them.
        """
        if not task.windows or (self.job.skips and not self.has_data(task.read)):
            return None
        voxels = self.volume.read(task.read, self.stages or PLAIN)
        self.tally.add(bytes_read=voxels.nbytes)
        if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
            self._handle_nonfinite(voxels, task)
        mask = None if self.mask is None else self.mask.read(task.read, self.stages or PLAIN)
        raw = Raw(voxels, mask)
        # a network that is still being opened is not waited for: the pipeline then stages the voxels itself
        return self._pipeline.stage(raw) if self._pipeline else raw

    def _handle_nonfinite(self, voxels: Array, task: Task) -> None:
        bad = ~np.isfinite(voxels)
        if self.job.replace_nonfinite is None:
            first = np.argwhere(bad)[0][1:] + task.read.lo
            where = " ".join(f"{a}={x}" for a, x in zip(self.job.plan.names, first, strict=True))
            raise DataError(
                f"{self.job.volume}: {np.count_nonzero(bad)} voxels are NaN or Inf in block {task.block.index} (voxels {task.read}), "
                f"the first at {where}; use --replace-nonfinite VALUE"
            )
        voxels[bad] = self.job.replace_nonfinite

    # --- predict ---

    def predict(
        self, work: Iterable[tuple[Task, Raw | None] | None]
    ) -> Iterator[Predicted] | Iterator[DevicePredicted]:
        """See `unet_engine.pipeline.host.predict` and `unet_engine.pipeline.gpu.pipeline`."""
        if self.stages:
            work = self.stages.fed(work)
        if pipeline := self.pipeline:
            return pipeline.predict(work, lambda task, raw: emptiness(self.job, task, raw))
        assert not isinstance(self.backend, DeviceBackend)
        return predict(
            self.job, timed.timed_backend(self.backend, self.stages), self.tally, work, self.sums, self.tools
        )

    # --- commit ---

    def commit(self, task: Task, core: Array | DeviceCore, halos: Sequence[Halo]) -> None:
        """Finish and write the block's write box. Halos are added from the highest lower block down: one order, the same bytes.

        core: the block's own sums there, (channels out, *task.block.write.shape) float32, or where the device keeps them; it is used up.
        """
        if pipeline := self.pipeline:
            values, finite = pipeline.finish(task, core, halos)
            self._check_finite(task, finite=finite)
            self._write(task, values)
            return
        assert not isinstance(core, DeviceCore)
        block = task.block
        for lower in sorted(halos, key=lambda h: h.source, reverse=True):
            self.tools.merge(core, lower.values, lower.box.relative_to(block.write.lo).lo)
        self._check_finite(task, finite=bool(np.isfinite(np.sum(core))))
        self._write(task, self._finished(core))

    def _check_finite(self, task: Task, *, finite: bool) -> None:
        if not finite:
            raise BackendError(
                f"the network gave NaN or Inf in block {task.block.index} (voxels {task.block.write}) at {self.job.setup.precision}; "
                "use --precision fp32, or check the model and its --normalize"
            )

    def commit_void(self, task: Task) -> None:
        """Write a block that is empty and so are all its neighbours: the spec's constant everywhere."""
        shape = task.block.write.shape
        constant = np.asarray(self.job.model.spec.empty, np.float32).reshape(-1, *(1,) * len(shape))
        final = np.ascontiguousarray(np.broadcast_to(constant, (len(constant), *shape)))
        self._write(task, self._finished(final))

    def _finished(self, final: Array) -> Array:
        shape = final.shape[1:] if self.job.kind == "labels" else final.shape
        out = np.empty(shape, self.job.layout.dtype)
        activation = self.job.model.spec.activation
        if self.job.kind == "labels":
            self.tools.labels(final, out, activation)
        elif self.job.kind == "probabilities":
            self.tools.probabilities(final, out, activation)
        else:
            self.tools.logits(final, out)
        return out

    def _write(self, task: Task, values: Array) -> None:
        self.output.write(task.block.write.relative_to(self.job.plan.roi.lo), values)
        self.output.mark(task.block.index)
        self.tally.add(blocks=1, voxels_written=task.block.write.size, bytes_written=values.nbytes)


def _clear_winner(spec: ModelSpec) -> bool:
    """Whether rounding cannot change the label of the constant for empty windows."""
    values = sorted(spec.empty or (0.0,))
    if spec.activation == "sigmoid" or len(values) == 1:
        values = [0.0, *values[-2:]] if values[-1] > 0 else [values[-1], 0.0]
    return len(values) > 1 and values[-1] - values[-2] > 1e-3 * max(map(abs, values))
