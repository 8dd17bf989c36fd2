"""A file that a pass makes, such as a table: whole or not there at all. What the pass finds lies in a folder beside it,
``.NAME.unet-engine``, until the file is there: so a pass that was killed goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unet_engine.errors import OutputError, SettingsError, writing
from unet_engine.output.header import ARRAY
from unet_engine.output.journal import FOLDER
from unet_engine.paths import is_local, plain
from unet_engine.postprocess import sending
from unet_engine.postprocess.base import Keep, digest
from unet_engine.storage import stores
from unet_engine.storage.durability import ON_DISK


@dataclass(frozen=True)
class Draft:
    """A file that is being made: `place` becomes it."""

    place: Path
    keep: Keep


def endings(path: str, known: Mapping[str, Any], option: str) -> Any:
    """What `known` has for the ending of `path`. Raises `SettingsError` naming all of them."""
    for ending, what in known.items():
        if path.lower().endswith(ending):
            return what
    raise SettingsError(f"{option} {path} says no format; use a name that ends in {', '.join(known)}")


def check_free(path: str, *, overwrite: bool) -> None:
    """Raises `OutputError` where a file at `path` must not be made, before any work."""
    if not is_local(path):
        if stores.holds_file(path) and not overwrite:
            raise OutputError(f"{path} exists; use --overwrite to replace it, or choose another name")
        return
    place = Path(plain(path))
    if place.is_dir() or (place.exists() and not overwrite):
        raise OutputError(f"{path} exists; use --overwrite to replace it, or choose another name")
    if not place.absolute().parent.is_dir():
        raise OutputError(f"{path}: there is no folder {place.parent}; make it first")


@contextmanager
def made(path: str, identity: Mapping[str, Any], *, overwrite: bool) -> Iterator[Draft]:
    """A file at `path`, there once the block ends: one in a bucket is made in the cache and put there then. Raises as
    `check_free` does."""
    check_free(path, overwrite=overwrite)
    place = Path(plain(path)).absolute() if is_local(path) else sending.made_here(path)
    folder, name = place.with_name(f".{place.name}.unet-engine"), digest(identity)
    with writing(path, "making the folder of what is found"):
        if not (folder / ARRAY / FOLDER / name).is_dir():  # of another pass, or older
            shutil.rmtree(folder, ignore_errors=True)
        keep = Keep(str(folder), name)
        keep.journal.open()
    # the ending stays: writers go by it
    draft = folder / place.name
    with writing(path, "removing what an earlier attempt left"):
        draft.unlink(missing_ok=True)
    yield Draft(draft, keep)
    with writing(path, "putting it to its place"):
        with draft.open("rb") as file:
            ON_DISK.file(file.fileno())
        if is_local(path):
            draft.replace(place)
            ON_DISK.folders([place.parent])
        else:
            sending.put_file(path, draft, overwrite=overwrite)
    shutil.rmtree(folder, ignore_errors=True)
