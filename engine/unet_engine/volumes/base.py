"""What a volume is to all who read one, what a format is, and what any format's few facts come to (`StoredVolume`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from unet_engine.errors import DataError, InputError, UnetEngineError, first_line
from unet_engine.plan.box import Box
from unet_engine.plan.fetching import Fetching
from unet_engine.profiling.recorder import PLAIN, Recorder
from unet_engine.profiling.stages import READ_DECODE
from unet_engine.units import doubtful_unit
from unet_engine.volumes import nodata as nodata_values
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.nodata import Missing
from unet_engine.volumes.pick import Pick

Array = npt.NDArray[Any]
Selection = tuple[slice, ...]
"""What is read of a stored array: a span of each stored axis, also where that is one long. Codecs find a span in any
layout, an index not in every one."""
T = TypeVar("T")


class Volume(Protocol):
    """A volume opened for reading, from any number of threads at once. It is a key by its identity.

    Shapes, boxes and tuples per axis are spatial and in voxels, in the order of `spatial`, unless they are said to be
    stored.
    """

    @property
    def path(self) -> str: ...

    @property
    def axes(self) -> str:
        """The axes in the order they are stored, of t, c, z, y, x, e.g. ``czyx``."""

    @property
    def opened_by_axes(self) -> str:
        """What its format is told of its axes to open it anew as it is."""

    @property
    def spatial(self) -> str:
        """z, y, x as far as present."""

    @property
    def stored_spatial(self) -> str:
        """The spatial axes in the order they are stored, which the output keeps."""

    @property
    def supposed(self) -> str:
        """Those of `axes` beside channels that are called so because nobody says what they are."""

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Sizes in the order of `axes`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def chunks(self) -> tuple[int, ...]:
        """What is read and decoded at once."""

    @property
    def channel_names(self) -> tuple[str, ...]:
        """What all stored channels are called, in the order they are stored; empty where that is not known."""

    @property
    def timepoints(self) -> int:
        """How many are stored; one is read."""

    def picked(self, pick: Pick) -> Volume:
        """The same volume, of which one time point and some channels are read. Raises `InputError` for such as there
        are not, and where there are several time points and none is named."""

    @property
    def channels(self) -> int:
        """How many; 1 where there is no such axis."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels as they are read: bool, integers or floating point numbers in native byte order."""

    @property
    def voxel_bytes(self) -> int:
        """Bytes of one voxel with all its channels."""

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one decoded chunk, no larger than the volume."""

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Distance between voxels in `unit`, negative where they run backwards; None where it is not known."""

    @property
    def translation(self) -> tuple[float, ...]:
        """Where the first voxel lies, in `unit`."""

    @property
    def unit(self) -> str | None:
        """As OME-Zarr names units, e.g. ``micrometer``; None where it is not known."""

    @property
    def frame(self) -> Frame | None:
        """Where its voxels lie in the world, where spacing and translation do not say all of it; None where they do, or
        nothing is known."""

    @property
    def fill_value(self) -> float:
        """What voxels are that are not stored."""

    @property
    def missing(self) -> Missing:
        """Values of voxels that were not measured, of each channel that is read; empty where there are none at all."""

    @property
    def validity(self) -> Volume | None:
        """Of its shape and one channel: what is 0 there was measured in no channel, whatever its value; None where
        nothing like alpha or a mask of all channels comes with it."""

    @property
    def gaps(self) -> Volume | None:
        """Of its shape and with as many channels as are read: what is 0 there was not measured in that channel, whatever
        its value; None where `validity` says the same of all channels."""

    @property
    def alpha(self) -> int | None:
        """Which of the stored channels says that, and is none of those that are read; None where none does."""

    def taken_whole(self) -> Volume:
        """The same volume, all of whose voxels were measured, whatever it says itself."""

    def with_missing(self, values: Missing) -> Volume:
        """The same volume, whatever it says itself, with these values for voxels that were not measured, of each channel
        that is read."""

    @property
    def drawback(self) -> str | None:
        """What makes reading slower than it need be, as the user is told; None where nothing does."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about what the volume says of itself."""

    def read(self, box: Box, recorder: Recorder = PLAIN) -> Array:
        """The voxels of `box`: shape (channels, *box.shape), of `dtype`; C-contiguous, unless it is seen turned. They
        are the caller's to write to. `recorder` takes the times.

        Raises `DataError` naming what cannot be read, and `InputError` where none of it can.
        """

    def has_data(self, box: Box) -> bool:
        """Whether anything but `fill_value` may be in `box`, told without reading voxels. Raises `InputError` where
        nothing is, because the volume itself is gone."""

    def changed(self, box: Box, since: float) -> str | None:
        """What of the stored data in `box` was changed after `since` (seconds since the epoch), as people are told;
        None where nothing was, or where that cannot be told at the price of looking at files."""

    def token(self, box: Box) -> tuple[str, str] | None:
        """Of stores that keep no times: a chunk in `box`, as people are told, and what changes with its content. One
        small request; None where `changed` tells, or where neither can."""

    def confirm(self) -> None:
        """Look again whether this is still what was opened: of a volume that is gone, what is not stored means nothing.

        Cheap, and asked wherever something is believed to be not stored, and at the end of a run. Raises `InputError`.
        """

    @property
    def units(self) -> tuple[int, ...] | None:
        """Of a volume that is fetched over a network: the shape of what is fetched for each request; else None."""

    @property
    def pieces(self) -> tuple[int, ...] | None:
        """Of a volume in files that are unpacked piece by piece, and which keeps those that were read last: the shape
        of a piece; else None."""

    def begins(self, pieces: tuple[int, ...]) -> tuple[int, ...]:
        """How far before the first voxel the first of its `pieces` or `units`, of which this is the shape, begins: other
        than 0 where a volume is a part of what is stored, or is seen from its far end."""

    @property
    def packed(self) -> float:
        """What chunks that are fetched over a network take, of what they are unpacked; 1 where that is not known."""

    @property
    def fetches(self) -> int:
        """Chunks that were fetched over a network so far."""

    def keep(self, most: int, reads: Fetching | None) -> None:
        """Keep up to `most` bytes of what is fetched over a network, or of `pieces` that are unpacked; `reads`: how often
        each of its `units` is going to be read, and when, where that is known."""

    def fetch(self, box: Box) -> None:
        """Fetch what is stored of `box`, over a network, where there is room to keep all of it until it is read. What
        goes wrong is left for reading to find."""

    def hold(self, most: int) -> None:
        """Have all of it in memory from when any of it is read, where that takes up to `most` bytes and spares
        unpacking; 0: let go of it."""

    @property
    def held_bytes(self) -> int:
        """What that takes; 0 where it is not done."""

    def release(self) -> None:
        """The run that reads it is complete: what was made for reading it, such as an unpacked copy, may go."""

    def facts(self) -> dict[str, Any]:
        """What people are shown of how it is stored, as plain values by name."""


