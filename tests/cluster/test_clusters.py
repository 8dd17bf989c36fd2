"""Workers of our own: what they are told, who may listen, how they end. No test needs a GPU."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager, suppress

import psutil
import pytest

from support.command_line import environment
from support.dask_processes import get, listening, settings, workers_of
from support.shares import share
from support.waiting import PATIENCE, wait_until
from unet_engine.cluster import connection as clusters
from unet_engine.cluster import local_workers
from unet_engine.cluster.worker_preload import gpu_of
from unet_engine.errors import ClusterError

MEMORY = 2**30
NEVER = 900
"""Seconds: who waits that long does not end within the test."""
SECRET = "a token of the user's"


@pytest.fixture(scope="module")
def local():
    """Two workers of our own."""
    with clusters.connect(settings(workers=2, dashboard_token=SECRET), MEMORY, 60) as cluster:
        yield cluster


def test_nothing_of_dask_is_imported_before_it_is_needed():
    code = (
        "import sys, unet_engine.cluster.connection; "
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'dask', 'distributed', 'tornado'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("given", "wants"),
    [
        ({}, False),
        ({"workers": 1}, True),
        ({"scheduler": "tcp://a:1"}, True),
        ({"cluster": "c.yaml"}, True),
        ({"gpus": 1}, False),
        ({"gpus": 2}, False),
    ],
)
def test_who_wants_a_cluster(given, wants):
    assert clusters.wants_cluster(settings(**given)) is wants


def test_several_gpus_without_dask_cuda_are_told_of():
    assert "dask-cuda" in clusters.cuda_cluster_note(settings(gpus=2))
    assert clusters.cuda_cluster_note(settings(gpus=1)) is None


def test_local_workers_listen_on_loopback_only_and_serve_no_pages(local):
    pids = workers_of(local).values()
    places = listening([os.getpid(), *pids])
    assert {address for address, _, _ in places} == {"127.0.0.1"}
    for pid in pids:
        assert sum(owner == pid for _, _, owner in places) == 1  # for tasks and data


def test_nothing_spills_and_nobody_takes_threads_away(local):
    def facts(dask_worker):
        import dask

        manager = dask_worker.memory_manager
        fractions = (manager.memory_target_fraction, manager.memory_spill_fraction, manager.memory_pause_fraction)
        return {
            "fractions": fractions,
            "terminate": dask.config.get("distributed.worker.memory.terminate"),
            "data": type(dask_worker.data).__name__,
            "limit": manager.memory_limit,
            "threads": dask_worker.state.nthreads,
            "profile": dask.config.get("distributed.worker.profile.enabled"),
            "environment": [
                k for k in os.environ if k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_")
            ],
        }

    expected = {
        "fractions": (False, False, False), "terminate": False, "data": "dict", "limit": MEMORY, "threads": 6,
        "profile": False,
        "environment": [k for k in os.environ if k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")],
    }  # fmt: skip
    assert list(local.client.run(facts).values()) == [expected] * 2


def test_a_killed_worker_is_replaced_without_a_word(local, capfd):
    before = workers_of(local)
    os.kill(next(iter(before.values())), signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(next(iter(before.values()))))
    wait_until(lambda: len(local.client.scheduler_info(n_workers=-1)["workers"]) == 2)
    assert len(set(workers_of(local).values()) - set(before.values())) == 1
    assert capfd.readouterr().err == ""


def spawned(*, recursive):
    """Processes of this one that workers run in, or soon will."""
    found = set()
    for child in psutil.Process().children(recursive=recursive):
        with suppress(psutil.Error):  # it ends just now
            if child.status() != psutil.STATUS_ZOMBIE and "spawn_main" in " ".join(child.cmdline()):
                found.add(child)
    return found


def test_a_worker_killed_again_and_again_comes_back(local):
    for _ in range(3):
        max(spawned(recursive=True), key=psutil.Process.create_time).kill()
        time.sleep(0.7)  # in the middle of its replacement's start
    wait_until(lambda: len(local.client.scheduler_info(n_workers=-1)["workers"]) == 2)


@pytest.mark.slow
def test_a_stopped_worker_is_noticed_and_replaced(capfd):
    with clusters.connect(settings(workers=2), MEMORY, 5) as cluster:
        before = workers_of(cluster)
        os.kill(next(iter(before.values())), signal.SIGSTOP)
        wait_until(lambda: not psutil.pid_exists(next(iter(before.values()))))
        wait_until(lambda: len(cluster.client.scheduler_info(n_workers=-1)["workers"]) == 2)
    assert capfd.readouterr().err == ""


def test_workers_of_the_same_version_pass_others_do_not(local, monkeypatch):
    clusters.check_versions(local.client)
    monkeypatch.setattr("unet_engine.version.version_of", lambda _: "0.0.7")
    with pytest.raises(ClusterError, match=r"worker tls://\S+ has unet-engine \S+, this is 0.0.7; install"):
        clusters.check_versions(local.client)


SCRIPT = f"""
import signal, sys, time
from unet_engine.cluster import connection as clusters
from unet_engine.cluster import local_workers
from unet_engine.settings.settings import Settings

local_workers.CLOSING = {NEVER}

def end(*_):
    raise KeyboardInterrupt

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, end)
    try:
        with clusters.connect(Settings(input="x", workers=2, dashboard="none"), None, 60) as cluster:
            cluster.client.submit(time.sleep, {NEVER})
            print(*cluster.client.run(__import__("os").getpid).values(), flush=True)
            time.sleep({NEVER})
    except KeyboardInterrupt:
        sys.stderr.write("ours\\n")
