"""Engines, compiled networks and timing caches on disk, in the user's own folder. What is read is checked before any
library sees it.

A file is a line with a magic word, one with the SHA-256 of all that follows, one with the key as JSON, and the bytes.
It is used only if the key in it is the one asked for and the hash fits; anything else is as good as no file, and is
written anew. A hash does not stop somebody who may write to the folder, so a folder that others may write to is
refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet_engine.errors import BackendError
from unet_engine.storage import cache
from unet_engine.storage.cache import FOLDER

_MAGIC = b"unet-engine cache 1\n"

Key = Mapping[str, object]


def folder() -> Path:
    """The cache's folder, made if it is missing, for its owner alone. Raises `BackendError` where others may write to
    it."""
    path = cache.place()
    try:
        own = cache.made(path)
    except OSError as error:
        raise BackendError(
            f"the cache {path} cannot be used: {error.strerror}; set {FOLDER} to another folder"
        ) from error
    if not own:
        raise BackendError(
            f"the cache {path} belongs to or can be written by others, who could put an engine there; chmod 700 it, or "
            f"set {FOLDER} to a folder of yours"
        )
    return path


def name_of(key: Key) -> str:
    return hashlib.sha256(_text(key)).hexdigest()[:32]


def load(kind: str, key: Key) -> bytes | None:
    """What was stored as `kind` (``engine``, ``openvino``, ``timing`` …) under `key`; None where there is nothing, or
    nothing to be trusted."""
    stored_key, value = _read(folder() / f"{name_of(key)}.{kind}")
    return value if stored_key == _text(key) else None


def of_model(kind: str, sha256: str) -> list[tuple[dict[str, Any], bytes]]:
    """All that was stored as `kind` under keys with that model, with these, the latest first. Raises `BackendError` as
    `folder` does."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(folder().glob(f"*.{kind}"), key=lambda path: path.stat().st_mtime, reverse=True):
            text, value = _read(path)
            with contextlib.suppress(ValueError):
                key = json.loads(text)
                if value is not None and isinstance(key, dict) and key.get("model") == sha256:
                    found.append((key, value))
    return found


def _read(path: Path) -> tuple[bytes, bytes | None]:
    """Key and value of a file; None where there is nothing, or nothing to be trusted."""
    try:
        data = path.read_bytes()
    except OSError:
        return b"", None
    if not data.startswith(_MAGIC):
        return b"", None
    digest, _, rest = data[len(_MAGIC) :].partition(b"\n")
    if hashlib.sha256(rest).hexdigest().encode() != digest:
        return b"", None
    key, _, value = rest.partition(b"\n")
    return key, value


def store(kind: str, key: Key, value: bytes) -> None:
    """Keep `value`; replaces what was there in one step. A full disk is no error: the next run builds again."""
    rest = _text(key) + b"\n" + value
    place = folder()
    with contextlib.suppress(OSError):
        handle, name = tempfile.mkstemp(prefix=".new-", dir=place)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_MAGIC + hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)
            Path(name).replace(place / f"{name_of(key)}.{kind}")
        finally:
            Path(name).unlink(missing_ok=True)


def keep(kind: str, count: int) -> None:
    """Of what was stored as `kind`, only the latest stay."""
    with contextlib.suppress(OSError):
        found = sorted(folder().glob(f"*.{kind}"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in found[count:]:
            path.unlink(missing_ok=True)


def _text(key: Key) -> bytes:
    return json.dumps(dict(key), sort_keys=True).encode()
