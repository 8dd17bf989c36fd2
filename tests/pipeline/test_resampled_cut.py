"""What cubic splines overshoot is cut off at the least and the largest voxel, as nnU-Net has it. The reference does it
with SciPy on the whole volume."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zarr

import unet_engine
from support.volumes import fake_model, make_volume, result_of
from unet_engine.model.file import open_model
from unet_engine.output.header import PROVENANCE
from unet_engine.plan.box import Box
from unet_engine.prepare.resampling import grids, seen
from unet_engine.volumes.formats import open_volume

ndimage = pytest.importorskip("scipy.ndimage")
SHAPE = (14, 21, 19)
RNG = np.random.default_rng(5)
ISOTROPIC, APART, FINE_APART = (1.3, 0.7, 0.8), (5.0, 0.8, 0.7), (1.0, 0.9, 0.8)


def scan_of() -> Any:
    """Two levels with sharp edges, so that splines overshoot everywhere; planes differ in theirs."""
    values = np.where(RNG.random((2, *SHAPE)) < 0.3, np.float32(9), np.float32(-3)).astype(np.float32)
    return values * np.linspace(0.5, 1.5, SHAPE[0], dtype=np.float32)[:, None, None] + np.float32(0.25)


def model(folder: Any, spacing: Any = (1.0, 1.0, 1.0), **spec: Any) -> str:
    how = {"image": 3, "cut": "extremes", **spec.pop("resampling", {})}
    return fake_model(
        folder, **{"channels_in": 2, "channels_out": 2, "spacing": spacing, "spacing_unit": "millimeter",
                   "resampling": how, "normalization": "zscore:whole", **spec},
    )  # fmt: skip


def stored(folder: Any, values: Any, spacing: Any) -> str:
    return make_volume(folder / "v.zarr", values, axes="czyx", ome="0.5", scale=(1, *spacing), unit="millimeter")


def cut_zoom(values: Any, shape: tuple[int, ...]) -> Any:
    zoom = [n / s for n, s in zip(shape, values.shape, strict=True)]
    found = ndimage.zoom(values, zoom, order=3, mode="nearest", grid_mode=True)
    return np.clip(found, values.min(), values.max())


def expected_of(values: Any, shape: tuple[int, ...], axis: int | None) -> Any:
    if axis is None:
        return np.stack([cut_zoom(channel, shape) for channel in values])
    flat = tuple(n for a, n in enumerate(shape) if a != axis)
    planes = [np.stack([cut_zoom(p, flat) for p in np.moveaxis(channel, axis, 0)], axis) for channel in values]
    count = values.shape[1 + axis]
    at = np.clip(np.floor((np.arange(shape[axis]) + 0.5) * count / shape[axis]), 0, count - 1).astype(int)
    return np.stack(planes).take(at, 1 + axis)


@pytest.mark.parametrize(
    ("own", "new", "axis"),
    [
        (ISOTROPIC, (1.0, 1.0, 1.0), None), (APART, (3.7, 1.0, 1.0), 0), (APART, (5.0, 1.0, 1.0), 0),
        (FINE_APART, (0.6, 3.1, 0.7), 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("way", ["zscore", "clipped"])
def test_voxels_are_those_of_the_whole_volume_at_once(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, own: Any, new: Any, axis: int | None, way: str
) -> None:
    monkeypatch.setattr("unet_engine.volumes.pieces.PIECE", 300)
    values = scan_of()
    path = stored(tmp_path, values, own)
    ways = {"zscore": "zscore:whole", "clipped": "fixed:mean=1,std=2,clip=-2:8"}
    spec = open_model(model(tmp_path, new, normalization=ways[way])).spec
    if way == "zscore":
        normal = (values - values.mean((1, 2, 3), keepdims=True)) / values.std((1, 2, 3), keepdims=True)
    else:
        normal = (values.clip(-2, 8) - 1) / 2
    scan = open_volume(path)
    volume: Any = seen(scan, grids(scan, spec, [], ignore=False), spec)
    expected = expected_of(normal.astype(np.float64), volume.shape, axis)
    whole = Box.of_shape(volume.shape)
    found = volume.read(whole) + np.array(volume.pivot, np.float32).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    box = Box((2, 3, 1), tuple(n - 1 for n in volume.shape))
    np.testing.assert_array_equal(volume.read(box), volume.read(whole)[(slice(None), *box.slices())])
    plain = spec.model_copy(update={"resampling": spec.resampling.model_copy(update={"cut": None})})  # type: ignore[union-attr]
    other: Any = seen(scan, grids(scan, plain, [], ignore=False), plain)
    assert way == "clipped" or np.abs(other.read(whole) - volume.read(whole)).max() > 0.1


def test_a_volume_that_meets_both_bounds_is_not_read_to_its_end(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unet_engine.volumes.pieces.PIECE", 300)
    path = stored(tmp_path, scan_of(), ISOTROPIC)
    spec = open_model(model(tmp_path, normalization="fixed:mean=1,std=2,clip=-1:3")).spec
    scan, read = open_volume(path), []
    known = type(scan).read
    monkeypatch.setattr(type(scan), "read", lambda self, box, *more: (read.append(box), known(self, box, *more))[1])
    seen(scan, grids(scan, spec, [], ignore=False), spec)
    assert len(read) == 1


def test_they_name_the_run_and_are_those_of_the_whole_volume(tmp_path: Any) -> None:
    """The same for a region and for parts."""
    path = stored(tmp_path, scan_of(), ISOTROPIC)
    net = model(tmp_path)
    options = {"model": net, "output": "logits"}
    whole = result_of(unet_engine.run(path, out=str(tmp_path / "whole.zarr"), **options).out)
    roi = unet_engine.run(path, out=str(tmp_path / "roi.zarr"), roi="3:12,5:17,2:15", **options)
    np.testing.assert_array_equal(result_of(roi.out), whole[:, 3:12, 5:17, 2:15])
    for part in (2, 1):
        unet_engine.run(path, out=str(tmp_path / "parts.zarr"), part=f"{part}/2", **options)
    np.testing.assert_array_equal(result_of(str(tmp_path / "parts.zarr")), whole)
    identity = zarr.open_group(str(tmp_path / "whole.zarr")).attrs[PROVENANCE]["identity"]
    assert len(identity["extremes"]) == 16


@pytest.mark.slow
def test_workers_of_a_cluster_give_the_same_bytes(tmp_path: Any) -> None:
    path, net = stored(tmp_path, scan_of(), APART), model(tmp_path)
    options = {"model": net, "output": "logits"}
    whole = result_of(unet_engine.run(path, out=str(tmp_path / "whole.zarr"), **options).out)
    found = unet_engine.run(path, out=str(tmp_path / "many.zarr"), workers=2, **options)
    np.testing.assert_array_equal(result_of(found.out), whole)
