"""Files for a store over a network: made on this machine, then put there, whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from uuid import uuid4

from unet_engine.errors import InputError, OutputError, StoreError, first_line, of_store
from unet_engine.output import output
from unet_engine.output.header import PROVENANCE, read_header
from unet_engine.storage import cache, scratch, stores
from unet_engine.storage.patience import once_only
from unet_engine.storage.remote import AT_ONCE, METADATA, is_metadata
from unet_engine.storage.remote_files import RemoteFile, name_of


def put_into_store(url: str, make: Callable[[Path], None], *, overwrite: bool) -> None:
    """Put what `make` writes at the path it is given, a file or a folder, at `url`. Nothing that is there is replaced
    unless `overwrite` is given. Raises `OutputError`, and what stores and disks raise."""
    folder = _folder()
    with tempfile.TemporaryDirectory(dir=folder) as own:
        made = Path(own, name_of(url))
        make(made)
        try:
            (_put_folder if made.is_dir() else put_file)(url, made, overwrite=overwrite)
        except InputError as error:  # what reads it back
            raise OutputError(str(error)) from error


def made_here(url: str) -> Path:
    """Where on this machine the file is made that is going to `url`: the same place each time, so that what a killed
    command left of it is found again."""
    return _folder() / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name_of(url)}"


def _folder() -> Path:
    folder = cache.place() / "made"
    if not cache.made(cache.place()) or not cache.made(folder):
        raise OutputError(f"{folder} may be written by others; chmod 700 it, or set {cache.FOLDER} to another folder")
    _remove_old(folder)
    return folder


def _remove_old(folder: Path) -> None:
    """What killed processes left."""
    for left in folder.iterdir():
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > scratch.KEPT_SECONDS:
                shutil.rmtree(left)


def put_file(url: str, made: Path, *, overwrite: bool) -> None:
    """Put the file `made` at `url`. Raises as `put_into_store` does."""
    try:
        RemoteFile(url).put(made, overwrite=overwrite)
    except FileExistsError as error:
        raise OutputError(f"{url} appeared meanwhile and is kept; use --overwrite to replace it") from error


def _put_folder(url: str, made: Path, *, overwrite: bool) -> None:
    url = url.rstrip("/")
    there = stores.exists(url)
    if there and not overwrite:
        raise OutputError(f"{url} appeared meanwhile and is kept; use --overwrite to replace it")
    (_replace if there else _put_new)(RemoteFile(url), Files.of(made))


@dataclass(frozen=True)
class Files:
    """The files of a Zarr group on this disk, in the order in which they are put somewhere: what is there before all of
    it is can be read as no array, and as no group of ours that is complete."""

    folder: Path
    names: tuple[str, ...]
    """Chunks, then metadata of arrays and groups in it."""
    last: tuple[str, ...]
    """The group's own metadata."""

    @classmethod
    def of(cls, folder: Path) -> Files:
        names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        return cls(
            folder,
            tuple(sorted((n for n in names if n not in METADATA), key=lambda n: (is_metadata(n), -n.count("/"), n))),
            tuple(n for n in names if n in METADATA),
        )

    def each(self, names: tuple[str, ...], put: Callable[[str], None]) -> None:
        """Several at once; chunks before metadata."""
        for metadata in (False, True):
            with ThreadPoolExecutor(AT_ONCE) as pool:
                for _ in pool.map(put, [name for name in names if is_metadata(name) == metadata]):
                    pass


def _put_new(place: RemoteFile, files: Files) -> None:
    """A header comes first that says that it is not complete: of several who put something there one begins, and what a
    kill leaves is known as ours."""
    own = {"complete": False, "putting": uuid4().hex}
    _check_empty(place)
    stores.store_of(place.url).create_group(place.url, {PROVENANCE: own})
    if read_header(place.url) != own:
        raise OutputError(f"{place.url} appeared meanwhile and is kept; use --overwrite to replace it")

    def put(name: str) -> None:
        place.beside(f"{place.key}/{name}").put(files.folder / name, overwrite=True)

    try:
        files.each(files.names, put)
        _check_all(place, files)
        files.each(files.last, put)
    except BaseException as error:
        _explain(place.url, error, "" if _gone(place) else f"; what was put so far is left there, {_REPLACE}")


def _replace(place: RemoteFile, files: Files) -> None:
    """Put the new one beside the old one first. Once all of it is there the old one goes, and the store copies."""
    staged = place.staged()

    def stage(name: str) -> None:
        staged.beside(f"{staged.key}/{name}").put(files.folder / name, overwrite=True)

    def move(name: str) -> None:
        file, path = place.beside(f"{place.key}/{name}"), files.folder / name
        try:
            file.copy_from(f"{staged.key}/{name}", path.stat().st_size)
        except NotImplementedError:
            file.put(path, overwrite=True)

    try:
        files.each(files.names, stage)
        _check_all(staged, files)
        files.each(files.last, stage)
    except BaseException as error:
        left = "" if _gone(staged) else f", and what was put so far is left in {staged.url}"
        _explain(place.url, error, f"; what was there is kept as it was{left}")
    try:
        output.empty(place.url)
        files.each(files.names, move)
        _check_all(place, files)
        files.each(files.last, move)
    except BaseException as error:
        _explain(place.url, error, f"; the new one lies whole in {staged.url}, {_REPLACE}")
    _gone(staged)


_REPLACE = "and --overwrite replaces what is here"


def _check_empty(place: RemoteFile) -> None:
    """Raise `OutputError` where anything lies below `place`, which is no group: it would be taken for chunks of it."""
    try:
        found = sorted(place.names())
    except StoreError as error:
        if error.refused:  # who may write, and not list
            return
        raise
    if found:
        raise OutputError(
            f"{place.url} is no Zarr group, but holds {len(found):,} objects, e.g. {found[0]}; remove them, or choose "
            "another name"
        )


def _check_all(place: RemoteFile, files: Files) -> None:
    """Raise `OSError` where other objects lie below `place` than were put there."""
    try:
        found = place.names().difference(files.last)
    except StoreError as error:
        if error.refused:
            return
        raise
    if wrong := sorted(found.symmetric_difference(files.names)):
        what = "is gone again" if wrong[0] in files.names else "is not ours"
        raise OSError(f"{wrong[0]} {what} meanwhile, somebody else writes there")


def _gone(place: RemoteFile) -> bool:
    """Whether all that lies below `place` could be removed."""
    with suppress(Exception), once_only():
        place.discard()
        return True
    return False


def _explain(url: str, error: BaseException, state: str) -> NoReturn:
    """Raise `error` as an `OutputError` that says what is there now; an interruption as it is."""
    if not isinstance(error, Exception):
        raise error
    lost = of_store(error)
    if lost:
        raise OutputError(f"{url} cannot be written: {lost.of(url)}{state}; {lost.advice}") from error
    raise OutputError(f"{url} cannot be written: {first_line(error)}{state}; run again once that is mended") from error
