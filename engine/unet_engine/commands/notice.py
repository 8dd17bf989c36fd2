"""What `--notify` sends of a command, and when: once, after all else, however the command ends."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from unet_engine.batches import notify
from unet_engine.batches.records import utc
from unet_engine.commands import farewell
from unet_engine.commands.going_on import folder, may_go_on, resuming
from unet_engine.commands.telling import INTERRUPTED
from unet_engine.threads import hanging
from unet_engine.version import version_of

_ROOM = 2.0
"""Seconds of a process that is being ended at once."""


class Notice:
    """Gathers what became of each volume, and sends it."""

    def __init__(self, address: notify.Address | None, command: str, tell: Callable[[str], None]) -> None:
        """command: as it was typed. tell: hears that the message could not be sent."""
        self._address, self._command, self._tell = address, command, tell
        self._begun, self._sent = time.time(), False
        self._lines: list[Mapping[str, Any]] = []
        self._statuses: Counter[str] = Counter()
        self.several = False

    def add(self, line: Mapping[str, Any]) -> None:
        """The facts of one volume, see `unet_engine.batches.records.line`."""
        self._statuses[str(line["status"])] += 1
        if line["error"] or not self._lines:  # of a million volumes those that failed matter, and the first
            self._lines.append(line)

    def send(self, message: str, code: int, limit: float = notify.LIMIT) -> None:
        """Send it, once. message: what was said last; code: the exit code."""
        if self._address is None or self._sent:
            return
        self._sent = True
        why = notify.send(self._address, self._facts(message, code), limit)
        if why:
            self._tell(f"--notify {self._address.shown}: {why}; the run itself is not affected")

    def _facts(self, message: str, code: int) -> dict[str, Any]:
        status = {0: "done", INTERRUPTED: "interrupted"}.get(code, "failed")
        now = time.time()
        facts: dict[str, Any] = {
            "text": f"unet-engine on {platform.node()}: {farewell.with_status(status, message)}",
            "status": status, "exit_code": code, "message": message, "host": platform.node(),
            "version": version_of("unet-engine"), "command": self._command, "folder": folder(),
            "start": utc(self._begun), "end": utc(now), "seconds": round(now - self._begun, 3),
            "resume": resuming() if may_go_on(code) else None,
        }  # fmt: skip
        if facts["resume"]:
            facts["text"] += f"\nto go on: {facts['resume']}"
        if self.several:
            failed = [line for line in self._lines if line["error"]]
            return {**facts, "volumes": dict(self._statuses), "failed": failed}
        first = dict(self._lines[0]) if self._lines else {}
        return {**first, **facts}


@contextmanager
def notified(notice: Notice, said: Callable[[], str]) -> Iterator[None]:
    """Inside, the command does its work. `said`: what it says where it ends well."""

    def cut_short(message: str, code: int) -> None:
        notice.send(message, code, _ROOM)

    hanging.last_words.append(cut_short)
    try:
        yield
    except BaseException as error:
        notice.send(*farewell.said_of(error))
        raise
    else:
        notice.send(said(), 0)
    finally:
        hanging.last_words.remove(cut_short)
