"""A group that we wrote as Zarr v3, as one of Zarr v2: chunks are the same bytes, they are called otherwise alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from zarr.core.metadata.v3 import ArrayV3Metadata

from unet_engine.errors import OutputError
from unet_engine.storage.durability import Durability, put

NGFF = "0.4"
"""The version of OME-Zarr that is Zarr v2."""
_METADATA = "zarr.json"


def as_v2(group: Path, durability: Durability) -> None:
    """Change the group at `group`, with all that is in it. May be killed anywhere, and called again.

    Raises `OutputError` for an array in chunks that Zarr v2 has no name for.
    """
    found = sorted(group.rglob(_METADATA), key=lambda file: -len(file.parts))
    for file in found:
        document, folder = json.loads(file.read_bytes()), file.parent
        new = documents_of(str(folder), document)
        if document["node_type"] == "array":
            _move(folder, durability)
        for name, said in new.items():
            put(folder / name, _text(said), durability)
        file.unlink()
        durability.folders([folder])


def documents_of(folder: str, document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What Zarr v2 has in place of the metadata `document` of the node at `folder`, by the names of its files, the one
    that makes it a node last. Raises `OutputError` for an array in chunks that Zarr v2 has no name for."""
    attributes = document.get("attributes") or {}
    if document["node_type"] == "array":
        return {".zattrs": {**attributes, **_named(document)}, ".zarray": _array(folder, document)}
    return {".zattrs": _flat(attributes), ".zgroup": {"zarr_format": 2}}


def _array(folder: str, document: Mapping[str, Any]) -> dict[str, Any]:
    parsed = ArrayV3Metadata.from_dict(dict(document))
    codecs = [codec.to_dict() for codec in parsed.codecs]
    names = [str(codec["name"]) for codec in codecs]
    if names != ["bytes", "zstd"]:
        raise OutputError(
            f"{folder} is packed by {', '.join(names)}, which is not written as Zarr v2; use --out NAME.zarr"
        )
    dtype = np.dtype(parsed.data_type.to_native_dtype()).newbyteorder("<")
    configuration: Any = codecs[1]["configuration"]
    return {
        "zarr_format": 2,
        "shape": list(parsed.shape),
        "chunks": list(parsed.chunk_grid.chunk_shape),
        "dtype": dtype.str,
        "compressor": {"id": "zstd", "level": int(configuration["level"])},
        "fill_value": np.asarray(parsed.fill_value).item(),
        "order": "C",
        "filters": None,
        "dimension_separator": "/",
    }


def _move(folder: Path, durability: Durability) -> None:
    """Chunks from ``c/0/0/0`` to ``0/0/0``."""
    chunks = folder / "c"
    if not chunks.is_dir():
        return
    for child in chunks.iterdir():
        child.rename(folder / child.name)
    chunks.rmdir()
    durability.folders([folder])


def _named(document: Mapping[str, Any]) -> dict[str, Any]:
    names = document.get("dimension_names")
    return {"_ARRAY_DIMENSIONS": list(names)} if names else {}


def _flat(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """As OME-Zarr 0.4 has them: beside all others, each with its version."""
    others = {key: value for key, value in attributes.items() if key != "ome"}
    ome = {key: value for key, value in dict(attributes.get("ome") or {}).items() if key != "version"}
    for image in ome.get("multiscales", []):
        image["version"] = NGFF
    if "image-label" in ome:
        ome["image-label"] = {**ome["image-label"], "version": NGFF}
    return {**others, **ome}


def _text(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode()
