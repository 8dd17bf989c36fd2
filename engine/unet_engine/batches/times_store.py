"""The outputs of single time points in a bucket become one with a time axis: nothing is renamed there, so the store
copies their chunks to where the whole is to lie."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from unet_engine.errors import OutputError
from unet_engine.output import output
from unet_engine.output.array import METADATA
from unet_engine.output.header import ARRAY, PROVENANCE, read_header
from unet_engine.postprocess.copying import check_empty, check_there, copy_all, largest
from unet_engine.storage import stores
from unet_engine.storage.remote_files import RemoteFile


def read(path: str) -> dict[str, Any]:
    """The metadata of the node of Zarr v3 at `path`."""
    return dict(json.loads(RemoteFile(f"{path.rstrip('/')}/{METADATA}").content() or b"{}"))


def put_together(
    works: Sequence[str], target: str, array: Mapping[str, Any], group: Mapping[str, Any], *, overwrite: bool
) -> None:
    """Have `target` be of the metadata `array` and `group`, its time points the chunks of `works`. May be killed
    anywhere, and called again: the works are whole until it is, and a group that is being made says that it is not.
    Raises `OutputError` where something else is there that is not to be replaced, and what stores raise."""
    place, attributes = RemoteFile(target.rstrip("/")), dict(group["attributes"])
    begun, whole = ({**attributes[PROVENANCE], "complete": complete} for complete in (False, True))
    _make_room(place, begun, overwrite=overwrite)
    stores.store_of(target).create_group(target, {**attributes, PROVENANCE: begun})
    if read_header(target) != begun:
        raise OutputError(f"{target} appeared meanwhile and is kept; use --overwrite to replace it")
    chunks = _chunks(place, works)
    copy_all(place, {origin: f"{place.key}/{name}" for origin, name in chunks.items()}, largest(array))
    check_there(place, [METADATA, *chunks.values()])
    place.beside(f"{place.key}/{ARRAY}/{METADATA}").replace(json.dumps(array, indent=2).encode())
    stores.store_of(target).rewrite_group(target, {**attributes, PROVENANCE: whole})


def _chunks(place: RemoteFile, works: Sequence[str]) -> dict[str, str]:
    """Chunks of `works`, which lie beside `place`, and what they are called in the whole."""
    found, start = {}, f"{ARRAY}/c/"
    for number, work in enumerate(works):
        own = place.beside(work.rstrip("/").rpartition("/")[2])
        for name in own.names():
            if name.startswith(start):
                found[f"{own.key}/{name}"] = f"{start}{number}/{name.removeprefix(start)}"
    return found


def _make_room(place: RemoteFile, begun: Mapping[str, Any], *, overwrite: bool) -> None:
    found = read_header(place.url)
    if found is not None and {**found, "complete": False} == begun:
        output.empty(place.url)
    elif found is not None:
        if not overwrite:
            raise OutputError(f"{place.url} appeared meanwhile and is kept; use --overwrite to replace it")
        output.remove(place.url)
    elif stores.exists(place.url):
        raise OutputError(
            f"{place.url} appeared meanwhile and was not written by unet-engine: it is left alone; choose another --out"
        )
    else:
        check_empty(place)
