"""Stores: the one place that knows what a path or a URL leads to, what is there, and how it is made and removed."""

from __future__ import annotations

import os
import posixpath
import shutil
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import zarr
from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.common import concurrent_map
from zarr.core.group import GroupMetadata
from zarr.core.sync import sync
from zarr.storage import FsspecStore, StorePath

from unet_engine.errors import NoLibraryError, OutputError, first_line, of_store
from unet_engine.paths import check_file, is_local, plain
from unet_engine.storage import archives, objects
from unet_engine.storage import durability as durable
from unet_engine.storage.durability import ON_DISK, Durability
from unet_engine.storage.remote import LONGEST_METADATA, METADATA, Remote, is_metadata, too_long
from unet_engine.storage.web import Web


class Store(Protocol):
    """A kind of place where arrays lie. A new kind is one class like those below, and one line in `STORES`."""

    def recognises(self, path: str) -> bool:
        """Whether `path` leads to this kind of place. Text alone decides, nothing is opened."""

    def location(self, path: str) -> Any:
        """What zarr is to open for `path`: a store of zarr's, or text that zarr makes one of."""

    def exists(self, path: str) -> bool:
        """Whether something lies at `path`. Raises `OutputError` where that cannot be found out."""

    def create_group(self, path: str, attributes: Mapping[str, Any], durability: Durability = ON_DISK) -> None:
        """Make a group of Zarr v3 at `path`, unless somebody did before."""

    def rewrite_group(self, path: str, attributes: Mapping[str, Any], durability: Durability = ON_DISK) -> None:
        """Give the group of Zarr v3 at `path` other attributes, all at once."""

    def remove(self, path: str, first: str) -> None:
        """Delete all that lies at `path`: what is called `first` in it before the rest. A kill on the way leaves no
        array that could be read with chunks missing."""


class LocalDisk:
    """Files and folders."""

    def recognises(self, path: str) -> bool:
        return is_local(path)

    def location(self, path: str) -> Any:
        return path

    def exists(self, path: str) -> bool:
        """True for any file, and for a folder with anything in it."""
        try:
            # a run killed while it created the group leaves no more than a temporary file
            return any(not p.name.endswith(".partial") for p in Path(path).iterdir())
        except FileNotFoundError:
            return False
        except OSError:
            return os.path.lexists(path)

    def create_group(self, path: str, attributes: Mapping[str, Any], durability: Durability = ON_DISK) -> None:
        """Exactly one of several processes makes it."""
        durable.make_folder(Path(path), durability)
        durable.put_new(Path(path, _METADATA), _group(attributes), durability)

    def rewrite_group(self, path: str, attributes: Mapping[str, Any], durability: Durability = ON_DISK) -> None:
        durable.put(Path(path, _METADATA), _group(attributes), durability)

    def remove(self, path: str, first: str) -> None:
        with suppress(OSError):
            Path(path, first, _METADATA).unlink()
        shutil.rmtree(Path(path, first), ignore_errors=True)
        shutil.rmtree(path)


_METADATA = "zarr.json"
_NODES = (_METADATA, ".zarray", ".zgroup")
"""One of them lies at every array and group."""


async def _holds(place: StorePath) -> bool:
    return await place.get() is not None


def _group(attributes: Mapping[str, Any]) -> bytes:
    metadata = GroupMetadata(attributes=dict(attributes), zarr_format=3).to_buffer_dict(default_buffer_prototype())
    return bytes(metadata[_METADATA].to_bytes())


class Url:
    """A bucket, by obstore; a web server; and whatever else fsspec has a file system for."""

    def recognises(self, path: str) -> bool:
        return not is_local(path)

    def location(self, path: str) -> Any:
        """A store that asks anew every time: file systems keep lists of what lies in a folder, and what others have
        written since would not be there, e.g. markers of other parts."""
        return Remote(_opened(path), path, partial(_opened, path))

    def exists(self, path: str) -> bool:
        """True for a Zarr array or group."""
        try:
            place = self.location(path)
            return any(sync(concurrent_map([(StorePath(place, name),) for name in _NODES], _holds, len(_NODES))))
        except Exception as error:
            if lost := of_store(error):
                raise OutputError(f"{path} cannot be reached: {lost.of(path)}; {lost.advice}") from error
            raise OutputError(
                f"{path} cannot be reached: {first_line(error)}; check the URL and that its file system is installed"
            ) from error

    def create_group(self, path: str, attributes: Mapping[str, Any], durability: Durability = ON_DISK) -> None:
        """Exactly one of several processes makes it where the store has conditions (S3, Google, Azure); elsewhere
        several may, and the header of one stays."""
        place = self.location(path)
        if not place.supports_writes:
            raise OutputError(
                f"{path}: a web server can be read, not written to; give an --out on a disk or in a bucket"
            )
        write_new(StorePath(place, _METADATA), _group(attributes), durability)

    def rewrite_group(self, path: str, attributes: Mapping[str, Any], durability: Durability = ON_DISK) -> None:
        sync(StorePath(self.location(path), _METADATA).set(_buffer(_group(attributes))))

    def remove(self, path: str, first: str) -> None:
        empty(path, first)
        place = self.location(path)
        for name in METADATA:
            sync(place.delete(name))


