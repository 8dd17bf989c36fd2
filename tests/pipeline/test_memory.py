"""Memory of many classes: how many sums are alive at once, and what a whole process takes."""

from __future__ import annotations

import gc
import json
import pickle
import re
import subprocess
import threading
import time
import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

import unet_engine
from support.command_line import COMMAND
from support.plans import make
from support.shares import share
from support.volumes import fake_model, make_volume
from unet_engine import machine
from unet_engine.execution.dask.sharing import Sharing
from unet_engine.pipeline import recycling
from unet_engine.pipeline.columns import run_column, tasks_of
from unet_engine.pipeline.host import HostPredicted
from unet_engine.pipeline.worker import Worker
from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.memory import SUMS_IN_FLIGHT, NoRoom
from unet_engine.profiling.recorder import PLAIN

pytestmark = pytest.mark.long


@pytest.fixture
def slow_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = Worker.commit

    def late(self: Worker, *given: Any) -> None:
        time.sleep(0.03)
        commit(self, *given)

    monkeypatch.setattr(Worker, "commit", late)


class _Alive:
    """Counts pieces of memory for sums that are in use. Of a set, since two threads may make one and drop one at once,
    and `now += 1` can lose what the other did."""

    def __init__(self) -> None:
        self.now: set[int] = set()
        self.most = 0

    def lease(self) -> type:
        counts = self

        class Counted(recycling._Lease):
            def __init__(self, *given: Any) -> None:
                super().__init__(*given)
                counts.now.add(id(self))
                counts.most = max(counts.most, len(counts.now))

            def __del__(self) -> None:
                counts.now.discard(id(self))
                super().__del__()

        return Counted


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Nothing goes but what nobody refers to: the garbage collector may not run for long."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("cuts", [((), (), ()), pytest.param(((2,), (2,), (2,)), marks=pytest.mark.slow)])
@pytest.mark.usefixtures("slow_writing", "no_collector")
def test_three_blocks_of_sums_are_alive_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuts: Any) -> None:
    """However slowly blocks are written, and where some are only inferred for their neighbours in other columns."""
    alive = _Alive()
    monkeypatch.setattr(recycling, "SMALLEST", 0)
    monkeypatch.setattr(recycling, "_Lease", alive.lease())
    monkeypatch.setattr("unet_engine.prepare.draft.default_block", lambda *_: (2, 2, 2))
    monkeypatch.setattr("unet_engine.prepare.prepare.fit", lambda plan, *_: plan.cut(cuts))
    volume = make_volume(str(tmp_path / "v.zarr"), np.ones((32, 32, 32), np.uint8))
    unet_engine.run(volume, model=fake_model(tmp_path), out=str(tmp_path / "o.zarr"))
    assert alive.most == SUMS_IN_FLIGHT
    assert not alive.now, "all sums are gone with the run"


def test_no_view_of_a_halo_keeps_sums_that_are_used_up() -> None:
    """Blocks 1 and 3 of a row are pending: 0 and 2 leave a halo for them, and they themselves none."""
    axes = (AxisGrid(8, 2, 1), AxisGrid(2, 2, 1))
    plan = make(axes, block=(2, 1))
    sums: list[weakref.ref[np.ndarray]] = []
    alive = []

    def predict(work: Any) -> Iterator[HostPredicted]:
        for task, _ in work:
            alive.append(sum(one() is not None for one in sums))
            array = np.zeros((1, *task.block.sums.shape), np.float32)
            sums.append(weakref.ref(array))
            done = HostPredicted(task, array)
            del array
            yield done
            del done

    worker: Any = SimpleNamespace(
        job=SimpleNamespace(plan=plan, readers=1, sharing=1), settle=lambda task, *_: task, read=lambda _: None, predict=predict,
        commit=lambda *_: None, recorder=PLAIN, record=lambda: None,
    )  # fmt: skip
    run_column(worker, tasks_of(worker, next(plan.columns()), lambda index: index[0] in (1, 3)), threading.Event())
    assert alive == [0, 1, 1, 1], "what came last, and nothing older"


def test_blocks_that_are_void_take_no_sums(tmp_path: Path) -> None:
    """64 classes: the sums of a block would be 256 times its labels."""
    volume = make_volume(str(tmp_path / "v.zarr"), np.zeros((32, 32, 32), np.uint8), chunks=(8, 8, 8))
    model = fake_model(tmp_path, channels_out=64, empty=[float(c == 5) for c in range(64)])
    taken = []

    def measured(self: Worker, task: Any) -> None:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        void(self, task)
        taken.append((tracemalloc.get_traced_memory()[1] - before) / task.block.write.size)

    with pytest.MonkeyPatch.context() as patch:
        void = Worker.commit_void
        patch.setattr(Worker, "commit_void", measured)
        patch.setattr("unet_engine.prepare.draft.default_block", lambda *_: (9, 9, 9))
        tracemalloc.start()
        try:
            unet_engine.run(volume, model=model, out=str(tmp_path / "o.zarr"))
        finally:
            tracemalloc.stop()
    assert taken
    assert max(taken) < 16, "bytes per voxel"


