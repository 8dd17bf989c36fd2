"""Objects of a store that get another place in it: nothing is renamed there, so the store copies them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

from zarr.core.metadata.v3 import ArrayV3Metadata

from unet_engine.errors import OutputError
from unet_engine.storage.remote import AT_ONCE
from unet_engine.storage.remote_files import RemoteFile


def copy_all(folder: RemoteFile, places: Mapping[str, str], most: int) -> None:
    """Have the store copy what is called by the keys of `places`, in the folder that `folder` lies in, to their values,
    several at once. most: bytes that one may have. Raises what stores raise."""

    def copy(pair: tuple[str, str]) -> None:
        origin, file = pair[0], folder.beside(pair[1])
        try:
            file.copy_from(origin, most)
        except NotImplementedError:
            data = folder.beside(origin).content()
            if data is None:
                raise FileNotFoundError(origin) from None
            file.replace(data)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(copy, places.items()):
            pass


def check_there(place: RemoteFile, wanted: Iterable[str]) -> None:
    """Raise `OSError` where anything else lies below `place` than what is called `wanted`."""
    if wrong := sorted(place.names().symmetric_difference(wanted)):
        raise OSError(f"{wrong[0]} is there that is not ours, or is gone again: somebody else writes to {place.url}")


def check_empty(place: RemoteFile) -> None:
    """Raise `OutputError` where anything lies below `place`, which is no group: it would be taken for chunks of it."""
    if found := sorted(place.names()):
        raise OutputError(
            f"{place.url} is no Zarr group, but holds {len(found):,} objects, e.g. {found[0]}; remove them, or choose "
            "another name"
        )


def largest(array: Mapping[str, Any]) -> int:
    """Bytes that a chunk or a shard of an array of these metadata may have."""
    parsed = ArrayV3Metadata.from_dict(dict(array))
    return int(2 * prod(parsed.chunk_grid.chunk_shape) * parsed.data_type.to_native_dtype().itemsize + 2**20)
