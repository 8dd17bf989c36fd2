"""From settings to a Dask cluster one can submit to: processes of our own, batch jobs, or a scheduler that runs
already.

Nothing of Dask is imported before `connect` is called.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unet_engine import machine
from unet_engine.cluster import batch_jobs, cluster_file, local_workers, running_scheduler
from unet_engine.cluster.dashboard import dashboard
from unet_engine.cluster.dask_settings import check_protocol, security
from unet_engine.cluster.own_user import own_certificates
from unet_engine.errors import ClusterError, SettingsError, first_line
from unet_engine.settings.settings import Settings
from unet_engine.units import Tell
from unet_engine.version import our_version

if TYPE_CHECKING:
    from distributed import Client
    from distributed.deploy.spec import SpecCluster

WORKER_SECONDS = 60.0
"""How long to wait for the first worker of a running scheduler. Batch jobs may queue for as long as they like."""
NOTE_EVERY = 30.0
"""Seconds between two notes about what is waited for."""


_OPEN = (
    "--protocol ucx listens on every network interface, unencrypted: whoever reaches this machine may run code under "
    "your account; use it behind a firewall, or use tcp, which listens on loopback only"
)


@dataclass(frozen=True)
class Cluster:
    client: Client
    kind: str
    """``local``, ``cuda``, ``scheduler``, or the batch system: ``slurm``, ``pbs``, …"""
    expected: int
    """Workers there will be, or for a running scheduler, are."""
    dashboard: str | None
    """Address of the dashboard. With the token where that was made for this run, without where the user chose it."""
    notes: tuple[str, ...] = ()
    """What the user should know."""
    state: Callable[[], str] = lambda: ""
    """Who is there and who is not yet, e.g. ``1 of 4 jobs running, 3 pending (Resources)``."""
    trouble: Callable[[], str | None] = lambda: None
    """What keeps workers from ever coming, None if nothing is known to."""


def wants_cluster(settings: Settings) -> bool:
    """Whether the run is Dask's to distribute. False for one GPU, and for several without dask-cuda: see
    `cuda_cluster_note`."""
    if settings.workers or settings.scheduler or settings.cluster:
        return True
    return (settings.gpus or 1) > 1 and local_workers.has_dask_cuda()


def cuda_cluster_note(settings: Settings) -> str | None:
    """What to tell where several GPUs are asked for and dask-cuda is missing."""
    if (settings.gpus or 1) < 2 or local_workers.has_dask_cuda():
        return None
    return (
        f"dask-cuda is not installed: the {settings.gpus} GPUs are run by threads of this process, without a process "
        "of their own each; pip install 'unet-engine[gpus]'"
    )


def worker_threads(settings: Settings) -> int | None:
    """Cores that each worker process has: its share of this machine's, or what the cluster file says; None where nobody
    knows."""
    if settings.workers:
        return max(1, machine.cpu_count() // settings.workers)
    return cluster_file.read(settings.cluster).cores_per_process if settings.cluster else None


@contextmanager
def connect(settings: Settings, memory: int | None, hang_seconds: float) -> Iterator[Cluster]:
    """The cluster that `settings` ask for, its processes or jobs ended afterwards; a scheduler that ran before goes on.

    `memory` bytes are each local worker's. One that is silent for `hang_seconds`, or a minute, is restarted. Raises
    `ClusterError`.
    """
    with ExitStack() as stack:
        if settings.scheduler:
            yield _running(settings, stack)
        elif settings.cluster:
            yield _batch(settings, hang_seconds, stack)
        else:
            yield _local(settings, memory, hang_seconds, stack)


def _running(settings: Settings, stack: ExitStack) -> Cluster:
    if settings.dashboard:
        raise SettingsError(
            "--dashboard is for clusters that the run starts; with --scheduler, the dashboard is the scheduler's own"
        )
    client = stack.enter_context(running_scheduler.client_of(settings))
    return Cluster(client, "scheduler", len(workers_there(client)), client.dashboard_link)


def _batch(settings: Settings, hang_seconds: float, stack: ExitStack) -> Cluster:
    if settings.tls_ca:
        raise SettingsError("--tls-ca, --tls-cert and --tls-key do not go with --cluster; write tls: into its file")
    file, pages = cluster_file.read(str(settings.cluster)), dashboard(settings)
    started = batch_jobs.batch_cluster(file, str(settings.cluster), hang_seconds, pages.scheduler_options)
    cluster, keeper = stack.enter_context(started)
    return Cluster(
        _client(cluster, stack), file.type, file.expected, pages.link(_port(cluster)), pages.notes,
        keeper.state, lambda: keeper.trouble,
    )  # fmt: skip


def _local(settings: Settings, memory: int | None, hang_seconds: float, stack: ExitStack) -> Cluster:
    from unet_engine.cluster.token_gate import guard

    check_protocol(settings.protocol)
    pages, secure = dashboard(settings), security(settings)
    if secure is None and settings.protocol == "tcp":
        secure = own_certificates()
    count, start = (settings.workers or settings.gpus or 1), local_workers.local_cluster
    if not settings.workers:
        start = local_workers.cuda_cluster
    cluster = stack.enter_context(
        start(count, memory, hang_seconds, secure, pages.scheduler_options, settings.protocol)
    )
    if start is local_workers.cuda_cluster:  # it chooses its scheduler's class itself
        guard(cluster.scheduler.http_server, pages.token)
    kind = "local" if settings.workers else "cuda"
    notes = pages.notes + ((_OPEN,) if settings.protocol == "ucx" else ())
    return Cluster(_client(cluster, stack), kind, count, pages.link(_port(cluster)), notes)


def _client(cluster: SpecCluster, stack: ExitStack) -> Client:
    from distributed import Client

    return stack.enter_context(Client(cluster, set_as_default=False, name="unet-engine"))


def _port(cluster: SpecCluster) -> int:
    return int(cluster.scheduler.http_server.port)


def workers_there(client: Client, most: int = -1) -> dict[str, Any]:
    """The workers by address, `most` at most. Raises `ClusterError` where the scheduler is gone."""
    found: dict[str, Any] | None = client.scheduler_info(n_workers=most).get("workers")
    if found is None:
        raise ClusterError(
            "the connection to the scheduler is lost: it was stopped or restarted; once it is there, run the same "
            "command with --resume"
        )
    return found


def wait_for_workers(cluster: Cluster, tell: Tell) -> None:
    """Return once there is a worker. Meanwhile `tell` hears now and then what is waited for.

    Raises `ClusterError` where none comes: for a running scheduler after `WORKER_SECONDS`, for jobs when they end
    before a worker connects.
    """
    begun = noted = time.monotonic()
    while not workers_there(cluster.client, 1):
        if trouble := cluster.trouble():
            raise ClusterError(trouble)
        now = time.monotonic()
        if cluster.kind == "scheduler" and now - begun > WORKER_SECONDS:
            address = cluster.client.scheduler_info(n_workers=0)["address"]
            raise ClusterError(f"the scheduler {address} has no workers; start some with: dask worker {address}")
        if now - noted > NOTE_EVERY:
            noted = now
            tell(f"waiting for workers: {cluster.state()}".rstrip(": "))
        time.sleep(0.1)


def check_versions(client: Client) -> None:
    """Raise `ClusterError` where a worker that is there has no unet-engine, or another one than this process.

    A worker that comes later has to be asked by its own task: send `our_version()` along and compare.
    """
    mine = our_version()
    answers = client.run(our_version, on_error="return")
    for address, theirs in answers.items():
        if isinstance(theirs, BaseException):
            raise ClusterError(
                f"unet-engine cannot be used by worker {address}: {first_line(theirs)}; install it there, version "
                f"{mine}"
            )
        if theirs != mine:
            raise ClusterError(
                f"worker {address} has unet-engine {theirs}, this is {mine}; install the same version on both"
            )
