"""Progress of passes over a finished volume: a bar on a terminal, a line every few seconds elsewhere, as of runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from unet_engine.commands.report import LINE_EVERY
from unet_engine.commands.screen import Screen
from unet_engine.threads.beside import beside
from unet_engine.units import span

if TYPE_CHECKING:
    from rich.progress import TaskID

_LOOK_EVERY = 0.2


class _Pass:
    """Boxes that are read or written, one after the other."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done, self.begun = what, total, 0, time.perf_counter()

    def count(self, done: int) -> None:
        self.done = done

    def line(self) -> str:
        elapsed = time.perf_counter() - self.begun
        left = span(elapsed / self.done * (self.total - self.done)) if self.done else "unknown"
        return f"{self.done:,}/{self.total:,} boxes {self.what}, {left} left"


@contextmanager
def steps_on(console: Screen) -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """What a `unet_engine.postprocess.base.Watched` crew tells its steps to."""
    passes: list[_Pass] = []

    def begun(what: str, total: int) -> Callable[[int], None]:
        passes.append(_Pass(what, total))
        return passes[-1].count

    show = _bar if console.is_terminal and not console.silent else _lines
    with beside(partial(show, console, passes)):
        yield begun


def _lines(console: Screen, passes: list[_Pass], over: threading.Event) -> None:
    while not over.wait(LINE_EVERY):
        if passes and passes[-1].done < passes[-1].total:
            console.say(passes[-1].line())


def _bar(console: Screen, passes: list[_Pass], over: threading.Event) -> None:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(bar_width=24),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} boxes {task.description},", markup=False),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    with Progress(*columns, console=console.rich, transient=True) as bar:
        tasks: list[tuple[_Pass, TaskID]] = []
        stopped = False
        while not stopped:
            stopped = over.wait(_LOOK_EVERY)
            for one in passes[len(tasks) :]:
                tasks.append((one, bar.add_task(one.what, total=one.total)))
            for one, task in tasks:
                bar.update(task, completed=one.done)
