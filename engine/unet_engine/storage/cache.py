"""The user's cache: the folder where engines and unpacked copies lie, which nobody else may write to."""

from __future__ import annotations

import os
import stat
from pathlib import Path

FOLDER = "UNET_ENGINE_CACHE"
"""Environment variable that names the folder; default: ``unet-engine`` in the user's cache folder."""


def place() -> Path:
    """Where the cache is, or would be."""
    if base := os.environ.get(FOLDER):
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unet-engine"


def made(path: Path) -> bool:
    """Make `path` for its owner alone if it is missing; whether nobody but this user may write to it. Raises
    `OSError`."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    about = path.stat()
    return not hasattr(os, "getuid") or (
        about.st_uid == os.getuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )
