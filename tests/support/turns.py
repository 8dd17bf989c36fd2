"""Tests in several processes at once: files that take long begin first, some tests have the machine to themselves, and
one that does not end is told."""

from __future__ import annotations

import faulthandler
import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

EXIT_SECONDS = 60
"""How long Python may take to end after the tests."""


def _folder(config: pytest.Config) -> Path:
    return config.cache.mkdir("turns")


@contextmanager
def _held(path: Path, kind: int) -> Iterator[None]:
    """A lock on a file; of this process alone, so that no process forked from it keeps it."""
    with path.open("a+") as file:
        fcntl.lockf(file, kind)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files marked `long` come first: one that begins last has a process to itself while the others have nothing to
    do."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before the test's time starts to count
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test marked `alone` waits until no other process runs one, and none begins before it has ended."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    folder, alone = _folder(item.config), item.get_closest_marker("alone") is not None
    door = _held(folder / "door", fcntl.LOCK_EX)  # whoever waits keeps it shut, or others would go in before for ever
    with door:
        room = _held(folder / "room", fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        room.__enter__()
    try:
        return (yield)
    finally:
        room.__exit__(None, None, None)


def pytest_unconfigure(config: pytest.Config) -> None:
    """A thread that a test left hanging would keep Python from ending: show it, and fail.

    Not in one of several processes: that one waits for the others, and is ended by the one that began it.
    """
    if not hasattr(config, "workerinput"):
        faulthandler.dump_traceback_later(EXIT_SECONDS, exit=True, file=sys.__stderr__)
