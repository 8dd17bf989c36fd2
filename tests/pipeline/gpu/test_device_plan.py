"""Device memory: the formula is what the pipeline allocates, plans are fitted to it beforehand, and running out is met
once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import unet_engine
from support.command_line import cli
from support.devices import prepared, worked
from support.plans import plans
from support.stations import work
from support.volumes import fake_model, make_volume, result_of
from unet_engine.backends import fake
from unet_engine.backends.batch_probe import _fill, agree
from unet_engine.backends.device_tensor import DeviceTensor
from unet_engine.backends.fake import FakeDevice
from unet_engine.devices import simulated
from unet_engine.devices.base import Region
from unet_engine.errors import BackendError, PlanError
from unet_engine.model.spec import ModelSpec
from unet_engine.output.output import Output
from unet_engine.pipeline.columns import run_columns
from unet_engine.pipeline.worker import Worker
from unet_engine.plan import device_memory as device_sizes
from unet_engine.plan.box import Box
from unet_engine.plan.device_memory import default_batch, device_memory, extents, fit_device
from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.memory import Sizes, predict_memory, readers_that_fit
from unet_engine.plan.plan import Plan
from unet_engine.plan.sizing import NO_MEMORY, default_chunk
from unet_engine.prepare.prepare import prepare
from unet_engine.prepare.provenance import provenance
from unet_engine.prepare.survey import survey
from unet_engine.settings.settings import Settings

RNG = np.random.default_rng(5)


def test_the_formula_is_what_is_allocated(tmp_path: Path, blocks: Any) -> None:
    blocks((2, 2, 2))
    found = prepared(tmp_path, RNG.integers(0, 99, (40, 24, 24)).astype(np.int16))
    device, plan = found.network.device, found.job.plan
    network = device.used
    worked(found, tmp_path)
    sizes = Sizes(2, 4 * 2, found.job.layout.voxel_bytes)
    predicted = replace(device_memory(plan, sizes, network), kept=sum(found.job.shelves))
    assert predicted.kept == found.device_memory.kept > 0
    assert predicted.total >= device.peak
    assert predicted.total - device.peak < 4096, "only what is rounded up"


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_no_block_is_larger_than_the_extents(data: st.DataObject) -> None:
    plan: Plan = data.draw(plans())
    largest = extents(plan)
    for column in plan.columns():
        for task in plan.tasks(column, lambda _: True):
            assert task.read.size <= largest.read
            assert task.block.sums.size <= largest.sums
            assert task.block.write.size <= largest.write
            assert sum(box.size for _, box in task.halos) <= largest.sums
    received: dict[tuple[int, ...], int] = {}
    for column in plan.columns():
        received.clear()
        for task in plan.tasks(column, lambda _: True):
            for target, box in task.halos:
                received[target] = received.get(target, 0) + box.size
        assert max(received.values(), default=0) <= largest.halos_in


def _plan(block: tuple[int, ...] = (4, 4, 4)) -> Plan:
    axes = tuple(AxisGrid.with_overlap(1000, 64, 0.5, 0, "gaussian") for _ in range(3))
    roi, chunk = Box.of_shape((1000,) * 3), default_chunk(axes, block)
    return Plan("zyx", axes, roi, block, chunk, ((),) * 3, "reflect", NO_MEMORY, {"block": list(block)})


def test_reading_ahead_takes_what_memory_leaves_and_no_more() -> None:
    axes = tuple(AxisGrid.with_overlap(n, 32, 0.5, 0, "gaussian") for n in (64, 64, 256))
    plan = Plan("zyx", axes, Box.of_shape((64, 64, 256)), (2, 2, 2), (16, 16, 16), ((),) * 3, "reflect", NO_MEMORY, {})
    sizes = Sizes(2, 8, 1, decoding=10_000)
    needs = [predict_memory(plan, replace(sizes, readers=n), 0, 1).total for n in (1, 2, 3)]
    block = 2 * 48**3
    assert needs[1] - needs[0] == needs[2] - needs[1] == 2 * block + 10_000, "a block being read, and one that was"
    assert [readers_that_fit(plan, sizes, 0, budget, 1, 3) for budget in (*needs, needs[1] - 1, 0)] == [1, 2, 3, 1, 1]


def test_blocks_shrink_to_the_memory_that_is_free() -> None:
    plan, sizes, network = _plan(), Sizes(2, 4 * 16, 1), 2**30
    whole = device_memory(plan, sizes, network).total
    assert fit_device(plan, sizes, network, whole + device_sizes.RESERVE) is plan
    less = device_memory(_plan((3, 3, 3)), sizes, network).total
    fitted = fit_device(plan, sizes, network, less + device_sizes.RESERVE)
    assert fitted.block < plan.block
    assert device_memory(fitted, sizes, network).total <= less
    assert fitted.identity["block"] == list(fitted.block)
    with pytest.raises(
        PlanError, match=r"needs [\d.]+ GiB of device memory and [\d.]+ \w+ can be had \(1 GiB of it for the network"
    ):
        fit_device(plan, sizes, network, network + 2**20)


@pytest.mark.parametrize(
    ("window", "windows", "batch"),
    [
        ((128, 128, 128), 64, 1),
        ((64, 64, 64), 64, 8),
        ((64, 64, 64), 12, 6),
        ((512, 512), 9, 5),
        ((32, 32), 100, 25),
        ((8, 8), 1, 1),
    ],
)
def test_a_batch_has_enough_to_do_and_divides_the_block_well(window: Any, windows: int, batch: int) -> None:
    assert default_batch(window, windows) == batch


def test_smaller_windows_are_admissible_and_end() -> None:
    spec = ModelSpec(
        name="n", axes="zyx", channels_in=1, channels_out=2, window=(64, 96, 64),
        window_min=(32, 32, 32), window_step=(16, 16, 32), margin=(4, 4, 4),
    )  # fmt: skip
    window, seen = spec.window, []
    while window:
        spec.check_window(window)
        seen.append(window)
        window = spec.smaller_window(window)
    assert len(seen) > 3
    assert seen[-1] == (32, 32, 32)


class _Room(simulated.SimulatedDevice):
    room_bytes = 0

    def __init__(self) -> None:
        super().__init__(self.room_bytes)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the memory of the simulated GPU."""

    def of(size: int) -> None:
        monkeypatch.setattr(_Room, "room_bytes", size)
        monkeypatch.setattr(simulated, "SimulatedDevice", _Room)
        monkeypatch.setattr(device_sizes, "RESERVE", 0)

    return of


