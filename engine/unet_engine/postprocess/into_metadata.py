"""What the metadata of an OME-Zarr image say of its labels: documents in, documents out, wherever they lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from unet_engine.output.label import KEY, NEWEST

GROUP, V2_GROUP, V2_ATTRIBUTES, V2_ALL = "zarr.json", ".zgroup", ".zattrs", ".zmetadata"


def described(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The metadata of a group of labels of ours, in Zarr v3, once they are called `name` and lie in their image."""
    attributes = dict(document["attributes"])
    ome = dict(attributes["ome"])
    ome[KEY] = {**ome.get(KEY, {"version": NEWEST}), "source": {"image": "../../"}}
    ome["multiscales"] = [{**image, "name": name} for image in ome["multiscales"]]
    return {**document, "attributes": {**attributes, "ome": ome}}


def list_of(*, v2: bool) -> str:
    """Where in the folder ``labels`` the list of the image's labels lies."""
    return V2_ATTRIBUTES if v2 else GROUP


def names_in(found: bytes | None, *, v2: bool) -> list[str]:
    """The labels that the list names."""
    return list(_said(_attributes(found, v2=v2), v2=v2).get("labels") or ())


def with_names(found: bytes | None, names: list[str], *, v2: bool) -> bytes:
    """The list `found`, or a new one, naming these, beside what it says already."""
    attributes = _attributes(found, v2=v2)
    if v2:
        return text({**attributes, "labels": names})
    document = json.loads(found) if found else {"zarr_format": 3, "node_type": "group"}
    ome = {"version": NEWEST, **_said(attributes, v2=False), "labels": names}
    return text({**document, "attributes": {**attributes, "ome": ome}})


def _attributes(found: bytes | None, *, v2: bool) -> dict[str, Any]:
    document = json.loads(found) if found else {}
    return dict(document if v2 else document.get("attributes") or {})


def _said(attributes: Mapping[str, Any], *, v2: bool) -> dict[str, Any]:
    inner = attributes if v2 else attributes.get("ome")
    return dict(inner) if isinstance(inner, dict) else {}


def consolidated(found: bytes, inside: str, documents: Mapping[str, Any], *, v2: bool) -> bytes | None:
    """The metadata of all that lies in a group, where it keeps these: those of `documents`, by their places in the
    group, and of all else that lies at `inside` none; None where it keeps none, or it is so already."""
    document = json.loads(found)
    holder = document if v2 else document.get("consolidated_metadata")
    if not isinstance(holder, dict) or not isinstance(holder.get("metadata"), dict):
        return None
    others = {k: v for k, v in holder["metadata"].items() if k != inside and not k.startswith(f"{inside}/")}
    if {**others, **documents} == holder["metadata"]:
        return None
    holder["metadata"] = {**others, **documents}
    return text(document)


def text(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode()
