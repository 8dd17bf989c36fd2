"""The workers of a Dask cluster do a pass over a finished volume."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any, TypeVar

from unet_engine.cluster.connection import Cluster, workers_there
from unet_engine.errors import ClusterError, UnetEngineError, first_line
from unet_engine.execution.dask.progress import LOOK_EVERY
from unet_engine.execution.hands import AT_ONCE, Hands
from unet_engine.postprocess.base import one_done

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")


def on_dask(cluster: Cluster, share: int | None) -> Hands:
    """The workers of `cluster`, each of which may take `share` bytes; None: what it says itself."""
    return Hands(OnDask(cluster), _memory_of(cluster.client, share) // (2 * AT_ONCE))


def _memory_of(client: Client, share: int | None) -> int:
    """Bytes that the worker with the least may use."""
    limits = [int(worker["memory_limit"]) for worker in workers_there(client).values() if worker.get("memory_limit")]
    return min([*limits, *([share] if share else [])], default=2**31)


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
                    one_done(items)
                    return
                if not workers_there(client) and (why := self._cluster.trouble()):
                    raise ClusterError(f"{why}; what is done stays, run the same command with --resume")

        try:
            for item in items:
                future = client.submit(_done, _Sealed(work), _Sealed(pickle.dumps(item)), pure=False)
                waiting.add(future)
                future.add_done_callback(completed.put)
                while len(waiting) >= IN_FLIGHT * max(1, len(workers_there(client))):
                    one()
            while waiting:
                one()
        finally:
            with suppress(Exception):  # the scheduler may be gone
                client.cancel(list(waiting), force=True)


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
            f"the cluster gave up on a part of the volume: {first_line(error)}; most likely workers ran out of memory: "
            "use fewer --workers or a smaller --memory, then --resume"
        ) from error
    except Exception as error:
        raise UnetEngineError(
            f"unexpected {type(error).__name__} on a worker: {first_line(error)}; the same command goes on with --resume"
        ) from error
