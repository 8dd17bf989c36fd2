"""What became of each volume, for machines: lines of JSON, and counts as Prometheus reads them."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unet_engine.api import Result
from unet_engine.batches.batch import Outcome
from unet_engine.errors import OutputError, UnetEngineError, first_line
from unet_engine.execution.team import Team
from unet_engine.model.file import ModelFile
from unet_engine.redaction import redacted
from unet_engine.version import version_of

_OF_RESULT = (
    "windows_inferred", "windows_skipped", "blocks_written", "voxels", "bytes_read", "bytes_written", "peak_rss_bytes",
    "backend", "device", "precision", "complete",
)  # fmt: skip


def line(
    *, input: str, out: str, status: str, begun: float, ended: float, command: str, model: ModelFile | str | None = None,
    result: Result | None = None, notes: tuple[str, ...] = (), error: BaseException | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The facts of one volume, without secrets. Times are UTC."""
    facts: dict[str, Any] = {
        "input": input,
        "out": result.out if result else out,
        "status": status,
        "model": _model(model),
        "version": version_of("unet-engine"),
        "host": platform.node(),
        "start": utc(begun),
        "end": utc(ended),
        "seconds": round(ended - begun, 3),
        "command": command,
        "digest": result.digest if result else None,
        "notes": list(dict.fromkeys([*notes, *(result.notes if result else ())])),
        "error": None if error is None else _error(error),
        **({key: getattr(result, key) for key in _OF_RESULT} if result else {}),
    }
    without: dict[str, Any] = redacted(facts)
    return without


def line_of(outcome: Outcome, command: str) -> dict[str, Any]:
    """The facts of one of several volumes."""
    volume = outcome.volume
    return line(
        input=volume.settings.input, out=volume.out, status=outcome.status, begun=outcome.begun, ended=outcome.ended,
        command=command, model=volume.model or volume.settings.model, result=outcome.result, notes=outcome.notes,
        error=outcome.error,
    )  # fmt: skip


def _model(model: ModelFile | str | None) -> dict[str, Any] | None:
    if isinstance(model, ModelFile):
        return {"file": str(model.path), "sha256": model.sha256, "name": model.spec.name}
    return {"file": model} if model else None


def utc(seconds: float) -> str:
    """A time since the epoch, as ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _error(error: BaseException) -> dict[str, Any]:
    code = error.exit_code if isinstance(error, UnetEngineError) else UnetEngineError.exit_code
    return {"type": type(error).__name__, "message": first_line(error), "exit_code": code}


class Lines:
    """A file that lines of JSON are added to."""

    def __init__(self, path: str) -> None:
        """Raises `OutputError` where it cannot be written."""
        self._path, self._lock = path, threading.Lock()
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).open("a", encoding="utf-8").close()
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {first_line(error)}; give another --results") from error

    def add(self, facts: Mapping[str, Any]) -> None:
        """One line, which others who add to the file do not tear apart. Raises `OutputError`."""
        data = (json.dumps(facts, allow_nan=False) + "\n").encode()
        try:
            with self._lock:
                number = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                try:
                    os.write(number, data)
                    os.fsync(number)
                finally:
                    os.close(number)
        except OSError as error:
            raise OutputError(f"{self._path} cannot be written: {first_line(error)}; free some space") from error


_HELP = {
    "volumes_total": ("counter", "Volumes by what became of them."),
    "volumes_planned": ("gauge", "Volumes of this command."),
    "windows_inferred_total": ("counter", "Windows that the network was given."),
    "windows_skipped_total": ("counter", "Windows that were left out."),
    "blocks_written_total": ("counter", "Blocks that were committed."),
    "voxels_written_total": ("counter", "Voxels that were written."),
    "read_bytes_total": ("counter", "Bytes that were read of volumes, decoded."),
    "written_bytes_total": ("counter", "Bytes that were written, before they were encoded."),
    "seconds_total": ("counter", "Seconds since the command began."),
    "updated_timestamp_seconds": ("gauge", "When this file was written, since the epoch."),
}
_COUNTED = {
    "inferred": "windows_inferred_total", "skipped": "windows_skipped_total", "blocks": "blocks_written_total",
    "voxels_written": "voxels_written_total", "bytes_read": "read_bytes_total", "bytes_written": "written_bytes_total",
}  # fmt: skip


class Metrics:
    """Counts in a file, in the text format of Prometheus (for its node exporter's textfile collector), written anew
    every few seconds and at the end, whole each time."""

    EVERY = 5.0

    def __init__(self, path: str, volumes: int) -> None:
        """Raises `OutputError` where it cannot be written."""
        self._path, self._volumes = Path(path), volumes
        self._begun, self._crews, self._statuses = time.time(), list[Team](), Counter[str]()
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run, daemon=True)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._write()
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {first_line(error)}; give another --metrics") from error

    def __enter__(self) -> Metrics:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with suppress(OSError):  # metrics end no run
            self._write()

    def begun(self, crew: Team) -> None:
        self._crews.append(crew)

    def ended(self, status: str) -> None:
        self._statuses[status.replace(" ", "_")] += 1

    def _run(self) -> None:
        while not self._stop.wait(self.EVERY):
            with suppress(OSError):
                self._write()

    def _write(self) -> None:
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.partial")
        partial.write_text(self.text(), encoding="utf-8")
        partial.replace(self._path)

    def text(self) -> str:
        """What the file says now."""
        counts: Counter[str] = Counter()
        for crew in list(self._crews):
            read = crew.counters()
            counts.update({name: getattr(read, key) for key, name in _COUNTED.items()})
        now = time.time()
        values: dict[str, list[tuple[str, float]]] = {
            "volumes_total": [(f'{{status="{status}"}}', n) for status, n in sorted(self._statuses.items())],
            "volumes_planned": [("", self._volumes)],
            **{name: [("", counts[name])] for name in _COUNTED.values()},
            "seconds_total": [("", round(now - self._begun, 3))],
            "updated_timestamp_seconds": [("", round(now, 3))],
        }
        lines = []
        for key, rows in values.items():
            kind, about = _HELP[key]
            name = f"unet_engine_{key}"
            lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}", *(f"{name}{l} {v:.15g}" for l, v in rows)]
        return "\n".join(lines) + "\n"
