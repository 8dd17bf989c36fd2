"""Workers on this machine: processes of our own that Dask looks after, listening on loopback only."""

from __future__ import annotations

import asyncio
import importlib.util
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from unet_engine.cluster.dask_settings import (
    THREADS_PER_WORKER,
    keyboard_kept_from_children,
    quiet,
    scheduler_config,
    worker_config,
)
from unet_engine.cluster.own_user import own_folder
from unet_engine.cluster.worker_preload import BESIDE
from unet_engine.errors import ClusterError, first_line

if TYPE_CHECKING:
    from distributed import Security
    from distributed.deploy.spec import SpecCluster
    from distributed.nanny import WorkerProcess

HOST = "127.0.0.1"
CLOSING = 10.0
"""Seconds for workers to end by themselves: Dask gives them one, and another when it has killed them."""
PRELOAD = "unet_engine.cluster.worker_preload"


def has_dask_cuda() -> bool:
    return importlib.util.find_spec("dask_cuda") is not None


@contextmanager
def local_cluster(
    count: int,
    memory: int | None,
    hang_seconds: float,
    security: Security | None,
    scheduler: dict[str, Any],
    protocol: str = "tcp",
) -> Iterator[SpecCluster]:
    """`count` worker processes of `memory` bytes each. `scheduler` are arguments of Dask's `Scheduler`, and its class
    as ``cls``.

    protocol: ``tcp``, or ``ucx``, which chooses among shared memory, NVLink, InfiniBand and TCP by itself.
    """
    from distributed import Nanny
    from distributed.deploy.spec import SpecCluster

    def start(silence: int | None) -> SpecCluster:
        given = {"host": HOST, "security": security, "protocol": _scheme(security, protocol)}
        options = {
            **given, "nthreads": THREADS_PER_WORKER, "memory_limit": memory, "dashboard": False,
            "preload": [PRELOAD], "silence_logs": silence, "local_directory": own_folder(),
            "env": {BESIDE: str(count)},
        }  # fmt: skip
        worker = {"cls": Nanny, "options": options}
        scheduler_options = {**given, "port": 0, **{k: v for k, v in scheduler.items() if k != "cls"}}
        return SpecCluster(
            workers=dict.fromkeys(range(count), worker), worker=worker, security=security, name="unet-engine",
            scheduler={"cls": scheduler["cls"], "options": scheduler_options},
        )  # fmt: skip

    with _started(start, hang_seconds) as cluster:
        yield cluster


@contextmanager
def cuda_cluster(
    count: int,
    memory: int | None,
    hang_seconds: float,
    security: Security | None,
    scheduler: dict[str, Any],
    protocol: str = "tcp",
) -> Iterator[SpecCluster]:
    """One process per GPU, near it. Each sees its own GPU as ``cuda:0``; nothing is spilled from a GPU or to disk."""
    from dask_cuda import LocalCUDACluster

    def start(silence: int | None) -> SpecCluster:
        # its memory limits only say when to spill: both off
        return LocalCUDACluster(
            n_workers=count, threads_per_worker=THREADS_PER_WORKER, host=HOST, security=security,
            protocol=_scheme(security, protocol), memory_limit=None, device_memory_limit=None, preload=[PRELOAD],
            dashboard_address=scheduler["dashboard_address"], silence_logs=silence, name="unet-engine",
            scheduler_kwargs={"dashboard": scheduler["dashboard"]}, local_directory=own_folder(),
        )  # fmt: skip

    with _started(start, hang_seconds) as cluster:
        yield cluster


def _scheme(security: Security | None, protocol: str) -> str:
    return "tls://" if security else f"{protocol}://"


@contextmanager
def _started(start: Callable[[int | None], SpecCluster], hang_seconds: float) -> Iterator[SpecCluster]:
    import dask

    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # a worker process that imports the user's script, which starts workers as it is imported
        raise ClusterError(
            'worker processes import your script: put what starts the run under  if __name__ == "__main__":'
        )
    config = {**worker_config(), **scheduler_config(hang_seconds)}
    with dask.config.set(config), quiet() as silence:
        with keyboard_kept_from_children():
            cluster = _start(start, silence)
        with ExitStack() as last:
            last.callback(_close, cluster)
            yield cluster


def _start(start: Callable[[int | None], SpecCluster], silence: int | None) -> SpecCluster:
    from distributed.deploy.spec import SpecCluster

    clusters, processes = set(SpecCluster._instances), set(multiprocessing.active_children())
    try:
        return start(silence)
    except (KeyboardInterrupt, SystemExit):
        for cluster in set(SpecCluster._instances) - clusters:
            _abandon(cluster)
        for _ in range(5):  # a thread may just be beginning one
            for process in set(multiprocessing.active_children()) - processes:
                process.kill()
                process.join(1)
            time.sleep(0.1)
        raise
    except Exception as error:
        cause = error
        while cause.__cause__ is not None and isinstance(cause.__cause__, Exception):
            cause = cause.__cause__
        raise ClusterError(
            f"the worker processes do not start: {first_line(cause)}; DASK_LOGGING__DISTRIBUTED=info shows what they "
            "say"
        ) from error


def _abandon(cluster: SpecCluster) -> None:
    """Close what was interrupted as it started. It is neither begun nor ended, and Dask, which closes clusters as
    Python ends, fails with a traceback on such. A nanny whose worker was killed as it started fails too, and nobody
    asks it."""
    cluster.shutdown_on_close = False
    with suppress(AttributeError):  # a cluster that has no loop yet
        cluster.loop.asyncio_loop.set_exception_handler(lambda *_: None)
    _close(cluster)
    with suppress(Exception):  # which begins workers for as long as it turns
        cluster._loop_runner.stop()


def _close(cluster: SpecCluster) -> None:
    """End all processes. Those in the middle of a task are not waited for: their work is not committed, and nobody
    wants it any more. Nor are those that are just being started in place of others: Dask would wait until they have,
    which one that is stopped never does."""
    from distributed.core import Status

    processes = [nanny.process for nanny in cluster.workers.values() if nanny.process]

    async def stop() -> None:
        await asyncio.gather(*(nanny.close(timeout=1) for nanny in cluster.workers.values()), return_exceptions=True)

    with keyboard_kept_from_children():
        _kill(process for process in processes if process.status == Status.starting)
        with suppress(Exception):
            cluster.sync(stop, callback_timeout=CLOSING)
        _kill(processes)
        with suppress(Exception):
            cluster.close(timeout=CLOSING)


def _kill(processes: Iterable[WorkerProcess]) -> None:
    """End those that have not ended by themselves."""
    for number in [process.pid for process in processes]:
        if number is not None:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
