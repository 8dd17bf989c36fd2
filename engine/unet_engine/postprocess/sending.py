"""Files for a store over a network: made on this machine, then put there, whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from unet_engine.errors import InputError, OutputError
from unet_engine.output import output
from unet_engine.storage import cache, scratch, stores
from unet_engine.storage.remote import AT_ONCE, METADATA
from unet_engine.storage.remote_files import RemoteFile, name_of


def put_into_store(url: str, make: Callable[[Path], None], *, overwrite: bool) -> None:
    """Put what `make` writes at the path it is given, a file or a folder, at `url`. Nothing that is there is replaced
    unless `overwrite` is given. Raises `OutputError`, and what stores and disks raise."""
    folder = cache.place() / "made"
    if not cache.made(cache.place()) or not cache.made(folder):
        raise OutputError(f"{folder} may be written by others; chmod 700 it, or set {cache.FOLDER} to another folder")
    _remove_old(folder)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        made = Path(own, name_of(url))
        make(made)
        try:
            (_put_folder if made.is_dir() else _put_file)(url, made, overwrite=overwrite)
        except InputError as error:  # what reads it back
            raise OutputError(str(error)) from error


def _remove_old(folder: Path) -> None:
    """What killed processes left."""
    for left in folder.iterdir():
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > scratch.KEPT_SECONDS:
                shutil.rmtree(left)


def _put_file(url: str, made: Path, *, overwrite: bool) -> None:
    try:
        RemoteFile(url).put(made, overwrite=overwrite)
    except FileExistsError as error:
        raise OutputError(f"{url} appeared meanwhile and is kept; use --overwrite to replace it") from error


def _put_folder(url: str, made: Path, *, overwrite: bool) -> None:
    """What says that there is a group comes last."""
    url = url.rstrip("/")
    if overwrite and stores.exists(url):
        output.remove(url)
    files = [file for file in made.rglob("*") if file.is_file()]
    last = [file for file in files if file.parent == made and file.name in METADATA]

    def put(file: Path) -> None:
        RemoteFile(f"{url}/{file.relative_to(made)}").put(file, overwrite=True)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(put, [file for file in files if file not in last]):
            pass
    for file in last:
        put(file)
