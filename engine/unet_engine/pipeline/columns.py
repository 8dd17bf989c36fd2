"""Columns of a plan dealt to the devices of this process, one thread per device.

Within a column three things overlap: reading the next block (where a GPU computes, the next ones), inferring this one,
writing the last. A Dask executor needs no more than `Worker.read`, `predict` and `commit` either.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from queue import Empty, SimpleQueue
from typing import Protocol, TypeVar

from unet_engine.backends.out_of_memory import is_out_of_memory
from unet_engine.devices.opening import is_pipelined
from unet_engine.pipeline.base import Core, Predicted
from unet_engine.pipeline.job import Halo, Raw
from unet_engine.pipeline.sharing import Sharing
from unet_engine.pipeline.worker import Worker
from unet_engine.plan.plan import Column, Index, Task
from unet_engine.profiling.recorder import Recorder
from unet_engine.profiling.stages import MERGE, WAITING

Pending = Callable[[Index], bool]
T = TypeVar("T")


class Turn(Protocol):
    """When the network is this run's, where several runs share one."""

    def awaited(self, work: Iterator[T]) -> Iterator[T]:
        """`work`, once the network is this run's."""

    def over(self) -> None:
        """The network is not needed any more."""


class Always:
    """The turn of a run that has a network of its own."""

    def awaited(self, work: Iterator[T]) -> Iterator[T]:
        return work

    def over(self) -> None:
        """Nobody waits."""


ALWAYS = Always()


def run_columns(workers: Sequence[Worker], pending: Pending, turn: Turn = ALWAYS) -> None:
    """Run every column of the workers' plan. The first error stops all devices, after what they were writing is
    written. `turn` is over when this returns; of one device on the CPU as soon as nothing is left to infer."""
    columns: SimpleQueue[Column] = SimpleQueue()
    for column in workers[0].job.plan.columns():
        columns.put(column)
    stop = threading.Event()
    if len(workers) == 1:
        _device_thread(workers[0], columns, pending, stop, turn)
        turn.over()
        return
    with ThreadPoolExecutor(len(workers), "device") as devices:
        running = [devices.submit(_device_thread, worker, columns, pending, stop, turn) for worker in workers]
        try:
            for device in running:
                device.result()
            turn.over()
        finally:
            stop.set()


def _device_thread(
    worker: Worker, columns: SimpleQueue[Column], pending: Pending, stop: threading.Event, turn: Turn
) -> None:
    """Column after column. Where memory runs out the first time, what is left of that column once more with half the
    windows at once.

    Blocks that were committed stay so; windows that reach from them into others are inferred again, as in a resume.
    Raises `PlanError` with the figures where memory runs out again, or where half would give other bytes: see
    `Worker.shrink`.
    """
    again: Column | None = None
    try:
        while not stop.is_set():
            column, again = again or columns.get_nowait(), None
            last = columns.empty() and not is_pipelined(worker.job.setup.device)
            try:
                run_column(worker, tasks_of(worker, column, pending), stop, turn, turn.over if last else ALWAYS.over)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                worker.shrink(error, f"in column {column.number}")
                again, pending = column, _both(pending, worker.output.pending())
    except Empty:
        return
    except BaseException:
        stop.set()
        raise


def _both(first: Pending, second: Pending) -> Pending:
    return lambda index: first(index) and second(index)


def run_column(
    worker: Worker,
    tasks: Iterable[Task],
    stop: threading.Event,
    turn: Turn = ALWAYS,
    inferred: Callable[[], None] = ALWAYS.over,
) -> None:
    """What is left of one column, see `tasks_of`; halos wait here until their block is committed. `inferred` is called
    once all is inferred, before the last is written."""
    waiting: defaultdict[Index, list[Halo]] = defaultdict(list)
    writing: Future[None] | None = None
    with (
        ThreadPoolExecutor(worker.job.readers, "read") as reader,
        ThreadPoolExecutor(1, "write") as writer,
        closing(Sharing(worker.job.sharing)) as copying,
    ):
        try:
            for done in worker.predict(turn.awaited(_read_ahead(worker, tasks, reader))):
                _keep_halos(done, waiting, worker.recorder, copying)
                # also by a block that is not written itself: with one being written there would be a fourth at once
                if writing:
                    _waited(worker.recorder, writing)
                    writing = None
                if done.task.commits:
                    block = done.task.block
                    given = [(done.task, done.inside(block.core), waiting.pop(block.index, []))]
                    writing = writer.submit(_commit, worker, given)
                if stop.is_set():
                    return
            inferred()
        finally:
            # what was handed over is written even when something else failed
            try:
                if writing:
                    _waited(worker.recorder, writing)
            finally:
                worker.record()


def _keep_halos(done: Predicted, waiting: defaultdict[Index, list[Halo]], recorder: Recorder, copying: Sharing) -> None:
    """Copy the halos of `done` to those that wait. In a function of its own, which leaves no view of the sums
    behind."""
    for target, halo in done.halos():
        with recorder.span(MERGE):
            waiting[target].append(halo.copied(copying))


def _commit(worker: Worker, given: list[tuple[Task, Core, list[Halo]]]) -> None:
    """Commit what is in `given` and leave nothing there: the executor keeps its arguments a moment longer than whoever
    waits for the result, who would find the memory of these sums still taken."""
    worker.commit(*given.pop())


def _waited(recorder: Recorder, future: Future[T]) -> T:
    with recorder.span(WAITING):
        return future.result()


def tasks_of(worker: Worker, column: Column, pending: Pending) -> Iterator[Task]:
    """The tasks that need the network or sums."""
    for task in worker.job.plan.tasks(column, pending):
        if left := worker.settle(task, column, pending):
            yield left


def _read_ahead(worker: Worker, tasks: Iterable[Task], reader: ThreadPoolExecutor) -> Iterator[tuple[Task, Raw | None]]:
    """Each task with its voxels, in order; those of as many that follow as there are readers are already being read."""
    ahead: deque[tuple[Task, Future[Raw | None]]] = deque()
    for task in tasks:
        ahead.append((task, reader.submit(worker.read, task)))
        if len(ahead) > worker.job.readers:
            yield _first(ahead, worker.recorder)
    while ahead:
        yield _first(ahead, worker.recorder)


def _first(ahead: deque[tuple[Task, Future[Raw | None]]], recorder: Recorder) -> tuple[Task, Raw | None]:
    """The first of them, once it is read; it is `ahead` no more, which would keep its voxels."""
    task, reading = ahead.popleft()
    return task, _waited(recorder, reading)
