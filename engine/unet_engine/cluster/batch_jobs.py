"""Workers as jobs of a batch system, by dask-jobqueue, and cancelled with the run. Their number is kept by
`unet_engine.cluster.job_keeper`."""

from __future__ import annotations

import asyncio
import shlex
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet_engine.cluster.cluster_file import Certificates, ClusterFile
from unet_engine.cluster.dask_settings import (
    THREADS_PER_WORKER,
    keyboard_kept_from_children,
    pem_security,
    quiet,
    scheduler_config,
    worker_config,
)
from unet_engine.cluster.job_keeper import Keeper
from unet_engine.cluster.worker_preload import GPUS
from unet_engine.errors import ClusterError, first_line

if TYPE_CHECKING:
    from dask_jobqueue import JobQueueCluster
    from distributed import Security

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
    """Submit the jobs of `file` (called `where` in messages), keep them up, cancel them at the end. `scheduler` as for
    `local_cluster`.

    Raises `ClusterError` where dask-jobqueue or the batch system is missing or refuses.
    """
    import dask

    config = {**worker_config(), **scheduler_config(hang_seconds)}
    folder = _log_folder(file, where)
    with dask.config.set(config), quiet() as silence, _security(file, folder) as security:
        with keyboard_kept_from_children():
            cluster = _created(file, where, security, scheduler, silence)
        keeper = Keeper(cluster, file)
        try:
            _submitted(keeper, where)
            yield cluster, keeper
        finally:
            with keyboard_kept_from_children():
                _close(cluster, keeper)


def _log_folder(file: ClusterFile, where: str) -> Path:
    folder = Path(file.log_directory).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClusterError(
            f"--cluster {where}: log_directory {folder} cannot be made: {error.strerror}; name another one"
        ) from error
    return folder


@contextmanager
def _security(file: ClusterFile, folder: Path) -> Iterator[Security | None]:
    """Certificates as the file says; temporary ones lie in `folder`, for this user alone, as long as the cluster
    lives."""
    if isinstance(file.tls, Certificates):
        yield pem_security(file.tls.ca, file.tls.cert, file.tls.key)
    elif file.tls == "none":
        yield None
    else:
        with tempfile.TemporaryDirectory(prefix=".tls-", dir=folder) as place:
            yield _temporary_security(Path(place))


def _temporary_security(place: Path) -> Security:
    from distributed import Security

    try:
        made = Security.temporary()
    except ImportError as error:
        raise ClusterError(
            "tls: temporary needs the package cryptography; pip install 'unet-engine[jobqueue]', name certificates, or "
            "write tls: none"
        ) from error
    files = {"ca": made.tls_ca_file, "cert": made.tls_client_cert, "key": made.tls_client_key}
    for name, text in files.items():
        (place / name).write_text(text)
    return pem_security(*(str(place / name) for name in files))


def _created(
    file: ClusterFile, where: str, security: Security | None, scheduler: dict[str, Any], silence: int | None
) -> JobQueueCluster:
    try:
        return getattr(_jobqueue(), _CLASSES[file.type])(
            **job_options(file),
            security=security,
            scheduler_cls=scheduler["cls"],
            scheduler_options={k: v for k, v in scheduler.items() if k != "cls"},
            silence_logs=silence,
            name="unet-engine",
        )
    except ClusterError:
        raise
    except Exception as error:
        raise ClusterError(
            f"--cluster {where}: {first_line(error)}; correct its keys, docs/cluster.md has them"
        ) from error


def _jobqueue() -> Any:
    """The module dask_jobqueue. As it is imported it makes Ctrl-C end the process, silently and with success; that is
    undone."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        import dask_jobqueue
    except ImportError as error:
        raise ClusterError("--cluster needs dask-jobqueue; pip install 'unet-engine[jobqueue]'") from error
    if threading.current_thread() is threading.main_thread():  # other threads may not
        signal.signal(signal.SIGINT, handler)
    return dask_jobqueue


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
    # of an option given twice, as the first two are by dask-jobqueue, the last counts
    arguments = ["--nthreads", str(THREADS_PER_WORKER), "--memory-limit", f"{file.memory_per_process}B"]
    arguments += ["--no-dashboard", "--preload", "unet_engine.cluster.worker_preload"]
    if walltime := file.walltime_seconds:
        # a worker that retires is not one that died: its tasks go elsewhere without counting as failed
        spare = min(max(0.1 * walltime, 20.0), 300.0)
        arguments += ["--lifetime", f"{walltime - spare:.0f}s", "--lifetime-stagger", f"{spare / 2:.0f}s"]
    return arguments


def _submitted(keeper: Keeper, where: str) -> None:
    cluster, file = keeper.cluster, keeper.file
    try:
        cluster.sync(keeper.submit, file.jobs or file.adaptive.minimum)  # type: ignore[union-attr]
    except FileNotFoundError as error:
        raise ClusterError(
            f"--cluster {where}: there is no {file.type} here: the command {error.filename} is missing; run it where "
            "jobs are submitted"
        ) from error
    except Exception as error:
        raise ClusterError(
            f"--cluster {where}: {file.type} refuses the job: {_said(error)}; correct the file"
        ) from error
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
