"""``.tif``: a GeoTIFF where voxels lie on a map, else an OME-TIFF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet_engine.postprocess.content import Content
from unet_engine.postprocess.writers.geotiff import GeoTiffWriter
from unet_engine.postprocess.writers.ome_tiff import OmeTiffWriter
from unet_engine.volumes.frame import Frame

_MAP, _IMAGE = GeoTiffWriter(), OmeTiffWriter()


class TiffWriter:
    name = "a TIFF"
    endings = (".tif", ".tiff")
    folder = False

    def require(self, path: str, frame: Frame | None) -> None:
        _for(frame).require(path, frame)

    def check(self, path: str, content: Content) -> None:
        _for(content.frame).check(path, content)

    def losses(self, content: Content) -> list[str]:
        return _for(content.frame).losses(content)

    def write(self, place: Path, content: Content) -> None:
        _for(content.frame).write(place, content)

    def account(self, path: str) -> Mapping[str, Any] | None:
        for writer in (_MAP, _IMAGE):
            try:
                if found := writer.account(path):
                    return found
            except Exception:  # it is the other one
                continue
        return None


def _for(frame: Frame | None) -> GeoTiffWriter | OmeTiffWriter:
    return _MAP if frame and frame.space == "crs" else _IMAGE