def _opened(url: str) -> Any:
    if objects.usable(url):
        return objects.opened(url)
    kind = Web if url.lower().startswith(("http://", "https://")) and "::" not in url else Files
    try:
        return kind.from_url(url, storage_options={"use_listings_cache": False})
    except ImportError as error:
        raise NoLibraryError(key=url, cause=f"a library is missing ({first_line(error)})") from error


class Files(FsspecStore):  # type: ignore[misc]
    """zarr's, of whatever fsspec has a file system for, but for metadata that are too long: of those no more is asked
    for than they may have."""

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        if byte_range is not None or not is_metadata(key):
            return await super().get(key, prototype, byte_range)
        found = await super().get(key, prototype, RangeByteRequest(0, LONGEST_METADATA + 1))
        if found is not None and len(found) > LONGEST_METADATA:
            raise too_long(key)
        return found


class Zipped:
    """A zipped Zarr (``.ozx``, ``.zip``), which is read alone: what is in it is never changed in place."""

    def recognises(self, path: str) -> bool:
        return archives.cut(path) is not None

    def location(self, path: str) -> Any:
        archive, inner = archives.cut(path) or (path, "")
        if is_local(path):
            return archives.local(archive, inner)
        folder, _, name = archive.rpartition("/")
        return archives.inside(Url().location(folder), name, inner)

    def exists(self, path: str) -> bool:
        return is_local(path) or holds_file(path)

    def create_group(self, path: str, attributes: Mapping[str, Any], durability: Durability = ON_DISK) -> None:
        raise OutputError(f"{path} is an archive, which is not written in place; use another --out")

    def rewrite_group(self, path: str, attributes: Mapping[str, Any], durability: Durability = ON_DISK) -> None:
        raise OutputError(f"{path} is an archive, which is not written in place; use another --out")

    def remove(self, path: str, first: str) -> None:
        if not is_local(path):
            raise OutputError(f"{path} is an archive, which is not removed from a store; use another --out")
        Path(path).unlink()


def empty(url: str, first: str = "") -> None:
    """Delete all that lies below the group at `url` but the group's own metadata: those of what it holds before their
    chunks, so that a kill on the way leaves nothing that could be read with chunks missing."""
    place = Url().location(url)
    names = {name.strip("/") for name in sync(_listed(place))}.difference(("", *METADATA))
    for name in sorted(names, key=lambda name: (name != first, name)):
        for metadata in METADATA:
            sync(place.delete(f"{name}/{metadata}"))
        sync(place.delete_dir(name))
        sync(place.delete(name))  # where it is an object itself


async def _listed(place: Any) -> list[str]:
    return [name async for name in place.list_dir("")]


def holds_file(url: str) -> bool:
    """Whether an object lies at `url`. Raises `OutputError` where the store cannot be asked."""
    folder, _, name = url.rpartition("/")
    try:
        return bool(sync(Url().location(folder).exists(name)))
    except Exception as error:
        raise OutputError(f"{url} cannot be reached: {first_line(error)}; check the URL") from error


STORES: tuple[Store, ...] = (Zipped(), LocalDisk(), Url())
"""In the order in which they are asked. Any text is a path or a URL, so one of them always is the one."""


def store_of(path: str) -> Store:
    return next(store for store in STORES if store.recognises(path))


def open_node(path: str) -> zarr.Array | zarr.Group:
    """The array or group at `path`, for reading. Raises what zarr raises, `FileNotFoundError` where there is none."""
    check_metadata(path)
    with _let_go():
        return zarr.open(store_of(path).location(path), mode="r")


def check_metadata(place: str | StorePath) -> None:
    """Raises `OSError` where what zarr reads as metadata at `place` is anything but a file, or far too long: a pipe is
    waited at for ever, and a device never ends. On a local disk alone."""
    if isinstance(place, str) and "::" in place and not is_local(place):
        archive = plain(place.rpartition("::")[2])
        if is_local(archive) and Path(archive).exists() and not Path(archive).is_dir():
            check_file(archive)  # zip://scan.zarr::file:///data/scans.zip
    folder = file_of(place) if isinstance(place, StorePath) else place if is_local(place) else None
    for name in METADATA if folder else ():
        with suppress(FileNotFoundError, NotADirectoryError):
            check_file(f"{folder}/{name}", LONGEST_METADATA)


def open_group(path: str, mode: str) -> zarr.Group:
    """The group at `path`. Raises what zarr raises, `FileNotFoundError` where there is none."""
    check_metadata(path)
    with _let_go():
        return zarr.open_group(store_of(path).location(path), mode=mode)


@contextmanager
def _let_go() -> Iterator[None]:
    """An error of zarr's lies in a variable of the function that raises it: a circle, which would keep whoever called,
    and the sums of a block that they hold, until the garbage collector runs. Frames that are over are emptied."""
    try:
        yield
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        raise


def exists(path: str) -> bool:
    """Whether something lies at `path`: any file or folder, or a Zarr node behind a URL. Raises `OutputError` if it
    cannot be reached."""
    return store_of(path).exists(path)


def nested(a: str, b: str) -> bool:
    """Whether one of two paths is the other or lies in it, however they are written."""
    return within(a, b) or within(b, a)


def within(a: str, b: str) -> bool:
    """Whether `a` is `b` or lies in it, through whatever links, and whether `a` exists or not."""
    a, b = _plain(a), _plain(b)
    if is_local(a) != is_local(b):
        return False
    if not is_local(a):
        return f"{a}/".startswith(f"{b}/")
    a, b = os.path.realpath(a), os.path.realpath(b)
    if f"{a}/".startswith(f"{b}/"):
        return True
    try:
        there = Path(b).stat()
    except OSError:
        return False
    # the same folder under another name: upper and lower case, or mounted twice
    return any(_is(place, there) for place in (Path(a), *Path(a).parents))


def _is(path: Path, there: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), there)
    except OSError:
        return False


def _plain(path: str) -> str:
    """A path, also of ``file://``; a URL in one spelling."""
    if is_local(path):
        return path
    path = plain(path.rpartition("::")[2])
    if is_local(path):
        return path
    scheme, _, rest = path.partition("://")
    return f"{scheme.lower()}://{posixpath.normpath(rest.partition('?')[0]).lstrip('/')}"


def file_of(place: StorePath) -> Path | None:
    """The file that holds what zarr has at `place`, on a local disk; None in other stores."""
    root = getattr(place.store, "root", None)
    return Path(root, place.path) if isinstance(root, Path) else None


def read(place: StorePath) -> bytes | None:
    """What is stored at `place`; None where nothing is. Raises what zarr raises."""
    if file := file_of(place):
        with suppress(FileNotFoundError, NotADirectoryError):
            check_file(file, LONGEST_METADATA)
    found = sync(place.get())
    return None if found is None else bytes(found.to_bytes())


def write(place: StorePath, data: bytes, durability: Durability) -> None:
    """Store or replace what lies at `place`, whole or not at all."""
    file = file_of(place)
    if file is None:
        sync(place.set(_buffer(data)))
    else:
        durable.make_folder(file.parent, durability)
        durable.put(file, data, durability)


def write_new(place: StorePath, data: bytes, durability: Durability) -> None:
    """Store something at `place`, unless somebody did before."""
    file = file_of(place)
    if file is None:
        sync(place.set_if_not_exists(_buffer(data)))
    else:
        durable.make_folder(file.parent, durability)
        durable.put_new(file, data, durability)


def _buffer(data: bytes) -> Any:
    return default_buffer_prototype().buffer.from_bytes(data)


def holds(place: StorePath) -> bool:
    """Whether anything is stored at `place`."""
    # a local file is asked for directly: a thousand times per block, the detour through the event loop would show
    file = file_of(place)
    return bool(sync(place.exists())) if file is None else file.exists()
