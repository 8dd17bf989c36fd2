"""Code of the modules that a start imports, in one file of the user's cache: Python looks for each in one folder after
another, and opens, reads and checks a file of its own, some 800 times. Where bytecode may not be written beside the
modules (containers, read-only installations) it compiles them, too.

What is there is taken where Python would find and compile the same: the folders that it searches are as they were, to
the nanosecond of their last change, and the module's source has the same size and time. What differs, or is damaged, is
imported as ever and kept anew. Nobody else may write to the file: see `engine_cache`.
"""

# ruff: noqa: PTH116, PTH120 - paths of 800 modules as objects would take a tenth of what is gained
from __future__ import annotations

import atexit
import hashlib
import importlib.util
import marshal
import os
import sys
import tempfile
import threading
import zlib
from collections.abc import Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

from unet_engine.backends import engine_cache
from unet_engine.errors import BackendError

KIND = "code"
ALL_THERE = "unet_engine.api"
"""A module of which most others hang."""
MOST = 2**26
"""Bytes that are kept; beyond that, only what this process has used."""
LATEST = 4
"""Files that are kept: of so many Pythons and environments."""
_MAGIC = b"unet-engine code 1\n"
_TAIL = 32 + 8 + len(_MAGIC)

Seen = tuple[tuple[str, int], ...]
"""Folders, and when each was changed last, in nanoseconds; -1: it is not there."""


class Entry(NamedTuple):
    """One module."""

    searched: Seen
    """Folders of its path, up to the one that it was found in."""
    source: str
    size: int
    changed: int
    is_package: bool
    offset: int
    length: int
    checksum: int


def keep_code() -> None:
    """From now on, imports of this process take what is known of their modules; what is not is kept as it ends. A no-op
    where there is no cache, or nothing is left to import."""
    if ALL_THERE in sys.modules or not hasattr(os, "pread"):
        return
    if any(isinstance(finder, Finder) for finder in sys.meta_path):  # two would ask one another without end
        return
    with suppress(BackendError, OSError):
        finder = Finder(engine_cache.folder() / f"{engine_cache.name_of(_key())}.{KIND}")
        sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
        atexit.register(finder.store)


def _key() -> engine_cache.Key:
    """All that decides what a source is compiled to, and where it is looked for."""
    return {
        "python": sys.version, "code": importlib.util.MAGIC_NUMBER.hex(), "optimised": sys.flags.optimize,
        "prefix": sys.prefix,
    }  # fmt: skip


