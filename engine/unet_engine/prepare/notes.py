"""Notes: what the user should know of a run. Of fallbacks, ``--strict`` makes errors."""

from __future__ import annotations

from unet_engine.errors import BackendError
from unet_engine.settings.settings import Settings


def fall_back(settings: Settings, notes: list[str], what: str) -> None:
    """Note what is not as one would expect. Raises `BackendError` under ``--strict``."""
    if settings.strict:
        raise BackendError(f"--strict: {what}")
    notes.append(what)
