"""The device pipeline on a simulated GPU: the bytes of the CPU, nothing in a race, nothing allocated or waited for on
the way."""

from __future__ import annotations

import itertools
import json
import pickle
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import unet_engine
from support.command_line import cli
from support.devices import prepared, worked
from support.stations import work
from support.stitching import cases
from support.volumes import fake_model, make_volume, result_of
from unet_engine import machine
from unet_engine.devices.base import Region
from unet_engine.devices.simulated import RaceError, SimulatedDevice
from unet_engine.devices.timeline import Timeline
from unet_engine.errors import BackendError
from unet_engine.output.output import Output
from unet_engine.pipeline.gpu.results import DeviceHalo, PinnedHalo
from unet_engine.pipeline.job import Halo
from unet_engine.pipeline.worker import Opened, Worker
from unet_engine.plan.box import Box
from unet_engine.prepare.prepare import prepare
from unet_engine.prepare.survey import survey
from unet_engine.profiling.stages import ACTIVATION, ADD, COPY, COPY_BACK, GATHER, NETWORK, WAITING, Stages
from unet_engine.profiling.tracing import role
from unet_engine.settings.settings import Settings


def both(volume: str, folder: Path, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """What the CPU and what the simulated GPU make of the same volume."""
    results = []
    for device in ("cpu", "simulated"):
        out = str(folder / f"{device}.zarr")
        results.append(result_of(unet_engine.run(volume, out=out, device=device, **options).out))
    return results[0], results[1]


ALL, SOME, NONE = 0.75, 1e-6, 0.0
"""Share of the simulated device's memory that halos may stay in."""


@given(
    cases(), st.sampled_from(["labels", "probabilities", "logits"]), st.sampled_from(["uint8", "int16", "float32"]),
    st.sampled_from([ALL, SOME, NONE]),
)  # fmt: skip
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_bytes_are_those_of_the_cpu(
    blocks: Any, share: Any, case: dict[str, Any], output: str, dtype: str, kept: float
) -> None:
    """Any shape, window, overlap, blend, block, margin and channels, in 2D and 3D, of any output, wherever halos
    wait."""
    share(kept)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        blocks(case["block"])
        rng = np.random.default_rng(1)
        array = rng.integers(0, 100, (case["channels_in"], *case["shape"])).astype(dtype)
        volume = make_volume(folder / "scan.zarr", array, axes="c" + case["axes"])
        model = fake_model(
            folder, axes=case["axes"], window=case["window"], margin=case["margin"], channels_in=case["channels_in"],
            channels_out=case["channels_out"], activation="sigmoid",
            window_min=(1,) * len(case["axes"]), window_step=(1,) * len(case["axes"]),
        )  # fmt: skip
        cpu, device = both(
            volume, folder, model=model, overlap=case["overlap"], blend=case["blend"], output=output,
            normalize="range:10,95",
        )  # fmt: skip
        np.testing.assert_array_equal(device.view(np.uint8), cpu.view(np.uint8))


@pytest.fixture
def share(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set what of the device's memory halos may stay in."""
    return lambda of: monkeypatch.setattr("unet_engine.plan.kept_halos.SHARE", of)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "probabilities"])
@pytest.mark.parametrize(
    ("output", "dtype"), [("probabilities", "float16"), ("probabilities", "float32"), ("logits", "float16")]
)
def test_every_type_of_output_has_the_bytes_of_the_cpu(
    tmp_path: Path, activation: str, output: str, dtype: str
) -> None:
    if output == "logits" and activation == "probabilities":
        pytest.skip("has no logits")
    array = np.random.default_rng(3).random((2, 9, 17, 20)).astype(np.float32)
    volume = make_volume(tmp_path / "scan.zarr", array, axes="czyx")
    model = fake_model(tmp_path, channels_in=2, channels_out=2, activation=activation)
    cpu, device = both(volume, tmp_path, model=model, output=output, dtype=dtype)
    assert cpu.dtype == np.dtype(dtype)
    assert len(np.unique(cpu)) > 100
    np.testing.assert_array_equal(device.view(np.uint8), cpu.view(np.uint8))


