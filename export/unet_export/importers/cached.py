"""Sources that are run as they are: imported once into the cache, found there by their content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from unet_engine.backends import engine_cache
from unet_engine.model.spec import plain_name
from unet_engine.units import Tell
from unet_engine.version import our_version
from unet_export.importers.base import Importer, Wanted, read
from unet_export.importers.files import digest

FORMAT = 5
"""Changes whenever the same source would give another file than an earlier version's."""
_MAKE_NO_FILE = ("out", "trust", "checkpoint")
"""What is asked for that does not change the file: trust decides whether it is made at all."""


def model_of(importer: Importer, wanted: Wanted, tell: Tell) -> Path:
    """The model file of the source ``wanted.checkpoint``, which is imported unless the cache has it. What was done is
    told, all of it as notes: those that importing makes say so of themselves no more.

    Raises what importing it raises, and `BackendError` where the cache cannot be used."""
    say = _plainly(tell)
    source = Path(wanted.checkpoint)
    name = f"{plain_name(source.stem)}-{_key(importer, source, wanted)}.onnx"
    path = engine_cache.folder() / "imported" / name
    if path.is_file():
        tell(f"{source} was imported before: {path}")
        return path
    from unet_export.importers.make import write

    path.parent.mkdir(mode=0o700, exist_ok=True)
    wanted = replace(wanted, out=str(path))
    found = read(importer, wanted, say)  # what is refused is not announced first
    tell(f"importing {source}, a model of {importer.name}; later runs find it in the cache")
    write(found, importer, wanted, say)
    return path


def _plainly(tell: Tell) -> Tell:
    return lambda text: tell(text.removeprefix("note: "))


def _key(importer: Importer, source: Path, wanted: Wanted) -> str:
    asked: dict[str, Any] = {k: v for k, v in asdict(wanted).items() if k not in _MAKE_NO_FILE}
    key = {
        "format": FORMAT,
        "version": our_version(),
        "source": importer.name,
        "content": digest(importer.content(source)),
        "asked": asked,
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
