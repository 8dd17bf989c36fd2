"""Outlines of the objects of a map, as polygons in its coordinates: along the edges of pixels, exact across blocks.

Each block is outlined by GDAL. The pieces of an object are then put together, and vertices that only a block's edge
made are taken out again, so that no block shows.
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.errors import InputError, UnetEngineError, writing
from unet_engine.plan.box import Box
from unet_engine.plan.plan import Index
from unet_engine.postprocess.base import Array, Boxes, Crew, Found, block_of, known_of, refuse_changed
from unet_engine.postprocess.file_target import endings, made
from unet_engine.postprocess.places import World
from unet_engine.postprocess.source import Source, check_labels
from unet_engine.postprocess.table import classes_of

FORMAT = 1
"""Changes whenever the same volume would give other polygons than an earlier version's."""
DRIVERS: Mapping[str, str] = {".gpkg": "GPKG", ".parquet": "parquet", ".geojson": "GeoJSON"}
"""By the ending of a file what writes it."""
VOXELS = 2**22
"""Of a block."""


def libraries() -> Any:
    """Modules rasterio.features, shapely and geopandas. Raises `UnetEngineError` where one is missing."""
    try:
        import geopandas
        import pyarrow  # noqa: F401
        import shapely
        from rasterio import features
    except ImportError as error:
        raise UnetEngineError(
            f"polygons need rasterio, geopandas and pyarrow ({error}); pip install 'unet-engine[polygons]'"
        ) from error
    return features, shapely, geopandas


@dataclass(frozen=True)
class Polygons:
    """The pass: pieces of outlines of each box, then whole ones."""

    source: Source
    boxes: Boxes

    def look(self, index: Index, box: Box) -> Found:
        """Pieces in the box: the number of their object, and an outline in pixels (x, y; a pixel begins at its number)
        as WKB, one after another, with their lengths."""
        features, shapely, _ = libraries()
        labels = self.source.labels(box)
        ids, local = np.unique(labels, return_inverse=True)
        local = local.reshape(labels.shape).astype(np.int32)
        lo = np.array(box.lo[::-1], np.float64)
        pieces, numbers = [], []
        for piece, value in features.shapes(local, mask=labels != 0, connectivity=4):
            numbers.append(ids[int(value)])
            pieces.append(shapely.to_wkb(shapely.transform(shapely.geometry.shape(piece), lambda at: at + lo)))
        return {
            "id": np.array(numbers, ids.dtype),
            "length": np.array([len(piece) for piece in pieces], np.int64),
            "wkb": np.frombuffer(b"".join(pieces), np.uint8),
        }

    def changed(self, box: Box, since: float) -> str | None:
        return self.source.changed(box, since)

    def reduce(self, found: Iterable[tuple[Index, Found]]) -> dict[int, Any]:
        """By number of an object its outline, in pixels."""
        _, shapely, _ = libraries()
        pieces: defaultdict[int, list[bytes]] = defaultdict(list)
        for _, one in found:
            ends = np.cumsum(one["length"])
            whole = one["wkb"].tobytes()
            for number, end, length in zip(one["id"].tolist(), ends.tolist(), one["length"].tolist(), strict=True):
                pieces[number].append(whole[end - length : end])
        return {number: _joined(shapely, pieces.pop(number)) for number in sorted(pieces)}


def _joined(shapely: Any, pieces: list[bytes]) -> Any:
    """One outline, the same whatever pieces it comes in: a MultiPolygon."""
    whole = shapely.union_all(shapely.from_wkb(pieces))
    parts = shapely.get_parts(whole)
    polygons = [
        shapely.Polygon(_corners(part.exterior.coords), [_corners(ring.coords) for ring in part.interiors])
        for part in parts
    ]
    return shapely.normalize(shapely.MultiPolygon(polygons))


def _corners(ring: Any) -> Array:
    """The points of a closed ring at which it turns."""
    points = np.asarray(ring)[:-1]
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return np.asarray(points[turns])


def polygons(source: Source, out: str, crew: Crew, *, overwrite: bool = False) -> dict[str, Any]:
    """Write the outlines of the objects at `source`, in 2D, to the file `out`; returns what is known of it.

    Raises what its parts raise, and `InputError` for a volume of three axes.
    """
    driver = endings(out, DRIVERS, "the file of polygons")
    libraries()
    volume = check_labels(source)
    if len(volume.shape) != 2:
        raise InputError(f"{source.path} has axes {volume.spatial}, and polygons are of 2D; give one plane, e.g. a map")
    boxes = Boxes(volume.shape, block_of(volume.shape, volume.chunks, VOXELS))
    identity = {
        "pass": "polygons", "format": FORMAT, "input": source.name, "shape": list(volume.shape),
        "block": list(boxes.block),
    }  # fmt: skip
    world = World.of(volume)
    with made(out, identity, overwrite=overwrite) as draft:
        work = Polygons(source, boxes)
        begun = time.time()
        outlines = known_of(work, draft.keep, crew)
        refuse_changed(work, begun)
        _write(draft.place, driver, _frame(outlines, source, world))
    return {"out": out, "objects": len(outlines), "crs": world.crs}


def _frame(outlines: Mapping[int, Any], source: Source, world: World) -> Any:
    """Outlines in the world's coordinates, with number, class, pixels and area of each."""
    _, shapely, geopandas = libraries()
    if outlines and max(outlines) >= 2**63:
        raise InputError(
            f"{source.path}: object {max(outlines)} has a larger number than files of polygons hold; number the objects "
            "again, with unet-engine components"
        )
    ids = np.array(list(outlines), np.int64)
    shapes = np.array(list(outlines.values()), object)
    pixels = shapely.area(shapes).round().astype(np.int64) if len(ids) else ids
    data: dict[str, Any] = {"id": ids}
    if classes := classes_of(source):
        kinds = classes.of(ids)
        data |= {"class": np.asarray(kinds, np.int64), "class_name": [classes.name(int(kind)) for kind in kinds]}
    data |= {"pixels": pixels, "area": pixels * world.voxel}
    placed = [shapely.transform(shape, lambda at: world.points((at - 0.5)[:, ::-1])) for shape in shapes]
    return geopandas.GeoDataFrame(data, geometry=placed, crs=world.crs)


def _write(place: Path, driver: str, frame: Any) -> None:
    with writing(str(place), "writing polygons"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a map without CRS, which is told in words of ours
        if driver == "parquet":
            frame.to_parquet(place, index=False)
        else:
            frame.to_file(place, driver=driver, layer="objects", geometry_type="MultiPolygon")