def test_batch_then_window_are_halved_until_the_network_fits(tmp_path: Path, room: Any) -> None:
    volume = make_volume(tmp_path / "v.zarr", RNG.integers(0, 99, (40, 40, 40)).astype(np.uint8))
    model = fake_model(tmp_path, window=(16, 16, 16), window_min=(8, 8, 8), channels_out=2, activation="softmax")
    one = 4 * 16**3 * 3  # input and output of one window
    options = {"input": volume, "model": model, "device": "simulated", "out": str(tmp_path / "o.zarr")}
    room(2**31)
    most = prepare(survey(Settings.of(**options))).job.setup.batch
    assert most > 4
    room(3 * one)
    with pytest.raises(PlanError, match="smallest plan needs"):
        prepare(survey(Settings.of(**options)))
    room(one - 1)
    with pytest.raises(PlanError, match="one window of 16×16×16 does not fit the memory of simulated"):
        prepare(survey(Settings.of(**options, window=(16, 16, 16))))


def test_a_window_that_is_taken_smaller_is_told(tmp_path: Path, room: Any) -> None:
    volume = make_volume(tmp_path / "v.zarr", RNG.integers(0, 99, (12, 40, 40)).astype(np.uint8))
    model = fake_model(tmp_path, window=(64, 64, 64), window_min=(8, 8, 8), channels_out=1)
    room(4 * 64**3 * 2 - 1)
    said = cli("plan", "--in", volume, "--model", model, "--device", "simulated", "--json")
    assert said.code == 0, said.err
    assert any("do not fit the memory of simulated: running with" in note for note in said.json["notes"])
    assert said.json["window"] < [64, 64, 64]


