"""What one worker does for one block: `read`, `predict`, `commit`. The same three under every executor.

read(task)     the block's part of the volume, or None where nothing is stored
predict(work)  windows cut, normalised, inferred and added, in order, without a pause between blocks  => sums
commit(...)    halos of lower blocks merged, reduced to labels or what is asked for, written, marked
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np

from unet_engine.backends.base import Array, Network
from unet_engine.backends.batch_probe import agree
from unet_engine.backends.opening import open_network
from unet_engine.backends.out_of_memory import is_out_of_memory, no_memory, other_bits, smaller
from unet_engine.errors import BackendError, DataError, InputError, PlanError
from unet_engine.model.spec import ModelSpec
from unet_engine.output.output import Output
from unet_engine.output.stored import Stored
from unet_engine.pipeline.base import Core, Pipeline, Predicted, Work
from unet_engine.pipeline.choose import pipeline_of
from unet_engine.pipeline.glances import Glances
from unet_engine.pipeline.host import Watch, unwatched
from unet_engine.pipeline.job import Halo, Job, Raw, Tally
from unet_engine.pipeline.presence import Presence
from unet_engine.plan.box import Box
from unet_engine.plan.dealing import dealing
from unet_engine.plan.fetching import Fetching
from unet_engine.plan.plan import Column, Index, Task
from unet_engine.profiling.recorder import PLAIN, Recorder
from unet_engine.profiling.stages import OTHER, Snapshot, Stages
from unet_engine.stitching import operations
from unet_engine.storage.codecs import decoding
from unet_engine.volumes.base import Volume
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.mask import Mask, open_mask
from unet_engine.volumes.resampled import AnyMask, Interpolated
from unet_engine.volumes.turned import as_stored


class Sink(Protocol):
    """Where blocks are written: an `Output`, or whatever keeps them."""

    def write(self, box: Box, values: Array) -> Stored | None:
        """`values`, (*box.shape) or (channels, *box.shape), at `box`, relative to the region's origin. Returns what is
        stored there now, as far as that is known."""

    def mark(self, index: Index, stored: Stored | None = None) -> None:
        """The block's data are written, and `write` returned `stored`. It may be a while until that is recorded."""

    def doubt(self, blocks: Sequence[Index], what: str) -> None:
        """`blocks` were computed from data that were changed meanwhile."""

    def settle(self) -> None:
        """All that was marked is recorded when this returns."""

    def pending(self) -> Callable[[Index], bool]:
        """Which blocks are not written now. A snapshot."""


@dataclass
class Opened:
    """What is open already, handed to a worker. What is None it opens itself when first used."""

    volume: Volume | None = None
    mask: Mask | None = None
    network: Network | None = None
    """Closed by `Worker.close`, but not by `Worker.leave`."""
    output: Sink | None = None


