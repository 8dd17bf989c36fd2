"""Model files behind URLs."""

from __future__ import annotations

from unet_engine.errors import InputError, ModelError
from unet_engine.paths import is_local, several
from unet_engine.storage.fetching import fetched
from unet_engine.units import Tell, silent


def at_hand(model: str, tell: Tell = silent) -> str:
    """`model`, one file or several parted by commas, with those behind URLs fetched into the cache. Raises
    `ModelError`."""
    parts = several(model)
    if all(map(is_local, parts)):
        return model
    try:
        return ",".join(fetched(part, tell) for part in parts)
    except InputError as error:
        raise ModelError(f"--model: {error}, or give the path of a file") from error
