"""A log of a command: what people are told, with the time, as text or as lines of JSON."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal

from unet_engine.errors import OutputError, first_line
from unet_engine.redaction import redacted
from unet_engine.units import printable

Level = Literal["info", "note", "error"]


class Log:
    """Written line by line, from any thread, without secrets."""

    def __init__(self, path: str | None, *, as_json: bool) -> None:
        """path: of a file that is added to; None for stderr. Raises `OutputError` where it cannot be written."""
        self._path, self._json, self._lock = path, as_json, threading.Lock()
        if path is None:
            return
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).open("a", encoding="utf-8").close()
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {first_line(error)}; give another --log") from error

    def write(self, level: Level, text: str) -> None:
        """A full disk ends no run: what cannot be said is left out."""
        now, text = datetime.now(UTC).isoformat(timespec="milliseconds"), redacted(printable(" ".join(text.split())))
        line = json.dumps({"time": now, "level": level, "message": text}) if self._json else f"{now} {level:<5} {text}"
        try:
            with self._lock, self._open() as file:
                file.write(line + "\n")
                file.flush()
        except OSError:
            return

    def _open(self) -> AbstractContextManager[IO[str]]:
        """Anew for each line, so that a log may be moved away meanwhile."""
        return nullcontext(sys.stderr) if self._path is None else Path(self._path).open("a", encoding="utf-8")
