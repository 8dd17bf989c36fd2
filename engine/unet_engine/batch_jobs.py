"""Workers as jobs of a batch system, by dask-jobqueue, and kept in number: a job that ends while the run goes on is submitted again."""

from __future__ import annotations

import asyncio
import getpass
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet_engine.cluster_file import Certificates, ClusterFile
from unet_engine.dask_settings import (
    THREADS_PER_WORKER,
    keyboard_kept_from_children,
    pem_security,
    quiet,
    scheduler_config,
    worker_config,
)
from unet_engine.errors import ClusterError, first_line
from unet_engine.worker_preload import GPUS

if TYPE_CHECKING:
    from dask_jobqueue import JobQueueCluster
    from distributed import Security

LOOK_EVERY = 3.0
"""Seconds between looks at who is there."""
ASK_EVERY = 12.0
"""Seconds between questions to the batch system, whose controller others use too."""
GONE_AFTER = 8.0
"""Seconds without any of its workers after which a job is given up: a worker that was killed is back before that."""

_CLASSES = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "lsf": "LSFCluster",
    "oar": "OARCluster",
    "moab": "MoabCluster",
}
_PROJECT = ("sge", "lsf", "oar")
"""Systems whose accounts are called projects."""


@contextmanager
def batch_cluster(
    file: ClusterFile, where: str, hang_seconds: float, scheduler: dict[str, Any]
) -> Iterator[tuple[JobQueueCluster, Keeper]]:
    """Submit the jobs of `file` (called `where` in messages), keep them up, cancel them at the end. `scheduler` as for `local_cluster`.

    Raises `ClusterError` where dask-jobqueue or the batch system is missing or refuses.
    """
    import dask

    config = {**worker_config(), **scheduler_config(hang_seconds)}
    with dask.config.set(config), quiet() as silence:
        with keyboard_kept_from_children():
            cluster = _created(file, where, scheduler, silence)
        keeper = Keeper(cluster, file)
        try:
            _submitted(keeper, where)
            yield cluster, keeper
        finally:
            with keyboard_kept_from_children():
                _close(cluster, keeper)


def _created(file: ClusterFile, where: str, scheduler: dict[str, Any], silence: int | None) -> JobQueueCluster:
    try:
        import dask_jobqueue
    except ImportError as error:
        raise ClusterError("--cluster needs dask-jobqueue; pip install unet-engine[jobqueue]") from error
    try:
        return getattr(dask_jobqueue, _CLASSES[file.type])(
            **job_options(file),
            security=_security(file),
            shared_temp_directory=str(Path(file.log_directory).absolute()),
            scheduler_cls=scheduler["cls"],
            scheduler_options={k: v for k, v in scheduler.items() if k != "cls"},
            silence_logs=silence,
            name="unet-engine",
        )
    except ClusterError:
        raise
    except Exception as error:
        raise ClusterError(f"--cluster {where}: {first_line(error)}") from error


def job_options(file: ClusterFile) -> dict[str, Any]:
    """Arguments of a class of dask-jobqueue, which makes the job script of them."""
    queue = {
        "queue": file.partition,
        "project" if file.type in _PROJECT else "account": file.account,
        "walltime": file.walltime,
    }
    gpus = (f"--gres=gpu:{file.gpus}",) if file.gpus and file.type == "slurm" else ()
    return {
        **{key: value for key, value in queue.items() if value is not None},
        "cores": file.cores,
        "memory": f"{file.memory}B",
        "processes": file.processes_per_job,
        "interface": file.interface,
        "python": file.python and shlex.quote(file.python),
        "log_directory": str(Path(file.log_directory).absolute()),
        "local_directory": file.local_directory,
        "job_name": "unet-engine",
        "job_extra_directives": [*gpus, *file.extra],
        "job_script_prologue": [*_exports(file), *file.prologue],
        "worker_extra_args": _worker_arguments(file),
    }


def _exports(file: ClusterFile) -> list[str]:
    """Lines that give the workers our settings, which they would not know on another machine."""
    lines = [
        f"export DASK_{key.upper().replace('.', '__').replace('-', '_')}={shlex.quote(repr(value))}"
        for key, value in worker_config().items()
    ]
    return [*lines, f"export {GPUS}={file.gpus}"] if file.gpus else lines


def _worker_arguments(file: ClusterFile) -> list[str]:
    # of an option given twice, as --nthreads is by dask-jobqueue, the last counts
    arguments = ["--nthreads", str(THREADS_PER_WORKER), "--no-dashboard", "--preload", "unet_engine.worker_preload"]
    if walltime := file.walltime_seconds:
        # a worker that retires is not one that died: its tasks go elsewhere without counting as failed
        spare = min(max(0.1 * walltime, 20.0), 300.0)
        arguments += ["--lifetime", f"{walltime - spare:.0f}s", "--lifetime-stagger", f"{spare / 2:.0f}s"]
    return arguments


def _security(file: ClusterFile) -> Security | None:
    from distributed import Security

    if isinstance(file.tls, Certificates):
        return pem_security(file.tls.ca, file.tls.cert, file.tls.key)
    if file.tls == "none":
        return None
    try:
        return Security.temporary()
    except ImportError as error:
        raise ClusterError(
            "tls: temporary needs the package cryptography; pip install unet-engine[jobqueue], name certificates, or write tls: none"
        ) from error


