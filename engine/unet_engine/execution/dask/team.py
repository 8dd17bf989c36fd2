"""The workers of a Dask cluster do the run, and plan it too."""

from __future__ import annotations

import time
from math import prod
from typing import TYPE_CHECKING, Any

from unet_engine.backends.base import Network
from unet_engine.cluster import connection
from unet_engine.cluster.connection import Cluster
from unet_engine.errors import ClusterError, first_line
from unet_engine.execution.dask.hands import on_dask
from unet_engine.execution.dask.progress import Progress
from unet_engine.execution.dask.sharing import Sharing
from unet_engine.execution.hands import Hands
from unet_engine.execution.team import Pending
from unet_engine.paths import absolute, parts
from unet_engine.pipeline.job import Counters
from unet_engine.plan.memory import LEAST
from unet_engine.prepare.prepare import Prepared
from unet_engine.profiling.stages import Snapshot
from unet_engine.settings.settings import Settings
from unet_engine.units import Tell

if TYPE_CHECKING:
    from distributed import Client


HANG_SECONDS = 60.0
"""How long a worker may be silent, and the least that a step of a block may take, before it counts as hung."""
HANG_FACTOR = 20
"""How many times the expected time a block may take."""
GATHER_SECONDS = 10.0
"""How long to wait for the other workers once there is one. Those that come later are used, but not counted on for
memory."""


def _absolute(settings: Settings) -> dict[str, str]:
    """Paths as other processes will find them, whose working folder is another one."""
    given = {name: getattr(settings, name) for name in ("input", "model", "out", "mask")}
    return {name: "+".join(map(absolute, _several(name, path))) for name, path in given.items() if path}


def _several(name: str, path: str) -> tuple[str, ...]:
    return parts(path) if name == "input" else (path,)


class DaskTeam:
    """The workers of a cluster, which plan too: their devices, libraries and memory are those that count."""

    def __init__(self, settings: Settings, cluster: Cluster, memory: int | None, tell: Tell) -> None:
        self._cluster, self._tell, self._memory = cluster, tell, memory
        cores = connection.worker_threads(settings)
        threads = settings.threads or (cores and max(1, cores // (settings.window_threads or 1)))
        self._settings = settings.model_copy(update={"memory": memory, "threads": threads, **_absolute(settings)})
        self._progress = Progress()
        self.dashboard = cluster.dashboard
        self.notes = cluster.notes

    def ahead(self) -> None:
        """Workers read when they are given blocks."""

    def prepare(self) -> Prepared:
        from distributed.client import FutureCancelledError
        from distributed.scheduler import KilledWorker

        from unet_engine.execution.dask import tasks

        client = self._cluster.client
        connection.wait_for_workers(self._cluster, self._tell)
        present = self._gathered(client)
        connection.check_versions(client)
        workers = max(self._cluster.expected, present)
        planned = client.submit(tasks.plan_here, self._settings, workers, present, self._sharing(client), pure=False)
        try:
            prepared: Prepared = planned.result()
        except (KilledWorker, FutureCancelledError) as error:
            raise ClusterError(
                f"planning on a worker failed: {first_line(error)}; the network may take more memory than a worker "
                "has, see the workers' logs"
            ) from error
        return prepared

    def _sharing(self, client: Client) -> Sharing | None:
        """How memory is shared, where all processes are on this machine."""
        if self._cluster.kind not in ("local", "cuda") or self._memory is None:
            return None
        workers = self._cluster.expected
        return Sharing.of(client, self._memory * workers, workers, LEAST)

    def _gathered(self, client: Client) -> int:
        """Workers that are there, after a while given to those that were started together with the first."""
        end = time.monotonic() + GATHER_SECONDS
        while True:
            present = len(connection.workers_there(client))
            if present >= self._cluster.expected or time.monotonic() > end:
                return present
            time.sleep(0.1)

    def execute(self, prepared: Prepared, pending: Pending) -> None:
        from unet_engine.execution.dask.flow import run_dask

        cluster, job = prepared.cluster, prepared.job
        assert cluster is not None
        block = prepared.seconds_per_window * prod(job.plan.block) * job.plan.calls
        limit = self._settings.hang_seconds or max(HANG_SECONDS, HANG_FACTOR * block)
        run_dask(
            self._cluster.client, job, pending, self._progress, cluster.bundle_length, limit, self._cluster.trouble
        )

    def counters(self) -> Counters:
        return self._progress.counters()

    def detail(self) -> str:
        return self._progress.detail()

    def profile(self) -> dict[str, Snapshot]:
        return self._progress.profile()

    def hands(self) -> Hands:
        return on_dask(self._cluster, self._settings.memory)

    def facts(self) -> dict[str, Any]:
        return self._progress.facts()

    def give(self) -> Network | None:
        return None

    def close(self) -> None:
        """The workers are the cluster's."""
