"""A scan of another grid than the network's is brought to it on the device: the CPU's bytes, in any memory order, memory
as it was planned; what a voxel's own value does not decide is left to the host."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import unet_engine
from support.devices import alone_and_by_a_station, prepared, worked
from support.shares import share
from support.volumes import fake_model, make_volume, result_of
from unet_engine.commands.report import device_lines
from unet_engine.pipeline.gpu.pipeline import DevicePipeline
from unet_engine.pipeline.worker import Worker
from unet_engine.plan.box import Box
from unet_engine.plan.device_grid import grid_passes
from unet_engine.plan.device_memory import device_memory, extents, grid_depth, grid_scratch
from unet_engine.plan.memory import Sizes
from unet_engine.units import size

MM = "millimeter"


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each block that was read, whether the host interpolated it."""
    found: list[bool] = []
    as_before = Worker._voxels

    def counted(worker: Worker, box: Box) -> Any:
        voxels, there = as_before(worker, box)
        found.append(there is None)
        return voxels, there

    monkeypatch.setattr(Worker, "_voxels", counted)
    return found


def scanned(
    folder: Path, array: np.ndarray, ratio: tuple[float, ...], options: Any = (), **spec: Any
) -> dict[str, Any]:
    """A scan, and a model that wants voxels of other sizes: `ratio` of its own for each of the scan's."""
    axes = "zyx"[-len(ratio) :]
    volume = make_volume(
        folder / "scan.zarr", array, axes="c" + axes, ome="0.5", unit=MM, scale=(1.0,) * array.ndim, **dict(options)
    )
    window = (6, 7, 8)[-len(ratio) :]
    model = fake_model(
        folder, axes=axes, channels_in=len(array), channels_out=2, window=window, window_min=window,
        window_step=(0,) * len(ratio), spacing=list(ratio), spacing_unit=MM, activation="sigmoid", **spec,
    )  # fmt: skip
    return {"volume": volume, "model": model}


def both(found: dict[str, Any], folder: Path, on_host: list[bool], **options: Any) -> list[bool]:
    """Compares what the CPU and what the simulated GPU make of a volume; which blocks the host interpolated for the GPU."""
    options = {"model": found["model"], "output": "logits", "grid": "model"} | options
    results = []
    for device in ("cpu", "simulated"):
        on_host.clear()
        results.append(
            result_of(unet_engine.run(found["volume"], out=str(folder / device), device=device, **options).out)
        )
        assert device != "cpu" or all(on_host)
    np.testing.assert_array_equal(results[1].view(np.uint8), results[0].view(np.uint8))
    assert results[0].any()
    return on_host


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    n = draw(st.integers(2, 3))
    how = {name: draw(st.sampled_from((0, 1, 3))) for name in ("image", "image_apart")}
    return {
        "shape": tuple(draw(st.integers(2, 26)) for _ in range(n)), "channels": draw(st.integers(1, 2)),
        "ratio": tuple(draw(st.sampled_from((0.4, 0.8, 1.0, 1.7, 3.3))) for _ in range(n)),
        "dtype": draw(st.sampled_from(("uint8", "int16", "uint32", "float32", "float64"))),
        "resampling": {
            **how, "output": 1, "apart": draw(st.sampled_from(("never", "always", "anisotropic"))),
            "aligned": draw(st.sampled_from(("ends", "first"))),
            "first": draw(st.sampled_from(("normalised", "interpolated"))),
            **draw(st.sampled_from(({}, {"cut": "extremes"}))),
        },
        "normalize": draw(st.sampled_from(("zscore:whole", "range:-3,99", "zscore:whole,clip=2:60"))),
        "block": tuple(draw(st.integers(1, 2)) for _ in range(n)), "background": draw(st.sampled_from((0.0, -1.0, 7.0))),
    }  # fmt: skip


CUBIC = {
    "shape": (20, 24, 23), "channels": 1, "ratio": (1.4, 0.8, 0.8), "dtype": "int16", "block": (1, 2, 1),
    "resampling": {"image": 3, "output": 1, "apart": "never", "cut": "extremes", "first": "normalised"},
    "normalize": "zscore:whole", "background": -1.0,
}  # fmt: skip
THICK = CUBIC | {
    "shape": (7, 24, 20), "ratio": (0.5, 1.6, 1.6), "channels": 2, "dtype": "float32",
    "resampling": {"image": 3, "image_apart": 0, "output": 1, "apart": "always", "cut": "extremes"},
}  # fmt: skip


@pytest.mark.slow
@given(cases(), st.sampled_from([2**26, 2**12]))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_bytes_are_those_of_the_cpu(
    blocks: Any, monkeypatch: pytest.MonkeyPatch, on_host: list[bool], case: dict[str, Any], scratch: int
) -> None:
    """Any orders, ratios, types and bounds, some planes of a block at a time or all at once."""
    compare(blocks, monkeypatch, on_host, case, scratch)


