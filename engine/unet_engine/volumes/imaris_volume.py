"""An Imaris file as one volume: a dataset for each time point and channel of a level of its pyramid."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from typing import Any

import numpy as np

from unet_engine.errors import InputError
from unet_engine.units import brief, times
from unet_engine.volumes import imaris
from unet_engine.volumes.axes import checked_axes
from unet_engine.volumes.base import Array, Selection, StoredVolume, Timing, Volume
from unet_engine.volumes.files import FileVolume
from unet_engine.volumes.timing import even

Find = Callable[[str], Any]
"""What lies at a path in the file; None where nothing does. No other file is opened for it."""
Attributes = Callable[[str], Mapping[str, Any]]
"""Those of what lies at a path in the file; none where nothing does."""
_LEVEL = "/DataSet/ResolutionLevel "
_MOST = 2**16
"""Time points, or channels."""


def level_of(name: str | None) -> int | None:
    """Which level the path in a file is the group of, or is said to be (``level=1``), None standing for the full
    resolution; None for another one."""
    found = re.fullmatch(rf"(?:{_LEVEL}|level=)([0-9]{{1,4}})/?", name) if name else None
    return 0 if name is None else int(found[1]) if found else None


def located(path: str, find: Find, level: int | None) -> str:
    """The path of the `level` of the file at `path`. Raises `InputError` where it has no such."""
    count = _count(find, _LEVEL)
    if level is not None and not 0 <= level < count:
        raise InputError(f"--level {level}: {path} has {count} levels; count from 0")
    return f"{path}:{_LEVEL}{level}" if level else path


def is_imaris(find: Find) -> bool:
    """Whether the file is laid out as Imaris has it."""
    return find(f"{_LEVEL}0/TimePoint 0/Channel 0/Data") is not None


def volume_of(
    path: str, find: Find, level: int, axes: str | None, described: Callable[[Any], FileVolume], attributes: Attributes
) -> Volume:
    """The volume of `level` of the file. `described`: a dataset of it as a volume.

    Raises `InputError` where datasets are missing, or not alike.
    """
    count, group = _count(find, _LEVEL), f"{_LEVEL}{level}"
    if level >= count:
        raise InputError(f"{path} has {count} levels; count from 0")
    instants, channels = _count(find, f"{group}/TimePoint "), _count(find, f"{group}/TimePoint 0/Channel ")
    names = [f"{group}/TimePoint {t}/Channel {c}" for t, c in product(range(instants), range(channels))]
    found = [(name, find(f"{name}/Data")) for name in names]
    first = described(found[0][1])
    for name, one in found:
        size = None if one is None else imaris.size_of(attributes(name), one.shape) or one.shape
        if one is None or one.dtype != found[0][1].dtype or size != first.stored_shape:
            what = "is missing" if one is None else f"is {times(size or ())} {one.dtype}"
            wanted = f"{times(first.stored_shape)} {first.stored_dtype}"
            raise InputError(f"{path}: {name} {what}, and others are {wanted}; save the file again")
    lead = [(a, n) for a, n in (("t", instants), ("c", channels)) if n > 1]
    shape = (*(n for _, n in lead), *first.stored_shape)
    own = "".join(a for a, _ in lead) + first.axes
    if axes is not None and sorted(axes) != sorted(own):
        raise InputError(f"{path} has the axes {own}, and --axes {brief(axes)} names others; leave it out")
    ones = [1.0] * len(lead)
    return ImarisVolume(
        path=path,
        axes=checked_axes(path, shape, first.stored_dtype, axes or own),
        stored_shape=shape,
        stored_chunks=(*(1 for _ in lead), *first.stored_chunks),
        stored_dtype=first.stored_dtype,
        stored_spacing=None if first.stored_spacing is None else [*ones, *first.stored_spacing],
        stored_translation=None
        if first.stored_translation is None
        else [0.0 * n for n in ones] + [*first.stored_translation],
        unit=first.unit,
        notes=first.notes,
        channel_names=_channel_names(attributes, channels) if channels > 1 else (),
        timing=_timing(attributes, instants) if instants > 1 else None,
        overviews=tuple(times(_size(find, attributes, n)) for n in range(1, count)) if level == 0 else (),
        opened_by=first.opened_by,
        files=first.files,
        one=first,
        data=tuple(one for _, one in found),
    )


def _count(find: Find, name: str) -> int:
    """How many groups are called so, numbered from 0."""
    return next(n for n in range(_MOST + 1) if n == _MOST or find(f"{name}{n}") is None)


def _size(find: Find, attributes: Attributes, level: int) -> tuple[int, ...]:
    channel = f"{_LEVEL}{level}/TimePoint 0/Channel 0"
    stored = find(f"{channel}/Data")
    shape = () if stored is None else tuple(stored.shape)
    return imaris.size_of(attributes(channel), shape) or shape


def _channel_names(attributes: Attributes, count: int) -> tuple[str, ...]:
    found = [imaris.text(attributes(f"/DataSetInfo/Channel {c}").get("Name", "")).strip() for c in range(count)]
    return tuple(found) if all(found) else ()


def _timing(attributes: Attributes, count: int) -> Timing | None:
    """Of when each time point was taken, which is written as a date."""
    said = attributes("/DataSetInfo/TimeInfo")
    try:
        when = [
            datetime.fromisoformat(imaris.text(said[f"TimePoint{t + 1}"]).strip()).replace(tzinfo=UTC)
            for t in range(count)
        ]
    except (KeyError, ValueError):
        return None
    return even([(one - when[0]).total_seconds() for one in when], "second")


@dataclass(frozen=True, eq=False, kw_only=True)
class ImarisVolume(FileVolume):
    """Read by chunk of each of its datasets."""

    one: StoredVolume
    """A dataset, as which all are read."""
    data: tuple[Any, ...]
    """Of one time point after the other, its channels."""

    def stored(self, selection: Selection) -> Array:
        lead = self.stored_shape[: len(self.stored_shape) - 3]
        spans = [range(*span.indices(n)) for span, n in zip(selection, lead, strict=False)]
        numbers = [int(np.ravel_multi_index(at, lead)) if lead else 0 for at in product(*spans)]
        found = [imaris.read(self.one, self.data[number], selection[len(lead) :]) for number in numbers]
        return np.stack(found).reshape(*map(len, spans), *found[0].shape)