def _submitted(keeper: Keeper, where: str) -> None:
    cluster, file = keeper.cluster, keeper.file
    try:
        cluster.sync(keeper.submit, file.jobs or file.adaptive.minimum)  # type: ignore[union-attr]
    except FileNotFoundError as error:
        raise ClusterError(
            f"--cluster {where}: there is no {file.type} here: the command {error.filename} is missing; run it where jobs are submitted"
        ) from error
    except Exception as error:
        raise ClusterError(f"--cluster {where}: {file.type} refuses the job: {_said(error)}") from error
    if file.adaptive:
        cluster.adapt(minimum_jobs=file.adaptive.minimum, maximum_jobs=file.adaptive.maximum)
    cluster.loop.add_callback(keeper.watch)


def _said(error: Exception) -> str:
    """The batch system's own words out of what dask-jobqueue makes of them."""
    return " ".join(str(error).partition("stderr:")[2].split()) or first_line(error)


def _close(cluster: JobQueueCluster, keeper: Keeper) -> None:
    keeper.stopped = True

    async def cancel() -> None:
        await asyncio.gather(*(job.close() for job in cluster.workers.values()), return_exceptions=True)

    with suppress(Exception):
        cluster.sync(cancel)
    with suppress(Exception):
        cluster.close(timeout=20)


@dataclass
class Keeper:
    """Watches the jobs on the cluster's own event loop. Dask notices the end of a job only if it had a single worker process."""

    cluster: JobQueueCluster
    file: ClusterFile
    stopped: bool = False
    trouble: str | None = None
    """Why jobs keep ending before their workers connect; nothing is submitted any more."""
    _seen: dict[str, float] = field(default_factory=dict)
    """When each job last had a worker."""
    _missing: dict[str, float] = field(default_factory=dict)
    """Since when the batch system does not know a job whose workers never came."""
    _failed: list[str] = field(default_factory=list)
    """Jobs that ended before their worker came, since the last one that did."""
    _queue: dict[str, tuple[str, str]] | None = None
    _asked: float = 0.0

    async def submit(self, jobs: int) -> None:
        while len(self.cluster.worker_spec) < jobs:
            self.cluster.worker_spec.update(self.cluster.new_worker_spec())
        await self.cluster

    async def watch(self) -> None:
        while not self.stopped:
            await asyncio.sleep(LOOK_EVERY)
            with suppress(Exception):  # the next look is due anyway
                await self.look()

    async def look(self) -> None:
        """Give up the jobs that ended, and submit as many."""
        self._note_workers()
        without = [name for name in self.cluster.workers if name not in self._seen]
        if without and time.monotonic() - self._asked > ASK_EVERY:
            self._queue, self._asked = await _squeue() if self.file.type == "slurm" else None, time.monotonic()
        ended = [name for name in self.cluster.workers if self._ended(name)]
        for name in ended:
            job = self.cluster.workers.pop(name)
            if name not in self._seen:
                self._failed.append(str(job.job_id))
            self._seen.pop(name, None)
            self._missing.pop(name, None)
            await job.close()
        if len(self._failed) >= 3 and not self._seen:
            self.trouble = self._why()
        if ended and not self.trouble and not self.stopped:
            await self.cluster

    def _note_workers(self) -> None:
        now, names = time.monotonic(), {str(w["name"]) for w in self.cluster.scheduler_info["workers"].values()}
        for job in self.cluster.workers:
            if any(name in names for name in self._names(job)):
                self._seen[job] = now
                self._failed.clear()
                self.trouble = None

    def _names(self, job: str) -> list[str]:
        """What Dask calls the workers of a job."""
        count = self.file.processes_per_job
        return [job] if count == 1 else [f"{job}-{i}" for i in range(count)]

    def _ended(self, name: str) -> bool:
        now = time.monotonic()
        if name in self._seen:
            return now - self._seen[name] > GONE_AFTER
        if self._queue is None or str(self.cluster.workers[name].job_id) in self._queue:
            self._missing.pop(name, None)
            return False
        # one answer without it may be older than the job
        return now - self._missing.setdefault(name, now) > ASK_EVERY

    def _why(self) -> str:
        folder = Path(self.file.log_directory).absolute()
        text = f"{len(self._failed)} jobs ended before a worker connected; see {folder}"
        logs = [folder / f"unet-engine-{job}.err" for job in reversed(self._failed)]
        for log in logs:
            with suppress(OSError):
                if lines := log.read_text(errors="replace").strip().splitlines():
                    return f"{text}: {log.name} ends with {lines[-1][:200]!r}"
        return text

    def state(self) -> str:
        """Jobs with workers, and what is known about the others."""
        jobs = list(self.cluster.workers)
        running = sum(name in self._seen for name in jobs)
        text = f"{running} of {len(jobs)} jobs have workers"
        reasons = {reason for state, reason in (self._queue or {}).values() if state == "PENDING"}
        return f"{text}; pending: {', '.join(sorted(reasons))}" if reasons and running < len(jobs) else text


async def _squeue() -> dict[str, tuple[str, str]] | None:
    """State and reason of each of the user's jobs. None where SLURM does not answer."""
    try:
        process = await asyncio.create_subprocess_exec(
            "squeue", "--noheader", "--user", getpass.getuser(), "--format", "%A|%T|%r",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        out, _ = await process.communicate()
    except OSError:
        return None
    if process.returncode:
        return None
    lines = (line.split("|") for line in out.decode().splitlines())
    return {line[0]: (line[1], line[2]) for line in lines if len(line) == 3}
