"""Which axis and which channels of a volume are those that a model takes, where neither the file nor the user says it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from unet_engine.model.spec import ModelSpec
from unet_engine.paths import is_local
from unet_engine.volumes.base import Volume
from unet_engine.volumes.formats import open_stored
from unet_engine.volumes.pick import Pick

_SHOWN = {"t": "time points", "z": "planes"}


def meant_for(
    volume: Volume, pick: Pick, spec: ModelSpec, notes: list[str], *, place: str, axes: str | None
) -> tuple[Pick, Volume]:
    """What of `volume`, opened at `place` with all that is stored, `spec` is given, and as what that was picked.

    An axis that nobody named is that of channels where it has as many as the network takes, which nothing else in the
    volume has: of a NIfTI the fourth, of a stack of planes the first for a network of planes. That is told. axes: the
    user's, which are never changed. Raises `InputError` where nothing fits."""
    if axes is None and (axis := _of_channels(volume, pick, spec)):
        volume = open_stored(place, volume.axes.replace("c", "").replace(axis, "c"))
        notes.append(
            f"the {_count(volume)} {_SHOWN[axis]} of {place} are taken as channels: {spec.name} takes as many, and the "
            f"file names no axis; --axes says otherwise"
        )
    return with_alpha(pick, volume.picked(pick), spec)


def _count(volume: Volume) -> int:
    return volume.stored_shape[volume.axes.index("c")]


def _of_channels(volume: Volume, pick: Pick, spec: ModelSpec) -> str | None:
    """The axis that has to be that of channels; None: none has, or there is one."""
    sizes = dict(zip(volume.axes, volume.stored_shape, strict=True))
    if spec.channels_in == 1 or "c" in sizes or pick.timepoint is not None:
        return None
    wanted = len(pick.channels) if pick.channels else spec.channels_in
    fits = [
        a for a in volume.supposed
        if a not in spec.axes and wanted == spec.channels_in and (sizes[a] == wanted or (pick.channels and sizes[a] > 1))
    ]  # fmt: skip
    return fits[0] if len(fits) == 1 else None


def of_own_files(path: str, channels: int) -> tuple[str, ...]:
    """Names of the files of a case, one for each of so many `channels`, as nnU-Net calls them (``CASE_0000.nii.gz``),
    where `path` is one of these and all are there; else empty."""
    folder, _, name = path.rpartition("/")
    said = re.fullmatch(r"(.*_)[0-9]{4}(\.[^/]+)", name)
    if said is None or channels < 2 or not is_local(path):
        return ()
    names = tuple(f"{said[1]}{number:04}{said[2]}" for number in range(channels))
    return names if all(Path(folder or ".", one).exists() for one in names) else ()


def with_alpha(pick: Pick, volume: Volume, spec: ModelSpec) -> tuple[Pick, Volume]:
    """What is read of `volume`, of which `pick` was picked: alpha too, where the user names no channels and the network
    takes as many as are stored with it. It was trained on what the file calls alpha, then."""
    if pick.channels is not None or volume.alpha is None or volume.channels + 1 != spec.channels_in:
        return pick, volume
    every = replace(pick, channels=tuple(range(volume.channels + 1)))
    return every, volume.picked(every)
