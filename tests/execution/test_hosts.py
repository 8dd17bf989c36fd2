"""Workers on hosts of their own, one of which is cut off from the network in mid-run while all of its processes go
on."""

import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

import unet_engine
from support.command_line import COMMAND, environment
from support.hosts import NoHosts, hosts
from support.outputs import chunks, marked
from support.volumes import fake_model, make_volume

SCHEDULER = "tcp://10.77.0.1:8786"
# the least that Dask takes; by default it is 30 s until a silent host counts as lost
QUICK = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s", "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s"}


@pytest.fixture(scope="module")
def network():
    """Four hosts: a scheduler's, two for workers, a client's."""
    with ExitStack() as stack:
        try:
            yield stack.enter_context(hosts(4))
        except NoHosts as reason:
            pytest.skip(str(reason))


@contextmanager
def cluster(network, folder):
    """A scheduler on the first host, a worker on the second and the third."""
    with ExitStack() as stack:
        stack.enter_context(network.dask(1, "scheduler", "--port", "8786", log=folder / "scheduler.log", **QUICK))
        for number in (2, 3):
            network.join_again(number)
            stack.enter_context(network.dask(number, "worker", SCHEDULER, log=folder / f"worker{number}.log", **QUICK))
        yield
        network.join_again(3)


@contextmanager
def client(network, *command):
    """A command on the fourth host, with its output as text."""
    process = network.begin(
        4, *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**environment(), **QUICK}
    )
    try:
        yield process
    finally:
        network.end(4)
        process.wait()


TASKS = """
import time
from distributed import Client

def task(i):
    time.sleep(0.2)
    return i

if __name__ == "__main__":
    client = Client("{address}")
    client.wait_for_workers(2)
    futures = client.map(task, range(100))
    print("begun", flush=True)
    lost = None
    while not all(future.done() for future in futures):
        if lost is None and len(client.scheduler_info(n_workers=-1)["workers"]) < 2:
            lost = time.monotonic()
            print("lost", flush=True)
        time.sleep(0.1)
    print(sum(client.gather(futures)), flush=True)
"""


@pytest.mark.slow
def test_a_host_that_is_cut_off_is_noticed_and_its_tasks_run_elsewhere(network, tmp_path):
    script = tmp_path / "tasks.py"
    script.write_text(TASKS.format(address=SCHEDULER))
    with cluster(network, tmp_path), client(network, sys.executable, script) as process:
        assert process.stdout.readline() == "begun\n", process.stderr.read()
        network.cut_off(3)
        begun = time.monotonic()
        assert process.stdout.readline() == "lost\n", process.stderr.read()
        assert 5 < time.monotonic() - begun < 45
        assert process.stdout.readline() == f"{sum(range(100))}\n"


@pytest.mark.slow
def test_a_run_with_one_host_cut_off(network, tmp_path):
    options = {"output": "logits", "dtype": "float32"}
    flags = [f for key, value in options.items() for f in (f"--{key}", value)]
    volume = make_volume(tmp_path / "scan.zarr", np.random.default_rng(3).integers(0, 255, (40, 44, 60), np.uint8))
    alone = unet_engine.run(volume, model=fake_model(tmp_path), out=str(tmp_path / "alone.zarr"), **options)
    out, model = tmp_path / "out.zarr", fake_model(tmp_path, latency_ms=8)
    run = [*COMMAND, "run", "--in", volume, "--model", model, "--out", out, "--scheduler", SCHEDULER, "--json", *flags]
    with cluster(network, tmp_path), client(network, *run) as process:
        while process.poll() is None and len(marked(out)) < 2:
            time.sleep(0.01)
        # its processes still see the files: what they write now must not harm what others write in their place
        network.cut_off(3)
        text, err = process.communicate(timeout=150)
        assert process.returncode == 0, err
    assert '"workers_lost": 1' in text
    assert "Traceback" not in err
    assert chunks(out) == chunks(alone.out)
