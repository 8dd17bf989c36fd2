"""Runs on real Dask clusters: the same bytes as in one process, whoever dies."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import unet_engine
from support.command_line import begin, cli, command
from support.outputs import chunks, marked, wait_for_blocks
from support.shares import share
from support.volumes import fake_model, make_volume, result_of
from support.web_server import WebServer
from unet_engine.errors import BackendError, ClusterError, DataError, PlanError, SettingsError

pytestmark = pytest.mark.long

distributed = pytest.importorskip("distributed")

SHAPE = (40, 44, 60)
OPTIONS = {"output": "logits", "dtype": "float32"}
FLAGS = [f for key, value in OPTIONS.items() for f in (f"--{key}", value)]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A volume, a network that takes its time, and the result of this process alone."""
    folder = tmp_path_factory.mktemp("dask")
    volume = make_volume(folder / "scan.zarr", np.random.default_rng(3).integers(0, 255, SHAPE, np.uint8))
    model = fake_model(folder, latency_ms=1)
    return volume, model, unet_engine.run(volume, model=model, out=str(folder / "alone.zarr"), **OPTIONS)


@pytest.fixture(scope="module")
def threads():
    """Address of a cluster of two workers that are threads of this process."""
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=4,
        processes=False,
        protocol="tcp://",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as cluster:
        yield cluster.scheduler_address


@pytest.mark.parametrize("workers", share([2, 1, 4]))
def test_processes_give_the_bytes_of_one_and_infer_every_window_once(tmp_path, case, workers):
    volume, model, alone = case
    result = unet_engine.run(volume, model=model, out=str(tmp_path / "out.zarr"), workers=workers, **OPTIONS)
    assert chunks(result.out) == chunks(alone.out)
    assert result.digest == alone.digest
    assert result.windows_inferred == result.windows_planned == alone.windows_inferred
    assert (result.workers, result.workers_lost, result.runs_repeated) == (workers, 0, 0)
    assert (result.halo_bytes > 0) == (workers > 1)
    assert sum(result.worker_windows) == result.windows_inferred
    assert result.peak_rss_bytes > 0


@pytest.mark.parametrize(
    "options",
    share([{"roi": "3:33,5:40,11:58", **OPTIONS}, {"output": "labels"}, {"output": "probabilities", "blend": "crop"}]),
    ids=["roi", "labels", "crop"],
)
def test_threads_give_the_bytes_of_one(tmp_path, case, threads, options):
    volume, model, _ = case
    alone = unet_engine.run(volume, model=model, out=str(tmp_path / "alone.zarr"), **options)
    crowd = unet_engine.run(volume, model=model, out=str(tmp_path / "crowd.zarr"), scheduler=threads, **options)
    assert chunks(crowd.out) == chunks(alone.out)
    assert crowd.windows_inferred == crowd.windows_planned == alone.windows_planned


def test_several_volumes_give_the_bytes_of_one_process(tmp_path, case, threads):
    """Each is planned and opened by the workers, though this process has opened the model for all."""
    volume, model, alone = case
    args = ("run", "--in", volume, volume, "--model", model, "--out", tmp_path / "{number}.zarr", *FLAGS)
    said = cli(*args, "--scheduler", threads)
    assert said.code == 0, said.err
    assert chunks(tmp_path / "1.zarr") == chunks(tmp_path / "2.zarr") == chunks(alone.out)


def test_what_is_open_here_is_not_handed_to_workers(tmp_path, case, threads):
    volume, model, _ = case
    with pytest.raises(SettingsError, match="give the paths of both"):
        unet_engine.run(volume, model=unet_engine.open_model(model), out=str(tmp_path / "o.zarr"), scheduler=threads)


def test_workers_of_one_thread_give_the_bytes_of_one(tmp_path, case):
    """Reading, inferring and writing take turns there, and none waits for what only the same thread could do."""
    volume, model, alone = case
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, protocol="tcp://", host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as cluster:  # fmt: skip
        address = cluster.scheduler_address
        crowd = unet_engine.run(volume, model=model, out=str(tmp_path / "out.zarr"), scheduler=address, **OPTIONS)
    assert chunks(crowd.out) == chunks(alone.out)


