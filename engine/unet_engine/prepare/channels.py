"""Which axis and which channels of a volume are those that a model takes, where neither the file nor the user says it."""

from __future__ import annotations

import os
from dataclasses import replace

from unet_engine.endings import numbered
from unet_engine.errors import InputError
from unet_engine.model.spec import ModelSpec
from unet_engine.paths import is_local
from unet_engine.volumes.base import Volume
from unet_engine.volumes.formats import case_in, open_stored
from unet_engine.volumes.pick import Pick

_SHOWN = {"t": "time points", "z": "planes"}


def meant_for(
    volume: Volume, pick: Pick, spec: ModelSpec, notes: list[str], *, place: str, axes: str | None
) -> tuple[Pick, Volume, str]:
    """What of `volume`, opened at `place` with all that is stored, `spec` is given, as what that was picked, and where
    that lies.

    Channels that lie in files of their own beside it, by their names, are taken. An axis that nobody named is that of
    channels where it has as many as the network takes, which nothing else in the volume has: of a NIfTI the fourth, of a
    stack of planes the first for a network of planes. That is told. axes: the user's, which are never changed; empty: it
    is open, and stays as it is. Raises `InputError` where nothing fits."""
    if axes != "" and volume.channels == 1 and (files := of_own_files(place, spec, every=pick.channels is not None)):
        place = "+".join(files)
        volume = open_stored(place, axes)
    if axes is None and (axis := _of_channels(volume, pick, spec)):
        volume = open_stored(place, volume.axes.replace("c", "").replace(axis, "c"))
        notes.append(
            f"the {_count(volume)} {_SHOWN[axis]} of {place} are taken as channels: {spec.name} takes as many, and the "
            f"file names no axis; --axes says otherwise"
        )
    return *with_alpha(pick, volume.picked(pick), spec), place


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


def of_own_files(path: str, spec: ModelSpec, *, every: bool = False) -> tuple[str, ...]:
    """The files of a case, one for each channel of `spec`, as nnU-Net calls them (``CASE_0000.nii.gz``), where `path` is
    one of these and they are there; else empty. every: of all channels that there are, of which some are named.

    Slices of a folder are such files where they are all of a case, and as many as the network takes.

    Raises `InputError` where some are missing, or there are more than the network takes."""
    if first := case_in(path):
        alone = numbered(first)
        after = f"{alone[0]}{spec.channels_in:04}{alone[2]}" if alone else ""
        return () if os.path.exists(after) else of_own_files(first, spec)  # noqa: PTH110
    said = numbered(path)
    if said is None or spec.channels_in < 2 or not is_local(path):
        return ()
    names = [f"{said[0]}{number:04}{said[2]}" for number in range(spec.channels_in + 1)]
    there = [os.path.exists(name) for name in names]  # noqa: PTH110  # asked of every volume
    if every:
        while there[-1]:
            names.append(f"{said[0]}{len(names):04}{said[2]}")
            there.append(os.path.exists(names[-1]))  # noqa: PTH110
        found = tuple(names[: there.index(False)])
        return found if path in found and len(found) > 1 else ()
    if not any(there) or path not in names:
        return ()
    if there[-1] and all(there):
        raise InputError(
            f"{path} and the files beside it are more channels than the {spec.channels_in} that the model {spec.name} takes; "
            f"name those that it takes, in its order, e.g. --in {'+'.join(names[:-1])}, or with --input-channels"
        )
    if not all(there[:-1]) and sum(there) > 1 and names[0] == path:
        raise InputError(
            f"{path} is a channel of {spec.channels_in} that the model {spec.name} takes, and {names[there.index(False)]} is "
            "missing beside it; restore that, or name all of them, in its order, with --in A+B"
        )
    return tuple(names[:-1]) if all(there[:-1]) else ()


def is_numbered(path: str) -> bool:
    """Whether `path` is called as the file of one channel."""
    return is_local(path) and (numbered(path) is not None or case_in(path) is not None)


def with_alpha(pick: Pick, volume: Volume, spec: ModelSpec) -> tuple[Pick, Volume]:
    """What is read of `volume`, of which `pick` was picked: alpha too, where the user names no channels and the network
    takes as many as are stored with it. It was trained on what the file calls alpha, then."""
    if pick.channels is not None or volume.alpha is None or volume.channels + 1 != spec.channels_in:
        return pick, volume
    every = replace(pick, channels=tuple(range(volume.channels + 1)))
    return every, volume.picked(every)
