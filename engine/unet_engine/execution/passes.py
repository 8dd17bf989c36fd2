"""Who does a pass over a finished volume: threads of this process, or the workers of a Dask cluster."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any, TypeVar

from unet_engine import machine
from unet_engine.cluster import connection
from unet_engine.cluster.connection import Cluster
from unet_engine.errors import ClusterError, UnetEngineError, first_line
from unet_engine.execution.choose import share_of_memory
from unet_engine.execution.dask.progress import LOOK_EVERY
from unet_engine.execution.dask.team import HANG_SECONDS
from unet_engine.postprocess.base import Crew
from unet_engine.settings import Settings
from unet_engine.units import Tell, silent

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")
AT_ONCE = 2
"""Boxes that a process works on at the same time: one is read or written while another is labelled, which takes one core
of a process whatever it has."""


@dataclass(frozen=True)
class Hands:
    """A crew, and what each of its processes may take."""

    crew: Crew
    memory: int
    """Bytes for one box."""


@contextmanager
def crew(settings: Settings, tell: Tell = silent) -> Iterator[Hands]:
    """The crew that the settings ask for, sent home at the end. Raises `ClusterError` where a cluster is not to be
    had."""
    if not connection.wants_cluster(settings):
        memory = settings.memory or machine.available_memory() // 2
        yield Hands(Here(), max(0, memory - machine.resident_bytes()) // AT_ONCE)
        return
    share = share_of_memory(settings)
    with connection.connect(settings, share, settings.hang_seconds or HANG_SECONDS) as cluster:
        connection.wait_for_workers(cluster, tell)
        connection.check_versions(cluster.client)
        yield Hands(OnDask(cluster), _memory_of(cluster.client, share) // (2 * AT_ONCE))


def _memory_of(client: Client, share: int | None) -> int:
    """Bytes that the worker with the least may use."""
    limits = [int(worker["memory_limit"]) for worker in _workers(client).values() if worker.get("memory_limit")]
    return min([*limits, *([share] if share else [])], default=2**31)


class Here:
    """Threads of this process."""

    def each(self, do: Callable[[T], None], items: Iterable[T]) -> None:
        waiting: deque[Future[None]] = deque()
        with ThreadPoolExecutor(AT_ONCE, "pass") as threads:
            try:
                for item in items:
                    waiting.append(threads.submit(do, item))
                    while len(waiting) > AT_ONCE:
                        waiting.popleft().result()
                for future in waiting:
                    future.result()
            finally:
                for future in waiting:
                    future.cancel()


class OnDask:
    """The workers of a cluster. One that dies loses nothing but what it was at: Dask has another one do it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def each(self, do: Callable[[T], None], items: Iterable[T]) -> None:
        client = self._cluster.client
        work = pickle.dumps(do)
        completed: SimpleQueue[Any] = SimpleQueue()
        waiting: set[Any] = set()

        def one() -> None:
            """Wait for one that is under way."""
            while True:
                with suppress(Empty):
                    future = completed.get(timeout=LOOK_EVERY)
                    waiting.discard(future)
                    _check(future)
                    return
                if not _workers(client) and (why := self._cluster.trouble()):
                    raise ClusterError(f"{why}; what is done stays, run the same command with --resume")

        try:
            for item in items:
                future = client.submit(_done, _Sealed(work), _Sealed(pickle.dumps(item)), pure=False)
                waiting.add(future)
                future.add_done_callback(completed.put)
                while len(waiting) >= IN_FLIGHT * max(1, len(_workers(client))):
                    one()
            while waiting:
                one()
        finally:
            with suppress(Exception):  # the scheduler may be gone
                client.cancel(list(waiting), force=True)


def _workers(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    return found


IN_FLIGHT = 2 * AT_ONCE
"""Boxes that are handed out for each worker."""


@dataclass(frozen=True)
class _Sealed:
    """What goes to a worker, which Dask must not look into."""

    content: bytes


_room = BoundedSemaphore(AT_ONCE)


def _done(work: _Sealed, item: _Sealed) -> None:
    with _room:
        pickle.loads(work.content)(pickle.loads(item.content))


def _check(future: Any) -> None:
    """Raises what went wrong with a task."""
    from distributed.client import FutureCancelledError
    from distributed.scheduler import KilledWorker

    try:
        future.result()
    except UnetEngineError:
        raise
    except (KilledWorker, FutureCancelledError) as error:
        raise ClusterError(
            f"the cluster gave up on a box of the volume: {first_line(error)}; most likely workers ran out of memory: "
            "use fewer --workers or a smaller --memory, then --resume"
        ) from error
    except Exception as error:
        raise UnetEngineError(f"unexpected {type(error).__name__} on a worker: {first_line(error)}") from error