@pytest.mark.parametrize(
    ("spec", "output"),
    [
        ({"regions": (2, 1, 3)}, "labels"), ({"regions": (2, 1, 3), "threshold": 0.3}, "labels"),
        ({"threshold": 0.3}, "labels"), ({"threshold": 0.8}, "masks"),
    ],
)  # fmt: skip
def test_regions_and_thresholds_are_finished_on_the_device(
    tmp_path: Path, blocks: Any, monkeypatch: pytest.MonkeyPatch, spec: dict[str, Any], output: str
) -> None:
    blocks((2, 2, 2))
    array = np.random.default_rng(3).random((3, 24, 17, 20)).astype(np.float32)
    volume = make_volume(tmp_path / "scan.zarr", array, axes="czyx")
    model = fake_model(tmp_path, window=(8, 8, 8), channels_in=3, channels_out=3, activation="sigmoid", **spec)
    on_host = []
    monkeypatch.setattr("unet_engine.pipeline.gpu.finish.finish_on_host", lambda *given: on_host.append(given))
    cpu, device = both(volume, tmp_path, model=model, output=output, normalize="range:0.3,0.6")
    assert not on_host
    assert len(np.unique(cpu)) > 1
    np.testing.assert_array_equal(device, cpu)


# --- halos that stay on the device ---


def _halo_copies(device: SimulatedDevice) -> list[str]:
    return [stream for stream, what in device.order if what == "copy" and stream in ("up", "down")]


@pytest.mark.parametrize(("shape", "some"), [((40, 24, 24), SOME), ((1, 40, 33), SOME / 4)])
def test_halos_stay_on_the_device_while_they_fit(
    tmp_path: Path, blocks: Any, share: Any, shape: Any, some: float
) -> None:
    """The fewer fit, the more go through the host: the same bytes, whatever waits where."""
    blocks((2, 2, 2))
    array = np.random.default_rng(7).integers(0, 99, shape).astype(np.uint8)
    found, copies, kept = [], [], []
    for of in (ALL, some, NONE):
        share(of)
        folder = tmp_path / str(of)
        folder.mkdir()
        planned = prepared(folder, array, spec={"channels_out": 3}, output="logits")
        device = planned.network.device
        device.order.clear()  # of the trial that the network was warmed up with
        worked(planned, folder).close()
        assert not device.living
        found.append(result_of(folder / "o.zarr"))
        copies.append(Counter(_halo_copies(device)))
        kept.append(planned.device_memory.kept)
    blocks_written = device.counts["commit"]
    assert copies[0] == {"down": blocks_written}, "only what is finished comes down, and nothing goes up"
    assert 0 < copies[1]["up"] < copies[2]["up"]
    assert kept[0] > kept[1] > kept[2] == 0
    for other in found[1:]:
        np.testing.assert_array_equal(other.view(np.uint8), found[0].view(np.uint8))


