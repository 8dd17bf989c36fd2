"""Content becomes a file: written beside the place it is meant for, and renamed when it is whole. A kill leaves what
was there before, and a folder ``.NAME.partial``, which the next attempt takes away."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unet_engine.errors import OutputError, UnetEngineError, writing
from unet_engine.output import output
from unet_engine.paths import is_local, unusable
from unet_engine.postprocess.content import Content
from unet_engine.postprocess.formats import writer_of
from unet_engine.postprocess.sending import put_into_store
from unet_engine.storage import stores
from unet_engine.storage.durability import ON_DISK, Durability, make_folder

PARTIAL = ".partial"


def deliver(
    content: Content,
    path: str,
    *,
    overwrite: bool,
    durability: Durability = ON_DISK,
    settled: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Write `content` to `path`, in the format that its name says; returns what the format cannot hold, as people are
    told. settled: asked once nobody else is at it: whether there is nothing left to do.

    Raises `OutputError` where the format cannot hold the content, a library is missing, something is there and
    `overwrite` is not given, or the disk refuses; and what reading raises. What was there before is kept until all is
    written.
    """
    writer = writer_of(path)
    if not is_local(path):
        if settled():
            return []
        check_place(path, overwrite=overwrite)
        writer.check(path, content)
        with _words(path):
            put_into_store(path, lambda made: writer.write(made, content), overwrite=overwrite)
        return [f"{path}: {loss}" for loss in writer.losses(content)]
    final = Path(path)
    with writing(path, "making its folder"):
        make_folder(final.absolute().parent, durability)
    with _beside(final) as folder, _words(path):
        if settled():
            return []
        check_place(path, overwrite=overwrite)
        writer.check(path, content)
        made = folder / final.name
        writer.write(made, content)
        _keep(made, durability)
        _put(made, final, overwrite=overwrite)
        durability.folders([final.parent])
    return [f"{path}: {loss}" for loss in writer.losses(content)]


def check_place(path: str, *, overwrite: bool) -> None:
    """Raise `OutputError` where nothing can be written at `path`, or what is there is not to be replaced."""
    folder = writer_of(path).folder
    if not is_local(path):
        if is_there(path):
            _check_replacing(path, folder=folder, overwrite=overwrite)
        return
    final = Path(path)
    if why := unusable(str(final.with_name(f".{final.name}{PARTIAL}"))):
        raise OutputError(f"{path} cannot be written: {why}; choose another place")
    if not os.path.lexists(final):
        return
    _check_replacing(path, folder=folder, overwrite=overwrite)
    if not folder and not final.is_file():
        raise OutputError(f"--overwrite: {path} is no file and is left alone; choose another name")


def _check_replacing(path: str, *, folder: bool, overwrite: bool) -> None:
    if not overwrite:
        raise OutputError(f"{path} exists; use --overwrite to replace it, or another name")
    if folder and not output.is_ours(path):
        raise OutputError(f"--overwrite: {path} was not written by unet-engine and is left alone; choose another name")


def is_there(path: str) -> bool:
    """Whether something lies at `path`, a file or a group. Raises `OutputError` where a store cannot be asked."""
    if is_local(path):
        return os.path.lexists(path)
    return stores.exists(path) if writer_of(path).folder else stores.holds_file(path)


@contextmanager
def _words(path: str) -> Iterator[None]:
    """Turn what a library or the disk raises into one line; what reading raises says enough."""
    try:
        yield
    except UnetEngineError:
        raise
    except Exception as error:
        with writing(path, "writing it"):
            raise error


@contextmanager
def _beside(final: Path) -> Iterator[Path]:
    """A folder for what is not whole yet, which goes afterwards; one writer at a time, others wait for it."""
    folder = final.with_name(f".{final.name}{PARTIAL}")
    with writing(str(final), "making a folder beside it"):
        lock = _locked(folder)
    try:
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked(folder: Path) -> int:
    while True:
        folder.mkdir(exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        with suppress(OSError):  # file systems without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(folder.stat(), os.fstat(lock)):
                return lock
        os.close(lock)  # its last holder took it away before we had it


def _keep(made: Path, durability: Durability) -> None:
    """Have the disk keep what was written."""
    if not durability.waits:
        return
    files = [made] if made.is_file() else [file for file in made.rglob("*") if file.is_file()]
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            durability.file(descriptor)
        finally:
            os.close(descriptor)


def _put(made: Path, final: Path, *, overwrite: bool) -> None:
    if overwrite and final.is_dir() and made.is_dir():
        output.remove(str(final))
    if overwrite or made.is_dir():
        made.replace(final)  # a folder replaces nothing but an empty one
        return
    try:
        os.link(made, final)
    except FileExistsError as error:
        raise OutputError(f"{final} appeared meanwhile and is kept; use --overwrite to replace it") from error
    except OSError:  # file systems without hard links
        made.replace(final)