@dataclass(frozen=True)
class Timing:
    """When time points of a volume were taken."""

    step: float
    """From one to the next."""
    start: float = 0.0
    """Of the first."""
    unit: str | None = None
    """As OME-Zarr names units, e.g. ``second``; None where it is not known."""

    def in_seconds(self) -> Timing:
        """The same in seconds, where the unit is one of time; else as it is."""
        factor = SECONDS.get(self.unit or "")
        return self if factor is None else Timing(self.step * factor, self.start * factor, "second")


SECONDS = {
    "nanosecond": 1e-9, "microsecond": 1e-6, "millisecond": 1e-3, "second": 1.0, "minute": 60.0, "hour": 3600.0,
    "day": 86400.0,
}  # fmt: skip


class Format(Protocol):
    """A kind of file or folder that volumes come in."""

    def recognises(self, path: str) -> bool:
        """Whether `path` looks like one of these. Cheap, and never raises for what is not there."""

    def open(self, path: str, axes: str | None) -> Volume:
        """Open it; `axes` overrides its metadata. Raises `InputError` naming what is missing and what to do."""


@runtime_checkable
class Several(Protocol):
    """A format of files or folders that hold several images, or one in several resolutions."""

    def located(self, path: str, image: str | None, level: int | None) -> str:
        """The path that the `image` (its name, or its number from 0) and the `level` (0: the full resolution) of `path`
        are opened by; None is the only one. Raises `InputError` listing what there is."""


