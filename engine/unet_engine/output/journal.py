"""The journal of an output that is not complete: which blocks are committed, how far the parts have come.

Small objects in ``0/.journal/<digest>``, beside the chunks, each put there whole. On a local disk, only what opens a
journal makes its folder: a writer that was thought lost and comes back after the output was completed or replaced finds
no folder, and can neither bring the journal back nor touch the chunks of another run.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any
from uuid import uuid4

import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.common import concurrent_map
from zarr.core.sync import sync

from unet_engine.output.stored import UNTOLD, Stored
from unet_engine.plan.plan import Index
from unet_engine.storage.durability import Durability, make_folder, write

FOLDER = ".journal"
DOUBT = "changed."
LONGEST = 2**26
"""Bytes. What is longer was not written by us."""
_TRIES = 3
REQUESTS = 16
"""Requests to a remote store that are under way at once."""


class Journal(ABC):
    """Markers of blocks and notes of parts. Safe for any number of writers at once."""

    @abstractmethod
    def open(self) -> None:
        """Make room for objects, where that needs anything."""

    @property
    @abstractmethod
    def is_open(self) -> bool: ...

    @abstractmethod
    def get(self, name: str) -> bytes | None: ...

    @abstractmethod
    def names(self) -> Iterator[str]: ...

    @abstractmethod
    def remove(self) -> None:
        """Take the journals of all runs away, at once for whoever still writes to them."""

    @abstractmethod
    def contents(self, names: Sequence[str]) -> list[bytes]:
        """Objects, by their names; empty ones for those that are not there or are no objects."""

    @abstractmethod
    def drop(self, name: str) -> None:
        """Take an object away, if it is there."""

    @abstractmethod
    def put_all(self, objects: Mapping[str, bytes]) -> None:
        """Store or replace objects, each whole or not at all."""

    def put(self, name: str, data: bytes) -> None:
        """Store or replace an object. Raises `FileNotFoundError` where a local journal is not open."""
        self.put_all({name: data})

    def mark(self, marked: Iterable[tuple[Index, Stored | None]]) -> None:
        """Record blocks as committed, with what is known of their chunks."""
        self.put_all({_marker(i): UNTOLD if stored is None else stored.encoded(i) for i, stored in marked})

    def markers(self, blocks: Sequence[Index]) -> list[bytes]:
        """What the markers of `blocks` say."""
        return self.contents([_marker(index) for index in blocks])

    def unmark(self, index: Index) -> None:
        self.drop(_marker(index))

    def marked(self) -> Iterator[Index]:
        """What markers there are, of whatever blocks, in no order."""
        for name in self.names():
            pieces = name.split(".")
            # anything else is a note, or was left by a killed writer
            if name.isascii() and all(piece.isdigit() for piece in pieces):
                index = tuple(map(int, pieces))
                if _marker(index) == name:
                    yield index

    def doubt(self, blocks: Iterable[Index], what: str) -> None:
        """Keep of blocks that they were computed from data that were changed meanwhile, and what those are."""
        self.put_all({f"{DOUBT}{_marker(index)}": what.encode() for index in blocks})

    def doubts(self) -> list[tuple[Index, str]]:
        """What `doubt` kept, in index order."""
        names = [name for name in self.names() if re.fullmatch(rf"{re.escape(DOUBT)}[0-9]+(\.[0-9]+)*", name)]
        found = zip(names, self.contents(names), strict=True)
        return sorted((tuple(map(int, name.split(".")[1:])), what.decode(errors="replace")) for name, what in found)

    def trust(self, index: Index) -> None:
        """Forget what `doubt` kept of a block."""
        self.drop(f"{DOUBT}{_marker(index)}")

    def note(self, part: tuple[int, int], facts: Mapping[str, Any]) -> None:
        """Keep what is known of a part (i, n) of the run."""
        self.put(_note(part), json.dumps({"part": "{}/{}".format(*part), **facts}).encode())

    def noted(self, part: tuple[int, int]) -> dict[str, Any] | None:
        """What `note` kept; None where it kept nothing, or nothing is left of it that could be read."""
        data = self.get(_note(part))
        try:
            note = json.loads(data or b"")
        except (ValueError, RecursionError):
            return None
        return note if _is_note(note, part) else None

    def notes(self) -> list[dict[str, Any]]:
        """What is known of all parts, by number of parts, then by part."""
        found = filter(None, map(_NOTE.fullmatch, self.names()))
        parts = sorted((int(name[2]), int(name[1])) for name in found)
        return [note for n, i in parts if (note := self.noted((i, n)))]


def _marker(index: Index) -> str:
    return ".".join(map(str, index))


def _note(part: tuple[int, int]) -> str:
    return "part.{}.{}.json".format(*part)


_NOTE = re.compile(r"part\.([1-9][0-9]{0,8})\.([1-9][0-9]{0,8})\.json")


def _is_note(note: Any, part: tuple[int, int]) -> bool:
    return (
        isinstance(note, dict)
        and note.get("part") == "{}/{}".format(*part)
        and isinstance(note.get("finished"), bool)
        and all(type(v) in (int, float) and isfinite(v) for k, v in note.items() if k not in _NO_FIGURES)
    )


_NO_FIGURES = ("part", "host", "finished")


class LocalJournal(Journal):
    """In a folder. `stage` in it is where chunks are made before they are moved to their place."""

    def __init__(self, array: Path, digest: str, durability: Durability) -> None:
        self._durability = durability
        self._root = array / FOLDER
        self._place = self._root / digest
        self.stage = self._place / "stage"

    def open(self) -> None:
        make_folder(self.stage, self._durability)

    @property
    def is_open(self) -> bool:
        return self.stage.is_dir()

    def put_all(self, objects: Mapping[str, bytes]) -> None:
        made: list[tuple[Path, str]] = []
        try:
            for name, data in objects.items():
                made.append((self._place / f"{name}.{uuid4().hex}.partial", name))
                write(made[-1][0], data, self._durability)
            for temporary, name in made:
                temporary.replace(self._place / name)
            self._durability.folders([self._place])
        except FileNotFoundError:
            raise
        except OSError:
            for temporary, _ in made:
                temporary.unlink(missing_ok=True)
            raise

    def get(self, name: str) -> bytes | None:
        place = self._place / name
        try:
            # a FIFO would be waited for, and no object of ours is that long
            return place.read_bytes() if place.is_file() and place.stat().st_size < LONGEST else None
        except FileNotFoundError:
            return None

    def contents(self, names: Sequence[str]) -> list[bytes]:
        return [self.get(name) or b"" for name in names]

    def drop(self, name: str) -> None:
        place = self._place / name
        if place.is_dir() and not place.is_symlink():
            place.rename(self.stage / uuid4().hex)
        else:
            place.unlink(missing_ok=True)

    def names(self) -> Iterator[str]:
        if self._place.is_dir():
            yield from (place.name for place in self._place.iterdir())

    def remove(self) -> None:
        # renamed first, so that nothing comes to it while it is emptied; what a kill then leaves is found by its name
        if self._root.is_dir():
            with contextlib.suppress(FileNotFoundError):  # another process may be at it as well
                self._root.rename(self._root.with_name(f"{FOLDER}.{uuid4().hex}"))
                self._durability.folders([self._root.parent])
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

    def put_all(self, objects: Mapping[str, bytes]) -> None:
        sync(concurrent_map(list(objects.items()), self._put, REQUESTS))

    async def _put(self, name: str, data: bytes) -> None:
        await (self._place / name).set(default_buffer_prototype().buffer.from_bytes(data))

    def get(self, name: str) -> bytes | None:
        data = sync((self._place / name).get())
        return None if data is None else bytes(data.to_bytes())

    def contents(self, names: Sequence[str]) -> list[bytes]:
        return list(sync(concurrent_map([(name,) for name in names], self._content, REQUESTS)))

    def markers(self, blocks: Sequence[Index]) -> list[bytes]:
        """Those that come without their end are asked for again: a body may be cut off with a length that says so."""
        found = dict(zip(blocks, super().markers(blocks), strict=True))
        for _ in range(_TRIES):
            cut = [index for index, marker in found.items() if not marker.endswith(b"\n")]
            if not cut:
                break
            found.update(zip(cut, super().markers(cut), strict=True))
        return list(found.values())

    async def _content(self, name: str) -> bytes:
        data = await (self._place / name).get()
        return b"" if data is None else bytes(data.to_bytes())

    def drop(self, name: str) -> None:
        sync((self._place / name).delete())

    def names(self) -> Iterator[str]:
        for key in sync(_listed(self._place)):
            yield key.rsplit("/", 1)[-1]

    def remove(self) -> None:
        sync(self._root.delete_dir())


async def _listed(place: Any) -> list[str]:
    return [key async for key in place.store.list_prefix(place.path + "/")]