"""


@contextmanager
def script(tmp_path):
    """A process that has two workers busy: it, and the workers' process numbers."""
    (tmp_path / "script.py").write_text(SCRIPT)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen([sys.executable, str(tmp_path / "script.py")], env=environment(), **options)
    try:
        yield process, [int(pid) for pid in process.stdout.readline().split()]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("number", share([signal.SIGTERM, signal.SIGINT, signal.SIGHUP]))
def test_a_signal_to_all_processes_of_the_terminal_leaves_our_words_alone(tmp_path, number):
    """And the task that they are in is not waited for."""
    with script(tmp_path) as (process, pids):
        assert len(pids) == 2
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=PATIENCE)
        assert err == "ours\n"
        assert not any(psutil.pid_exists(pid) for pid in pids)


def test_workers_do_not_outlive_a_killed_run(tmp_path):
    with script(tmp_path) as (process, pids):
        process.kill()
        # the task that sleeps is in a thread of theirs: it is not waited for
        wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_a_worker_that_is_just_replaced_does_not_hold_up_the_end(monkeypatch):
    monkeypatch.setattr(local_workers, "CLOSING", NEVER)
    others = spawned(recursive=False)
    with clusters.connect(settings(workers=1), MEMORY, 60):
        (first,) = spawned(recursive=False) - others
        first.kill()
        (second,) = wait_until(lambda: spawned(recursive=False) - others - {first})
        second.suspend()  # as it starts: Dask would wait for it to have started, which it never has
    assert not second.is_running()


def test_a_script_without_a_guard_is_told_to_have_one(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.replace('if __name__ == "__main__":', "if True:"))
    done = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, timeout=60, env=environment(), check=False
    )
    assert 'if __name__ == "__main__":' in done.stderr
    assert "the worker processes do not start" in done.stderr.strip().splitlines()[-1]


def test_workers_for_gpus_see_loopback_only_and_spill_nothing(tmp_path, monkeypatch):
    # dask-cuda needs a driver: one that takes the same arguments and starts workers without GPUs
    (tmp_path / "dask_cuda.py").write_text(
        textwrap.dedent("""
        from distributed import LocalCluster

        class LocalCUDACluster(LocalCluster):
            def __init__(self, *, n_workers, threads_per_worker, memory_limit, device_memory_limit, preload, **given):
                type(self).given = {"memory_limit": memory_limit, "device_memory_limit": device_memory_limit,
                                    "n_workers": n_workers}
                super().__init__(
                    n_workers=n_workers, threads_per_worker=threads_per_worker, memory_limit=memory_limit,
                    preload=preload, **given
                )
    """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "dask_cuda", None)  # and so taken away in the end
    del sys.modules["dask_cuda"]
    assert clusters.wants_cluster(settings(gpus=2))
    assert clusters.cuda_cluster_note(settings(gpus=2)) is None
    with clusters.connect(settings(gpus=2, dashboard_token=SECRET), MEMORY, 60) as cluster:
        import dask_cuda

        assert dask_cuda.LocalCUDACluster.given == {"memory_limit": None, "device_memory_limit": None, "n_workers": 2}
        assert cluster.kind == "cuda"
        assert cluster.expected == 2
        assert {place[0] for place in listening([os.getpid(), *workers_of(cluster).values()])} == {"127.0.0.1"}
        assert get(cluster.dashboard)[0] == 403
        assert get(cluster.dashboard, Authorization=f"Bearer {SECRET}")[0] == 200


@pytest.mark.parametrize(
    ("name", "count", "visible", "gpu"),
    [
        ("unet-7", 1, "3", "3"),
        ("unet-7", 1, None, "0"),
        ("unet-7-1", 2, "4,6", "6"),
        ("unet-7-2", 4, None, "2"),
        ("u-1-0", 2, "GPU-a, GPU-b", "GPU-a"),
    ],
)
def test_the_gpus_of_a_job_are_dealt_to_its_workers(name, count, visible, gpu):
    assert gpu_of(name, count, visible) == gpu


def test_workers_interrupted_as_they_start_are_ended_without_a_word():
    """Dask closes clusters as Python ends, and fails on one whose workers are neither begun nor ended."""
    code = """
        import multiprocessing, os, signal, threading, time
        from distributed import Nanny
        from unet_engine.cluster.local_workers import local_cluster

        begun = Nanny.__init__
        def interrupting(self, *given, **named):
            begun(self, *given, **named)
            threading.Thread(target=interrupt).start()
        def interrupt():
            while not multiprocessing.active_children():
                time.sleep(0.01)
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGSTOP)  # it has not started before the signal is here
            os.kill(os.getpid(), signal.SIGTERM)
        def stop(*_):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise KeyboardInterrupt
        Nanny.__init__ = interrupting
        signal.signal(signal.SIGTERM, stop)
        from distributed import Scheduler
        try:
            with local_cluster(2, 2**30, 30, None, {"cls": Scheduler, "dashboard": False}):
                print("started")
        except KeyboardInterrupt:
            print("interrupted", len(multiprocessing.active_children()))
    """
    done = subprocess.run(
        [sys.executable, "-c", f"if __name__ == '__main__':\n{textwrap.indent(textwrap.dedent(code), '    ')}"],
        capture_output=True, text=True, env=environment(), timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "interrupted 0", done.stderr
    assert "Traceback" not in done.stderr