@runtime_checkable
class Listing(Protocol):
    """A format of files or folders whose images can be listed."""

    def images(self, path: str) -> list[str]:
        """What each image of `path` is called for `Several.located`, in order; none where there is but one."""


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredVolume(ABC):
    """A volume that is a stored array. A format gives these facts, `stored`, and `has_data` where it can tell."""

    path: str
    axes: str
    stored_shape: tuple[int, ...]
    stored_chunks: tuple[int, ...]
    stored_dtype: np.dtype[Any]
    stored_spacing: Sequence[float] | None = None
    stored_translation: Sequence[float] | None = None
    unit: str | None = None
    frame: Frame | None = None
    fill_value: float = 0.0
    channel_names: tuple[str, ...] = ()
    time: int = 0
    """The time point that is read."""
    chosen: tuple[int, ...] | None = None
    """The channels that are read; None for all."""
    nodata: tuple[float, ...] = ()
    """Values of voxels that were not measured, in any channel."""
    nodata_of: Missing = ()
    """The same of each stored channel, where they are not the same for all; else empty."""
    alpha: int | None = None
    whole: bool = False
    """Whether all voxels count as measured, whatever alpha or a mask says."""
    notes: tuple[str, ...] = ()
    supposed: str = ""

    timing: Timing | None = None
    """Of its time points, where the file says it; of OME-Zarr the image does (`collection.time_of`)."""

    remedy: ClassVar[str] = "restore it"
    """What to do about a chunk that cannot be read."""

    def __post_init__(self) -> None:
        on_map = self.frame is not None and self.frame.crs is not None  # which says itself what its unit is
        doubt = doubtful_unit(self.unit) if self.unit and self.stored_spacing and not on_map else None
        if doubt and (told := f"{self.path}: {doubt}") not in self.notes:
            object.__setattr__(self, "notes", (*self.notes, told))

    @abstractmethod
    def stored(self, selection: Selection) -> Array:
        """The voxels of `selection`, with all axes, in stored order. May raise anything."""

    def has_data(self, box: Box) -> bool:
        return True

    def changed(self, box: Box, since: float) -> str | None:
        return None

    def token(self, box: Box) -> tuple[str, str] | None:
        return None

    def confirm(self) -> None:  # noqa: B027  # nothing to do is what most formats do
        """A format that reads what is not stored as something looks again here."""

    @property
    def units(self) -> tuple[int, ...] | None:
        return None

    @property
    def pieces(self) -> tuple[int, ...] | None:
        return None

    def begins(self, pieces: tuple[int, ...]) -> tuple[int, ...]:
        return (0,) * len(pieces)

    @property
    def packed(self) -> float:
        return 1.0

    @property
    def fetches(self) -> int:
        return 0

    def keep(self, most: int, reads: Fetching | None) -> None:  # noqa: B027  # most lie on a disk
        """A format that fetches over a network, or unpacks whole pieces, keeps here."""

    def fetch(self, box: Box) -> None:  # noqa: B027  # most lie on a disk
        """A format that fetches over a network does so here."""

    def hold(self, most: int) -> None:  # noqa: B027  # most formats unpack little
        """A format whose chunks are unpacked as a whole, whatever is wanted of them, does so here."""

    @property
    def held_bytes(self) -> int:
        return 0

    def release(self) -> None:  # noqa: B027  # most formats make nothing
        """A format that makes something to read from gives it up here."""

    @cached_property
    def missing(self) -> Missing:
        count = self.stored_shape[self.axes.index("c")] if "c" in self.axes else 1
        if not self.nodata_of:
            return (self.nodata,) * self.channels if self.nodata else ()
        found = tuple(self.nodata_of[c] for c in (range(count) if self.chosen is None else self.chosen))
        return found if any(found) else ()

    def with_missing(self, values: Missing) -> Volume:
        if (same := nodata_values.same(values)) is not None:
            return replace(self, nodata=same or (), nodata_of=())
        count = self.stored_shape[self.axes.index("c")] if "c" in self.axes else 1
        chosen = range(count) if self.chosen is None else self.chosen
        of = dict(zip(chosen, values, strict=True))
        return replace(self, nodata=(), nodata_of=tuple(of.get(c, ()) for c in range(count)))

    def taken_whole(self) -> Volume:
        return replace(self, nodata=(), nodata_of=(), whole=True)

    @property
    def gaps(self) -> Volume | None:
        return None

    @property
    def validity(self) -> Volume | None:
        return None if self.alpha is None or self.whole else self._of_alpha

    @cached_property
    def _of_alpha(self) -> Volume:
        assert self.alpha is not None
        return replace(self, chosen=(self.alpha,), alpha=None, nodata=(), nodata_of=(), notes=())

    @property
    def drawback(self) -> str | None:
        return None

    def facts(self) -> dict[str, Any]:
        return {
            "axes": self.axes,
            "shape": list(self.stored_shape),
            "dtype": str(self.stored_dtype),
            "chunks": list(self.stored_chunks),
            "bytes": prod(self.stored_shape) * self.stored_dtype.itemsize,
            **({"timepoints": self.timepoints} if self.timepoints > 1 else {}),
            **({"channel_names": list(self.channel_names)} if self.channel_names else {}),
            **({} if self.alpha is None else {"alpha": self.alpha}),
            **nodata_values.facts(self.missing),
            **({"orientation": self.frame.orientation} if self.frame and self.frame.orientation else {}),
        }

    # --- what follows ---

    @property
    def opened_by_axes(self) -> str:
        return self.axes

    @property
    def spatial(self) -> str:
        return "".join(a for a in "zyx" if a in self.axes)

    @property
    def stored_spatial(self) -> str:
        return "".join(a for a in self.axes if a in "zyx")

    def along(self, values: Sequence[T]) -> tuple[T, ...]:
        """Those of the spatial axes out of `values` in stored order."""
        return tuple(values[self.axes.index(a)] for a in self.spatial)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.along(self.stored_shape)

    @property
    def chunks(self) -> tuple[int, ...]:
        return self.along(self.stored_chunks)

    @property
    def timepoints(self) -> int:
        return self.stored_shape[self.axes.index("t")] if "t" in self.axes else 1

    def picked(self, pick: Pick) -> Volume:
        count = self.stored_shape[self.axes.index("c")] if "c" in self.axes else 1
        time, chosen = pick.time(self.path, self.timepoints), pick.numbers(self.path, self.channel_names, count)
        chosen, alpha, notes = _without_alpha(self.path, self.alpha, chosen, count)
        picked = time, chosen, alpha, tuple(dict.fromkeys((*self.notes, *notes)))
        if picked == (self.time, self.chosen, self.alpha, self.notes):
            return self
        return replace(self, time=time, chosen=chosen, alpha=alpha, notes=picked[-1])

    @property
    def channels(self) -> int:
        if self.chosen is not None:
            return len(self.chosen)
        return self.stored_shape[self.axes.index("c")] if "c" in self.axes else 1

    @property
    def dtype(self) -> np.dtype[Any]:
        native: np.dtype[Any] = self.stored_dtype.newbyteorder("=")
        return native

    @property
    def voxel_bytes(self) -> int:
        return self.dtype.itemsize * self.channels

    @property
    def chunk_bytes(self) -> int:
        return prod(map(min, self.stored_chunks, self.stored_shape)) * self.dtype.itemsize

    @property
    def spacing(self) -> tuple[float, ...] | None:
        return self.along(self.stored_spacing) if self.stored_spacing else None

    @property
    def translation(self) -> tuple[float, ...]:
        return self.along(self.stored_translation) if self.stored_translation else (0.0,) * len(self.spatial)

    # --- reading ---

    def read(self, box: Box, recorder: Recorder = PLAIN) -> Array:
        with recorder.span(READ_DECODE):
            return self.voxels(box, self.stored)

    def voxels(self, box: Box, stored: Callable[[Selection], Array]) -> Array:
        """What `read` gives, with `stored` to get at it."""
        try:
            found = stored(self._selection(box))
        except Exception as error:
            raise self._unreadable(box, error) from error
        return self._oriented(np.asarray(found))

    def _selection(self, box: Box) -> Selection:
        spans = dict(zip(self.spatial, box.slices(), strict=True))
        whole = {"c": self.channel_span, "t": slice(self.time, self.time + 1)}
        return tuple(spans[a] if a in spans else whole[a] for a in self.axes)

    @property
    def channel_span(self) -> slice:
        """Of the stored channels, from the first that is chosen to the last."""
        return slice(None) if self.chosen is None else slice(min(self.chosen), max(self.chosen) + 1)

    def _oriented(self, stored: Array) -> Array:
        wanted = [a for a in "tczyx" if a in self.axes]
        voxels = stored.transpose([self.axes.index(a) for a in wanted])
        if "t" in wanted:
            voxels = voxels[0]
        if "c" not in wanted:
            voxels = voxels[np.newaxis]
        if self.chosen is not None:
            voxels = voxels[[c - min(self.chosen) for c in self.chosen]]
        return np.ascontiguousarray(voxels, dtype=self.dtype)

    def _unreadable(self, box: Box, error: Exception) -> InputError:
        """Find the chunk at fault by reading one by one."""
        for cell in box.cells(self.chunks):
            try:
                self.stored(self._selection(cell))
            except Exception as fault:
                corner = tuple(l // c for l, c in zip(cell.lo, self.chunks, strict=True))
                where = " ".join(f"{a}={i}" for a, i in zip(self.spatial, corner, strict=True))
                return self._blamed(f"chunk {where} (voxels {cell})", fault)
        return DataError(f"{self.path}: voxels {box} cannot be read: {first_line(error)}; try once more")

    def _blamed(self, what: str, error: Exception) -> InputError:
        """The error for `what`, which cannot be read, because of `error`."""
        if isinstance(error, UnetEngineError):  # it says what to do
            return DataError(f"{self.path}: {what} cannot be read: {error}")
        return DataError(f"{self.path}: {what} cannot be read: {first_line(error)}; {self.remedy}")


def _without_alpha(
    path: str, alpha: int | None, chosen: tuple[int, ...] | None, count: int
) -> tuple[tuple[int, ...] | None, int | None, tuple[str, ...]]:
    """Of `count` channels those that are read where `chosen` are asked for (None: all) and `alpha` is one of them;
    which one still says what was measured; and what the user is told."""
    # headers say any count: nothing is made of it that is as long
    if chosen is not None and count > 1 and len(chosen) == count and chosen == tuple(range(count)):
        read = (f"{path}: channel {alpha} is alpha, as the file says, and is read like the others",)
        return None, None, () if alpha is None else read
    if alpha is None or (chosen is not None and alpha in chosen):
        return chosen, None, ()
    told = (
        f"{path}: channel {alpha} is alpha and not read; where it is 0, nothing was measured (--nodata none: all was)"
    )
    return chosen or tuple(c for c in range(count) if c != alpha), alpha, (told,)
