"""Outputs on the scan's grid are made on the device: the CPU's bytes, nothing on the host, memory as it was planned."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import unet_engine
from support.devices import alone_and_by_a_station, prepared, worked
from support.volumes import fake_model, make_volume, result_of
from unet_engine.commands.report import device_lines
from unet_engine.plan.device_grid import GridPasses, grid_passes
from unet_engine.plan.device_memory import device_memory
from unet_engine.plan.memory import Sizes
from unet_engine.units import size

OUTPUTS = [
    ("labels", None, {}), ("labels", None, {"threshold": 0.3}), ("labels", None, {"regions": (2, 3, 1)}),
    ("masks", None, {}), ("probabilities", "uint8", {}), ("probabilities", "float32", {}),
    ("probabilities", "float16", {}), ("logits", "float32", {}),
]  # fmt: skip


@pytest.fixture
def nothing_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise AssertionError("a block was finished on the host")

    monkeypatch.setattr("unet_engine.pipeline.gpu.finish.finish_on_host", fail)


def scanned(folder: Path, shape: tuple[int, ...], ratio: tuple[float, ...], **spec: Any) -> tuple[str, str]:
    """A scan and a model that wants voxels of other sizes: `ratio` of its own for each of the scan's."""
    axes = "zyx"[-len(shape) :]
    found = np.random.default_rng(sum(shape)).standard_normal((3, *shape)).astype(np.float32)
    volume = make_volume(
        folder / "scan.zarr", found, axes="c" + axes, ome="0.5", unit="millimeter", scale=(1.0,) * (1 + len(shape))
    )
    window = (6, 7, 8)[-len(shape) :]
    model = fake_model(
        folder, axes=axes, channels_in=3, channels_out=3, window=window, window_min=window,
        window_step=(0,) * len(shape), spacing=list(ratio), spacing_unit="millimeter", **spec,
    )  # fmt: skip
    return volume, model


def both(volume: str, folder: Path, **options: Any) -> list[np.ndarray]:
    """What the CPU and what the simulated GPU make of the same volume."""
    return [
        result_of(unet_engine.run(volume, out=str(folder / f"{device}.zarr"), device=device, **options).out)
        for device in ("cpu", "simulated")
    ]


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    n = draw(st.integers(2, 3))
    orders = {name: draw(st.sampled_from((0, 1, 3))) for name in ("output", "output_apart")}
    return {
        "shape": tuple(draw(st.integers(1, 30)) for _ in range(n)),
        "ratio": tuple(draw(st.sampled_from((0.4, 0.8, 1.0, 1.7, 2.0, 3.3))) for _ in range(n)),
        "resampling": {
            "image": 1, **orders, "apart": draw(st.sampled_from(("never", "always", "anisotropic"))),
            "aligned": draw(st.sampled_from(("ends", "first"))),
            "of": draw(st.sampled_from(("outputs", "probabilities"))),
        },
        "activation": draw(st.sampled_from(("softmax", "sigmoid"))),
        "block": tuple(draw(st.integers(1, 2)) for _ in range(n)),
        "blend": draw(st.sampled_from(("gaussian", "monai"))), "overlap": draw(st.sampled_from((0.0, 0.5, 0.7))),
    }  # fmt: skip


CUBIC = {
    "shape": (20, 27, 24), "ratio": (1.7, 1.4, 0.8), "activation": "softmax", "block": (1, 2, 1), "blend": "gaussian",
    "overlap": 0.5, "resampling": {"image": 3, "output": 3, "apart": "never"},
}  # fmt: skip
THICK = {
    "shape": (9, 24, 20), "ratio": (1.0, 1.6, 1.6), "activation": "sigmoid", "block": (2, 1, 1), "blend": "gaussian",
    "overlap": 0.5, "resampling": {"output": 3, "output_apart": 0, "apart": "always", "of": "probabilities"},
}  # fmt: skip


@pytest.mark.usefixtures("nothing_on_the_host")
@given(cases(), st.sampled_from(OUTPUTS), st.sampled_from([2**26, 2**12]))
@example(CUBIC, OUTPUTS[0], 2**12)
@example(CUBIC, OUTPUTS[4], 2**26)
@example(THICK, OUTPUTS[7], 2**12)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_bytes_are_those_of_the_cpu(
    blocks: Any, monkeypatch: pytest.MonkeyPatch, case: dict[str, Any], output: Any, scratch: int
) -> None:
    """Any orders, ratios and output, some planes of a block at a time or all at once."""
    monkeypatch.setattr("unet_engine.plan.device_grid.SCRATCH", scratch)
    kind, dtype, spec = output
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        blocks(case["block"])
        activation = "sigmoid" if spec else case["activation"]
        volume, model = scanned(
            folder, case["shape"], case["ratio"], activation=activation, resampling=case["resampling"], **spec
        )
        cpu, device = both(
            volume, folder, model=model, overlap=case["overlap"], blend=case["blend"], output=kind, dtype=dtype,
            grid="scan", normalize="range:-1,1",
        )  # fmt: skip
        np.testing.assert_array_equal(device.view(np.uint8), cpu.view(np.uint8))