@pytest.mark.parametrize("case", [CUBIC, THICK], ids=["cubic", "anisotropic"])
def test_the_host_makes_no_block(
    blocks: Any, monkeypatch: pytest.MonkeyPatch, on_host: list[bool], case: dict[str, Any]
) -> None:
    compare(blocks, monkeypatch, on_host, case, 2**12)


def compare(
    blocks: Any, monkeypatch: pytest.MonkeyPatch, on_host: list[bool], case: dict[str, Any], scratch: int
) -> None:
    monkeypatch.setattr("unet_engine.plan.device_grid.SCRATCH", scratch)
    rng = np.random.default_rng(sum(case["shape"]))
    array = rng.integers(0, 99, (case["channels"], *case["shape"])).astype(case["dtype"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        blocks(case["block"])
        found = scanned(folder, array, case["ratio"], resampling=case["resampling"], background=case["background"])
        left = both(found, folder, on_host, normalize=case["normalize"])
        assert not any(left) or set(case["ratio"]) == {1.0}


@pytest.mark.parametrize("orientation", ["LPS", "IRA", "PSR"])
def test_a_turned_scan_is_copied_as_it_lies(
    blocks: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_host: list[bool], orientation: str
) -> None:
    """Turned and mirrored by the strides of what the kernel reads."""
    blocks((1, 2, 1))
    copied: list[Any] = []
    as_before = DevicePipeline.pin

    def pin(pipeline: DevicePipeline, raw: Any) -> Any:
        pinned = as_before(pipeline, raw)
        copied.append((raw.voxels.strides, pinned.voxels.strides))
        return pinned

    monkeypatch.setattr(DevicePipeline, "pin", pin)
    array = np.random.default_rng(3).integers(0, 99, (18, 15, 22)).astype(np.int16)
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 1.0, 1.0])), tmp_path / "scan.nii")
    window = (6, 7, 8)
    model = fake_model(
        tmp_path, axes="zyx", channels_in=1, channels_out=2, window=window, window_min=window, window_step=(0, 0, 0),
        spacing=[1.3, 0.8, 0.8], spacing_unit=MM, activation="sigmoid", orientation=orientation, resampling={"image": 3},
    )  # fmt: skip
    found = {"volume": str(tmp_path / "scan.nii"), "model": model}
    assert not any(both(found, tmp_path, on_host, normalize="zscore:whole"))
    assert copied
    assert all(np.argsort(a[1:]).tolist() == np.argsort(b[1:]).tolist() for a, b in copied)
    assert all((np.sign(a[1:]) == np.sign(b[1:])).all() for a, b in copied)


@pytest.mark.parametrize("what", share(["nan", "nodata", "mask"]))
def test_blocks_that_were_not_measured_everywhere_are_made_by_the_host(
    blocks: Any, tmp_path: Path, on_host: list[bool], what: str
) -> None:
    """And those alone; a mask leaves windows out, and says nothing of voxels."""
    blocks((1, 1, 1))
    array = np.random.default_rng(4).random((1, 30, 14, 16)).astype(np.float32)
    options: dict[str, Any] = {}
    if what == "nan":
        array[0, 2, 3, 4], options = np.nan, {"replace_nonfinite": 0.0}
    elif what == "nodata":
        array[0, 2, 3, 4], options = -9, {"nodata": "-9"}
    else:
        inside = np.zeros(array.shape[1:], np.uint8)
        inside[20:] = 1
        options = {
            "mask": make_volume(tmp_path / "mask.zarr", inside, axes="zyx", ome="0.5", unit=MM, scale=(1.0,) * 3)
        }
    found = scanned(tmp_path, array, (1.5, 0.8, 0.8), resampling={"image": 1})
    left = both(found, tmp_path, on_host, normalize="zscore:whole", **options)
    assert left
    assert any(left) == (what != "mask")
    assert not all(left)


def test_what_windows_see_is_looked_at_where_a_model_says_what_nothing_gives(
    blocks: Any, tmp_path: Path, on_host: list[bool]
) -> None:
    """Then the host interpolates, and looks for background."""
    blocks((1, 1, 1))
    array = np.zeros((1, 30, 14, 16), np.float32)
    array[0, :9] = np.random.default_rng(4).random((9, 14, 16))
    found = scanned(tmp_path, array, (1.5, 0.8, 0.8), resampling={"image": 1}, empty=(0.0, 0.0))
    assert all(both(found, tmp_path, on_host, normalize="range:0,2"))