def test_parts_on_a_cluster(tmp_path, case, threads):
    """Two parts at the same time, on the same workers, into one output."""
    volume, model, alone = case
    options = {"model": model, "out": str(tmp_path / "out.zarr"), "scheduler": threads, **OPTIONS}
    results = {}

    def part(name):
        results[name] = unet_engine.run(volume, part=name, **options)

    runs = [threading.Thread(target=part, args=(name,)) for name in ("1/2", "2/2")]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert any(r.complete for r in results.values())
    assert all(r.windows_inferred == r.windows_planned for r in results.values())
    assert chunks(tmp_path / "out.zarr") == chunks(alone.out)


def test_empty_regions_are_skipped_as_by_one(tmp_path, threads):
    """Void blocks are written by whoever looks at them, and what is left out is the same."""
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[:9, 20:, 30:50] = np.random.default_rng(4).integers(1, 255, (9, 24, 20), np.uint8)
    volume = make_volume(tmp_path / "scan.zarr", voxels, fill_value=0, config={"write_empty_chunks": False})
    model = fake_model(tmp_path, channels_out=2, empty=[1.0, -1.0], activation="softmax")
    alone = unet_engine.run(volume, model=model, out=str(tmp_path / "alone.zarr"))
    crowd = unet_engine.run(volume, model=model, out=str(tmp_path / "crowd.zarr"), scheduler=threads)
    assert chunks(crowd.out) == chunks(alone.out)
    assert (crowd.windows_inferred, crowd.windows_skipped) == (alone.windows_inferred, alone.windows_skipped)
    assert alone.windows_skipped > alone.windows_inferred > 0


# --- whoever dies ---