class Worker:
    """Executes tasks of one job on one device. Only the job is pickled."""

    def __init__(self, job: Job, opened: Opened | None = None) -> None:
        self.job = job
        self.tally = Tally()
        self.recorder: Recorder = Stages() if job.profiled else PLAIN
        """Where the time goes."""
        self.watch: Watch = unwatched
        """Is shown what the network gives, where windows come from the host. Set before the first is inferred."""
        self.shrunk = False
        """Whether memory ran out once and fewer windows are inferred at once since."""
        self._opened = replace(opened) if opened else Opened()
        self._glances = Glances()
        self._shares: tuple[int, int] | None = None
        self._opening = threading.RLock()
        self._pipeline: Pipeline | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (Worker, (self.job,))

    def profile(self, spans: int = 0) -> Snapshot | None:
        """Where the time went, with at most so many spans of each thread; None where the job is not profiled."""
        return self.recorder.snapshot(spans) if isinstance(self.recorder, Stages) else None

    # --- what is open ---

    @property
    def volume(self) -> Volume:
        """What windows are cut from."""
        if self._opened.volume is None:
            with self._opening, decoding(self.job.decoders):
                self._opened.volume = self._opened.volume or self.job.seen(
                    open_volume(self.job.volume, self.job.volume_axes, self.job.pick)
                )
        return self._opened.volume

    @cached_property
    def _keeping(self) -> int:
        """Bytes that the volume keeps of what it fetches or unpacks, from now on."""
        if units := self.volume.units:
            reads = Fetching.of(self.job.plan, units, self.volume.begins(units))
            reads = replace(reads, abreast=self.job.abreast > 1)
            shares = dealing(self.job.plan, self.job.dealt)
            self.volume.keep(self.job.kept, shares.reads(reads, self._shares) if shares and self._shares else reads)
        elif self.volume.pieces:
            self.volume.keep(self.job.kept, None)
        return self.job.kept

    def serve(self, shares: tuple[int, int]) -> None:
        """The blocks that come are those of these shares of `dealing`, from the first to before the second, but for a
        few: what is kept is what they read again. Not while one is read."""
        if shares != self._shares:
            self._shares = shares
            self.__dict__.pop("_keeping", None)

    @property
    def mask(self) -> Mask | None:
        """On the grid of the volume as it is stored, turned as that is."""
        if self._opened.mask is None and self.job.mask:
            with self._opening:
                scan = self.volume.scan if isinstance(self.volume, Interpolated) else self.volume
                self._opened.mask = self._opened.mask or open_mask(
                    self.job.mask, as_stored(scan), self.job.turn, self.job.pick.timepoint, self.job.origin
                )
        if self._opened.mask:
            _ = self._keeping_of_mask
        return self._opened.mask

    @cached_property
    def _keeping_of_mask(self) -> int:
        """Bytes that the mask keeps, from now on."""
        if self._opened.mask:
            self._opened.mask.keep(self.job.kept_of_mask)
        return self.job.kept_of_mask

    @property
    def output(self) -> Sink:
        if self._opened.output is None:
            with self._opening:
                self._opened.output = self._opened.output or Output(
                    self.job.out, self.job.layout, self.job.plan.digest, self.recorder, self.job.durability
                )
        return self._opened.output

    @property
    def network(self) -> Network:
        """Raises `BackendError` where the library here is another one than the run was planned with: it may give other
        bytes."""
        with self._opening:
            if self._opened.network is None:
                network = open_network(self.job.backend, self.job.setup)
                planned = self.job.plan.identity.get("backend", network.version)
                if network.version != planned:
                    network.close()
                    raise BackendError(
                        f"{platform.node()} has {network.version}, the run was planned with {planned}; install the "
                        "same version everywhere"
                    )
                self._opened.network = network
            return self._opened.network

    @property
    def pipeline(self) -> Pipeline:
        """Opened with its network when first asked for: readers, writers and the predicting thread may all be first."""
        with self._opening:
            if self._pipeline is None:
                self._pipeline = pipeline_of(self.job, self.network, self.tally, self.recorder, self.volume, self.watch)
            return self._pipeline

    def record(self) -> None:
        """All blocks that were committed are recorded as such when this returns."""
        if self._opened.output is not None:
            self._opened.output.settle()

    def leave(self) -> None:
        """Give back what the pipeline holds. What was handed in stays open."""
        with self._opening:
            if self._pipeline:
                self._pipeline.close()
            self._pipeline = None

    def give(self) -> Network | None:
        """Leave, and give away the network that is open."""
        with self._opening:
            self.leave()
            network, self._opened.network = self._opened.network, None
            return network

    def renew(self) -> None:
        """Forget the network that was handed in, which is closed: another one is opened when it is first used."""
        self.give()

    def close(self) -> None:
        with self._opening:
            self.leave()
            if self._opened.network:
                self._opened.network.close()
            self._opened.network = None

    def shrink(self, error: BaseException, where: str) -> None:
        """Go on with half the windows at once, after memory ran out with `error`, if the bytes are the same so.

        Raises `PlanError` with the figures where it ran out before, or does as the network is opened again, and where a
        smaller batch gives other bits.
        """
        before = self.job.setup
        fewer = None if self.shrunk else smaller(before)
        if fewer is None:
            raise no_memory(error, before, where, retried=self.shrunk) from error
        with self._opening:
            self.close()
            self.job, self.shrunk = replace(self.job, setup=fewer), True
            try:
                if not agree(self.job.answers, self.network.answers()):
                    raise other_bits(error, before, fewer, where) from error
            except Exception as again:
                # nothing may go through a batch that was not found to give the same
                self.close()
                self.job = replace(self.job, setup=before)
                if isinstance(again, PlanError) or not is_out_of_memory(again):
                    raise
                raise no_memory(again, fewer, where, retried=True) from again

    # --- emptiness ---

    @cached_property
    def presence(self) -> Presence:
        return Presence.of(self.job, self.volume, self.mask)

    @cached_property
    def is_void(self) -> Callable[[Index], bool]:
        """``is_void(block)``: whether what lies in its write box is known without reading or adding anything.

        That is so where all of it is overwritten. It is so of labels, too, where nothing is stored in reach of any
        window that meets it and one class wins clearly: sums of weighted constants differ from the constant by
        rounding. Depends on the input alone, so it is the same in every run."""
        spec = self.job.model.spec
        certain = spec.empty is not None and self.job.kind == "labels" and _clear_winner(spec)

        @lru_cache(maxsize=4096)
        def void(index: Index) -> bool:
            plan = self.job.plan
            if self.job.outside is not None and self.presence.is_outside(plan.write_box(index)):
                return True
            return certain and not self.presence.has_data(plan.write_read_box(index))

        return void

    def settle(self, task: Task, column: Column, pending: Callable[[Index], bool]) -> Task | None:
        """Write the block here and now if it is void, and leave out of the task what void blocks do not need; None if
        nothing is left.

        `pending` says which blocks are still to be committed, as in `Plan.tasks`; all of the task's targets are.
        """
        if not self.job.skips:
            return task
        with self.recorder.span(OTHER):
            if task.commits and self.is_void(task.block.index):
                self.commit_void(task)
            left = self.job.plan.task(
                task.block.index, column, lambda index: pending(index) and not self.is_void(index)
            )
            fewer = len(task.windows) - len(left.windows if left else ())
            self.tally.add(skipped=fewer * self.job.plan.calls)
            return left

    # --- read ---

    def ahead(self) -> None:
        """Begin to fetch what the first block of all reads, of a volume behind a network, and return at once."""
        plan = self.job.plan
        if self.volume.units is None or not self._keeping:
            return
        task = next((task for column in plan.columns() for task in plan.tasks(column, lambda _: True)), None)
        if task:
            threading.Thread(target=self.volume.fetch, args=(task.read,), name="ahead", daemon=True).start()

    def read(self, task: Task) -> Raw | None:
        """The voxels of ``task.read``; None where no window is to be inferred or nothing is stored there.

        Raises `DataError` on NaN or Inf, naming block and box, unless the job replaces them.
        """
        with self.recorder.block(OTHER):
            if not task.windows:
                return None
            _ = self._keeping
            own = (task.block.index,) if task.commits else ()
            hanging = (*own, *(to for to, _ in task.halos))
            for source in self._sources():
                self._glances.take(source, task.read, hanging)
            raw = self._raw(task)
            self._notice(task.read, hanging)
            return raw

    def _raw(self, task: Task) -> Raw | None:
        if self.job.skips and not self.presence.has_data(task.read):
            return None
        mask = self.presence.mask
        inside = None if mask is None else mask.read(task.read, self.recorder)
        if inside is not None and not inside.any():
            return None
        valid = self.presence.validity
        nowhere = None if valid is None else valid.read(task.read, self.recorder) == 0
        if nowhere is not None and self.job.skips and nowhere.all():
            return None
        voxels, there = self._voxels(task.read)
        if there is not None:  # all of them were measured
            return self._pinned(Raw(voxels, inside if nowhere is None else _measured(inside, nowhere), there))
        if not self.job.plan.image:
            inside = self.presence.without_unmeasured(voxels, task.read, inside, nowhere, self.recorder)
        elif nowhere is not None:  # what was not measured was dealt with before interpolating
            inside = _measured(inside, nowhere)
        if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
            self._handle_nonfinite(voxels, task)
        return self._pinned(Raw(voxels, inside))

    def _voxels(self, box: Box) -> tuple[Array, Box | None]:
        """Those of `box`; or those of the scan that a device makes them of, and where these lie."""
        seen = self.volume
        if not isinstance(seen, Interpolated):
            voxels = seen.read(box, self.recorder)
            self.tally.add(bytes_read=voxels.nbytes)
            return voxels, None
        there = seen.there(box)
        stored = seen.scan.read(there, self.recorder)
        self.tally.add(bytes_read=there.size * seen.scan.voxel_bytes)
        if self.job.resamples_on_device and seen.are_plain(stored, there):
            return stored, there
        return seen.made_of(stored, box, self.recorder), None

    def _pinned(self, raw: Raw) -> Raw:
        """A pipeline that is still being opened is not waited for: it then pins the voxels itself."""
        return self._pipeline.pin(raw) if self._pipeline else raw

    def _notice(self, box: Box, blocks: Sequence[Index]) -> None:
        """Leave a note where what was read of `box` was changed since the run began: `blocks` hang on it. After
        reading, so that a change meanwhile is seen."""
        for source in self._sources():
            if what := source.changed(box, self.job.begun):
                self._doubt(blocks, what)

    def _doubt(self, blocks: Sequence[Index], what: str) -> None:
        if self.job.strict:
            raise InputError(
                f"--strict: {what} was changed after the run began; run again with --overwrite once nothing "
                "writes to it, or without --strict"
            )
        self.output.doubt(blocks, what)

    def _sources(self) -> tuple[Volume | AnyMask, ...]:
        """What voxels come from."""
        mask = self.presence.mask
        return (self.volume,) if mask is None else (self.volume, mask)

    def _handle_nonfinite(self, voxels: Array, task: Task) -> None:
        bad, at = ~np.isfinite(voxels), task.read.lo
        if isinstance(self.volume, Interpolated):  # they spread to what lies around them
            bad, at = self.volume.not_finite(task.read), self.volume.there(task.read).lo
            if not bad.any():
                return
        if self.job.replace_nonfinite is None:
            first = tuple(int(x) + l for x, l in zip(np.unravel_index(np.argmax(bad), bad.shape)[1:], at, strict=True))
            first = tuple(x + l for x, l in zip(first, self.job.origin or (0,) * len(first), strict=True))
            if self.job.turn:
                first = self.job.turn.stored_box(Box(first, tuple(x + 1 for x in first))).lo
            where = " ".join(f"{a}={x}" for a, x in zip(self.job.plan.names, first, strict=True))
            raise DataError(
                f"{self.job.volume}: {np.count_nonzero(bad)} voxels are NaN or Inf in block {task.block.index} "
                f"(voxels {task.read}), the first at {where}; use --replace-nonfinite VALUE"
            )
        voxels[bad] = self.job.replace_nonfinite

    def confirm(self) -> None:
        """Raises `InputError` where what was read is not there any more: what was not stored then means nothing. What
        is another one by now leaves a note."""
        for volume in (self._opened.volume, self._opened.mask):
            if volume is not None:
                volume.confirm()
        for blocks, what in self._glances.changed():
            self._doubt(blocks, what)

    # --- predict ---

    def predict(self, work: Work) -> Iterator[Predicted]:
        """See `Pipeline.predict`."""
        return self.pipeline.predict(self.recorder.fed(work))

    # --- commit ---

    def commit(self, task: Task, core: Core, halos: Sequence[Halo]) -> None:
        """Finish and write the block's write box.

        core: the block's own sums there, as `Predicted.inside` or `Part` gives them; it is used up. Raises
        `BackendError` where sums are not finite.
        """
        with self.recorder.block(OTHER):
            values, finite = self.pipeline.finish(task, core, halos)
            if not finite:
                raise BackendError(
                    f"the network gave NaN or Inf in block {task.block.index} (voxels {task.block.write}) at "
                    f"{self.job.setup.precision}; use --precision fp32, or check the model and its --normalize"
                )
            if values.dtype == np.float16 and not np.isfinite(values).all():
                raise BackendError(
                    f"{self.job.kind} in block {task.block.index} (voxels {task.block.write}) lie beyond 65,504, which "
                    "float16 cannot hold; use --dtype float32"
                )
            self._write(task, values)

    def commit_void(self, task: Task) -> None:
        """Write a block of which `is_void` holds: the constant for windows that are left out, but where it is
        overwritten."""
        self._notice(self.job.plan.write_read_box(task.block.index), [task.block.index])
        spec, shape, reduction = self.job.model.spec, task.block.write.shape, self.job.reduction
        constant = np.asarray(self.job.skipped, np.float32).reshape(-1, *(1,) * len(shape))
        # one voxel is reduced, and all get what it gets: sums of many classes would be large
        voxel = reduction.on_host(constant)
        self._write(task, np.broadcast_to(voxel, reduction.shape((spec.channels_out, *shape))).copy())

    def _write(self, task: Task, values: Array) -> None:
        """values: (*write.shape) or (channels, *write.shape); what is outside is overwritten in them."""
        if (outside := self.presence.outside(task.block.write, self.recorder)) is not None:
            fill = np.array(self.job.outside).astype(values.dtype)
            np.copyto(
                values, fill.reshape(-1, *(1,) * outside.ndim) if values.ndim > outside.ndim else fill, where=outside
            )
        if (inside := self.job.inside) is not None:
            _clear_beyond(values, task.block.write, inside)
        stored = self.output.write(task.block.write.relative_to(self.job.plan.roi.lo), values)
        self.output.mark(task.block.index, stored)
        self.tally.add(blocks=1, voxels_written=task.block.write.size, bytes_written=values.nbytes)


def _measured(inside: Array | None, nowhere: Array) -> Array:
    """Of what is `inside`, what was measured."""
    return ~nowhere if inside is None else ~nowhere & (inside != 0)


def _clear_beyond(values: Array, box: Box, kept: Box) -> None:
    """Make `values`, (..., *box.shape), 0 outside of `kept`."""
    for a, (lo, hi, first, last) in enumerate(
        zip(box.lo, box.hi, kept.lo, kept.hi, strict=True), values.ndim - box.ndim
    ):
        along = np.moveaxis(values, a, 0)
        along[: max(0, min(hi, first) - lo)] = 0
        along[max(0, last - lo) :] = 0


def _clear_winner(spec: ModelSpec) -> bool:
    """Whether rounding cannot change the label of the constant for empty windows."""
    values = sorted(spec.empty or (0.0,))
    above = operations.label_threshold(spec.activation, len(values), spec.threshold)
    if spec.regions is not None and above is not None:
        return all(abs(v - above) > 1e-3 * max(1.0, *map(abs, values)) for v in values)
    if above is not None:
        values = sorted([*values, above])
    return len(values) > 1 and values[-1] - values[-2] > 1e-3 * max(map(abs, values))
