"""How Dask is set up for a run: its settings, its certificates, its log. Nothing of Dask is imported before a function
is called."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet_engine.errors import ClusterError, first_line
from unet_engine.settings.settings import Settings
from unet_engine.text_files import NotReadable, read_text

if TYPE_CHECKING:
    from distributed import Security

THREADS_PER_WORKER = 6
"""Tasks a worker process takes at a time. They read, merge and write; who may use the device is our own queue's to
say."""
_DASKS_ENVIRONMENT = ("MALLOC_TRIM_THRESHOLD_", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
SILENT = logging.CRITICAL + 1
"""Level at which Dask's handlers print nothing. What it logs stays readable on the dashboard and by
``client.get_worker_logs``."""
HEARTBEAT_LIMIT = 60.0
"""Seconds after which a silent worker counts as dead at the latest. Its heartbeat has a thread of its own and needs no
task to end."""


_SHORT_LOGS = {"distributed.admin.low-level-log-length": 20}
"""By default each end of each connection keeps its last 1000 messages: over a gigabyte in the scheduler of 64 workers,
most of it tasks."""


def worker_config() -> dict[str, Any]:
    """Settings of the worker processes."""
    memory = {f"distributed.worker.memory.{name}": False for name in ("target", "spill", "pause", "terminate")}
    return {
        # the plan bounds memory: data on disk or a paused worker would only hide a mistake in it
        **memory,
        # a sampling profiler in every worker, for a page of the dashboard
        "distributed.worker.profile.enabled": False,
        **_SHORT_LOGS,
        # by default Dask takes OpenMP's threads away and tunes malloc; the job says how many threads a worker has
        "distributed.nanny.pre-spawn-environ": dict.fromkeys(_DASKS_ENVIRONMENT),
    }


def scheduler_config(hang_seconds: float) -> dict[str, Any]:
    """Settings of a scheduler of ours. A worker that is silent for `hang_seconds`, or `HEARTBEAT_LIMIT`, is
    restarted."""
    return {
        "distributed.scheduler.worker-saturation": 1.1,
        **_SHORT_LOGS,
        "distributed.scheduler.allowed-failures": 5,
        "distributed.scheduler.worker-ttl": min(max(hang_seconds, 5.0), HEARTBEAT_LIMIT),
        # who is gone for good is decided by a worker's nanny or the keeper of the jobs; Dask's cluster would close both
        # after 15 s
        "distributed.deploy.lost-worker-timeout": "1 day",
    }


def check_protocol(name: str) -> None:
    """Raise `ClusterError` where the way to talk of `name` is not installed, and say what to install."""
    if name != "ucx":
        return
    if importlib.util.find_spec("distributed_ucxx") is None:
        raise ClusterError("ucx needs distributed-ucxx: pip install 'unet-engine[ucx]', or use tcp")
    # it would warn of variables on stdout, where --json is
    os.environ.setdefault("UCX_WARN_UNUSED_ENV_VARS", "n")


def security(settings: Settings) -> Security | None:
    """Certificates from ``--tls-*``, None without. Raises `ClusterError` where they cannot be loaded."""
    if not settings.tls_ca:
        return None
    return pem_security(settings.tls_ca, str(settings.tls_cert), str(settings.tls_key))


def pem_security(ca: str, cert: str, key: str) -> Security:
    """Certificates for client, scheduler and workers alike. Raises `ClusterError` where they cannot be loaded."""
    from distributed import Security

    for file in (ca, cert, key):
        try:
            read_text(Path(file))
        except NotReadable as error:
            raise ClusterError(f"certificate {file} {error}; check --tls-ca, --tls-cert and --tls-key") from error
    roles = {
        f"tls_{role}_{part}": f
        for role in ("client", "scheduler", "worker")
        for part, f in (("cert", cert), ("key", key))
    }
    secure = Security(require_encryption=True, tls_ca_file=ca, **roles)
    try:
        secure.get_connection_args("client")
    except OSError as error:  # ssl's errors are such
        raise ClusterError(
            f"certificates {ca}, {cert}, {key} cannot be used: {first_line(error)}; check that they belong together"
        ) from error
    return secure


@contextmanager
def quiet() -> Iterator[int | None]:
    """Dask's log off stderr in this process, unless the user's Dask configuration asks for it; the level for workers,
    None for as it is."""
    import dask
    from distributed.utils import silence_logging_cmgr

    if dask.config.get("logging", None) or dask.config.get("logging-file-config", None):
        yield None
        return
    with silence_logging_cmgr(SILENT), silence_logging_cmgr(SILENT, root="bokeh"):
        yield SILENT


@contextmanager
def keyboard_kept_from_children() -> Iterator[None]:
    """Threads and processes begun inside never see Ctrl-C or a hang-up of the terminal, which go to every process on
    it.

    They are blocked rather than ignored: a mask is inherited from before a child's first instruction and holds for
    those that such a child or thread starts later, e.g. a worker's replacement. A signal that arrives meanwhile is
    delivered at the end.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        # started with the first child otherwise, when it would take the mask off SIGINT
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