# --- whole processes --------------------------------------------------------------------------------------------------


PROCESS = 88
"""MiB that a process takes before it does anything, where the budgets below were chosen."""
THREADS = ("--threads", "2")
"""Each has windows of its own: the budgets are those of a machine of two cores, on any."""


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> int:
    """MiB that a process takes here beyond `PROCESS`: other libraries, another Python."""
    folder = tmp_path_factory.mktemp("process")
    volume = make_volume(str(folder / "v.zarr"), np.ones((16, 16, 16), np.uint8))
    command = [*COMMAND, "plan", "--json", "--in", volume, "--model", fake_model(folder), *THREADS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.strip().splitlines()[-1])["memory"]["base"] // 2**20) - PROCESS


def _run(*arguments: object) -> dict[str, Any]:
    command = [*COMMAND, "run", "--json", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("classes", "side", "window", "memory", "options"),
    share(
        [
            (2, 128, 32, 106, ()),
            (100, 64, 32, 250, ("--part", "2/3")),
            (10, 96, 32, 120, ("--output", "logits", "--dtype", "float32")),
            (100, 64, 16, 180, ("--output", "probabilities")),
            (100, 96, 32, 500, ()),
            (512, 48, 16, 300, ()),
        ],
        2,
    ),
)
def test_a_run_takes_what_was_predicted_and_that_is_within_the_budget(
    tmp_path: Path, more: int, classes: int, side: int, window: int, memory: int, options: tuple[str, ...]
) -> None:
    memory += more
    model = fake_model(
        tmp_path, window=(window,) * 3, window_min=(window,) * 3, window_step=(0,) * 3, channels_out=classes
    )
    image = np.random.default_rng(0).integers(0, 255, (side,) * 3, dtype=np.uint8)
    volume = make_volume(str(tmp_path / "v.zarr"), image, chunks=(32, 32, 32))
    result = _run("--in", volume, "--model", model, "--memory", f"{memory}MiB", *THREADS, *options)
    assert result["predicted_rss_bytes"] <= memory * 2**20
    assert result["peak_rss_bytes"] <= 1.05 * result["predicted_rss_bytes"]


@pytest.mark.parametrize(("classes", "memory", "end"), share([(100, 180, 110), (512, 260, 220)]))
def test_a_run_that_goes_on_keeps_to_the_plan_as_well(
    tmp_path: Path, more: int, classes: int, memory: int, end: int
) -> None:
    """Killed at more than half of its windows: what was committed is looked at, and halos wait for blocks that are
    done."""
    memory += more
    spec: dict[str, Any] = {"window": (16,) * 3, "window_min": (16,) * 3, "window_step": (0,) * 3}
    image = np.random.default_rng(0).integers(0, 255, (48,) * 3, dtype=np.uint8)
    volume = make_volume(str(tmp_path / "v.zarr"), image, chunks=(16, 16, 16))
    model = fake_model(tmp_path, channels_out=classes, kill_at=end, **spec)
    arguments = ["--in", volume, "--model", model, "--memory", f"{memory}MiB", *THREADS, "--out", tmp_path / "o.zarr"]
    killed = subprocess.run([*COMMAND, "run", *map(str, arguments)], capture_output=True, check=False)
    assert killed.returncode == -9
    result = _run(*arguments, "--resume")
    assert 0 < result["blocks_written"] < result["blocks_planned"]
    assert result["predicted_rss_bytes"] <= memory * 2**20
    assert result["peak_rss_bytes"] <= 1.05 * result["predicted_rss_bytes"]


@pytest.mark.parametrize(
    ("classes", "memory"), [pytest.param(*case, marks=pytest.mark.slow) for case in ((100, 560), (2, 330))]
)
def test_each_worker_keeps_to_its_share(tmp_path: Path, more: int, classes: int, memory: int) -> None:
    memory += 4 * more  # workers, client, scheduler
    pytest.importorskip("distributed")
    spec: dict[str, Any] = {"window": (16,) * 3, "window_min": (16,) * 3, "window_step": (0,) * 3}
    image = np.random.default_rng(0).integers(0, 255, (48,) * 3, dtype=np.uint8)
    volume = make_volume(str(tmp_path / "v.zarr"), image, chunks=(16, 16, 16))
    model = fake_model(tmp_path, channels_out=classes, **spec)
    result = _run("--in", volume, "--model", model, "--memory", f"{memory}MiB", "--workers", 2, "--threads", 1)
    assert result["workers"] == 2
    assert result["predicted_rss_bytes"] <= memory * 2**20 / 2
    assert result["peak_rss_bytes"] <= 1.05 * result["predicted_rss_bytes"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="shared pages are counted by Linux alone")