@pytest.mark.parametrize("room_for", [4, 3])
def test_running_out_is_tried_once_with_half_the_batch(
    tmp_path: Path, blocks: Any, monkeypatch: pytest.MonkeyPatch, room_for: int
) -> None:
    """A batch of 8 does not fit, 4 does; where only 3 do, the run stops with the figures. What was committed stays."""
    blocks((2, 2, 2))
    array = RNG.integers(0, 99, (40, 24, 24)).astype(np.uint8)
    volume = make_volume(tmp_path / "v.zarr", array)
    model = fake_model(tmp_path, window=(8, 8, 8), channels_out=2, activation="softmax")
    whole = result_of(unet_engine.run(volume, model=model, device="simulated", out=str(tmp_path / "whole.zarr")).out)
    run, opened = FakeDevice.run, []

    def short_of_memory(self: FakeDevice, stream: int) -> None:
        opened.append(self.setup.batch)
        if len(opened) > 6 and self.setup.batch > room_for:
            raise BackendError("CUDA error: out of memory")
        run(self, stream)

    monkeypatch.setattr(FakeDevice, "run", short_of_memory)
    out = str(tmp_path / "o.zarr")
    if room_for < 4:
        with pytest.raises(
            PlanError,
            match=r"out of memory in column 0 with 1 window\(s\) of batch 4 at once, after one try with fewer",
        ):
            unet_engine.run(volume, model=model, device="simulated", out=out)
        return
    result = unet_engine.run(volume, model=model, device="simulated", out=out)
    assert set(opened) == {8, 4}
    assert result.complete
    np.testing.assert_array_equal(result_of(out), whole)


