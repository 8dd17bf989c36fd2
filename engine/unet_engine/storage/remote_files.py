"""Single files behind URLs: how long one is, what changes with its content, parts of it, all of it; and one put
there."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from unet_engine.errors import InputError, StoreError, first_line, of_store
from unet_engine.storage import objects, scratch, stores
from unet_engine.storage.patience import once_only
from unet_engine.storage.remote import AT_ONCE, Remote, located
from unet_engine.storage.remote import concurrent as at_once
from unet_engine.storage.tokens import said, tag_of
from unet_engine.storage.web import Web

PIECE = 2**23
"""Bytes that are asked for at once of a file that is fetched whole."""
PARTS_AGAIN = 9
WHOLE_PUT = 2**26
"""Bytes up to which a file is put by one request, on the condition that nothing is there."""
MOST_COPIED = 5 * 2**30
"""Bytes that S3 copies by one request. Longer files are put on no condition."""
STAGING = ".partial"
CHANGED_MEANWHILE = 20
"""Times that others may have changed a file while it was to be changed."""


@dataclass(frozen=True)
class About:
    """What a store says of a file."""

    length: int | None
    """In bytes; None where it does not say."""
    tag: str | None
    """Is another one where the content is; None where the store says nothing like it."""
    ranges: bool
    """Whether parts of it can be asked for."""


class RemoteFile:
    """The file at `url`. Nothing is asked before a method is called."""

    def __init__(self, url: str) -> None:
        """Raises `InputError` where what reads there is not installed."""
        self.url = url
        place, mark, query = url.partition("?") if url.lower().startswith(("http://", "https://")) else (url, "", "")
        root, _, self.key = place.rpartition("/")
        self._root = (f"{root}/" if root.endswith(":/") else root) + mark + query
        try:
            self._store: Remote = stores.Url().location(self._root)
        except (StoreError, ValueError) as error:
            raise InputError(f"{url} cannot be read: {_cause(error, url)}; {_advice(error)}") from error

    def exists(self) -> bool:
        """Raises `InputError` where that cannot be found out."""
        return bool(self._asked(lambda: self._store.exists(self.key)))

    def about(self) -> About:
        """Raises `InputError` where nothing is there, or the store does not answer."""
        return self._asked(lambda: self._store.ask(self.key, self._about))  # type: ignore[no-any-return]

    async def _about(self, store: Any) -> About:
        if isinstance(store, Web):
            length, tags, ranges = await store.looked_at(self.key)
            return About(length, tag_of(tags), ranges)
        return About(int(await store.getsize(self.key)), tag_of(await said(store, self.key)), ranges=True)

    def read(self, lo: int, hi: int) -> bytes:
        """Bytes `lo` to `hi`, fewer where it ends before."""
        return bytes(self._asked(lambda: self._part(lo, hi)))

    async def _part(self, lo: int, hi: int) -> bytes:
        found = await self._store.get(self.key, default_buffer_prototype(), RangeByteRequest(lo, hi))
        if found is None:
            raise FileNotFoundError(self.key)
        return bytes(found.to_bytes())

    def copy_to(self, file: BinaryIO, about: About) -> None:
        """Write all of it to `file`, which is empty. Raises `InputError` where it ends early, is longer than it said,
        or is rewritten meanwhile."""
        if about.ranges and about.length is not None:
            self._in_pieces(file, about.length)
        else:
            self._in_a_stream(file)
        if about.length is not None and file.tell() != about.length:
            raise InputError(f"{self.url} ended after {file.tell():,} of {about.length:,} bytes; try once more")
        if about.tag is not None and self.about().tag != about.tag:
            raise InputError(f"{self.url} was changed while it was fetched; run again once it is no longer written")

    def _in_pieces(self, file: BinaryIO, length: int) -> None:
        step = PIECE * AT_ONCE // 4
        for begin in range(0, length, step):
            spans = [(lo, min(lo + PIECE, length)) for lo in range(begin, min(begin + step, length), PIECE)]
            for piece in self._asked(lambda spans=spans: at_once(spans, self._part)):  # type: ignore[misc]
                file.write(piece)

    def _in_a_stream(self, file: BinaryIO) -> None:
        """By whole answers: what was cut off is asked for again from the beginning."""

        async def whole(store: Any) -> None:
            file.seek(0)
            file.truncate()
            await store.stream(self.key, file.write)

        self._asked(lambda: self._store.ask(self.key, whole))

    def put(self, path: Path, *, overwrite: bool) -> None:
        """Put the file at `path` there. Raises `FileExistsError` where something is there and `overwrite` is not given,
        and what stores raise."""
        length = path.stat().st_size
        if overwrite:
            self._upload(path, length)
        elif sync(self._store.exists(self.key)):
            raise FileExistsError(self.url)
        elif length <= WHOLE_PUT:
            data = path.read_bytes()
            sync(self._store.set_if_not_exists(self.key, default_buffer_prototype().buffer.from_bytes(data)))
            if self.read(0, length + 1) != data:
                raise FileExistsError(self.url)
        elif self._copies_on_condition(length):
            self._put_new(path, length)
        else:
            self._upload(path, length)

    def _upload(self, path: Path, length: int) -> None:
        if length <= PIECE:
            sync(self._store.set(self.key, default_buffer_prototype().buffer.from_bytes(path.read_bytes())))
        else:
            sync(self._store.ask(self.key, lambda store: self._uploaded(store, path)))
        found = self.about().length
        if found != length:
            raise OSError(f"{self.url} has {found:,} bytes in place of the {length:,} that were written")

    async def _uploaded(self, store: Any, path: Path) -> None:
        """Several parts of it at once, whole or not at all. Each part is asked for again by itself."""
        if isinstance(store, objects.Objects):
            await objects.opened(self._root, retries=PARTS_AGAIN).upload(self.key, path)
        else:  # of fsspec
            await store.fs._put_file(str(path), f"{store.path}/{self.key}")

    def _copies_on_condition(self, length: int) -> bool:
        return isinstance(self._store._store, objects.Objects) and length <= MOST_COPIED

    def _put_new(self, path: Path, length: int) -> None:
        """What is put in parts is put on no condition, and what a store copies on one: so it is put beside its place,
        and copied."""
        staged = self.staged()
        try:
            staged._upload(path, length)
            try:
                self.copy_from(staged.key, length, overwrite=False)
            except FileExistsError:
                if not self._is(path, length):  # else the answer to our own copy was lost, and it was asked for again
                    raise
            except NotImplementedError:
                self._upload(path, length)
        finally:
            with suppress(OSError), once_only():
                sync(self._store.delete(staged.key))

    def _is(self, path: Path, length: int) -> bool:
        if self.about().length != length:
            return False
        with path.open("rb") as file:
            return all(self.read(lo, lo + PIECE) == file.read(PIECE) for lo in range(0, length, PIECE))

    def copy_from(self, origin: str, length: int, *, overwrite: bool = True) -> None:
        """Have the store copy to here what is called `origin` in the same folder, of `length` bytes. Raises
        `FileExistsError` where something is there that is not to be replaced, `NotImplementedError` where the store
        does not copy, or not so, and what stores raise."""

        async def copied(store: Any) -> None:
            if isinstance(store, objects.Objects):
                await store.copy(origin, self.key, length, overwrite=overwrite)
            else:  # of fsspec
                await store.fs._cp_file(f"{store.path}/{origin}", f"{store.path}/{self.key}")

        try:
            sync(self._store.ask(self.key, copied))
        except StoreError as error:
            if error.lacking:
                raise NotImplementedError(str(error)) from error
            raise
        except Exception as error:
            kind = type(error).__name__  # of obstore, which is imported where it is used
            if kind in ("AlreadyExistsError", "PreconditionError"):
                raise FileExistsError(self.url) from error
            if kind == "NotSupportedError":
                raise NotImplementedError(str(error)) from error
            raise

    def content(self) -> bytes | None:
        """All of it; None where nothing is there. Raises what stores raise."""
        found = sync(self._store.get(self.key, default_buffer_prototype()))
        return None if found is None else bytes(found.to_bytes())

    def replace(self, data: bytes) -> None:
        """Have `data` lie there, whatever does now. Raises what stores raise."""
        sync(self._store.set(self.key, default_buffer_prototype().buffer.from_bytes(data)))

    def change(self, changed: Callable[[bytes | None], bytes | None]) -> None:
        """Have it be what `changed` makes of it, or of nothing; it stays where that gives None. Of several who change
        it at once none undoes what another has done, where the store has conditions. `changed` may be asked once more
        of what it has made. Raises what stores raise."""
        for _ in range(CHANGED_MEANWHILE):
            found, old = sync(self._store.ask(self.key, self._tagged))
            data = changed(found)
            if data is None or data == found or self._replaced(data, old):
                return
        raise OSError(f"{self.url} is changed by others again and again; run again once they are done")

    async def _tagged(self, store: Any) -> tuple[bytes | None, Any]:
        if isinstance(store, objects.Objects):
            return await store.tagged(self.key) or (None, None)
        found = await store.get(self.key, default_buffer_prototype())
        return (None, None) if found is None else (bytes(found.to_bytes()), {})

    def _replaced(self, data: bytes, old: Any) -> bool:
        """Whether `data` lies there now; False where something else than `old` did, which is None for nothing."""
        if old is None:
            sync(self._store.set_if_not_exists(self.key, default_buffer_prototype().buffer.from_bytes(data)))
            return self.content() == data

        async def replaced(store: Any) -> None:
            await store.replace(self.key, data, old)

        try:
            if old:
                sync(self._store.ask(self.key, replaced))
                return True
        except StoreError as error:
            if not error.lacking:
                raise
        except Exception as error:
            kind = type(error).__name__  # of obstore, which is imported where it is used
            if kind == "PreconditionError":
                return False
            if kind != "NotSupportedError":
                raise
        self.replace(data)
        return True

    # --- beside it ---

    def beside(self, key: str) -> RemoteFile:
        """The file `key` of the same folder, or below it, by the same connections."""
        other = copy(self)
        other.key, other.url = key, located(self._root, key)
        return other

    def staged(self) -> RemoteFile:
        """A place beside it that is nobody else's, for what is to come here once it is whole. What kills left in such
        places a week ago is removed."""
        folder = f".{self.key}{STAGING}"
        with suppress(OSError), once_only():
            for name in sync(self._names(folder)):
                since = name.partition("-")[0]
                if since.isdigit() and time.time() - int(since) > scratch.KEPT_SECONDS:
                    self.beside(f"{folder}/{name}").discard()
        return self.beside(f"{folder}/{int(time.time())}-{uuid4().hex[:12]}")

    async def _names(self, folder: str) -> list[str]:
        return [name.strip("/") async for name in self._store.list_dir(folder)]

    def discard(self) -> None:
        """Remove it, or all that lies below it. Raises what stores raise."""
        sync(self._store.delete_dir(self.key))
        sync(self._store.delete(self.key))

    def names(self) -> set[str]:
        """What lies below it, at whatever depth. Raises what stores raise."""

        async def listed() -> set[str]:
            prefix = f"{self.key}/"
            return {name.removeprefix(prefix) async for name in self._store.list_prefix(prefix)}

        return sync(listed())  # type: ignore[no-any-return]

    def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            return sync(ask())
        except InputError:
            raise
        except FileNotFoundError as error:
            raise InputError(f"{self.url} does not exist; check the URL") from error
        except Exception as error:
            raise InputError(f"{self.url} cannot be read: {_cause(error, self.url)}; {_advice(error)}") from error


def _cause(error: BaseException, url: str) -> str:
    lost = of_store(error)
    return lost.of(url) if lost else first_line(error)


def _advice(error: BaseException) -> str:
    lost = of_store(error)
    return lost.advice if lost else "check the URL"


def name_of(url: str) -> str:
    """What the file at `url` is called."""
    return re.sub(r"[^\w.+-]", "_", url.partition("?")[0].rstrip("/").rpartition("/")[2])[-120:]


def copied(file: RemoteFile, about: About) -> scratch.Scratch:
    """A copy of a file on this machine, fetched where there is none of what it is now. Raises `InputError`."""
    # what says nothing of its content is fetched by each process that reads it
    key = f"{file.url.partition('?')[0]} {about.length} {about.tag or os.getpid()}"

    def fill(out: BinaryIO) -> None:
        file.copy_to(out, about)

    return scratch.fetched(file.url, key, name_of(file.url), about.length, fill)
