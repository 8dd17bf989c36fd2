"""A bar for those who wait in a terminal or a notebook."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from unet_engine.execution.team import Team
from unet_engine.threads.beside import beside


@contextmanager
def bar(windows: int, crew: Team) -> Iterator[None]:
    """Shows how many of so many windows are done, on stderr or below a cell; nothing where nobody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield
        return
    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console, transient=True) as shown:
        task = shown.add_task("windows", total=windows)

        def follow(over: threading.Event) -> None:
            while not over.wait(0.2):
                done = crew.counters()
                shown.update(task, completed=done.inferred + done.skipped)

        with beside(follow):
            yield
