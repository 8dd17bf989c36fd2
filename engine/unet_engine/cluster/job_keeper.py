"""The number of batch jobs is kept up: one that ends while the run goes on, by its walltime or otherwise, is submitted
again."""

from __future__ import annotations

import asyncio
import getpass
import math
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from unet_engine.cluster.cluster_file import ClusterFile

if TYPE_CHECKING:
    from dask_jobqueue import JobQueueCluster

LOOK_EVERY = 2.0
"""Seconds between looks at who is there."""
ASK_EVERY = 10.0
"""Seconds between questions to the batch system, whose controller others use too."""
GONE_AFTER = 30.0
"""Seconds without a worker after which a job that had one is given up, where the batch system cannot be asked."""
STUCK_AFTER = 120.0
"""The same for a job that is still running: a worker that was killed is replaced inside the job, much earlier."""


@dataclass
class Keeper:
    """Watches the jobs on the cluster's own event loop. Dask notices the end of a job only if it had a single worker
    process."""

    cluster: JobQueueCluster
    file: ClusterFile
    stopped: bool = False
    trouble: str | None = None
    """Why jobs keep ending before their workers connect; nothing is submitted any more."""
    _seen: set[str] = field(default_factory=set)
    """Jobs that have or had a worker."""
    _alone: dict[str, float] = field(default_factory=dict)
    """Since when a job has none."""
    _failed: list[str] = field(default_factory=list)
    """Jobs that ended before a worker came, since the last one that did."""
    _queue: dict[str, tuple[str, str]] | None = None
    """State and reason of what is in the queue, as of `_asked`; None where the batch system cannot be asked."""
    _asked: float = -math.inf

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
        if self._alone and self.file.type == "slurm" and time.monotonic() - self._asked > ASK_EVERY:
            asked = time.monotonic()
            self._queue, self._asked = await _squeue(), asked
        ended = [name for name in self.cluster.workers if self._ended(name)]
        for name in ended:
            await self._give_up(name)
        if len(self._failed) >= 3 and not self._seen:
            self.trouble = self._why()
        if ended and not self.trouble and not self.stopped:
            await self.cluster

    def _note_workers(self) -> None:
        names = {str(worker["name"]) for worker in self.cluster.scheduler_info["workers"].values()}
        for job in self.cluster.workers:
            if names.isdisjoint(self._names(job)):
                self._alone.setdefault(job, time.monotonic())
            else:
                self._alone.pop(job, None)
                self._seen.add(job)
                self._failed.clear()
                self.trouble = None

    def _ended(self, name: str) -> bool:
        since = self._alone.get(name)
        if since is None:
            return False
        if self._queue is None or self._asked < since + 1:  # what it said then may be older than the job
            return name in self._seen and time.monotonic() - since > GONE_AFTER
        state, _ = self._queue.get(str(self.cluster.workers[name].job_id), ("GONE", ""))
        return state in ("GONE", "COMPLETING") or (name in self._seen and time.monotonic() - since > STUCK_AFTER)

    async def _give_up(self, name: str) -> None:
        job = self.cluster.workers.pop(name)
        if name not in self._seen:
            self._failed.append(str(job.job_id))
        self._seen.discard(name)
        self._alone.pop(name, None)
        await job.close()

    def _names(self, job: str) -> list[str]:
        """What Dask calls the workers of a job."""
        count = self.file.processes_per_job
        return [job] if count == 1 else [f"{job}-{i}" for i in range(count)]

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
        running = sum(name in self._seen and name not in self._alone for name in jobs)
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