class Finder:
    """Finds what is kept before anybody looks elsewhere, and notes what others find."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._folders: dict[str, int] = {}
        self._seen: dict[Seen, Seen] = {}
        self._used: dict[str, tuple[Entry, bytes]] = {}
        """With their code."""
        self._new = False
        self._file, self._index = _opened(path)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        entry = self._index.get(name)
        code = self._code(entry, path) if entry else None
        if entry and code:
            self._used[name] = entry, code
            places = [os.path.dirname(entry.source)] if entry.is_package else None
            return importlib.util.spec_from_file_location(
                name, entry.source, loader=_Kept(name, entry.source, code), submodule_search_locations=places
            )
        spec = self._elsewhere(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Noted(name, spec.loader.path, self, self._searched(spec, path))
        return spec

    def _code(self, entry: Entry, path: Sequence[str] | None) -> bytes | None:
        """None where Python would find something else, or what is kept is damaged."""
        searched = tuple(map(str, (sys.path if path is None else path)))[: len(entry.searched)]
        if tuple((folder, self._changed(folder)) for folder in searched) != entry.searched:
            return None
        with suppress(OSError):
            about = os.stat(entry.source)
            if (about.st_size, about.st_mtime_ns) == (entry.size, entry.changed):
                code = os.pread(self._file, entry.length, entry.offset)
                return code if zlib.crc32(code) == entry.checksum else None
        return None

    def invalidate_caches(self) -> None:
        """Folders are looked at again."""
        self._folders.clear()

    def _changed(self, folder: str) -> int:
        if folder not in self._folders:
            try:
                self._folders[folder] = os.stat(folder).st_mtime_ns if folder else -1
            except OSError:
                self._folders[folder] = -1
        return self._folders[folder]

    def _elsewhere(self, name: str, path: Sequence[str] | None, target: Any) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                return spec
        return None

    def _searched(self, spec: ModuleSpec, path: Sequence[str] | None) -> Seen | None:
        """None where it was found by other ways than folder by folder."""
        folders = list(map(str, sys.path if path is None else path))
        found = os.path.dirname(spec.origin or "")
        found = os.path.dirname(found) if spec.submodule_search_locations else found
        if found not in folders or "" in folders[: folders.index(found) + 1]:  # "": wherever the process is just now
            return None
        seen = tuple((folder, self._changed(folder)) for folder in folders[: folders.index(found) + 1])
        return self._seen.setdefault(seen, seen)  # once in the file, too

    def note(
        self, name: str, searched: Seen, about: os.stat_result, source: str, code: CodeType, *, package: bool
    ) -> None:
        """It was imported."""
        data = marshal.dumps(code)
        self._used[name] = (
            Entry(searched, source, about.st_size, about.st_mtime_ns, package, 0, len(data), zlib.crc32(data)), data
        )  # fmt: skip
        self._new = True

    def store(self) -> None:
        """Keep all that is known, if anything is new. A full disk is no error: the next process does it again."""
        if not self._new:
            return
        with self._lock, suppress(BackendError, OSError, ValueError):
            used = list(self._used.items())
            others = [
                (name, (entry, os.pread(self._file, entry.length, entry.offset)))
                for name, entry in self._index.items() if name not in self._used
            ]  # fmt: skip
            if sum(len(code) for _, (_, code) in [*used, *others]) > MOST:
                others = []
            _write(self._path, dict([*used, *others]))
            self._new = False


def _opened(path: Path) -> tuple[int, dict[str, Entry]]:
    """The file, and what is in it; -1 and nothing where there is none, or none to be trusted."""
    file = -1
    with suppress(OSError, ValueError, EOFError, TypeError, AttributeError):
        file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        size = os.fstat(file).st_size
        tail = os.pread(file, _TAIL, max(0, size - _TAIL))
        length = int.from_bytes(tail[32:40], "little")
        index = os.pread(file, min(length, size), max(0, size - _TAIL - length))
        if tail.endswith(_MAGIC) and hashlib.sha256(index).digest() == tail[:32]:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)  # while the first of them are imported
            return file, {name: Entry(*values) for name, values in marshal.loads(index).items()}
    if file >= 0:
        os.close(file)
    return -1, {}


def _write(path: Path, modules: dict[str, tuple[Entry, bytes]]) -> None:
    """Codes one after the other, the index, and behind it its hash and length."""
    at, entries = 0, {}
    for name, (entry, code) in modules.items():
        entries[name] = tuple(entry._replace(offset=at))
        at += len(code)
    index = marshal.dumps(entries)
    handle, new = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(code for _, code in modules.values())
            file.write(index + hashlib.sha256(index).digest() + len(index).to_bytes(8, "little") + _MAGIC)
        Path(new).replace(path)
        engine_cache.keep(KIND, LATEST)
    finally:
        Path(new).unlink(missing_ok=True)


class _Kept(SourceFileLoader):
    def __init__(self, name: str, path: str, code: bytes) -> None:
        super().__init__(name, path)
        self._code: bytes | None = code

    def get_code(self, fullname: str) -> CodeType | None:
        code, self._code = self._code, None
        return marshal.loads(code) if code else super().get_code(fullname)


class _Noted(SourceFileLoader):
    def __init__(self, name: str, path: str, finder: Finder, searched: Seen | None) -> None:
        super().__init__(name, path)
        self._finder, self._searched = finder, searched

    def get_code(self, fullname: str) -> CodeType | None:
        about = os.stat(self.path)
        code = super().get_code(fullname)
        if code is not None and self._searched is not None:
            package = self.is_package(fullname)
            self._finder.note(fullname, self._searched, about, self.path, code, package=package)
        return code
