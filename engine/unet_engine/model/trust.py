"""Model files that run code as they are opened, and those of them that the user trusts.

A ``.pt2`` is unpickled, which runs whatever Python is in it; TorchScript has instructions that write files. Both are
opened only where the user said so, once per file: its hash is kept in the user's own folder. An ONNX file is a graph
of known operations and needs no trust.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from unet_engine.errors import ModelError
from unet_engine.settings.files import user_folder

RUNS_CODE = {
    "pt2": "is a .pt2: opening it runs whatever Python is in it",
    "torchscript": "is TorchScript: it may write files as it runs",
}
"""Formats of model files that run code, and what people are told of them."""
STORE = "trusted"
"""Name of the file in the user's folder, one line per model: SHA-256, and where it lay."""


def check(path: Path, kind: str, sha256: str) -> None:
    """Raise `ModelError` unless the user trusts the file at `path` of that format and hash, or it runs no code."""
    if kind not in RUNS_CODE or is_trusted(sha256):
        return
    raise ModelError(
        f"{path} {RUNS_CODE[kind]}; use --trust, once, if you trust who made it, "
        "or have it turned into ONNX, which runs no code, where it was made: unet-engine export"
    )


def is_trusted(sha256: str) -> bool:
    """Whether the user trusts the file with this hash."""
    store = _store()
    if sha256 in _here:
        return True
    try:
        return store is not None and any(line.split()[:1] == [sha256] for line in store.read_text("utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        return False


def trust(path: Path, sha256: str) -> bool:
    """Trust the file from now on; says whether that could be kept for later processes."""
    if is_trusted(sha256):
        return sha256 not in _here
    store = _store()
    if store is not None:
        line = f"{sha256}  {' '.join(str(path.absolute()).split())}\n"
        with suppress(OSError):
            store.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(store, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(file, line.encode("utf-8", "replace"))
            finally:
                os.close(file)
            return True
    _here.add(sha256)
    return False


_here: set[str] = set()
"""Hashes that this process trusts and could not keep."""


def _store() -> Path | None:
    folder = user_folder()
    return folder / STORE if folder else None
