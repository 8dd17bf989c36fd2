"""The files of a source, a folder or a zip archive, which may come from anybody: nothing outside it is read, and what
an archive unpacks to is bounded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from unet_engine.errors import ModelError, first_line
from unet_engine.units import parse_bytes

MOST_ENTRIES = 100_000
MOST_BYTES = parse_bytes("64GiB")
"""That the files of an archive may have together, unpacked."""
MOST_TEXT = parse_bytes("16MiB")
"""Of a description."""
MOST_YAML = parse_bytes("1MiB")
"""Of one in YAML, which takes seconds to read."""
MOST_NODES = 100_000
"""Values in a description."""
HIGHEST_RATIO = 200
"""Of unpacked to packed bytes, for entries above `RATIO_FROM`: weights hardly shrink."""
RATIO_FROM = parse_bytes("64MiB")
_PIECE = 2**20


class Files:
    """Files by their names relative to the source's root, with forward slashes. A context manager: what was unpacked is
    gone when it ends."""

    def __init__(self, path: str | Path) -> None:
        """Raises `ModelError` where `path` is neither a folder nor a zip archive that can be read safely."""
        self.path = Path(path)
        self._archive: zipfile.ZipFile | None = None
        self._unpacked: Path | None = None
        if self.path.is_dir():
            self._names = list(_within(self.path))
        else:
            self._archive = _opened(self.path)
            self._names = list(_checked(self.path, self._archive))
        self._root = _root(self._names)

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        if self._archive is not None:
            self._archive.close()
        if self._unpacked is not None:
            shutil.rmtree(self._unpacked, ignore_errors=True)

    @property
    def names(self) -> list[str]:
        """Names of all files, sorted."""
        return sorted(name.removeprefix(self._root) for name in self._names if name.startswith(self._root))

    def has(self, name: str) -> bool:
        return _plain(name) in self.names

    def local(self, name: str) -> Path:
        """The file `name` on this machine's disk. Raises `ModelError` where there is none, or where it leads out of the
        source."""
        plain = _plain(name)
        if plain is None:
            raise ModelError(
                f"{self.path} names the file {name!r}, which lies outside of it; put that file into it, and correct the name"
            )
        if plain not in self.names:
            raise ModelError(f"{self.path} lacks the file {name}; get it from where the source came from")
        if self._archive is None:
            return _inside(self.path, self.path / (self._root + plain))
        if self._unpacked is None:
            self._unpacked = Path(tempfile.mkdtemp(prefix="unet-engine-import-"))
        target = self._unpacked / plain
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            self._unpack(self._root + plain, target)
        return target

    def text(self, name: str) -> str:
        """The text file `name`. Raises `ModelError` as `local` does, and where it is too large or no UTF-8."""
        path = self.local(name)
        try:
            if path.stat().st_size > MOST_TEXT:
                raise ModelError(f"{self.path}: {name} is too large for a description; get the source again")
            return path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(
                f"{self.path}: {name} cannot be read: {first_line(error)}; get the source again"
            ) from error

    def mapping(self, name: str) -> Mapping[str, Any]:
        """What the JSON or YAML file `name` says: data alone. Raises `ModelError` where it is neither, or says more
        than a description does: aliases of YAML may make few lines many."""
        import yaml

        text = self.text(name)
        if len(text) > MOST_YAML and not name.lower().endswith(".json"):
            raise ModelError(f"{self.path}: {name} is too large for a description; get the source again")
        try:
            said = json.loads(text) if name.lower().endswith(".json") else yaml.safe_load(text)
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            raise ModelError(
                f"{self.path}: {name} cannot be read: {first_line(error)}; get the source again"
            ) from error
        if not isinstance(said, Mapping):
            raise ModelError(f"{self.path}: {name} describes nothing; get the source again")
        for count, _ in enumerate(_nodes(said)):
            if count > MOST_NODES:
                raise ModelError(
                    f"{self.path}: {name} has more than {MOST_NODES} entries, more than a description does; get the source again"
                )
        return said

    def check(self, name: str, sha256: str | None) -> Path:
        """`local`, once its hash is what the description says. Raises `ModelError` where it is another."""
        path = self.local(name)
        if sha256 and _hash([path]) != str(sha256).lower():
            raise ModelError(
                f"{self.path}: {name} is not the file that the description means, or is damaged (its SHA-256 differs); "
                "get the source again"
            )
        return path

    def _unpack(self, name: str, target: Path) -> None:
        assert self._archive is not None
        try:
            with self._archive.open(name) as source, target.open("wb") as file:
                _copy(source, file, self._archive.getinfo(name).file_size)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
            raise ModelError(
                f"{self.path}: {name} cannot be unpacked: {first_line(error)}; get the source again"
            ) from error


def _nodes(said: Any) -> Iterator[Any]:
    waiting = [said]
    while waiting:
        value = waiting.pop()
        yield value
        if isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def digest(paths: Iterable[Path]) -> str:
    """SHA-256 of the content of files and folders, of names in those, too. Raises `ModelError` where one cannot be
    read."""
    total = hashlib.sha256()
    for path in paths:
        for file in [path / name for name in _within(path)] if path.is_dir() else [path]:
            name = file.relative_to(path) if path.is_dir() else Path(path.name)
            total.update(f"{name.as_posix()}\0{_hash([file])}\n".encode("utf-8", "replace"))
    return total.hexdigest()


def _hash(paths: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                while piece := file.read(_PIECE):
                    found.update(piece)
        except OSError as error:
            raise ModelError(
                f"{path} cannot be read: {error.strerror}; restore it or correct its permissions"
            ) from error
    return found.hexdigest()


# --- folders ---


def _within(folder: Path) -> Iterator[str]:
    """Names of all files, sorted; links to folders are not followed, which may lead round in circles."""
    count = 0
    for here, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            count += 1
            if count > MOST_ENTRIES:
                raise ModelError(f"{folder} holds more than {MOST_ENTRIES} files; name the folder of one model")
            path = Path(here) / file
            if path.is_file():  # neither a pipe, which would be waited for, nor a broken link
                yield path.relative_to(folder).as_posix()


def _inside(folder: Path, path: Path) -> Path:
    """`path`, where following its links stays in the folder. A snapshot in the cache of a model hub has its files
    beside it, in ``blobs``."""
    homes = [folder.resolve()]
    if folder.parent.name == "snapshots":
        homes.append(folder.parents[1].resolve() / "blobs")
    if not any(path.resolve().is_relative_to(home) for home in homes):
        raise ModelError(f"{path} is a link that leads out of {folder}; put the file itself there")
    return path


# --- archives ---


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise ModelError(f"{path} is no readable zip archive: {first_line(error)}; get the source again") from error


def _checked(path: Path, archive: zipfile.ZipFile) -> Iterator[str]:
    """Names of the files in an archive, once all of it is harmless to unpack."""
    entries = archive.infolist()
    if len(entries) > MOST_ENTRIES or sum(e.file_size for e in entries) > MOST_BYTES:
        raise ModelError(
            f"{path} unpacks to more than a model is; if you trust it, unpack it yourself and name the folder"
        )
    seen: set[str] = set()
    for entry in entries:
        if entry.is_dir():
            continue
        name = _plain(entry.filename)
        if name is None:
            raise ModelError(
                f"{path} holds the entry {entry.filename!r}, which lies outside of it; get the source again"
            )
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise ModelError(f"{path} holds the link {entry.filename!r}, which is not followed; pack the file itself")
        if entry.file_size > RATIO_FROM and entry.file_size > HIGHEST_RATIO * max(1, entry.compress_size):
            raise ModelError(
                f"{path}: {entry.filename} unpacks to {entry.file_size} bytes, {HIGHEST_RATIO} times its size and more; if "
                "you trust it, unpack it yourself and name the folder"
            )
        if entry.flag_bits & 1:
            raise ModelError(f"{path}: {entry.filename} is encrypted; unpack it yourself and name the folder")
        if name in seen:
            raise ModelError(f"{path} holds {entry.filename} twice; pack each file once")
        seen.add(name)
        yield entry.filename


def _plain(name: str) -> str | None:
    """`name` without steps that change nothing; None where it leads out of its root."""
    path = PurePosixPath(name.replace("\\", "/"))
    windows = len(name) > 1 and name[1] == ":"
    if path.is_absolute() or windows or ".." in path.parts or "\0" in name or not path.parts:
        return None
    return path.as_posix()


def _root(names: list[str]) -> str:
    """The one folder that all files lie in, as where a folder was packed instead of what is in it; else nothing."""
    first = {name.partition("/")[0] for name in names}
    return f"{first.pop()}/" if len(first) == 1 and all("/" in name for name in names) else ""


def _copy(source: IO[bytes], target: IO[Any], size: int) -> None:
    """No more bytes than the archive's table says."""
    left = size
    while piece := source.read(min(_PIECE, left + 1)):
        left -= len(piece)
        if left < 0:
            raise zipfile.BadZipFile("it is larger than its table says")
        target.write(piece)
