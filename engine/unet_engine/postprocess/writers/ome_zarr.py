"""OME-Zarr 0.5, as a folder or, zipped as one file, ``.ozx``."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from unet_engine.output.colours import colour_of
from unet_engine.output.label import KEY as KEY_OF_LABELS
from unet_engine.output.label import Label
from unet_engine.postprocess.content import Content
from unet_engine.postprocess.writers.base import account_in, account_text, chunks_of, lost_mask
from unet_engine.volumes.account import KEY
from unet_engine.volumes.base import Timing
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.nodata import as_attribute

_ARRAY = "0"


class ZarrWriter:
    name = "OME-Zarr"
    endings = (".zarr",)
    folder = True

    def require(self, path: str, frame: Frame | None) -> None:
        """Needs nothing."""

    def check(self, path: str, content: Content) -> None:
        """Holds everything."""

    def losses(self, content: Content) -> list[str]:
        return lost_mask(content, "OME-Zarr")

    def write(self, place: Path, content: Content) -> None:
        write_group(place, content, place.stem)

    def account(self, path: str) -> Mapping[str, Any] | None:
        found = dict(zarr.open_group(path, mode="r").attrs).get(KEY)
        return found if isinstance(found, dict) else None


class OzxWriter:
    name = "a zipped OME-Zarr"
    endings = (".ozx",)
    folder = False

    def require(self, path: str, frame: Frame | None) -> None:
        """Needs nothing."""

    def check(self, path: str, content: Content) -> None:
        """Holds everything."""

    def losses(self, content: Content) -> list[str]:
        return lost_mask(content, "OME-Zarr")

    def write(self, place: Path, content: Content) -> None:
        """Chunks are packed one by one already: the archive only strings them together, all metadata first."""
        folder = place.with_name("group.zarr")
        write_group(folder, content, place.stem)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        metadata = sorted((f for f in files if f.name == "zarr.json"), key=lambda f: len(f.parts))
        with zipfile.ZipFile(place, "w", zipfile.ZIP_STORED) as archive:
            archive.comment = json.dumps(
                {"ome": {"version": "0.5", "zipFile": {"centralDirectory": {"jsonFirst": True}}}}
            ).encode()
            for file in [*metadata, *(f for f in files if f.name != "zarr.json")]:
                entry = zipfile.ZipInfo(file.relative_to(folder).as_posix())
                entry.external_attr = 0o644 << 16
                with file.open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
                    while piece := source.read(2**20):
                        target.write(piece)

    def account(self, path: str) -> Mapping[str, Any] | None:
        with zipfile.ZipFile(path) as archive:
            found = json.loads(archive.read("zarr.json"))["attributes"].get(KEY)
        return found if isinstance(found, dict) else None


def write_group(place: Path, content: Content, name: str) -> None:
    """A group with the voxels at ``0``."""
    chunks = chunks_of(content)
    group = zarr.create_group(place, zarr_format=3, attributes=_attributes(content, name))
    array = group.create_array(
        _ARRAY,
        shape=content.shape,
        chunks=chunks,
        dtype=content.dtype.newbyteorder("="),
        compressors=zarr.codecs.ZstdCodec(level=1),
        fill_value=0,
        dimension_names=list(content.axes),
        attributes={"nodatavals": as_attribute(content.missing)} if content.missing else {},
    )
    for cell in content.aligned(chunks):
        voxels = content.read(cell)
        if np.any(voxels):
            array[cell] = voxels


def _attributes(content: Content, name: str) -> dict[str, Any]:
    """As a run writes them: axes, scale and translation, and whatever OME-Zarr has no place for."""
    kinds = {"t": "time", "c": "channel"}
    time = content.timing or Timing(1.0)
    units = dict.fromkeys("zyx", content.unit) | {"t": time.unit}
    axes = [
        {"name": a, "type": kinds.get(a, "space"), **({"unit": units[a]} if units.get(a) else {})} for a in content.axes
    ]
    n = len(content.spatial)
    spacing = {"t": time.step, **dict(zip(content.spatial, content.spacing or (1.0,) * n, strict=True))}
    translation = {"t": time.start, **dict(zip(content.spatial, content.translation or (0.0,) * n, strict=True))}
    moves: list[dict[str, Any]] = [
        {"type": "scale", "scale": [spacing.get(a, 1.0) for a in content.axes]},
        {"type": "translation", "translation": [translation.get(a, 0.0) for a in content.axes]},
    ]
    scales = [{"name": name, "axes": axes, "datasets": [{"path": _ARRAY, "coordinateTransformations": moves}]}]
    said = account_in(account_text(content)) or {}
    return {
        "ome": {"version": "0.5", "multiscales": scales, **_omero(content), **_label(content)},
        KEY: {**said, "complete": True},
    }


def _omero(content: Content) -> dict[str, Any]:
    if "c" not in content.axes or not content.channel_names:
        return {}
    channels = [
        {"label": name, "color": "{:02X}{:02X}{:02X}".format(*colour_of(i + 1)), "active": True}
        for i, name in enumerate(content.channel_names)
    ]
    return {"omero": {"channels": channels}}


def _label(content: Content) -> dict[str, Any]:
    return {KEY_OF_LABELS: Label(content.classes, content.colours).facts()} if content.labels else {}
