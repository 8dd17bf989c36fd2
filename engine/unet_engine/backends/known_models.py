"""What an ONNX file says of its network is read and proved once for a user: a start then needs no ONNX.

Kept under the hash of the file's bytes, of the TOML beside it, and of all that reads them; in the user's cache, under
the same rules as compiled networks: see `engine_cache`. What depends on more than that is opened each time: files with
weights outside of them, graphs of which a window was run, and other formats.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import VERSION

from unet_engine.backends import engine_cache
from unet_engine.errors import BackendError, UnetEngineError
from unet_engine.model import file
from unet_engine.model.file import ModelFile, files_of, open_model
from unet_engine.version import our_version, version_of

KIND = "model"
"""Of what is kept in the user's cache: see `engine_cache`."""
LATEST = 64
"""Models that are kept."""


def open_known(path: str | Path, *asked: Any) -> ModelFile:
    """As `open_model`, of which the arguments are."""
    key = _key(path, asked)
    known = None if key is None else _load(key)
    if known is not None:
        return known
    model = open_model(path, *asked)
    lasts = not any(network.ran or network.outside for network in (model, *model.members))
    if key is not None and lasts and key == _key(path, asked):  # else it was replaced meanwhile
        with suppress(BackendError, pickle.PicklingError):
            engine_cache.store(KIND, key, pickle.dumps(model))
            engine_cache.keep(KIND, LATEST)
    return model


def _load(key: engine_cache.Key) -> ModelFile | None:
    try:
        data = engine_cache.load(KIND, key)
        found = pickle.loads(data) if data else None  # from the user's own folder, and its hash fits
    except Exception:  # no cache, or nothing that this code makes
        return None
    return found if isinstance(found, ModelFile) else None


def _key(path: str | Path, asked: tuple[Any, ...]) -> engine_cache.Key | None:
    """All that decides what is found; None where it is no single ONNX file that can be read, which is told as it is
    opened."""
    try:
        [only] = files_of(path)
        if not only.name.lower().endswith(".onnx") or not only.is_file():
            return None
        beside = only.with_suffix(".toml")
        if beside.exists() and not beside.is_file():
            return None
        return {
            "path": str(path),
            "asked": repr(asked),
            "file": _hash(only),
            "beside": _hash(beside) if beside.is_file() else "",
            "code": _code(),
            "versions": [our_version(), sys.version, VERSION, version_of("onnx"), version_of("numpy")],
        }
    except (OSError, ValueError, UnetEngineError):
        return None


def _hash(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _code() -> list[tuple[str, int, int]]:
    """The files that read models, as they are now: people work on them."""
    with os.scandir(Path(file.__file__).parent) as found:
        about = [(entry.name, entry.stat()) for entry in found if entry.name.endswith(".py")]
    return sorted((name, status.st_size, status.st_mtime_ns) for name, status in about)
