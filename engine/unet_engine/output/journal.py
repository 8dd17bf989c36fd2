"""The journal of an output that is not complete: which blocks are committed, how far the parts have come.

Small objects in ``0/.journal/<digest>``, beside the chunks, each put there whole. On a local disk, only what opens a
journal makes its folder: a writer that was thought lost and comes back after the output was completed or replaced finds
no folder, and can neither bring the journal back nor touch the chunks of another run.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

FOLDER = ".journal"


class Journal(ABC):
    """Markers of blocks and notes of parts. Safe for any number of writers at once."""

    @abstractmethod
    def open(self) -> None:
        """Make room for objects, where that needs anything."""

    @property
    @abstractmethod
    def is_open(self) -> bool: ...

    @abstractmethod
    def put(self, name: str, data: bytes) -> None:
        """Store or replace an object, whole or not at all. Raises `FileNotFoundError` where a local journal is not
        open."""

    @abstractmethod
    def get(self, name: str) -> bytes | None: ...

    @abstractmethod
    def names(self) -> Iterator[str]: ...

    @abstractmethod
    def remove(self) -> None:
        """Take the journals of all runs away, at once for whoever still writes to them."""

    def mark(self, index: tuple[int, ...]) -> None:
        self.put(".".join(map(str, index)), b"done\n")

    def marked(self) -> Iterator[tuple[int, ...]]:
        """Blocks with a marker, in no order."""
        for name in self.names():
            pieces = name.split(".")
            if all(piece.isdigit() for piece in pieces):  # anything else is a note, or was left by a killed writer
                yield tuple(map(int, pieces))

    def note(self, part: tuple[int, int], facts: Mapping[str, Any]) -> None:
        """Keep what is known of a part (i, n) of the run."""
        self.put(_note(part), json.dumps({"part": "{}/{}".format(*part), **facts}).encode())

    def noted(self, part: tuple[int, int]) -> dict[str, Any] | None:
        data = self.get(_note(part))
        return None if data is None else dict(json.loads(data))

    def notes(self) -> list[dict[str, Any]]:
        """What is known of all parts, by number of parts, then by part."""
        found = [name.split(".") for name in self.names() if name.startswith("part.") and name.endswith(".json")]
        parts = sorted((int(n), int(i)) for _, i, n, _ in found)
        return [note for n, i in parts if (note := self.noted((i, n)))]


def _note(part: tuple[int, int]) -> str:
    return "part.{}.{}.json".format(*part)


class LocalJournal(Journal):
    """In a folder. `stage` in it is where chunks are made before they are moved to their place."""

    def __init__(self, array: Path, digest: str) -> None:
        self._root = array / FOLDER
        self._place = self._root / digest
        self.stage = self._place / "stage"

    def open(self) -> None:
        self.stage.mkdir(parents=True, exist_ok=True)

    @property
    def is_open(self) -> bool:
        return self.stage.is_dir()

    def put(self, name: str, data: bytes) -> None:
        temporary = self._place / f"{name}.{uuid4().hex}.partial"
        try:
            temporary.write_bytes(data)
            temporary.replace(self._place / name)
        except FileNotFoundError:
            raise
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def get(self, name: str) -> bytes | None:
        try:
            return (self._place / name).read_bytes()
        except FileNotFoundError:
            return None

    def names(self) -> Iterator[str]:
        if self._place.is_dir():
            yield from (place.name for place in self._place.iterdir())

    def remove(self) -> None:
        # renamed first, so that nothing comes to it while it is emptied; what a kill then leaves is found by its name
        if self._root.is_dir():
            with contextlib.suppress(FileNotFoundError):  # another process may be at it as well
                self._root.rename(self._root.with_name(f"{FOLDER}.{uuid4().hex}"))
        for gone in self._root.parent.glob(f"{FOLDER}.*"):
            shutil.rmtree(gone, ignore_errors=True)


class RemoteJournal(Journal):
    """Under a prefix of an object store."""

    def __init__(self, array: zarr.storage.StorePath, digest: str) -> None:
        self._root = array / FOLDER
        self._place = self._root / digest

    def open(self) -> None:
        """There are no folders."""

    @property
    def is_open(self) -> bool:
        return True

    def put(self, name: str, data: bytes) -> None:
        sync((self._place / name).set(default_buffer_prototype().buffer.from_bytes(data)))

    def get(self, name: str) -> bytes | None:
        data = sync((self._place / name).get())
        return None if data is None else bytes(data.to_bytes())

    def names(self) -> Iterator[str]:
        for key in sync(_listed(self._place)):
            yield key.rsplit("/", 1)[-1]

    def remove(self) -> None:
        sync(self._root.delete_dir())


async def _listed(place: Any) -> list[str]:
    return [key async for key in place.store.list_prefix(place.path + "/")]