def planned(folder: Path, **options: Any) -> Any:
    """A planned run whose output is on a grid of half the spacing, in many blocks."""
    spec = {"spacing": [2.0, 2.0, 2.0], "spacing_unit": "millimeter", "window_step": (0, 0, 0), "window_min": (8, 8, 8)}
    spec["resampling"] = {"image": 1, "output": options.pop("order", 1), "apart": "never"}
    array = np.random.default_rng(2).integers(0, 99, (40, 36, 44)).astype(np.int16)
    make_volume(folder / "v.zarr", array, axes="zyx", ome="0.5", unit="millimeter", scale=(1.0, 1.0, 1.0))
    return prepared(folder, array, spec=spec, grid="scan", **options)


@pytest.mark.parametrize("order", [1, 3])
def test_memory_is_planned_and_halos_stay_on_the_device(
    tmp_path: Path, blocks: Any, monkeypatch: pytest.MonkeyPatch, order: int
) -> None:
    monkeypatch.setattr("unet_engine.plan.device_grid.SCRATCH", 2**16)
    blocks((1, 2, 2))
    found = planned(tmp_path, order=order)
    assert not [note for note in found.notes if "CPU" in note]
    device, plan = found.network.device, found.job.plan
    network = device.used
    worker = worked(found, tmp_path)
    sizes = Sizes(4, 4 * 2, found.job.layout.voxel_bytes, scan=2)
    predicted = replace(device_memory(plan, sizes, network), kept=sum(found.job.shelves))
    assert predicted.kept == found.device_memory.kept > 0
    assert predicted.grid == found.device_memory.grid > 0
    assert f"the grid of the output {size(predicted.grid)}" in dict(device_lines(found))["device"]
    assert predicted.total >= device.peak
    assert predicted.total - device.peak < 4096, "only what is rounded up"
    assert ("up", "copy") not in device.order, "halos stay there"
    finished = sum(1 for column in plan.columns() for task in plan.tasks(column, lambda _: True) if task.commits)
    launches = device.counts["interpolate"]
    assert launches == finished if order == 1 else launches > 3 * finished
    assert worker.pipeline is not None
    worker.pipeline.close()


def test_a_station_of_a_cluster_gives_the_same(tmp_path: Path, blocks: Any) -> None:
    """Cores and halos go through the host, and up again."""
    blocks((1, 2, 2))
    alone, station = alone_and_by_a_station(tmp_path, lambda folder: planned(folder, output="logits"))
    assert alone.any()
    np.testing.assert_array_equal(station, alone)


@pytest.mark.parametrize(
    ("taps", "passes"),
    [
        ((2, 2, 2), ((0, 1, 2),)), ((1, 28, 28), ((0, 1), (2,))), ((28, 28, 28), ((0,), (1,), (2,))),
        ((28, 1, 1), ((0, 1, 2),)), ((2, 28, 28), ((0,), (1,), (2,))), ((1, 1, 1), ((0, 1, 2),)), ((28, 2, 2), ((0,), (1, 2))),
    ],
)  # fmt: skip
def test_axes_go_together_while_few_sums_are_read(
    monkeypatch: pytest.MonkeyPatch, taps: tuple[int, ...], passes: Any
) -> None:
    class Axis:
        def __init__(self, count: int) -> None:
            self.taps = count

    class Plan:
        back = tuple(map(Axis, taps))

    found = grid_passes(Plan())  # type: ignore[arg-type]
    assert found.axes == passes
    assert found.along == 0
    monkeypatch.setattr("unet_engine.plan.device_grid.SCRATCH", 1000)
    core, write = (4, 5, 6), (8, 10, 12)
    depth = found.depth(core, write, 4)
    scratch = found.scratch(core, write, depth)
    assert depth == 8 if len(passes) == 1 else 4 * sum(scratch) <= 1000 or depth == 1
    assert GridPasses(((0, 1), (2,)), 1).scratch((1, 5, 6), (1, 10, 12), 3) == [3 * 6]