@pytest.mark.parametrize(("classes", "memory"), [(2, 330), (100, 560)])
def test_all_processes_together_keep_to_the_budget(tmp_path: Path, more: int, classes: int, memory: int) -> None:
    """Workers, client, scheduler and what else they start; pages that several share count once."""
    memory += 4 * more
    pytest.importorskip("distributed")
    spec: dict[str, Any] = {"window": (16,) * 3, "window_min": (16,) * 3, "window_step": (0,) * 3}
    image = np.random.default_rng(0).integers(0, 255, (48,) * 3, dtype=np.uint8)
    volume = make_volume(str(tmp_path / "v.zarr"), image, chunks=(16, 16, 16))
    model = fake_model(tmp_path, channels_out=classes, **spec)
    arguments = ("--in", volume, "--model", model, "--memory", f"{memory}MiB", "--workers", "2", "--threads", "1")
    peak = 0
    with subprocess.Popen([*COMMAND, "run", *arguments, "--out", str(tmp_path / "o.zarr")]) as run:
        while run.poll() is None:
            found = [run.pid, *(child.pid for child in psutil.Process(run.pid).children(recursive=True))]
            peak = max(peak, sum(map(machine.proportional_bytes, found)))
            time.sleep(0.02)
    assert run.returncode == 0
    assert 100 * 2**20 < peak <= 1.05 * memory * 2**20


def test_too_little_for_all_processes_is_refused_saying_what_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unet_engine.execution.dask.sharing._shared", lambda: 2**20)  # of this process, 300 at times
    sharing = Sharing(total=200 * 2**20, workers=2, office=100 * 2**20)
    assert (sharing.each, sharing.enough(80 * 2**20)) == (50 * 2**20, "260MiB")
    said = str(sharing.refusal(NoRoom(90 * 2**20, 80 * 2**20, 70 * 2**20, 50 * 2**20)))
    wanted = r"in each of 2 workers.* 50 MiB: of --memory 200 MiB, 100 MiB are .*fewer --workers.*--memory \d+MiB"
    assert re.search(wanted, said)
    again = pickle.loads(pickle.dumps(NoRoom(4, 3, 2, 1)))
    assert (again.enough, str(again)) == (4, str(NoRoom(4, 3, 2, 1)))


@pytest.mark.slow
def test_five_members_take_what_was_predicted_in_any_poses(tmp_path: Path) -> None:
    """Each has slots of its own, of 4 MiB an answer: what loading them took is in the prediction."""
    pytest.importorskip("onnx")
    from support.graphs import convolution, graph, node
    from unet_engine.model.spec import ModelSpec
    from unet_engine.model.writing import write_members

    spec = ModelSpec(
        name="net", axes="zyx", channels_in=1, channels_out=32, window=(32,) * 3, window_min=(32,) * 3,
        window_step=(0,) * 3, margin=(0,) * 3,
    )  # fmt: skip
    parts = []
    for seed in range(5):
        weights = convolution(axes=3, channels_out=32, seed=seed)
        nodes = [node("Conv", "x w", "y")]
        path = graph(tmp_path / f"{seed}.onnx", nodes, shape=(1, 1, 32, 32, 32), spec=spec, w=weights)
        parts.append((Path(path), f"fold_{seed}", 1.0))
    model = write_members(tmp_path / "all.onnx", parts).path
    volume = make_volume(str(tmp_path / "v.zarr"), np.ones((48, 64, 64), np.uint8), chunks=(16, 32, 32))
    one, all_five = (
        _run("--in", volume, "--model", model, "--threads", 2, "--tta", "mirror:x", "--out", tmp_path / name, *more)
        for name, more in (("one.zarr", ("--folds", "0")), ("all.zarr", ()))
    )
    assert all_five["windows_inferred"] == 5 * one["windows_inferred"]
    assert all_five["predicted_rss_bytes"] > one["predicted_rss_bytes"] + 4 * 2 * 4 * 2**20
    for result in (one, all_five):
        assert result["peak_rss_bytes"] <= 1.05 * result["predicted_rss_bytes"]
