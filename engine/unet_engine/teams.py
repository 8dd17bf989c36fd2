"""Who does the work of a run: this process, or the workers of a Dask cluster. What comes before and after is the same for both."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

from unet_engine import machine
from unet_engine.cluster import connection
from unet_engine.cluster.connection import Cluster
from unet_engine.errors import ClusterError, first_line
from unet_engine.executors import run_local
from unet_engine.job import Counters
from unet_engine.overlap_search import Tell, silent
from unet_engine.plan import Index
from unet_engine.prepare import Prepared, prepare
from unet_engine.settings import Settings
from unet_engine.stages import SPANS, Snapshot
from unet_engine.survey import check_output, survey
from unet_engine.worker import Worker

if TYPE_CHECKING:
    from distributed import Client

Pending = Callable[[Index], bool]


class Team(Protocol):
    """Plans a run where it will be done, does it, and tells how far it is."""

    @property
    def dashboard(self) -> str | None: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def prepare(self) -> Prepared:
        """Everything up to the first block. Raises before the network is loaded where the output may not be written."""

    def execute(self, prepared: Prepared, pending: Pending) -> None:
        """Predict and commit every pending block. The first error ends it; what is committed stays."""

    def counters(self) -> Counters: ...

    def detail(self) -> str:
        """More about the progress, for people; may be empty."""

    def profile(self) -> dict[str, Snapshot]:
        """Where the time of each worker went; empty where the run is not profiled."""

    def facts(self) -> dict[str, Any]:
        """What the summary of the run says about who did it: fields of `unet_engine.runner.Result`."""


@contextmanager
def team(settings: Settings, tell: Tell = silent) -> Iterator[Team]:
    """The team that the settings ask for, sent home at the end; `tell` hears what takes long before the run begins.

    Raises `ClusterError` where a cluster is not to be had.
    """
    if not connection.wants_cluster(settings):
        here = LocalTeam(settings, tell)
        try:
            yield here
        finally:
            here.close()
        return
    memory = _share_of_memory(settings)
    with connection.connect(settings, memory, settings.hang_seconds or HANG_SECONDS) as cluster:
        yield DaskTeam(settings, cluster, memory, tell)


HANG_SECONDS = 60.0
"""How long a worker may be silent, and the least that a step of a block may take, before it counts as hung."""
HANG_FACTOR = 20
"""How many times the expected time a block may take."""
GATHER_SECONDS = 10.0
"""How long to wait for the other workers once there is one. Those that come later are used, but not counted on for memory."""


def _share_of_memory(settings: Settings) -> int | None:
    """Bytes for each worker process: its share of what the run may use on this machine; on other machines what the user says."""
    processes = settings.workers or (None if settings.scheduler or settings.cluster else settings.gpus)
    if processes is None:
        return settings.memory
    return (settings.memory or machine.available_memory() // 2) // processes


class LocalTeam:
    """This process, with a thread for each device."""

    dashboard: str | None = None

    def __init__(self, settings: Settings, tell: Tell = silent) -> None:
        self._settings, self._tell = settings, tell
        self._workers: list[Worker] = []
        self._profile: dict[str, Snapshot] = {}
        note = connection.cuda_cluster_note(settings)
        self.notes: tuple[str, ...] = (note,) if note else ()

    def prepare(self) -> Prepared:
        found = survey(self._settings)
        check_output(found)
        prepared = prepare(found, tell=self._tell)
        self._workers = [
            Worker(replace(prepared.job, setup=replace(prepared.job.setup, device=device)))
            for device in prepared.found.devices
        ]
        # the first takes over the network that planning loaded
        self._workers[0].__dict__["backend"] = prepared.backend
        return prepared

    def execute(self, prepared: Prepared, pending: Pending) -> None:
        for worker in self._workers:
            if worker.stages:
                worker.stages.restart()
        run_local(self._workers, pending)
        self._profile = {
            worker.job.setup.device: worker.stages.snapshot(SPANS) for worker in self._workers if worker.stages
        }

    def profile(self) -> dict[str, Snapshot]:
        return self._profile

    def counters(self) -> Counters:
        parts = [asdict(worker.tally.read()) for worker in self._workers]
        return Counters(**{key: sum(part[key] for part in parts) for key in parts[0]})

    def detail(self) -> str:
        return ""

    def facts(self) -> dict[str, Any]:
        return {"peak_rss_bytes": machine.peak_resident_bytes(), "processors": (machine.processor(),)}

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


def _absolute(settings: Settings) -> dict[str, str]:
    """Paths as other processes will find them, whose working folder is another one."""
    given = {name: getattr(settings, name) for name in ("input", "model", "out", "mask")}
    # no symlinks resolved: the output lies beside where the user says the input is
    return {name: os.path.abspath(path) for name, path in given.items() if path and "://" not in path}  # noqa: PTH100


class DaskTeam:
    """The workers of a cluster, which plan too: their devices, libraries and memory are those that count."""

    def __init__(self, settings: Settings, cluster: Cluster, memory: int | None, tell: Callable[[str], None]) -> None:
        from unet_engine.board import Board

        self._cluster, self._tell = cluster, tell
        threads = settings.threads or connection.worker_threads(settings)
        self._settings = settings.model_copy(update={"memory": memory, "threads": threads, **_absolute(settings)})
        self._board = Board()
        self.dashboard = cluster.dashboard
        self.notes = cluster.notes

    def prepare(self) -> Prepared:
        from distributed.client import FutureCancelledError
        from distributed.scheduler import KilledWorker

        from unet_engine import remote

        client = self._cluster.client
        connection.wait_for_workers(self._cluster, self._tell)
        present = self._gathered(client)
        connection.check_versions(client)
        planned = client.submit(
            remote.plan_here, self._settings, max(self._cluster.expected, present), present, pure=False
        )
        try:
            prepared: Prepared = planned.result()
        except (KilledWorker, FutureCancelledError) as error:
            raise ClusterError(
                f"planning on a worker failed: {first_line(error)}; the network may take more memory than a worker has, see the workers' logs"
            ) from error
        return prepared

    def _gathered(self, client: Client) -> int:
        """Workers that are there, after a while given to those that were started together with the first."""
        end = time.monotonic() + GATHER_SECONDS
        while True:
            present = len(client.scheduler_info(n_workers=-1)["workers"])
            if present >= self._cluster.expected or time.monotonic() > end:
                return present
            time.sleep(0.1)

    def execute(self, prepared: Prepared, pending: Pending) -> None:
        from unet_engine.dask_executor import run_dask

        crew, job = prepared.crew, prepared.job
        assert crew is not None
        block = prepared.seconds_per_window * prod(job.plan.block)
        limit = self._settings.hang_seconds or max(HANG_SECONDS, HANG_FACTOR * block)
        run_dask(self._cluster.client, job, pending, self._board, crew.run, limit, self._cluster.trouble)

    def counters(self) -> Counters:
        return self._board.counters()

    def detail(self) -> str:
        return self._board.detail()

    def profile(self) -> dict[str, Snapshot]:
        return self._board.profile()

    def facts(self) -> dict[str, Any]:
        return self._board.facts()