def test_a_station_that_runs_out_goes_on_with_half_the_batch(
    tmp_path: Path, blocks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read and staged for the device that failed is staged again for the new one."""
    blocks((2, 2, 2))
    found = prepared(tmp_path, RNG.integers(0, 99, (40, 24, 24)).astype(np.uint8))
    whole = result_of(
        unet_engine.run(found.job.volume, model=str(found.job.model.path), out=str(tmp_path / "w.zarr")).out
    )
    worked(found, tmp_path, lambda _: False).close()  # begins the output
    run, opened = FakeDevice.run, []

    def short_of_memory(self: FakeDevice, stream: int) -> None:
        opened.append(self.setup.batch)
        if len(opened) > 4 and self.setup.batch > 4:
            raise BackendError("CUDA error: out of memory")
        run(self, stream)

    monkeypatch.setattr(FakeDevice, "run", short_of_memory)
    work(found.job, 2)
    assert set(opened) == {8, 4}
    np.testing.assert_array_equal(result_of(tmp_path / "o.zarr"), whole)


# --- the same bytes with half the batch, or none ---


def _other_bits(self: FakeDevice, stream: int, run: Any = FakeDevice.run) -> None:
    """A library that adds up in another order in small batches: the last bit differs."""
    run(self, stream)
    if self.setup.batch < 8:
        values = fake.values_of(self.output)
        values[...] = np.nextafter(values, np.float32(np.inf))


@pytest.mark.parametrize("station", [False, True])
def test_half_a_batch_that_gives_other_bits_ends_the_run_with_what_to_do(
    tmp_path: Path, blocks: Any, monkeypatch: pytest.MonkeyPatch, *, station: bool
) -> None:
    """What is committed stays; with memory to spare a resume completes it, to the bytes of a run that met no
    trouble."""
    blocks((2, 2, 2))
    array = RNG.integers(0, 99, (40, 24, 24)).astype(np.uint8)
    volume = make_volume(tmp_path / "v.zarr", array)
    model = fake_model(tmp_path, name="net", window=(8, 8, 8), channels_out=2, activation="softmax")
    options = {"model": model, "output": "logits"}
    whole = result_of(unet_engine.run(volume, device="simulated", out=str(tmp_path / "w.zarr"), **options).out)
    found = prepared(tmp_path, array, output="logits")
    worked(found, tmp_path, lambda _: False).close()  # begins the output
    calls: list[int] = []

    def short_of_memory(self: FakeDevice, stream: int) -> None:
        calls.append(self.setup.batch)
        if len(calls) > 40 and self.setup.batch > 4:
            raise BackendError("CUDA error: out of memory")
        _other_bits(self, stream)

    with monkeypatch.context() as patch:
        patch.setattr(FakeDevice, "run", short_of_memory)
        with pytest.raises(
            PlanError, match=r"batch 4 gives other last bits on simulated.*--resume, or .*--batch 4 --overwrite"
        ):
            work(found.job, 2) if station else run_columns([Worker(found.job)], lambda _: True)
    assert found.job.setup.batch == 8
    done = Output.resume(found.job.out, found.job.layout, found.job.plan.digest, provenance(found))
    left = done.pending()
    committed = sum(not left(i) for i in found.job.plan.block_range.points())
    assert station or committed > 0
    result = unet_engine.run(volume, device="simulated", out=found.job.out, resume=True, **options)
    assert result.complete
    np.testing.assert_array_equal(result_of(found.job.out).view(np.uint8), whole.view(np.uint8))


def test_rows_of_a_batch_that_differ_agree_with_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = prepared(tmp_path, RNG.integers(0, 99, (24, 24, 24)).astype(np.uint8))
    assert found.job.setup.batch > 1
    told = found.network.answers()
    assert told == found.job.answers
    assert agree(told, told)
    run = FakeDevice.run

    def by_row(self: FakeDevice, stream: int) -> None:
        run(self, stream)
        fake.values_of(self.output)[-1] += 1

    monkeypatch.setattr(FakeDevice, "run", by_row)
    differing = found.network.answers()
    assert len(differing) == 2
    assert not agree(differing, differing)
    assert not agree(told, differing)
    assert not agree(frozenset(), frozenset())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (0, 2, 3, 4, 1)])
def test_the_probe_puts_one_window_into_every_row(dtype: str, order: tuple[int, ...]) -> None:
    """Of any type, channels first and last."""
    shape = (3, 2, 4, 5, 6)
    strides = np.empty(5, int)
    step = 1
    for a in reversed(order):
        strides[a], step = step, step * shape[a]
    memory, size = np.full(3 * 2 * 4 * 5 * 6 * 4, 7, np.uint8), 4 if dtype == "float32" else 2
    region = Region(SimpleNamespace(), 0, memory.size)
    _fill(memory, DeviceTensor(region, shape, tuple(map(int, strides)), dtype))
    kind = np.float32 if dtype == "float32" else np.float16 if dtype == "float16" else ml_dtypes.bfloat16
    seen = np.lib.stride_tricks.as_strided(memory.view(kind), shape, tuple(size * s for s in strides)).astype(
        np.float32
    )
    assert (seen[1:] == seen[:1]).all()
    expected = np.random.default_rng(0).standard_normal(shape[1:], np.float32)
    np.testing.assert_allclose(seen[0], expected, rtol=2**-7 if dtype == "bfloat16" else 2**-10)


def test_a_batch_that_is_asked_for_is_the_most_and_is_for_gpus(tmp_path: Path) -> None:
    volume = make_volume(tmp_path / "v.zarr", RNG.integers(0, 99, (24, 24, 24)).astype(np.uint8))
    options = ("plan", "--in", volume, "--model", fake_model(tmp_path), "--json", "--batch")
    for asked in (1, 3, 7):
        assert cli(*options, asked, "--device", "simulated").json["batch"] <= asked
    assert cli(*options, 3, "--device", "simulated").json["batch"] == 3
    refused = cli(*options, 3, "--device", "cpu")
    assert refused.code == 2
    assert "--batch is for GPUs" in refused.error
    assert cli(*options, 0, "--device", "simulated").code == 2


def test_after_a_refusal_nothing_goes_through_the_smaller_batch(
    tmp_path: Path, blocks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that other threads have handed in meanwhile are inferred as planned, or fail."""
    blocks((2, 2, 2))
    found = prepared(tmp_path, RNG.integers(0, 99, (24, 24, 24)).astype(np.uint8))
    monkeypatch.setattr(FakeDevice, "run", _other_bits)
    worker = Worker(found.job)
    with pytest.raises(PlanError, match="batch 4 gives other last bits"):
        worker.shrink(BackendError("CUDA error: out of memory"), "somewhere")
    assert worker.job.setup.batch == 8
    assert worker.pipeline is not None
    assert worker.network.setup.batch == 8
    with pytest.raises(PlanError, match=r"with 1 window.* of batch 8 at once, after one try with fewer"):
        worker.shrink(BackendError("CUDA error: out of memory"), "somewhere")
    worker.close()
