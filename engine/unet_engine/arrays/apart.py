"""Whether a result that is written into an array would change voxels that are read: blocks are written while others are
read."""

from __future__ import annotations

from collections.abc import Iterator
from os.path import realpath
from typing import Any

import numpy as np

from unet_engine.errors import OutputError
from unet_engine.paths import inside, is_local
from unet_engine.storage import stores
from unet_engine.volumes.base import Array, Volume
from unet_engine.volumes.joined import JoinedVolume
from unet_engine.volumes.lens import Lens


def overwritten() -> OutputError:
    return OutputError("out lies where the voxels do, which are read while the result is written; give another array")


def share_memory(target: Any, voxels: Array) -> bool:
    """Whether a write to `target`, whatever that is, changes any of `voxels`; also where that takes long to tell."""
    known = _plain(target)
    if not isinstance(known, np.ndarray) or not np.may_share_memory(known, voxels):
        return False
    try:
        return bool(np.shares_memory(known, voxels, max_work=10**4))  # type: ignore[arg-type]  # its stub has names for two numbers alone
    except np.exceptions.TooHardError:
        return True


def same_place(given: Any, out: Any) -> bool:
    """Whether two arrays are one of a store or a file, opened twice."""
    if any(
        one is not None and one == other for one, other in (_both(given, out, "store_path"), _both(given, out, "id"))
    ):
        return True
    there, place = _place(given), _place(out)
    return there is not None and place is not None and _meet(place, there)


def check_apart(volume: Volume, out: Any) -> None:
    """Raises `OutputError` where `out`, an array of Zarr, h5py or NumPy on this machine, is what `volume` reads, or lies
    in a file that it reads."""
    place = _place(out)
    for one in _leaves(volume):
        stored = getattr(one, "array", None)  # of Zarr, whose path may be that of a group around it
        if stored is not None and same_place(stored, out):
            raise overwritten()
        if stored is None and place and is_local(one.path) and _meet(place, inside(one.path)):
            raise overwritten()


def _both(a: Any, b: Any, name: str) -> tuple[Any, Any]:
    return getattr(a, name, None), getattr(b, name, None)


def _plain(array: Any) -> Any:
    return array.values if type(array).__module__.startswith("xarray.") else array


def _leaves(volume: Volume) -> Iterator[Volume]:
    """What is opened of `volume`."""
    behind: tuple[Volume, ...] = ()
    if isinstance(volume, Lens):
        behind = (volume.scan,)
    elif isinstance(volume, JoinedVolume):
        behind = volume.parts
    for one in behind:
        yield from _leaves(one)
    if not behind:
        yield volume


def _place(array: Any) -> tuple[str, str | None] | None:
    """The file or folder on this machine that holds the voxels of `array`, and the dataset in it; None where none is
    known to."""
    known = _plain(array)
    if (place := getattr(known, "store_path", None)) is not None:
        file = stores.file_of(place)
        return (str(file), None) if file else None
    if type(known).__module__.startswith("h5py."):
        return str(known.file.filename), str(known.name)
    while isinstance(known, np.ndarray):
        if isinstance(known, np.memmap) and known.filename is not None:
            return str(known.filename), None
        known = known.base
    return None


def _meet(place: tuple[str, str | None], there: tuple[str, str | None]) -> bool:
    """Whether `place` is `there` or lies in it. Of a file, datasets of two names are two."""
    names = {name.strip("/") for name in (place[1], there[1]) if name}
    return len(names) < 2 and stores.within(realpath(place[0]), realpath(there[0]))
