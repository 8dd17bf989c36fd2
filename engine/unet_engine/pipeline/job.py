"""What a job is, and what its stages hand to one another: values, small and picklable but for the voxels in them."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from unet_engine.backends.base import ONE_BY_ONE, Array, Setup
from unet_engine.devices.opening import is_pipelined
from unet_engine.model.file import ModelFile
from unet_engine.output.layout import Layout
from unet_engine.pipeline.reduction import REDUCTIONS, Kind, Reduction
from unet_engine.pipeline.sharing import ALONE, Sharing, sharing_threads
from unet_engine.plan.box import Box
from unet_engine.plan.plan import Index, Plan
from unet_engine.plan.poses import UPRIGHT, Pose
from unet_engine.stitching.weights import floor_of
from unet_engine.storage.durability import ON_DISK, WHENEVER, Durability
from unet_engine.volumes.base import Volume
from unet_engine.volumes.cells import CellMask
from unet_engine.volumes.cropped import Cropped
from unet_engine.volumes.files import KEPT_BYTES
from unet_engine.volumes.holes import Holes
from unet_engine.volumes.nodata import Missing
from unet_engine.volumes.normalize import Scaling
from unet_engine.volumes.pick import Pick
from unet_engine.volumes.resampled import Extremes, fed, interpolated
from unet_engine.volumes.turn import Turn
from unet_engine.volumes.turned import Turned


@dataclass(frozen=True)
class Job:
    """All a worker needs to know. Small and picklable; what it names is opened by the worker itself."""

    plan: Plan
    volume: str
    volume_axes: str
    pick: Pick
    """Which time point and channels of the volume."""
    model: ModelFile
    backend: str
    setup: Setup
    scaling: Scaling
    kind: Kind
    out: str
    layout: Layout
    replace_nonfinite: float | None = None
    mask: str | None = None
    begun: float = 0.0
    """When reading began, in seconds since the epoch; of a resumed run, when it first did."""
    strict: bool = False
    """Whether what was changed since is an error, and not only told."""
    durable: bool = True
    """Whether a block is on the disk before it is recorded as committed."""
    outside: tuple[float, ...] | None = None
    """What is written outside the mask and where nothing was measured, for each channel that is written; None where
    nothing is overwritten."""
    missing: Missing = ()
    """Values of voxels that were not measured, of each channel."""
    whole: bool = False
    """Whether all voxels count as measured, whatever the volume says."""
    profiled: bool = False
    """Whether workers tell where their time goes, see `unet_engine.profiling.stages`."""
    kept: int = 0
    """Bytes that are kept of what is fetched over a network, or unpacked in pieces."""
    dealt: int = 0
    """To how many workers of a cluster blocks are dealt, see `unet_engine.plan.dealing`; 0: each is done by whoever has
    nothing else to do."""
    abreast: int = 1
    """Columns that are done at the same time, by so many devices of one process."""
    kept_of_mask: int = KEPT_BYTES
    """The same of the user's mask."""
    shelves: tuple[int, ...] = ()
    """Bytes of a device's memory for halos that stay there, see `unet_engine.plan.kept_halos`; empty: all of them pass
    through the host."""
    decoders: int | None = None
    """Threads that decode chunks of the volume for one block; None: one per core."""
    readers: int = 1
    """Blocks of the volume that are read at the same time, where this process does the run."""
    poses: tuple[Pose, ...] = (UPRIGHT,)
    """In which each window is inferred; its answers are averaged in this order."""
    turn: Turn | None = None
    """How the volume is seen; None: as it is stored."""
    crop: Box | None = None
    """What of it, so seen, is taken for all of it, in its voxels; None: all. Plan and blocks are in voxels of this box,
    and outside of it 0 is written."""
    kept_of_crop: Box | None = None
    """The part of that box outside of which 0 is written, in voxels of the box; None: all of it."""
    extremes: Extremes | None = None
    """What is cut off of what was interpolated."""
    holes: Holes | None = None
    """Those of the volume that are filled."""
    cells: CellMask | None = None
    """Where anything but background can be, on the grid of windows; None: everywhere."""
    answers: frozenset[str] = ONE_BY_ONE
    """What the network told of its batches as the run was planned, see `Network.answers`."""

    @property
    def sharing(self) -> int:
        """Threads that share what is to be done with a block."""
        return sharing_threads(self.setup.threads * self.setup.window_threads)

    @property
    def finishes_on_host(self) -> bool:
        """Whether halos are merged by the host wherever windows are inferred: no kernel does what comes after."""
        return self.reduction.on_host_alone

    @cached_property
    def resamples_on_device(self) -> bool:
        """Whether a device brings the scan to the grid of windows: where nothing but a voxel's own value says what it is
        normalised to, and nobody looks at what windows see before they are there."""
        moved = any(not axis.is_identity for axis in self.plan.image)
        return moved and self.model.spec.empty is None and not self.scaling.filled and is_pipelined(self.setup.device)

    @property
    def skips(self) -> bool:
        """Whether windows may be left out: where the spec names what those of nothing but background stand for, or what
        they would give is overwritten."""
        return self.model.spec.empty is not None or self.outside is not None

    @property
    def skipped(self) -> tuple[float, ...]:
        """What a window that was left out is added as, for each output channel."""
        return self.model.spec.empty or (0.0,) * self.model.blended

    @property
    def fed(self) -> Scaling:
        """How voxels that were read become what the network is fed. Where they were interpolated, they were normalised
        before."""
        if not self.plan.image or self._first == "interpolated":
            return self.scaling
        return fed(self.scaling, self.model.spec.background)

    @property
    def origin(self) -> tuple[int, ...] | None:
        """The voxel of the volume as it is turned that blocks are counted from; None: the first one."""
        return self.crop.lo if self.crop else None

    @property
    def inside(self) -> Box | None:
        """Where more than 0 is written, in the output's voxels as blocks count them; None: everywhere."""
        if self.crop is None:
            return None
        if self.plan.image and not self.plan.back:  # the output is on the grid of windows
            return Box.of_shape(tuple(axis.target for axis in self.plan.image))
        return self.kept_of_crop or Box.of_shape(self.crop.shape)

    @property
    def background(self) -> float:
        """What is read where nothing is."""
        return 0.0 if self.plan.image and self._first == "normalised" else self.model.spec.background

    @property
    def _first(self) -> Literal["normalised", "interpolated"]:
        """What is done with voxels first, of a volume that is resampled."""
        how = self.model.spec.resampling
        return how.first if how and not self.scaling.filled else "normalised"

    def seen(self, scan: Volume) -> Volume:
        """What windows are cut from, of the volume as it is stored."""
        if self.whole:
            scan = scan.taken_whole()
        if self.turn:
            scan = Turned(scan, self.turn)
        if self.crop:
            scan = Cropped(scan, self.crop)
        if not self.plan.image:
            return scan
        scan = scan.with_missing(self.missing)
        background = self.model.spec.background
        return interpolated(
            scan, self.plan.image, self.scaling, background, self.replace_nonfinite, self._first,
            extremes=self.extremes, holes=self.holes,
        )  # fmt: skip

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """By network, of one of its answers in what is added for a window."""
        return tuple(share / len(self.poses) for share in self.model.shares)

    @property
    def floor(self) -> float:
        """What weights of a window are raised to at least, as `operations.add` takes it."""
        return floor_of(self.plan.axes[0])

    def shared_floor(self, share: float) -> float:
        """The same of an answer of which so much counts; rounded as a device does it."""
        return float(np.float32(share) * np.float32(self.floor))

    @property
    def durability(self) -> Durability:
        return ON_DISK if self.durable else WHENEVER

    @property
    def _of(self) -> Literal["outputs", "probabilities"]:
        """What is interpolated on the way back to the grid of the scan."""
        how = self.model.spec.resampling
        return how.of if how else "outputs"

    @property
    def reduction(self) -> Reduction:
        """What turns finished sums into voxels of the output."""
        spec = self.model.spec
        return REDUCTIONS[self.kind](
            spec.activation, self.layout.dtype, spec.regions, spec.threshold, self._of, self.model.ahead,
            spec.kept_labels,
        )  # fmt: skip