def planned(folder: Path, **options: Any) -> Any:
    """A planned run of a network of twice the spacing, in many blocks."""
    spec = {"spacing": [2.0, 2.0, 2.0], "spacing_unit": MM, "window_step": (0, 0, 0), "window_min": (8, 8, 8)}
    spec["resampling"] = {"image": options.pop("order", 1), "output": 1, "apart": "never", "cut": "extremes"}
    array = np.random.default_rng(2).integers(0, 99, (40, 36, 44)).astype(np.int16)
    make_volume(folder / "v.zarr", array, axes="zyx", ome="0.5", unit=MM, scale=(1.0, 1.0, 1.0))
    return prepared(folder, array, spec=spec, **options)


def test_how_fast_voxels_are_read_is_measured_without_what_the_device_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise AssertionError("the host interpolated")

    monkeypatch.setattr("unet_engine.volumes.resampled.operations.interpolate", fail)
    found = planned(tmp_path)
    assert found.reading.found > 0
    found.network.close()


@pytest.mark.parametrize("order", [1, 3])
def test_memory_is_planned_and_the_scan_goes_over_in_its_own_type(
    tmp_path: Path, blocks: Any, monkeypatch: pytest.MonkeyPatch, order: int
) -> None:
    monkeypatch.setattr("unet_engine.plan.device_grid.SCRATCH", 2**14)
    blocks((1, 2, 2))
    found = planned(tmp_path, order=order, grid="model")
    device, plan = found.network.device, found.job.plan
    network, sent = device.used, []
    copy = device.copy
    monkeypatch.setattr(
        device, "copy", lambda stream, to, source: (sent.append((to.memory.what, to.size)), copy(stream, to, source))
    )
    worker = worked(found, tmp_path)
    sizes = Sizes(4, 4 * 2, found.job.layout.voxel_bytes, scan=2)
    predicted = replace(device_memory(plan, sizes, network), kept=sum(found.job.shelves))
    assert predicted.image == found.device_memory.image > 0
    assert f"the grid of the network {size(predicted.image)}" in dict(device_lines(found))["device"]
    assert predicted.total >= device.peak
    assert predicted.total - device.peak < 8192, "only what is rounded up, and figures that are not needed"
    tasks = [task for column in plan.columns() for task in plan.tasks(column, lambda _: True)]
    there = [
        Box(
            *zip(
                *(a.reach(*s) for a, s in zip(plan.image, zip(t.read.lo, t.read.hi, strict=True), strict=True)),
                strict=True,
            )
        )
        for t in tasks
    ]
    assert [n for what, n in sent if what == "raw voxels"] == [2 * box.size for box in there]
    launches = device.counts["resample"]
    assert launches == len(tasks) if order == 1 else launches > 3 * len(tasks)
    assert device.counts["clip"] == (0 if order == 1 else len(tasks))
    assert worker.pipeline is not None
    worker.pipeline.close()


@pytest.mark.slow
def test_a_station_of_a_cluster_gives_the_same(tmp_path: Path, blocks: Any) -> None:
    blocks((1, 2, 2))
    alone, station = alone_and_by_a_station(tmp_path, lambda folder: planned(folder, output="logits", order=3))
    assert alone.any()
    np.testing.assert_array_equal(station, alone)


def test_scratch_memory_is_enough_for_blocks_that_write_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a block at the end, few rows are made of as many voxels as of any: as many planes at a time as would fill the
    memory between all passes would not fit that between the first two. So all blocks make as many at a time."""
    monkeypatch.setattr("unet_engine.plan.device_grid.SCRATCH", 2**16)
    spec = {"spacing": [2.0, 2.0, 2.0], "spacing_unit": MM, "window_step": (0, 0, 0), "window_min": (8, 8, 8)}
    spec["resampling"] = {"image": 1, "output": 3, "apart": "never"}
    array = np.zeros((70, 298, 70), np.int16)
    make_volume(tmp_path / "v.zarr", array, axes="zyx", ome="0.5", unit=MM, scale=(1.0, 1.0, 1.0))
    found = prepared(tmp_path, array, spec=spec, grid="scan", output="logits")
    found.network.close()
    plan = replace(found.job.plan, block=(4, 4, 4), chunk=(8, 8, 8), cuts=((),) * 3)
    passes, depth, planned = grid_passes(plan), *(of(plan, extents(plan), 8) for of in (grid_depth, grid_scratch))
    written = [block for block in plan.blocks() if not block.write.is_empty]
    of_own = False
    for block in written:
        core, write = block.core.shape, block.write.shape
        assert all(8 * n <= p for n, p in zip(passes.scratch(core, write, min(depth, write[0])), planned, strict=True))
        own = passes.scratch(core, write, passes.depth(core, write, 8))
        of_own |= any(8 * n > p for n, p in zip(own, planned, strict=True))
    assert of_own, "a depth of each block's own would not fit"
