"""One job in one worker of a cluster: a `Worker` whose device is fed from a queue, while the cluster's threads read,
merge and write.

    threads of the cluster        queue               device thread
    predict(bundle): read, read -> [b3][b2]  ->  windows of b1 through the network, b2's right behind them
                  wait for sums   <-------------------------------'
    commit(bundle): halos merged, written, marked

Blocks enter the network one behind the other without a pause, whichever calls they came from. At most `READ_AHEAD`
blocks are held raw.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from heapq import heappop, heappush
from queue import Empty, SimpleQueue

from unet_engine.backends.base import Array
from unet_engine.backends.out_of_memory import is_out_of_memory
from unet_engine.errors import ClusterError
from unet_engine.pipeline.base import Predicted
from unet_engine.pipeline.job import Halo, Job, Raw
from unet_engine.pipeline.worker import Worker
from unet_engine.plan.bundles import Bundle
from unet_engine.plan.plan import Index, Task
from unet_engine.profiling.recorder import PLAIN, Recorder
from unet_engine.profiling.stages import MERGE, WAITING

READ_AHEAD = 2
"""Blocks read but not yet inferred: the one being cut and the one behind it."""


@dataclass(frozen=True)
class Part:
    """The sums of one block, taken apart, so that each part of them can go when nothing needs it any more."""

    task: Task
    core: Array | None
    """The block's own sums: (channels out, *task.block.core.shape) float32; None where it does not commit."""
    halos: tuple[tuple[Index, Halo], ...]

    @classmethod
    def of(cls, predicted: Predicted, recorder: Recorder = PLAIN) -> Part:
        core = predicted.inside(predicted.task.block.core).copy() if predicted.task.commits else None
        with recorder.span(MERGE):
            return cls(predicted.task, core, tuple((to, halo.copied()) for to, halo in predicted.halos()))

    @property
    def nbytes(self) -> int:
        return sum(halo.values.nbytes for _, halo in self.halos) + (0 if self.core is None else self.core.nbytes)


@dataclass(frozen=True)
class Sums:
    """What `predict` leaves for `commit` and for other bundles."""

    parts: tuple[Part, ...]

    def __sizeof__(self) -> int:
        # what the scheduler weighs when it decides where the commit runs
        return sum(part.nbytes for part in self.parts)


@dataclass(frozen=True)
class HaloParcel:
    """The halos that one bundle sends to another."""

    origin: str
    """Address of the worker that made it."""
    halos: tuple[tuple[Index, Halo], ...]

    def __sizeof__(self) -> int:
        return sum(halo.values.nbytes for _, halo in self.halos)


def parcel(sums: Sums, targets: frozenset[Index], origin: str) -> HaloParcel:
    """The halos for the blocks `targets`, which lie in another bundle; they are shared with `sums`, not copied."""
    return HaloParcel(origin, tuple((to, halo) for part in sums.parts for to, halo in part.halos if to in targets))


@dataclass
class _Order:
    """A block on its way through the device."""

    task: Task
    raw: Raw | None
    sums: Future[Predicted] = field(default_factory=Future)


