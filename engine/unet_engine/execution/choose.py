"""Who does the work of a run: this process, or the workers of a Dask cluster. What comes before and after is the same
for both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from unet_engine import machine
from unet_engine.errors import PlanError, SettingsError
from unet_engine.execution.local import LocalTeam
from unet_engine.execution.relay import Leg
from unet_engine.execution.team import Team
from unet_engine.plan.memory import LEAST
from unet_engine.prepare.given import NOTHING, Given
from unet_engine.prepare.prepare import Prepared, prepare
from unet_engine.prepare.survey import survey
from unet_engine.settings.settings import Settings
from unet_engine.units import Tell, silent, size

Make = Callable[[Settings, Tell, Given, Leg | None], Team]
"""Makes the team of one run."""


@contextmanager
def team(settings: Settings, tell: Tell = silent, given: Given = NOTHING) -> Iterator[Team]:
    """The team that the settings ask for, sent home at the end; `tell` hears what takes long before the run begins.
    `given`: what is open already, in this process.

    Raises `ClusterError` where a cluster is not to be had, `SettingsError` where one cannot have what is open here.
    """
    with teams(settings) as make:
        if make is not LocalTeam and (given.volume is not None or given.model is not None):
            raise SettingsError(
                "workers of a cluster open volume and model themselves; give the paths of both, or leave out workers, "
                "scheduler and cluster"
            )
        crew = make(settings, tell, given, None)
        try:
            yield crew
        finally:
            crew.close()


@contextmanager
def teams(settings: Settings) -> Iterator[Make]:
    """Makes teams of the same processes for one run after the other. Workers of a cluster open what the settings name
    themselves, whatever is open here already. Raises `ClusterError`."""
    asked = settings.workers or settings.scheduler or settings.cluster or (settings.gpus or 1) > 1
    if not asked:
        yield LocalTeam
        return
    from unet_engine.cluster import connection
    from unet_engine.execution.dask.team import HANG_SECONDS, DaskTeam

    if not connection.wants_cluster(settings):
        yield LocalTeam
        return
    memory = share_of_memory(settings)
    with connection.connect(settings, memory, settings.hang_seconds or HANG_SECONDS) as cluster:
        yield lambda settings, tell, *_: DaskTeam(settings, cluster, memory, tell)


def planned(settings: Settings, tell: Tell = silent) -> Prepared:
    """The run as `DaskTeam` or `LocalTeam` would plan it, without a cluster: by this process in place of one of the
    workers. Of a scheduler that is running, what one process would do, which `tell` hears."""
    from unet_engine.cluster import cluster_file, connection

    workers = 0
    if settings.scheduler:
        tell("planned is what one process does: how many workers the scheduler has is seen as the run begins")
    elif connection.wants_cluster(settings):
        cores, memory = connection.worker_threads(settings), share_of_memory(settings)
        workers = settings.workers or settings.gpus or 1
        if settings.cluster:
            jobs = cluster_file.read(settings.cluster)
            workers, memory = jobs.expected, memory or jobs.memory_per_process
        threads = settings.threads or (cores and max(1, cores // (settings.window_threads or 1)))
        settings = settings.model_copy(update={"memory": memory, "threads": threads})
    surveyed = survey(settings)
    if workers:
        surveyed = replace(surveyed, devices=surveyed.devices[:1])
    return prepare(surveyed, workers, max(1, workers), tell)


def share_of_memory(settings: Settings) -> int | None:
    """Bytes for each worker process: its share of what the run may use on this machine; on other machines what the user
    says."""
    processes = settings.workers or (None if settings.scheduler or settings.cluster else settings.gpus)
    if processes is None:
        return settings.memory
    memory = settings.memory or machine.available_memory() // 2
    if memory // processes < LEAST:
        option = "workers" if settings.workers else "gpus"
        raise PlanError(
            f"--{option} {processes}: each process would have {size(memory // processes)} of memory and needs "
            f"{size(LEAST)} at the least; use {max(1, memory // LEAST)} at most, or give more --memory"
        )
    return memory // processes
