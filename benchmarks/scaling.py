"""How many workers one scheduler feeds: the real executor over simulated workers, whose network takes a fixed time and
nothing else.

Every worker is a Dask worker process of its own; only reading, the network and writing are replaced by waiting, 2.3 ms
a window as on one H200 (438 windows of 128 cubed a second). Halos are real but small: 8 cubed windows, so that memory
and network of this machine do not count. The plan has 103,823 blocks of 64 windows. Overhead is wall time over ideal
time, windows x 2.3 ms / workers, minus 1.

    python benchmarks/scaling.py --out benchmarks/results/scaling.json            seconds per point: --seconds 60
    python benchmarks/scaling.py --workers 16 --whole                             the whole plan, with memory of
                                                                              scheduler and client
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from unet_engine.backends.base import Setup
from unet_engine.execution.dask import station
from unet_engine.execution.dask.progress import Progress
from unet_engine.model.file import ModelFile
from unet_engine.model.spec import ModelSpec
from unet_engine.output.layout import Layout
from unet_engine.pipeline.host import HostPredicted
from unet_engine.pipeline.job import Job
from unet_engine.pipeline.worker import Worker
from unet_engine.plan.box import Box
from unet_engine.plan.bundles import bundle_length
from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.plan import Plan
from unet_engine.plan.sizing import NO_MEMORY
from unet_engine.volumes.normalize import Scaling

LATENCY = 0.0023
WINDOW, STRIDE, WINDOWS, BLOCKS = 8, 4, 4, 47


class SimulatedWorker(Worker):
    """Waits as long as the device would be busy; everything around it is real."""

    def settle(self, task, column, pending):
        return task

    def read(self, task):
        return None

    def predict(self, work) -> Iterator[HostPredicted]:
        free = None
        for item in work:
            if item is None:
                free = None  # the device waited; it begins when the next block comes
                continue
            task, _ = item
            free = (free or time.monotonic()) + len(task.windows) * LATENCY
            time.sleep(max(0.0, free - time.monotonic()))
            self.tally.add(inferred=len(task.windows))
            yield HostPredicted(task, np.zeros((1, *task.block.sums.shape), np.float32))

    def commit(self, task, core, halos):
        self.tally.add(blocks=1)


async def _serve(scheduler_file: str, count: int) -> None:
    """`count` Dask workers in this process; all they do is wait, so that they need not have one each."""
    from distributed import Worker as DaskWorker

    workers = [
        await DaskWorker(scheduler_file=scheduler_file, nthreads=6, memory_limit=0, dashboard=False)
        for _ in range(count)
    ]
    await workers[0].finished()


def plan(blocks: int) -> Plan:
    side = blocks * WINDOWS * STRIDE + STRIDE
    axes = tuple(AxisGrid.with_overlap(side, WINDOW, 0.5, 0, "gaussian") for _ in range(3))
    return Plan(
        "zyx", axes, Box((0,) * 3, (side,) * 3), (WINDOWS,) * 3, (WINDOWS * STRIDE,) * 3, ((),) * 3, "reflect",
        NO_MEMORY, {"simulated": True},
    )  # fmt: skip


def job(whole: Plan) -> Job:
    spec = ModelSpec(
        name="simulated", axes="zyx", channels_in=1, channels_out=1, window=(8,) * 3, window_min=(8,) * 3,
        window_step=(8,) * 3,
        margin=(0,) * 3, activation="none",
    )  # fmt: skip
    model = ModelFile(Path("simulated.fake.toml"), "fake", "0" * 64, spec)
    layout = Layout("zyx", "zyx", whole.roi.shape, whole.chunk, None, "uint8", (1.0,) * 3, (0.0,) * 3, None, ())
    return Job(
        whole, "none", "zyx", model, "fake", Setup(model, (8,) * 3), Scaling((0.0,), (1.0,)), "labels", "none", layout
    )


SAMPLE_SECONDS = 0.27
"""No multiple of it is the time of a run, which the counts would beat with."""


class Meter:
    """Windows inferred and memory held, over time."""

    def __init__(self, progress: Progress, processes: dict[str, int]) -> None:
        self.progress, self.rows = progress, []
        self._processes = {name: psutil.Process(pid) for name, pid in processes.items()}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def _loop(self) -> None:
        begun = time.perf_counter()
        while not self._stop.wait(SAMPLE_SECONDS):
            row = {"seconds": time.perf_counter() - begun, "windows": self.progress.counters().inferred}
            row |= {f"{name}_bytes": p.memory_info().rss for name, p in self._processes.items()}
            row |= {f"{name}_cpu": sum(p.cpu_times()[:2]) for name, p in self._processes.items()}
            self.rows.append(row)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


PER_PROCESS = 4
"""Simulated workers in a process."""
QUIET = {
    "distributed.worker.profile.enabled": False, "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False, "distributed.scheduler.worker-saturation": 1.1,
    "distributed.admin.low-level-log-length": 20, "logging": {"distributed": "critical"},
}  # fmt: skip


@contextmanager
def cluster(workers: int):
    """A scheduler in a process of its own, simulated workers in others; yields the scheduler's file and process
    number."""
    from dask.config import serialize

    environment = {**os.environ, "DASK_INTERNAL_INHERIT_CONFIG": serialize(QUIET)}
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/scheduler.json"
        started = []

        def start(*command: str) -> None:
            started.append(subprocess.Popen([sys.executable, *command], env=environment, stderr=subprocess.DEVNULL))

        try:
            start(
                "-m",
                "distributed.cli.dask_scheduler",
                "--host",
                "127.0.0.1",
                "--port",
                "0",
                "--scheduler-file",
                file,
                "--no-dashboard",
            )
            for first in range(0, workers, PER_PROCESS):
                start(__file__, "--serve", file, str(min(PER_PROCESS, workers - first)))
            yield file, started[0].pid
        finally:
            for process in started:
                process.kill()
                process.wait()


def measure(workers: int, seconds: float | None) -> dict:
    """Run for so long (None: to the end); figures are of the steady state, after the first fifth of the time."""
    from dask.config import set as configured
    from distributed import Client

    from unet_engine.execution.dask.flow import run_dask

    whole = plan(BLOCKS)
    length = bundle_length(whole, LATENCY, workers)
    with cluster(workers) as (file, scheduler), configured(QUIET), Client(scheduler_file=file) as client:
        client.wait_for_workers(workers, timeout=300)
        progress = Progress()
        ended = []

        def go() -> None:
            try:
                run_dask(client, job(whole), lambda _: True, progress, length, 600)
            except Exception as error:
                ended.append(error)
            else:
                ended.append(None)

        with Meter(progress, {"scheduler": scheduler, "client": os.getpid()}) as meter:
            begun = time.perf_counter()
            thread = threading.Thread(target=go, daemon=True)
            thread.start()
            thread.join(seconds)
            wall = time.perf_counter() - begun
    rows = meter.rows
    if seconds is None:
        assert ended == [None], ended
        assert progress.counters().inferred == whole.window_count
        rate = whole.window_count / wall
    else:
        # a line through the counts, since each event tells of some hundred windows at once
        steady = [(row["seconds"], row["windows"]) for row in rows if row["seconds"] > seconds / 5]
        rate = float(np.polyfit(*np.transpose(steady), 1)[0])
    return {
        "workers": workers, "blocks_per_run": length, "blocks": whole.block_count,
        "windows": progress.counters().inferred, "seconds": wall, "whole": seconds is None, "windows_per_second": rate,
        "overhead": workers / LATENCY / rate - 1, "halo_bytes": progress.counters().halo_bytes,
        "scheduler_cores": (rows[-1]["scheduler_cpu"] - rows[0]["scheduler_cpu"])
            / (rows[-1]["seconds"] - rows[0]["seconds"]),
        "client_cores": (rows[-1]["client_cpu"] - rows[0]["client_cpu"]) / (rows[-1]["seconds"] - rows[0]["seconds"]),
        "machine_cores": psutil.cpu_count(), "rows": rows[::20] if seconds is None else [],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,2,4,8,16,32,64")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--out")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        station.Worker = SimulatedWorker
        asyncio.run(_serve(given.serve[0], int(given.serve[1])))
        return
    points = []
    for _ in range(given.repeats):
        for workers in map(int, given.workers.split(",")):
            point = measure(workers, None if given.whole else given.seconds)
            points.append(point)
            print(json.dumps({k: v for k, v in point.items() if k != "rows"}), flush=True)
    if given.out:
        Path(given.out).write_text(json.dumps(points, indent=1))


if __name__ == "__main__":
    main()
