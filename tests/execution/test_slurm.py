"""A real SLURM, started for these tests where that is possible: workers as jobs, jobs that end, and arrays of jobs."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import unet_engine
from support.command_line import begin, command, environment
from support.dask_processes import settings
from support.outputs import chunks, marked
from support.paths import DOCS
from support.volumes import fake_model, make_volume
from support.waiting import wait_until
from unet_engine.cluster import connection as clusters
from unet_engine.cluster import job_keeper
from unet_engine.errors import ClusterError

pytestmark = pytest.mark.long

EXAMPLES = DOCS / "examples"
SETUP = Path(__file__).parent / "slurm"
OPTIONS = {"output": "logits", "dtype": "float32"}
FLAGS = [f for key, value in OPTIONS.items() for f in (f"--{key}", value)]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A controller and a node of 16 CPUs on loopback. The reason is said where there is none."""
    folder = tmp_path_factory.mktemp("slurm")
    try:
        done = subprocess.run([SETUP / "setup.sh", folder], capture_output=True, text=True, timeout=240, check=False)
        if done.returncode:
            pytest.skip(
                done.stderr.strip().splitlines()[-1] if done.stderr else "tests/execution/slurm/setup.sh failed"
            )
        (folder / "bin").mkdir()
        program = folder / "bin" / "unet-engine"
        program.write_text(f"#!{sys.executable}\nfrom unet_engine.commands.cli import main\nmain()\n")
        program.chmod(0o755)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
            patch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
            patch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
            yield
    finally:
        subprocess.run([SETUP / "teardown.sh", folder], timeout=60, check=False)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A volume, a network that takes its time, and the result of one process."""
    folder = tmp_path_factory.mktemp("case")
    volume = make_volume(folder / "scan.zarr", np.random.default_rng(3).integers(0, 255, (40, 44, 60), np.uint8))
    alone = unet_engine.run(volume, model=fake_model(folder), out=str(folder / "alone.zarr"), **OPTIONS)
    return volume, fake_model(folder / "slow", latency_ms=8), alone.out


def queue():
    """State of each job that SLURM still knows, by number."""
    text = subprocess.run(["squeue", "--noheader", "--format=%A %T"], capture_output=True, text=True, check=True).stdout
    return dict(line.split() for line in text.splitlines())


def cluster_file(**changes):
    """A file for ``--cluster`` in the current folder."""
    lines = {"type": "slurm", "jobs": 2, "cores": 1, "memory": "500MB", "interface": "lo", **changes}
    Path("slurm.yaml").write_text("".join(f"{key}: {value}\n" for key, value in lines.items() if value))
    return "slurm.yaml"


@contextmanager
def connected(**changes):
    with clusters.connect(settings(cluster=cluster_file(**changes), dashboard="none"), None, 60) as cluster:
        yield cluster


def present(cluster):
    return len(cluster.client.scheduler_info(n_workers=-1)["workers"])


def jobs(cluster):
    """The jobs that the workers run in."""
    return set(cluster.client.run(os.getenv, "SLURM_JOB_ID", on_error="ignore").values())


@pytest.mark.slow
def test_jobs_become_workers_encrypted_and_end_with_the_run(slurm, monkeypatch, capfd):
    monkeypatch.setattr(job_keeper, "ASK_EVERY", 1.0)
    with connected() as cluster:
        clusters.wait_for_workers(cluster, print)
        clusters.check_versions(cluster.client)
        assert (cluster.kind, cluster.expected) == ("slurm", 2)
        wait_until(lambda: present(cluster) == 2)
        assert all(address.startswith("tls://") for address in cluster.client.scheduler_info(n_workers=-1)["workers"])
        assert jobs(cluster) == set(queue())
        wait_until(lambda: cluster.state() == "2 of 2 jobs have workers")
        assert cluster.trouble() is None
        assert [folder.stat().st_mode & 0o777 for folder in Path("unet-engine-jobs").glob(".tls-*")] == [0o700]
        first = next(iter(queue()))
        subprocess.run(["scancel", first], check=True)
        wait_until(lambda: first not in queue() and present(cluster) == 2)
    wait_until(lambda: not queue())
    assert capfd.readouterr().err == ""
    assert not list(Path("unet-engine-jobs").glob(".tls-*"))


@pytest.mark.slow
def test_a_job_that_reaches_its_walltime_is_followed_by_another(slurm):
    with connected(jobs=1, walltime='"00:00:40"') as cluster:
        clusters.wait_for_workers(cluster, print)
        first = jobs(cluster)
        assert 0 < float(worker_option("lifetime")) + float(worker_option("lifetime-stagger")) < 40
        wait_until(lambda: jobs(cluster) - first)


def worker_option(name):
    """Of the command in the last job."""
    job = max(queue(), key=int)
    script = subprocess.run(
        ["scontrol", "write", "batch_script", job, "-"], capture_output=True, text=True, check=True
    ).stdout
    return re.search(rf"--{name} (\d+)s", script)[1]


@pytest.mark.slow
def test_each_process_of_a_job_gets_a_gpu_of_its_own(slurm, monkeypatch):
    monkeypatch.setattr(job_keeper, "ASK_EVERY", 1.0)
    with connected(jobs=1, gpus=2, tls="none") as cluster:
        clusters.wait_for_workers(cluster, print)
        wait_until(lambda: present(cluster) == 2)
        devices = cluster.client.run(os.getenv, "CUDA_VISIBLE_DEVICES")
        assert sorted(devices.values()) == ["0", "1"]
        # jobs of several processes are those that Dask loses sight of
        first = set(queue())
        subprocess.run(["scancel", *first], check=True)
        wait_until(lambda: not first & set(queue()) and present(cluster) == 2)


def test_what_slurm_says_of_a_job_it_refuses(slurm):
    with (
        pytest.raises(ClusterError, match=r"slurm.yaml: slurm refuses the job: .*[Ii]nvalid partition"),
        connected(partition="none"),
    ):
        pass
    assert not queue()


@pytest.mark.slow
def test_jobs_that_end_before_a_worker_connects(slurm, monkeypatch):
    monkeypatch.setattr(job_keeper, "ASK_EVERY", 0.5)
    monkeypatch.setattr(job_keeper, "LOOK_EVERY", 0.5)
    prologue = '["echo the module cuda is unknown >&2", "exit 1"]'
    expected = (
        r"3 jobs ended before a worker connected; see .*unet-engine-jobs: unet-engine-\d+.err ends with "
        r"'.*module cuda is unknown'"
    )
    with connected(jobs=1, prologue=prologue) as cluster, pytest.raises(ClusterError, match=expected):
        clusters.wait_for_workers(cluster, print)


def test_jobs_that_wait_are_told_of(slurm, monkeypatch):
    monkeypatch.setattr(clusters, "NOTE_EVERY", 1.0)
    notes = []

    def note(text):
        notes.append(text)
        if "pending" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), connected(extra='["--begin=now+1hour"]') as cluster:
        clusters.wait_for_workers(cluster, note)
    assert notes[-1] == "waiting for workers: 0 of 2 jobs have workers; pending: BeginTime"


@pytest.mark.slow
def test_jobs_grow_with_the_work_and_shrink_without(slurm):
    with connected(jobs=None, adaptive="{minimum: 1, maximum: 3}") as cluster:
        clusters.wait_for_workers(cluster, print)
        assert cluster.expected == 1
        futures = cluster.client.map(time.sleep, [1.0] * 120, pure=False)
        wait_until(lambda: present(cluster) == 3)
        cluster.client.cancel(futures)
        del futures
        wait_until(lambda: len(queue()) == 1)


# runs of the engine


def test_a_run_on_slurm_gives_the_bytes_of_one_process(slurm, case, tmp_path):
    volume, model, alone = case
    out = tmp_path / "out.zarr"
    said = command("run", "--in", volume, "--model", model, "--out", out, "--cluster", cluster_file(), "--json", *FLAGS)
    assert said.code == 0, said.err
    assert chunks(out) == chunks(alone)
    wait_until(lambda: not queue())


@pytest.mark.slow
def test_a_job_that_ends_in_mid_run_costs_time_and_nothing_else(slurm, case, tmp_path):
    volume, model, alone = case
    out = tmp_path / "out.zarr"
    process = begin("run", "--in", volume, "--model", model, "--out", out, "--cluster", cluster_file(jobs=1), *FLAGS)
    while process.poll() is None and not marked(out):
        time.sleep(0.01)
    subprocess.run(["scancel", *queue()], check=True)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert chunks(out) == chunks(alone)


@pytest.mark.slow
def test_an_interrupt_cancels_the_jobs(slurm, case, tmp_path):
    volume, model, _ = case
    out = tmp_path / "out.zarr"
    process = begin("run", "--in", volume, "--model", model, "--out", out, "--cluster", cluster_file(), *FLAGS)
    while process.poll() is None and not marked(out):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "--resume" in err.splitlines()[-1]
    wait_until(lambda: not queue())


@pytest.mark.slow
def test_the_example_of_a_job_array(slurm, case, tmp_path):
    volume, model, alone = case
    out = tmp_path / "out.zarr"
    small = {"SBATCH_MEM_PER_NODE": "1G"}
    subprocess.run(
        [EXAMPLES / "submit_array.sh", "4", out, "--in", volume, "--model", model, *FLAGS],
        check=True,
        env={**os.environ, **small},
    )
    wait_until(lambda: not queue())
    logs = {log.name: log.read_text() for log in tmp_path.glob("unet-engine-*.log")}
    assert len(logs) == 5
    assert chunks(out) == chunks(alone), logs
    assert str(out) in next(text for name, text in logs.items() if "finish" in name)