@dataclass(slots=True)
class Counters:
    """What was done so far."""

    inferred: int = 0
    skipped: int = 0
    blocks: int = 0
    voxels_written: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    halo_bytes: int = 0
    """Halos that came from another worker."""


class Tally:
    """Counters that several threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sum = Counters()
        self.first: float | None = None
        """When the first window went into a network, by `time.perf_counter`."""
        self.ahead: float | None = None
        """When windows whose answers were taken up went into one as it was warmed up."""

    def begin(self) -> None:
        """A window goes into a network."""
        if self.first is None:
            self.first = time.perf_counter()

    def add(self, **amounts: int) -> None:
        """Add to the counters of these names."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self._sum, name, getattr(self._sum, name) + amount)

    def read(self) -> Counters:
        with self._lock:
            return replace(self._sum)

    def take(self) -> Counters:
        """What was added since this was last called."""
        with self._lock:
            taken, self._sum = self._sum, Counters()
            return taken


@dataclass(frozen=True, slots=True)
class Raw:
    """The voxels a task's windows are cut from: shape (channels, *box.shape), or what these are made of."""

    voxels: Array
    inside: Array | None
    """Not 0 for voxels that are meant, (*box.shape); None: all are."""
    there: Box | None = None
    """Where the voxels lie in a scan on another grid, as they are stored; None: they are those of `box`."""


@dataclass(frozen=True, slots=True)
class Halo:
    """What a lower block adds to the write box of a higher one."""

    source: Index
    box: Box
    values: Array
    """Sums of `source` in `box`: (channels out, *box.shape) float32."""

    def copied(self, sharing: Sharing = ALONE) -> Halo:
        """The same, holding nothing of the sums it was cut from."""
        values = np.empty(self.values.shape, self.values.dtype)

        def copy(channels: slice) -> None:
            values[channels] = self.values[channels]

        sharing.over(len(values), copy)
        return Halo(self.source, self.box, values)
