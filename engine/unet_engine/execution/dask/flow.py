"""The executor for Dask clusters: bundles of blocks handed out in plan order, as many at a time as the workers can use.

    predict(bundle) --> sums --+--> commit(bundle)
                               +--> parcel of halos for each bundle above --> their commits

The scheduler sees names, sizes and places; workers read voxels from the volume and halos from one another. A task whose
worker is lost is repeated elsewhere by Dask, with what it depends on. Nothing here grows with the volume: what is
submitted is bounded, what is not yet submitted is derived when its turn comes, and halos wait for as long as the plan
says.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any
from uuid import uuid4

from distributed import Client, Future
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker

from unet_engine.cluster.connection import workers_there
from unet_engine.errors import ClusterError, UnetEngineError
from unet_engine.execution.dask import tasks
from unet_engine.execution.dask.placing import ANYWHERE, Place, Placing
from unet_engine.execution.dask.progress import LOOK_EVERY, Progress
from unet_engine.execution.dask.tasks import Label, Sealed, Ticket, Wanted
from unet_engine.pipeline.job import Job
from unet_engine.plan.bundles import Bundle, BundleId, bundles
from unet_engine.plan.dealing import dealing
from unet_engine.plan.memory import BUNDLES_IN_FLIGHT
from unet_engine.plan.plan import Index
from unet_engine.profiling.stages import SPANS

SPANS_IN_ALL = 2**18
"""Spans of each kind of thread that all workers together send for a trace: some 50 MB in the client."""


def run_dask(
    client: Client,
    job: Job,
    pending: Callable[[Index], bool],
    progress: Progress,
    length: int,
    limit: float,
    trouble: Callable[[], str | None] = lambda: None,
) -> None:
    """Run all that is left of the job's plan on the workers of `client`, `length` blocks at a time.

    limit: seconds that one step of a block may take
    trouble: what keeps workers from ever coming, None as long as nothing does; asked while there is none

    Raises the first error of a worker, with its own message, or `ClusterError` where the cluster fails; what is
    committed stays.
    """
    # no two runs share keys: the scheduler may still hold those of one that was interrupted
    name = f"unet-{job.plan.digest}-{uuid4().hex[:8]}"
    shares = dealing(job.plan, job.dealt)
    flow = _Flow(client, tasks.ticket(job, name, limit), Placing(job.dealt) if shares else None)
    with _listening(client, name, progress, flow):
        try:
            for bundle, is_late in _late(bundles(job.plan, pending, length, shares), BUNDLES_IN_FLIGHT * job.dealt):
                while (place := flow.place(bundle, progress.present, is_late=is_late)) is None:
                    _step(flow, progress, trouble)
                flow.submit(bundle, place)
                progress.submitted()
            while flow.in_flight:
                _step(flow, progress, trouble)
            _confirm(client, name)
            if job.profiled:
                spans = min(SPANS, SPANS_IN_ALL // max(1, progress.worker_count))
                with suppress(Exception):  # all blocks are committed; what is missing then is only spans of the trace
                    progress.profiled(client.run(tasks.profile, name, spans, on_error="ignore"))
        finally:
            flow.drop()
            with suppress(Exception):  # the workers or the scheduler may be gone
                client.run(tasks.close, name, on_error="ignore")


def _late(found: Iterable[Bundle], last: int) -> Iterator[tuple[Bundle, bool]]:
    """Each, and whether it is one of so many last ones."""
    waiting: deque[Bundle] = deque()
    for bundle in found:
        waiting.append(bundle)
        if len(waiting) > last:
            yield waiting.popleft(), False
    while waiting:
        yield waiting.popleft(), True


def _step(flow: _Flow, progress: Progress, trouble: Callable[[], str | None]) -> None:
    if progress.stuck:
        raise ClusterError(f"{progress.stuck}; what is committed stays, run the same command with --resume")
    if not flow.wait(LOOK_EVERY) and not progress.worker_count and (why := trouble()):
        raise ClusterError(f"{why}; what is committed stays, run the same command with --resume")


def _confirm(client: Client, name: str) -> None:
    """Raises what a worker finds wrong with the input as it looks at it once more. A worker that is gone has no say."""
    for said in client.run(tasks.confirm, name, on_error="return").values():
        if isinstance(said, UnetEngineError):
            raise said


@contextmanager
def _listening(client: Client, topic: str, progress: Progress, flow: _Flow) -> Iterator[None]:
    def seen(event: tuple[float, dict[str, Any]]) -> None:
        progress.event(event[1])
        flow.event(event[1])

    client.subscribe_topic(topic, seen)
    try:
        with progress.watching(lambda: _worker_addresses(client)):
            yield
    finally:
        with suppress(Exception):
            client.unsubscribe_topic(topic)


def _worker_addresses(client: Client) -> set[str]:
    return set(workers_there(client))


class _Flow:
    """What is submitted and not yet committed, and the halos that bundles still to be submitted will need."""

    def __init__(self, client: Client, ticket: Ticket, placing: Placing | None) -> None:
        self._client, self._ticket, self._placing = client, ticket, placing
        self._completed: SimpleQueue[Future | None] = SimpleQueue()
        """None: a worker has room."""
        self._open: dict[Future, tuple[Bundle, list[Future]]] = {}
        """By the future that ends a bundle, the bundle and the parcels it merges: Dask may see us let go of them before
        it sees the commit."""
        self._waiting: defaultdict[BundleId, list[Future]] = defaultdict(list)
        """By bundle that is not submitted yet, the parcels it will merge. Held here, or Dask would drop them."""
        self._count = 0

    @property
    def in_flight(self) -> int:
        return len(self._open)

    def place(self, bundle: Bundle, present: set[str], *, is_late: bool) -> Place | None:
        """Where a bundle goes; None as long as there is no room for it. is_late: whether it is one of the last."""
        if self.in_flight >= BUNDLES_IN_FLIGHT * max(1, len(present)):
            return None
        if self._placing is None:
            return ANYWHERE
        self._placing.look(present)
        return self._placing.place(bundle, is_late=is_late)

    def event(self, facts: dict[str, Any]) -> None:
        """Something a worker tells. Called from another thread than the rest."""
        if self._placing and facts.get("stage") == "predicted":
            self._placing.predicted(tuple(facts["run"]))
            self._completed.put(None)

    def submit(self, bundle: Bundle, place: Place) -> None:
        """Hand over one bundle: its tasks and their order before those submitted later."""
        if self._placing:
            self._placing.given(bundle.id, place)
        name, ticket = self._ticket.name, self._ticket
        sums = (f"predict-{name}", *bundle.id)
        graph: dict[Any, Any] = {sums: (tasks.predict, ticket, Sealed.of(bundle, place.shares, self._count))}
        parcels = {}
        for target, blocks in bundle.targets:
            parcels[target] = (f"piece-{name}", *bundle.id, *target)
            graph[parcels[target]] = (tasks.parcel, sums, Wanted(blocks))
        keys = list(parcels.values())
        lower = self._waiting.pop(bundle.id, [])
        if bundle.commits:
            keys.append((f"commit-{name}", *bundle.id))
            graph[keys[-1]] = (tasks.commit, ticket, Label.of(bundle), sums, *lower)
        # should the worker go, others take it
        where = {"workers": [place.worker], "allow_other_workers": True} if place.worker else {}
        futures = self._client.get(graph, keys, sync=False, priority=-self._count, **where)
        self._count += 1
        for target, future in zip(parcels, futures, strict=False):
            self._waiting[target].append(future)
        # a bundle that only spills upwards is done with its first parcel
        last = futures[-1] if bundle.commits else futures[0]
        self._open[last] = (bundle, lower)
        last.add_done_callback(self._completed.put)

    def wait(self, seconds: float) -> bool:
        """Wait until something was committed; False where nothing was for so long. Raises what went wrong instead."""
        try:
            future = self._completed.get(timeout=seconds)
        except Empty:
            return False
        if future is None:
            return True
        bundle, _ = self._open.pop(future)
        if self._placing:  # whatever its workers told
            self._placing.predicted(bundle.id)
        if future.status != "finished":
            raise self._failure(future, bundle)
        return True

    def _failure(self, future: Future, bundle: Bundle) -> UnetEngineError:
        if future.status != "error":
            return ClusterError(
                f"the scheduler lost {bundle}: it was stopped or restarted; what is committed stays, run the same "
                "command with --resume"
            )
        error = future.exception()
        if isinstance(error, UnetEngineError):
            return error
        if isinstance(error, KilledWorker):
            return ClusterError(
                f"{bundle} was given up: {error.allowed_failures + 1} workers died over it, the last "
                f"{error.last_worker.address}, most "
                "likely out of memory; use fewer --workers, a smaller --memory per worker or a smaller --window, then "
                "--resume"
            )
        if isinstance(error, FutureCancelledError):
            return ClusterError(f"{bundle} was cancelled ({error}); run the same command with --resume")
        return UnetEngineError(
            f"unexpected {type(error).__name__} from Dask in {bundle}: {error}; run again with --resume"
        )

    def drop(self) -> None:
        """Let go of everything; what runs stops as soon as it can."""
        left = [*self._open, *(future for futures in self._waiting.values() for future in futures)]
        self._open.clear()
        self._waiting.clear()
        if left:
            with suppress(Exception):
                self._client.cancel(left, force=True)