def workers_of(process):
    """The worker processes of a running command that are alive."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.mark.parametrize("seed", share(range(int(os.environ.get("UNET_ENGINE_SEEDS", "3")))))
def test_workers_killed_at_random_moments(tmp_path, case, seed):
    volume, _, alone = case
    out, moments, kills = tmp_path / "out.zarr", random.Random(seed), 0
    model = fake_model(tmp_path, latency_ms=4)
    crowd = ["--workers", 2, "--threads", 1]  # or the run is over at once where there are many cores
    process = begin("run", "--in", volume, "--model", model, "--out", out, *crowd, "--json", *FLAGS)
    for _ in range(2):
        wanted = len(marked(out)) + moments.choice([1, 2, 3])
        while process.poll() is None and len(marked(out)) < wanted:
            time.sleep(0.005)
        time.sleep(moments.random() * 0.1)
        if process.poll() is None and (alive := workers_of(process)):
            moments.choice(alive).send_signal(signal.SIGKILL)
            kills += 1
    text, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert chunks(out) == chunks(alone.out)
    assert '"complete": true' in text.splitlines()[-1]
    assert kills, "the run was over before a worker was killed: make it slower"


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_a_run_on_two_workers_fetches_a_chunk_as_often_as_is_said(tmp_path, killed):
    """Each of them what its share of the blocks reads, and the process that takes samples has done so before. More
    where one is lost and another comes in its place, but no other bytes."""
    voxels = np.random.default_rng(0).integers(1, 255, (96, 96, 128), np.uint8)
    make_volume(str(tmp_path / "files/scan.zarr"), voxels, chunks=(16, 16, 16), compressors=None)
    with WebServer(tmp_path / "files") as server:
        model = fake_model(tmp_path, window=(16, 16, 16), latency_ms=2)
        options = ("--in", f"{server.url}/scan.zarr", "--model", model, "--overlap", "0.5", "--output", "logits")
        alone = cli("run", *options, "--out", tmp_path / "alone.zarr")
        assert alone.code == 0, alone.err
        planned = cli("run", *options, "--workers", 2, "--dry-run", "--json").json
        server.seen.clear()
        process = begin("run", *options, "--workers", 2, "--out", tmp_path / "o.zarr")
        if killed:
            wait_for_blocks(tmp_path / "o.zarr", process)
            workers_of(process)[0].kill()
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 0, said
        fetched = [path for method, path, _ in server.seen if method == "GET" and "/c/" in path]
    assert result_of(tmp_path / "o.zarr").tobytes() == result_of(tmp_path / "alone.zarr").tobytes()
    often = len(fetched) / len(set(fetched))
    dealt, most = map(float, re.search(r"each chunk ([0-9.]+) times .* share, ([0-9.]+) at most", said).groups())
    assert (planned["fetch_factor"], planned["fetched_at_most"]) == (dealt, most)
    assert dealt < 0.7 * most
    if not killed:  # of a machine that is busy with others, one worker may do some of the other's share
        assert dealt - 0.01 <= often <= most


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_run_so_that_it_can_be_resumed(tmp_path, case, number):
    volume, _, alone = case
    out = tmp_path / "out.zarr"
    args = ["--in", volume, "--model", fake_model(tmp_path, latency_ms=6), "--out", out, "--workers", 2, "--threads", 1]
    args += FLAGS
    process = begin("run", *args)
    wait_for_blocks(out, process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "--resume" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert not psutil.wait_procs(family, timeout=20)[1], "workers outlive the client"
    assert not chunks(out).keys() >= chunks(alone.out).keys()
    assert cli("run", *args, "--resume").code == 0
    assert chunks(out) == chunks(alone.out)


@pytest.mark.slow
def test_the_scheduler_killed_and_the_run_resumed(tmp_path, case):
    volume, _, alone = case
    out, file = tmp_path / "out.zarr", tmp_path / "scheduler.json"
    model = fake_model(tmp_path, latency_ms=5)
    args = ["--in", volume, "--model", model, "--out", out, "--scheduler", file, *FLAGS]
    with dask_processes(file, workers=2) as started:
        process = begin("run", *args)
        wait_for_blocks(out, process, 2)
        started[0].kill()
        said = process.communicate(timeout=120)[1]
    assert process.returncode == ClusterError.exit_code
    assert "scheduler" in said.splitlines()[-1]
    assert "--resume" in said.splitlines()[-1]
    assert "Traceback" not in said
    with dask_processes(file, workers=2):
        assert cli("run", *args, "--resume").code == 0
    assert chunks(out) == chunks(alone.out)


@pytest.mark.slow
def test_a_worker_that_stops_for_good_is_replaced(tmp_path, case):
    """Stopped, not dead: its connections stay, and only its silence tells."""
    volume, _, alone = case
    out = tmp_path / "out.zarr"
    model = fake_model(tmp_path, latency_ms=4)
    crowd = ["--workers", 2, "--threads", 1, "--hang-seconds", 5]
    process = begin("run", "--in", volume, "--model", model, "--out", out, *crowd, "--json", *FLAGS)
    while process.poll() is None and len(marked(out)) < 1:
        time.sleep(0.005)
    victim = workers_of(process)[0]
    victim.suspend()
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    assert chunks(out) == chunks(alone.out)


@pytest.mark.slow
def test_a_network_that_hangs_once_costs_its_worker_and_nothing_else(tmp_path, case):
    volume, _, alone = case
    out = tmp_path / "out.zarr"
    model = fake_model(tmp_path, latency_ms=1, hang_once=tmp_path / "hung")
    # the network is tried while planning; it may hang only afterwards
    (tmp_path / "hung").touch()
    process = begin(
        "run", "--in", volume, "--model", model, "--out", out, "--workers", 2, "--hang-seconds", 3, "--json", *FLAGS
    )
    while process.poll() is None and not marked(out):
        time.sleep(0.005)
    (tmp_path / "hung").unlink()
    text, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert (tmp_path / "hung").exists()
    assert '"workers_lost": 1' in text
    assert chunks(out) == chunks(alone.out)


# --- errors ---


def test_an_error_of_a_worker_ends_the_run_with_its_own_words(tmp_path, case, threads):
    volume, _, _ = case
    out = str(tmp_path / "out.zarr")
    with pytest.raises(BackendError, match=r"block \(\d, \d, \d\), window"):
        unet_engine.run(volume, model=fake_model(tmp_path, fail_at=90), out=out, scheduler=threads, **OPTIONS)
    model = fake_model(tmp_path)
    with pytest.raises(DataError, match=r"block \(\d, \d, \d\).*z=30 y=20 x=10"):
        unet_engine.run(_with_nan(tmp_path), model=model, out=str(tmp_path / "nan.zarr"), scheduler=threads, **OPTIONS)


def _with_nan(tmp_path):
    voxels = np.zeros(SHAPE, np.float32)
    voxels[30, 20, 10] = np.nan
    return make_volume(tmp_path / "nan-scan.zarr", voxels)


def test_a_network_that_needs_too_much_memory_is_refused_while_planning(tmp_path, case, threads):
    volume, _, _ = case
    model = fake_model(tmp_path, out_of_memory_above=1)
    said = cli("run", "--in", volume, "--model", model, "--scheduler", threads, "--threads", 4, *FLAGS)
    assert said.code in (PlanError.exit_code, BackendError.exit_code)
    assert "memory" in said.error


@pytest.mark.slow
def test_a_block_that_kills_its_workers_is_given_up(tmp_path, case):
    """As where the system ends processes that take too much memory: the block, what to change, and no endless loop."""
    volume, _, _ = case
    model = fake_model(tmp_path, kill_at=60)
    report = ("--report", tmp_path / "r.html")
    said = command(
        "run", "--in", volume, "--model", model, "--out", tmp_path / "o.zarr", "--workers", 1, *FLAGS, *report
    )
    assert said.code == ClusterError.exit_code, said.err
    assert "workers died" in said.error
    assert "--memory" in said.error
    assert "block" in said.error
    assert "Traceback" not in said.err
    page = (tmp_path / "r.html").read_text()
    assert "(exit code 10)" in page
    assert "unet-engine run --resume --in" in page


def test_no_scheduler_there(tmp_path, case):
    import dask

    volume, model, _ = case
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(ClusterError, match=r"tcp://127\.0\.0\.1:1"),
    ):
        unet_engine.run(volume, model=model, out=str(tmp_path / "out.zarr"), scheduler="tcp://127.0.0.1:1", **OPTIONS)
    assert not (tmp_path / "out.zarr").exists()


def test_bad_input_is_refused_as_without_a_cluster(tmp_path, case, threads):
    volume, model, alone = case
    said = cli("run", "--in", tmp_path / "none.zarr", "--model", model, "--scheduler", threads)
    assert said.code == 3
    said = cli("run", "--in", volume, "--model", model, "--out", alone.out, "--scheduler", threads, *FLAGS)
    assert said.code == 8
    assert "--resume" in said.error


def test_memory_that_runs_out_outside_the_network_names_what_to_change(tmp_path, case, threads, monkeypatch):
    from unet_engine.pipeline.worker import Worker

    def greedy(*_):
        raise MemoryError("cannot have 9 TiB")

    monkeypatch.setattr(Worker, "commit", greedy)
    volume, model, _ = case
    with pytest.raises(PlanError, match=r"out of memory in block.*9 TiB.*--memory"):
        unet_engine.run(volume, model=model, out=str(tmp_path / "out.zarr"), scheduler=threads, **OPTIONS)


def test_a_thread_that_hangs_ends_the_run_since_it_cannot_be_ended_itself():
    from unet_engine.execution.dask.flow import _step
    from unet_engine.execution.dask.progress import Progress

    progress = Progress()
    progress.event({"hung": "writing block (0, 0, 1) on a", "ended": True})
    assert progress.stuck is None
    progress.event({"hung": "writing block (0, 0, 2) on b", "ended": False})
    progress.event({"hung": "writing block (0, 0, 3) on a", "ended": True})
    with pytest.raises(ClusterError, match=r"block \(0, 0, 2\) on b.*--resume"):
        _step(None, progress, lambda: None)


# --- helpers ---


def dask_processes(file: Path, workers: int):
    """A scheduler and workers started as users do, from the shell; the scheduler is the first process."""

    @contextlib.contextmanager
    def running():
        file.unlink(missing_ok=True)
        environment = {**os.environ, "DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "critical"}
        started = []
        try:
            commands = [["scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]]
            commands += [["worker", "--nthreads", "4", "--no-dashboard", "--host", "127.0.0.1"]] * workers
            for what in commands:
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "dask", *what, "--scheduler-file", str(file)],
                        env=environment,
                        stderr=subprocess.DEVNULL,
                    )
                )
            while not file.exists():
                time.sleep(0.05)
            yield started
        finally:
            for process in started:
                with contextlib.suppress(psutil.NoSuchProcess):
                    for child in psutil.Process(process.pid).children(recursive=True):
                        child.kill()
                process.kill()
                process.wait()

    return running()