def test_memory_that_others_took_meanwhile_sends_halos_through_the_host(
    tmp_path: Path, blocks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks((2, 2, 2))
    array = RNG.integers(0, 99, (40, 24, 24)).astype(np.uint8)
    plain, outputs = SimulatedDevice.allocate, []

    def failing(self: SimulatedDevice, size: int, what: str) -> Any:
        if what == "halos that wait":
            raise BackendError("out of memory")
        return plain(self, size, what)

    for name in ("there", "taken"):
        folder = tmp_path / name
        folder.mkdir()
        found = prepared(folder, array)
        if name == "taken":
            monkeypatch.setattr(SimulatedDevice, "allocate", failing)
        worked(found, folder).close()
        outputs.append(result_of(folder / "o.zarr"))
        assert ("up" in _halo_copies(found.network.device)) == (name == "taken")
    np.testing.assert_array_equal(*outputs)


def test_halos_of_regions_and_of_a_cluster_s_worker_are_on_the_host(tmp_path: Path) -> None:
    """The host merges the ones, and sends the others."""
    volume = make_volume(tmp_path / "v.zarr", RNG.integers(0, 99, (24, 24, 24)).astype(np.uint8))
    model = fake_model(tmp_path, window=(8, 8, 8), channels_out=2, activation="softmax")
    wanted = Settings.of(input=volume, model=model, device="simulated", out=str(tmp_path / "o.zarr"))
    assert sum(prepare(survey(wanted)).job.shelves) > 0
    assert prepare(survey(wanted), workers=2, present=2).job.shelves == ()


def test_a_halo_that_is_fetched_is_that_of_the_host(tmp_path: Path, blocks: Any) -> None:
    """What leaves the device all the same: to a commit elsewhere, or to a pickle."""
    blocks((2, 2, 2))
    sent = []
    for kept in (True, False):
        folder = tmp_path / str(kept)
        folder.mkdir()
        found = prepared(folder, np.arange(24**3, dtype=np.int16).reshape(24, 24, 24))
        job = found.job if kept else replace(found.job, shelves=())
        worker = Worker(job, Opened(network=found.network))
        tasks = list(job.plan.tasks(next(job.plan.columns()), lambda _: True))[:2]
        done = list(worker.predict((task, worker.read(task)) for task in tasks))
        halos = [halo for block in done for _, halo in block.halos()]
        assert all(isinstance(halo, DeviceHalo) == kept for halo in halos)
        pickled = [pickle.loads(pickle.dumps(halo)) for halo in halos]
        left = [halo for block in done for _, halo in block.detached().halos()]
        assert {type(halo) for halo in pickled} == {Halo}
        assert {type(halo) for halo in left} == {PinnedHalo}
        for a, b in zip(pickled, left, strict=True):
            np.testing.assert_array_equal(a.values, b.values)
        sent.append(left)
        del done, halos, left
    assert sent[0]
    for a, b in zip(*sent, strict=True):
        assert (a.source, a.box) == (b.source, b.box)
        np.testing.assert_array_equal(a.values, b.values)


# --- order, memory, waiting ---


RNG = np.random.default_rng(5)


def test_nothing_is_waited_for_or_allocated_per_window(
    tmp_path: Path, blocks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four times the volume: four times the kernels, but the same memory; the host waits three times a block at
    most."""
    blocks((2, 2, 2))
    monkeypatch.setattr("unet_engine.backends.opening.default_batch", lambda *_: 3)
    seen = []
    for n, depth in enumerate((32, 128)):
        folder = tmp_path / str(n)
        folder.mkdir()
        found = prepared(folder, RNG.integers(0, 99, (depth, 24, 24)).astype(np.uint8))
        worker = worked(found, folder)
        device = found.network.device
        assert isinstance(device, SimulatedDevice)
        assert device.counts["fake network"] > 1.5 * device.counts["commit"]
        assert device.counts["synchronize"] <= 3 * found.job.plan.block_count + 3
        seen.append((device.counts["pinned"], device.peak, device.counts["commit"], device.counts["event"]))
        worker.close()
        del worker, found
        assert not device.living, "all memory is given back"
    assert seen[1][2] > 3 * seen[0][2]
    assert seen[0][1] == seen[1][1], "device memory does not depend on the size of the volume"
    assert seen[1][0] <= 1.3 * seen[0][0], "nor does pinned memory, once every kind of block was met"
    assert seen[1][3] <= seen[0][3] + 3


def test_pinned_memory_is_locked_ahead_by_a_thread_of_its_own(
    tmp_path: Path, blocks: Any, share: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page-locking a block's halos takes longer than its network: it must not be done where blocks are queued."""
    blocks((2, 2, 2))
    share(NONE)
    locked: list[str] = []
    plain = SimulatedDevice.pinned

    def watched(self: SimulatedDevice, size: int, what: str) -> Any:
        locked.append(threading.current_thread().name)
        return plain(self, size, what)

    found = prepared(tmp_path, RNG.integers(0, 99, (96, 40, 40)).astype(np.uint8))
    monkeypatch.setattr(SimulatedDevice, "pinned", watched)
    worked(found, tmp_path).close()
    assert len(locked) > 12
    assert locked.count("lock") >= len(locked) - 1, "all but what constants are sent in"
    assert not found.network.device.living


def test_several_blocks_are_read_at_once_and_come_in_order(
    tmp_path: Path, blocks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read first waits for the two behind it, and for what it is put into nothing is locked by a reader."""
    blocks((2, 2, 2))
    array = RNG.integers(0, 99, (72, 24, 24)).astype(np.uint8)
    found = prepared(tmp_path, array)
    assert found.job.readers == min(3, machine.cpu_count())
    found = replace(found, job=replace(found.job, readers=3))
    plain, together, locked = Worker.read, threading.Barrier(3), list[str]()
    lock = SimulatedDevice.pinned

    def read(self: Worker, task: Any) -> Any:
        number = next(counted)
        if number < 3:
            together.wait(10)
        if number % 3 == 0:
            time.sleep(0.01)  # those behind it are there first
        return plain(self, task)

    def watched(self: SimulatedDevice, size: int, what: str) -> Any:
        locked.append(threading.current_thread().name)
        return lock(self, size, what)

    counted = itertools.count()
    monkeypatch.setattr(Worker, "read", read)
    monkeypatch.setattr(SimulatedDevice, "pinned", watched)
    worked(found, tmp_path).close()
    monkeypatch.undo()
    assert not [name for name in locked if name.startswith("read")]
    out = str(tmp_path / "cpu.zarr")
    cpu = unet_engine.run(str(tmp_path / "v.zarr"), model=found.job.model.path, device="cpu", out=out)
    np.testing.assert_array_equal(result_of(tmp_path / "o.zarr"), result_of(cpu.out))


def test_what_cannot_be_read_is_told_in_its_turn(tmp_path: Path, blocks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks before it are written, though it was found out while they were inferred."""
    blocks((2, 4, 4))
    found = prepared(tmp_path, RNG.integers(0, 99, (72, 16, 16)).astype(np.uint8))
    found = replace(found, job=replace(found.job, readers=3))
    plain = Worker.read

    def read(self: Worker, task: Any) -> Any:
        if task.block.index[0] == 3:
            raise BackendError("block 3 is damaged")
        return plain(self, task)

    monkeypatch.setattr(Worker, "read", read)
    with pytest.raises(BackendError, match="block 3 is damaged"):
        worked(found, tmp_path)
    left = Output(found.job.out, found.job.layout, found.job.plan.digest).pending()
    assert [left((n, 0, 0)) for n in range(2)] == [False, False]


def test_where_pinned_memory_cannot_be_locked_ahead_blocks_lock_their_own(
    tmp_path: Path, blocks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks((2, 2, 2))
    plain = SimulatedDevice.pinned

    def failing(self: SimulatedDevice, size: int, what: str) -> Any:
        if threading.current_thread().name == "lock":
            raise BackendError("no more can be locked")
        return plain(self, size, what)

    array = RNG.integers(0, 99, (40, 24, 24)).astype(np.uint8)
    outputs = []
    for name in ("ahead", "not"):
        folder = tmp_path / name
        folder.mkdir()
        found = prepared(folder, array)
        if name == "not":
            monkeypatch.setattr(SimulatedDevice, "pinned", failing)
        worked(found, folder).close()
        outputs.append(result_of(folder / "o.zarr"))
    np.testing.assert_array_equal(*outputs)


def test_halos_up_and_down_are_streams_of_their_own(tmp_path: Path, blocks: Any, share: Any) -> None:
    """One does not wait for the other: PCIe carries both at once."""
    blocks((2, 2, 2))
    share(NONE)
    found = prepared(tmp_path, RNG.integers(0, 99, (40, 24, 24)).astype(np.uint8))
    found.network.device.order.clear()  # of the trial that the network was warmed up with
    worked(found, tmp_path)
    copies = {stream for stream, what in found.network.device.order if what == "copy"}
    assert copies == {"in", "up", "down"}
    kernels = {stream for stream, what in found.network.device.order if what in ("pack", "commit", "merge")}
    assert kernels == {"out"}


def test_the_next_block_is_queued_before_the_host_waits_for_this_one(tmp_path: Path, blocks: Any) -> None:
    blocks((1, 4, 4))
    found = prepared(tmp_path, RNG.integers(0, 99, (32, 16, 16)).astype(np.uint8))
    device = found.network.device
    device.order.clear()
    worked(found, tmp_path)
    done = [i for i, (stream, what) in enumerate(device.order) if what == "commit"]
    networks = [i for i, (stream, what) in enumerate(device.order) if what == "fake network"]
    per_block = len(networks) // len(done)
    for n, commit in enumerate(done[:-1]):
        assert sum(i < commit for i in networks) >= per_block * (n + 2) - per_block, "the network has the next block"
    assert {stream for stream, what in device.order if what in ("commit", "pack")} == {"out"}
    assert {stream for stream, what in device.order if what in ("gather", "add", "fake network")} == {"compute"}


def test_the_raw_block_goes_over_once_in_its_own_type(tmp_path: Path, blocks: Any) -> None:
    blocks((2, 2, 2))
    found = prepared(tmp_path, RNG.integers(0, 99, (24, 16, 16)).astype(np.int16))
    device, sent = found.network.device, []
    copy = device.copy

    def counting(stream: Any, target: Region, source: Region) -> None:
        if source.memory.what == "raw voxels":
            sent.append(source.size)
        copy(stream, target, source)

    device.copy = counting
    worker = worked(found, tmp_path)
    assert sum(sent) == worker.tally.read().bytes_read
    assert len(sent) == device.counts["commit"]


def _race(first: str, second: str) -> Any:
    def check() -> None:
        device = SimulatedDevice()
        memory, streams = device.allocate(64, "some memory"), (device.stream("a"), device.stream("b"))
        region = Region.of(memory)
        for stream, access in zip(streams, (first, second), strict=True):
            device.run(
                stream,
                access,
                lambda _: None,
                [region] if access == "read" else [],
                [region] if access == "write" else [],
            )

    return check


def test_the_simulation_sees_races() -> None:
    for pair in (("write", "read"), ("read", "write"), ("write", "write")):
        with pytest.raises(RaceError, match="may not be over"):
            _race(*pair)()
    _race("read", "read")()
    device = SimulatedDevice()
    memory, event = device.allocate(64, "some memory"), device.event()
    a, b = device.stream("a"), device.stream("b")
    device.zero(a, Region.of(memory))
    device.record(event, a)
    device.wait(b, event)
    device.run(b, "read", lambda _: None, [Region.of(memory)], [])
    pinned = device.pinned(64, "staging")
    device.copy(b, Region.of(pinned), Region.of(memory))
    with pytest.raises(RaceError, match="the host reads"):
        device.touch(Region.of(pinned), "r")
    device.record(event, b)
    device.synchronize(event)
    device.touch(Region.of(pinned), "r")
    device.seal()
    with pytest.raises(RaceError, match="after warm-up"):
        device.allocate(1, "more")


@pytest.mark.parametrize("forgotten", ["wait", "synchronize"])
def test_a_pipeline_that_forgets_to_wait_is_caught(tmp_path: Path, blocks: Any, forgotten: str) -> None:
    """The simulation is no formality: without waits the same pipeline is a race."""
    blocks((2, 2, 2))
    found = prepared(tmp_path, RNG.integers(0, 99, (24, 16, 16)).astype(np.uint8))
    setattr(found.network.device, forgotten, lambda *_: None)
    with pytest.raises(RaceError):
        worked(found, tmp_path)


# --- where the time goes ---


def test_a_profile_tells_the_streams_apart_and_waits_for_nothing_more(tmp_path: Path, blocks: Any, share: Any) -> None:
    """The same bytes; three events a batch and a few a block; one wait in all, to fix when the device's time begins."""
    blocks((2, 2, 2))
    share(NONE)
    seen, outputs = [], []
    array = RNG.integers(0, 99, (40, 24, 24)).astype(np.uint8)
    for name, options in (("plain", {}), ("profiled", {"profile": str(tmp_path / "trace.json")})):
        folder = tmp_path / name
        folder.mkdir()
        found = prepared(folder, array, behaviour={"latency_ms": 1}, **options)
        begun = found.network.device.counts.copy()
        worker = worked(found, folder)
        seen.append(found.network.device.counts - begun)
        outputs.append(result_of(folder / "o.zarr"))
    np.testing.assert_array_equal(outputs[1], outputs[0])
    plain, profiled = seen
    assert profiled["synchronize"] == plain["synchronize"] + 1
    assert profiled["timed"] <= 3 * plain["fake network"] + 12 * plain["commit"] + 7 * plain["pack"]
    assert "timed" not in plain
    assert worker.recorder.recording
    snapshot = worker.recorder.snapshot(1000)
    wall = (snapshot.ended - snapshot.begun) / 1e9
    rows = {role(track): snapshot.seconds(track) for track in snapshot.tracks}
    for stream, stages in (
        ("stream in", {COPY, WAITING}),
        ("stream compute", {GATHER, NETWORK, ADD, WAITING}),
        ("stream out", {ACTIVATION, COPY_BACK, WAITING}),
        ("stream up", {COPY, WAITING}),
        ("stream down", {COPY_BACK, WAITING}),
    ):
        assert set(rows[stream]) == stages
        assert sum(rows[stream].values()) == pytest.approx(wall, rel=1e-3), (
            "stages and waiting are all of a stream's time"
        )
    windows = worker.tally.read().inferred
    assert rows["stream compute"][NETWORK] >= 1e-3 * windows, "the network's time is the network's"
    assert WAITING in rows["device"], "the host waits for blocks, and that is told"
    for track in snapshot.tracks:
        if role(track).startswith("stream"):
            spans = sorted(track.spans, key=lambda span: span[1])
            assert all(a[2] <= b[1] and a[3] <= b[3] for a, b in itertools.pairwise(spans)), "one at a time, in order"


def test_events_of_a_profile_are_used_again_however_large_the_volume(tmp_path: Path, blocks: Any) -> None:
    blocks((2, 2, 2))
    made = []
    for n, depth in enumerate((32, 128)):
        folder = tmp_path / str(n)
        folder.mkdir()
        array = RNG.integers(0, 99, (depth, 24, 24)).astype(np.uint8)
        found = prepared(folder, array, profile=str(folder / "trace.json"))
        worked(found, folder).close()
        made.append(found.network.device.counts["timed event"])
    assert made[1] <= made[0] + 20


def test_an_anchor_far_back_is_replaced_and_times_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unet_engine.devices.timeline.ANCHOR_SECONDS", 0.0)
    device, stages = SimulatedDevice(), Stages()
    stream, memory = device.stream("compute"), device.allocate(8, "some memory")
    timeline = Timeline(device, stages, {"compute": stream})
    for _ in range(3):
        marks = timeline.marks()
        marks.begin("compute")
        time.sleep(0.01)
        device.zero(stream, Region.of(memory))
        marks.lap("compute", NETWORK)
        with pytest.raises(RaceError, match="may not have happened"):
            marks.read()
        done = device.event()
        device.record(done, stream)
        device.synchronize(done)
        marks.read()
    track = stages.snapshot(10).tracks[0]
    assert len(track.spans) == 3
    assert all(a[2] <= b[1] for a, b in itertools.pairwise(track.spans))
    assert all(0.01 <= (end - begin) / 1e9 < 1 for _, begin, end, _ in track.spans)
    assert abs(track.spans[-1][2] - time.time_ns()) < 1e9


def test_the_command_shows_the_streams(tmp_path: Path) -> None:
    volume = make_volume(tmp_path / "v.zarr", RNG.integers(0, 99, (24, 24, 24)).astype(np.uint8))
    said = cli(
        "run", "--in", volume, "--model", fake_model(tmp_path), "--device", "simulated", "--profile", tmp_path / "p",
        "--json"
    )  # fmt: skip
    assert said.code == 0, said.err
    assert {"stream in", "stream compute", "stream out", "device"} <= set(said.json["stages"])
    assert "stream compute (1)" in said.err
    events = json.loads((tmp_path / "p" / "trace.json").read_text())["traceEvents"]
    streams = {e["name"] for e in events if e.get("cat", "").startswith("stream")}
    assert {
        "copy to device",
        "normalise and gather",
        "network",
        "halo add",
        "activation",
        "copy from device",
    } <= streams


# --- every way a block is reached ---


def test_skipped_windows_regions_and_masks_give_the_bytes_of_the_cpu(tmp_path: Path, blocks: Any) -> None:
    blocks((2, 2, 2))
    array = np.zeros((40, 24, 24), np.uint8)
    array[3:12, 4:20, 4:20] = RNG.integers(1, 99, (9, 16, 16))
    array[30:34, :6, :6] = 7
    volume = make_volume(tmp_path / "v.zarr", array, chunks=(8, 8, 8))
    model = fake_model(
        tmp_path, window=(8, 8, 8), channels_out=2, activation="softmax", empty=(0.25, -1.5), background=0
    )
    for n, options in enumerate(({}, {"roi": "2:37,3:20,0:24"}, {"padding": "constant"}, {"output": "logits"})):
        folder = tmp_path / str(n)
        folder.mkdir()
        cpu, device = both(volume, folder, model=model, **options)
        np.testing.assert_array_equal(device, cpu)


def test_a_resume_gives_the_bytes_of_a_whole_run(tmp_path: Path, blocks: Any) -> None:
    """Blocks committed by an earlier run appear with fewer windows; their halos are computed again."""
    blocks((2, 2, 2))
    array = RNG.integers(0, 99, (40, 24, 24)).astype(np.uint8)
    outputs = []
    for n, parts in enumerate(((lambda _: True,), (lambda i: sum(i) % 3 != 1, lambda i: sum(i) % 3 == 1))):
        folder = tmp_path / str(n)
        folder.mkdir()
        for pending in parts:
            worked(prepared(folder, array, spec={"channels_out": 3}, output="logits"), folder, pending).close()
        outputs.append(result_of(folder / "o.zarr"))
    np.testing.assert_array_equal(outputs[1].view(np.uint8), outputs[0].view(np.uint8))


def test_a_network_that_fails_names_the_block(tmp_path: Path, blocks: Any) -> None:
    blocks((2, 2, 2))
    volume = make_volume(tmp_path / "v.zarr", RNG.integers(0, 99, (40, 24, 24)).astype(np.uint8))
    model = fake_model(tmp_path, window=(8, 8, 8), fail_at=100)
    with pytest.raises(BackendError, match=r"fails at window 100, as its file asks \(block \(\d, \d, \d\)\)"):
        unet_engine.run(volume, model=model, out=str(tmp_path / "o.zarr"), device="simulated")


def test_nan_in_the_sums_is_an_error_not_a_label(tmp_path: Path) -> None:
    array = RNG.random((12, 12, 12)).astype(np.float32)
    array[5, 5, 5] = 3e38
    volume = make_volume(tmp_path / "v.zarr", array)
    with pytest.raises(BackendError, match="NaN or Inf in block"):
        unet_engine.run(
            volume,
            model=fake_model(tmp_path),
            out=str(tmp_path / "o.zarr"),
            device="simulated",
            normalize="range:0,0.1",
        )


@pytest.mark.parametrize("length", [1, 3])
def test_a_station_gives_the_bytes_of_the_local_executor(tmp_path: Path, blocks: Any, length: int) -> None:
    """Cores and halos pass through host memory there, and calls come from several threads at once."""
    blocks((2, 2, 2))
    array = RNG.integers(0, 99, (40, 24, 24)).astype(np.uint8)
    results = []
    for name in ("local", "station"):
        folder = tmp_path / name
        folder.mkdir()
        found = prepared(folder, array)
        worker = worked(found, folder, lambda _: name == "local")  # noqa: B023  # called before the next round
        worker.close()
        if name == "station":
            work(found.job, length)
        results.append(result_of(folder / "o.zarr"))
    np.testing.assert_array_equal(results[1], results[0])


def test_a_halo_in_pinned_memory_is_sent_as_an_ordinary_one() -> None:
    values = np.ones((1, 2, 2), np.float32)
    sent = pickle.loads(pickle.dumps(PinnedHalo((0, 0), Box((0, 0), (2, 2)), values)))
    assert type(sent) is Halo
    np.testing.assert_array_equal(sent.values, values)


@pytest.mark.slow
def test_worker_processes_give_the_bytes_of_one(tmp_path: Path) -> None:
    """The whole way through Dask: halos travel between processes, each with a device of its own."""
    volume = make_volume(tmp_path / "v.zarr", RNG.integers(0, 99, (96, 40, 40)).astype(np.uint8))
    model = fake_model(tmp_path, window=(8, 8, 8), channels_out=40, activation="softmax")
    outputs = []
    for n, options in enumerate(({}, {"workers": 2})):
        out = str(tmp_path / f"o{n}.zarr")
        result = unet_engine.run(volume, model=model, out=out, device="simulated", **options)
        assert result.device == "simulated"
        outputs.append(result_of(out))
    assert result.workers == 2
    np.testing.assert_array_equal(outputs[1], outputs[0])
