"""A process that gets nowhere, and cannot be stopped from inside: what runs a network does not look up until it is
done, and some networks never are."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from unet_engine.errors import BackendError
from unet_engine.redaction import redacted


@contextmanager
def watched(seconds: float | None, what: str, progress: Callable[[], object] = lambda: None) -> Iterator[None]:
    """End this process where `progress` says the same for `seconds` while the block runs; None: never.

    It ends as `BackendError` would, in one line that names `what`. Nothing that is committed is lost.
    """
    if seconds is None:
        yield
        return
    done = threading.Event()
    message = (
        f"{what} got nowhere for {seconds:g} s and counts as hung; run again with --resume, "
        "with a larger --hang-seconds, or with a network that ends"
    )
    threading.Thread(target=_watch, args=(seconds, message, progress, done), daemon=True, name="hanging").start()
    try:
        yield
    finally:
        done.set()


def _watch(seconds: float, message: str, progress: Callable[[], object], done: threading.Event) -> None:
    seen, since = progress(), time.monotonic()
    while not done.wait(min(seconds / 4, 1.0)):
        now = progress()
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > seconds and not done.is_set():
            end(message, BackendError.exit_code)


last_words: list[Callable[[str, int], None]] = []
"""Each is told the message and the exit code before `end` ends this process; they have to be quick."""


def end(message: str, code: int) -> NoReturn:
    """End this process at once, whatever its threads are in, after one line on stderr."""
    with suppress(Exception):
        print(f"unet-engine: {redacted(message)}", file=sys.stderr, flush=True)
    for tell in list(last_words):
        with suppress(Exception):
            tell(message, code)
    os._exit(code)
