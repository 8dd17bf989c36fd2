"""Work of a thread of its own that goes on as long as something else does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def beside(work: Callable[[threading.Event], object], name: str | None = None) -> Iterator[None]:
    """Inside, `work` runs in a thread. It is given an event that is set as the body ends, however it does, and is waited
    for then: `work` looks at it, or waits for it between two looks at something else."""
    over = threading.Event()
    thread = threading.Thread(target=work, args=(over,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
