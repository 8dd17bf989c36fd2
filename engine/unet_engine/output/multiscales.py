"""The multiscales of a group of Zarr v3: levels are added to them, and taken away, in one write of the group's
metadata.

Nothing else of that document changes, whoever wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import zarr

from unet_engine.errors import InputError
from unet_engine.output.array import METADATA
from unet_engine.output.header import PROVENANCE
from unet_engine.storage import stores
from unet_engine.storage.durability import Durability

VERSION = "0.5"
_INVALID = (KeyError, IndexError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class Listed:
    """What a group says of its first image."""

    name: str
    """Where its full resolution lies in the group."""
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    others: tuple[str, ...]
    """Where its other levels lie."""


def listed(path: str) -> Listed:
    """Raises `InputError` where the group at `path` is none of OME-Zarr 0.5, or its levels are placed otherwise than by
    scale and translation."""
    group = _group(path)
    attributes = dict(group.attrs)
    try:
        first, *others = dict(attributes["ome"])["multiscales"][0]["datasets"]
        if not str(attributes["ome"].get("version", VERSION)).startswith(VERSION):
            raise ValueError(f"it is version {attributes['ome']['version']}")
        kinds = [move["type"] for move in first["coordinateTransformations"]]
        if kinds not in (["scale"], ["scale", "translation"]):
            raise ValueError(f"transformations {', '.join(map(str, kinds))}")
        scale, *rest = (tuple(map(float, move[move["type"]])) for move in first["coordinateTransformations"])
        translation = rest[0] if rest else (0.0,) * len(scale)
        return Listed(str(first["path"]), scale, translation, tuple(str(one["path"]) for one in others))
    except _INVALID as error:
        raise InputError(
            f"{path}: its OME multiscales are not those of version 0.5 with a scale ({error}); convert it first: "
            "unet-engine convert IN OUT.zarr"
        ) from error


def _group(path: str) -> zarr.Group:
    try:
        node = stores.open_node(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} holds no Zarr group; give the path of one") from error
    except Exception as error:
        raise InputError(f"{path} is not a readable Zarr group: {error}; restore it, or give another one") from error
    if not isinstance(node, zarr.Group):
        raise InputError(f"{path} is an array; give the OME-Zarr group that holds it")
    if node.metadata.zarr_format != 3:
        raise InputError(
            f"{path} is Zarr v2 (OME-Zarr 0.4), whose levels are not added to; convert it first: "
            "unet-engine convert IN OUT.zarr"
        )
    return node


def placed(listed: Listed, name: str, factors: Sequence[int]) -> dict[str, Any]:
    """The dataset `name`, of whose voxels each covers `factors` of the full resolution: its middle is theirs."""
    scale = [s * f for s, f in zip(listed.scale, factors, strict=True)]
    moved = [t + s * (f - 1) / 2 for t, s, f in zip(listed.translation, listed.scale, factors, strict=True)]
    return {
        "path": name,
        "coordinateTransformations": [
            {"type": "scale", "scale": scale}, {"type": "translation", "translation": moved},
        ],
    }  # fmt: skip


def relist(path: str, datasets: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], durability: Durability) -> None:
    """Have the first image of the group at `path` list its full resolution and `datasets`, and, where a run or pass of
    ours made it, our header say `facts`."""
    place = stores.open_group(path, "r+").store_path / METADATA
    document = json.loads(stores.read(place) or b"")
    attributes = document["attributes"]
    image = attributes["ome"]["multiscales"][0]
    image["datasets"] = [image["datasets"][0], *datasets]
    if isinstance(attributes.get(PROVENANCE), dict):
        attributes[PROVENANCE] = {**attributes[PROVENANCE], **facts}
    _consolidate(path, document, datasets)
    stores.write(place, json.dumps(document, indent=2).encode(), durability)


def _consolidate(path: str, document: dict[str, Any], datasets: Sequence[Mapping[str, Any]]) -> None:
    """Add the levels to the metadata of all that lies in the group, where it keeps these."""
    inline = document.get("consolidated_metadata")
    if not isinstance(inline, dict) or not isinstance(inline.get("metadata"), dict):
        return
    place = stores.open_group(path, "r").store_path
    for dataset in datasets:
        found = stores.read(place / dataset["path"] / METADATA)
        inline["metadata"][dataset["path"]] = json.loads(found or b"null")