class Station:
    """Predicts and commits bundles of one job. Calls may come from several threads at once."""

    def __init__(self, job: Job, address: str, limit: float, hung: Callable[[str], None]) -> None:
        """limit: seconds that reading, inferring or writing one block may take; `hung` is called with what took
        longer."""
        self.worker = Worker(job)
        self.address = address
        self.used = time.monotonic()
        self._queue: SimpleQueue[_Order | None] = SimpleQueue()
        self._inside: deque[_Order] = deque()
        """Orders that the device has taken, first in, first out."""
        self._ahead = threading.Semaphore(READ_AHEAD)
        self._reading = _Turns()
        self._closed = self._ended = False
        self._refused: Exception | None = None
        """Why half the windows at once would not do, once that was found: all orders that run out after that are told
        the same."""
        self._door = threading.Lock()
        """Held to put something into the queue, so that nothing comes after the end."""
        self._watch = _Watch(limit, hung)
        self._device = threading.Thread(target=self._infer, name="device", daemon=True)
        self._device.start()

    # --- what the cluster calls ---

    def predict(self, bundle: Bundle, shares: tuple[int, int] | None = None, number: int = 0) -> Sums:
        """Read and infer the blocks of a bundle. Void ones are written here and now. shares: of `plan.dealing` that this
        worker has, where blocks are dealt; number: of the bundle, in the order in which they were handed out."""
        self.used = time.monotonic()
        orders = []
        # one bundle after the other, so that the first one's sums are complete first, and what is kept is read in order
        with self._reading.turn(number):
            if shares:
                self.worker.serve(shares)
            for task in bundle.tasks:
                targets = {task.block.index} if task.commits else set()
                targets.update(to for to, _ in task.halos)
                with self._watch.over(f"looking at block {task.block.index}"):
                    left = self.worker.settle(task, bundle.column, targets.__contains__)
                if left:
                    orders.append(self._enqueue(left))
        self.worker.record()
        return Sums(tuple(Part.of(order.sums.result(), self.worker.recorder) for order in orders))

    def _enqueue(self, task: Task) -> _Order:
        self._ahead.acquire()
        try:
            with self._watch.over(f"reading voxels {task.read} of block {task.block.index}"):
                order = _Order(task, self.worker.read(task))
            with self._door:
                if self._closed:
                    raise ClusterError(
                        f"the run ended before block {task.block.index} was inferred; run it again with --resume"
                    )
                self._queue.put(order)
        except BaseException:
            self._ahead.release()
            raise
        return order

    def commit(self, sums: Sums, parcels: Sequence[HaloParcel]) -> None:
        """Add the halos from this bundle and others to each block's own sums, finish and write it. Leaves `sums` as
        they are."""
        self.used = time.monotonic()
        arrived: defaultdict[Index, list[Halo]] = defaultdict(list)
        for foreign in parcels:
            for to, halo in foreign.halos:
                arrived[to].append(halo)
            if foreign.origin != self.address:
                self.worker.tally.add(halo_bytes=foreign.__sizeof__())
        for part in sums.parts:
            for to, halo in part.halos:
                arrived[to].append(halo)
        for part in sums.parts:
            if part.core is not None:
                index = part.task.block.index
                with self._watch.over(f"writing block {index}"):
                    # a copy, since a commit may be repeated
                    self.worker.commit(part.task, part.core.copy(), arrived.pop(index, []))
        with self._watch.over("recording what is written"):
            self.worker.record()

    def close(self) -> None:
        """End it after the block that is in the network; callers that wait for others get a `ClusterError`."""
        with self._door:
            self._closed = True
            self._queue.put(None)
        self._device.join()
        self._watch.close()
        self.worker.close()

    # --- the device ---

    def _infer(self) -> None:
        """Infer what is in the queue until it says that there is no more."""
        while self._inside or (not self._ended and self._take()):
            try:
                for done in self.worker.predict(self._work()):
                    order = self._inside.popleft()
                    self._ahead.release()
                    order.sums.set_result(done.detached())
                    self._watch.beat("device", bool(self._inside))
            except BaseException as error:
                self._recover(error)

    def _take(self) -> bool:
        """Wait for an order; False at the end."""
        order = self._waited()
        if order is None or self._closed:
            self._refuse(order)
            return False
        self._inside.append(order)
        return True

    def _waited(self) -> _Order | None:
        with self.worker.recorder.span(WAITING):
            return self._queue.get()

    def _refuse(self, order: _Order | None) -> None:
        """Tell all who still wait that the run is over."""
        while order:
            self._ahead.release()
            order.sums.set_exception(ClusterError("the run is over; run it again with --resume"))
            order = self._queue.get()
        self._ended = True

    def _work(self) -> Iterator[tuple[Task, Raw | None] | None]:
        """The orders taken already, then what comes. Only what follows is timed: opening a network may take minutes."""
        for order in list(self._inside):
            self._watch.beat("device", busy=True)
            yield order.task, order.raw
        while True:
            try:
                taken = self._queue.get_nowait()
            except Empty:
                yield None
                taken = self._waited()
            if taken is None or self._closed:
                self._refuse(taken)
                return
            self._inside.append(taken)
            self._watch.beat("device", busy=True)
            yield taken.task, taken.raw

    def _recover(self, error: BaseException) -> None:
        """Begin again with fewer windows at once where memory ran out the first time; else every order begun fails with
        `error`."""
        with contextlib.suppress(Exception):
            self.worker.close()  # windows of it may still be under way
        if is_out_of_memory(error):
            index = self._inside[0].task.block.index if self._inside else "none"
            try:
                if self._refused is None:
                    self.worker.shrink(error, f"in block {index} on {self.address}")
                    return
            except Exception as refused:
                self._refused = refused
            error = self._refused
        self._watch.beat("device", busy=False)
        while self._inside:
            self._ahead.release()
            self._inside.popleft().sums.set_exception(error)


class _Turns:
    """One at a time; of those that wait, that of the lowest number."""

    def __init__(self) -> None:
        self._waiting: list[int] = []
        self._taken = False
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def turn(self, number: int) -> Iterator[None]:
        with self._changed:
            heappush(self._waiting, number)
            self._changed.wait_for(lambda: not self._taken and self._waiting[0] == number)
            heappop(self._waiting)
            self._taken = True
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()


class _Watch:
    """Calls `hung` when something that was begun has not ended within `limit` seconds."""

    def __init__(self, limit: float, hung: Callable[[str], None]) -> None:
        self._limit, self._hung = limit, hung
        self._since: dict[object, tuple[float, str]] = {}
        self._closed = threading.Event()
        threading.Thread(target=self._look, name="watch", daemon=True).start()

    @contextlib.contextmanager
    def over(self, what: str) -> Iterator[None]:
        key = object()
        self._since[key] = (time.monotonic(), what)
        try:
            yield
        finally:
            del self._since[key]

    def beat(self, name: str, busy: bool) -> None:  # noqa: FBT001  # a state, not an option
        """`name` is alive; it counts as begun anew while it is busy."""
        if busy:
            self._since[name] = (time.monotonic(), f"the {name} inferring a block")
        else:
            self._since.pop(name, None)

    def _look(self) -> None:
        while not self._closed.wait(min(1.0, self._limit / 4)):
            if what := self.overdue():
                self._hung(f"{what} took longer than {self._limit:.0f} s")
                return

    def overdue(self) -> str | None:
        """What was begun longer than `limit` ago and has not ended."""
        now = time.monotonic()
        return next((what for since, what in list(self._since.values()) if now - since > self._limit), None)

    def close(self) -> None:
        self._closed.set()
