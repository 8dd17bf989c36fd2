"""What a store says of an object that changes with its content: a tag, or when and how long. One small request."""

from __future__ import annotations

from typing import Any

from zarr.core.sync import sync
from zarr.storage import StorePath

ABSENT = "absent"
_TAGS = ("ETag", "etag", "e_tag", "md5Hash", "md5", "generation")
"""What stores call something that is another one where the content is."""
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created", "size")
"""What the others say, which together change as well."""


def token(place: StorePath) -> str | None:
    """What changes with what lies at `place`, `ABSENT` where nothing does; None where the store does not say. Raises
    nothing: it is asked beside the reading, and what fails will fail there."""
    try:
        return tag_of(sync(said(place.store, place.path)))
    except FileNotFoundError:
        return ABSENT
    except Exception:
        return None


async def said(store: Any, path: str) -> dict[str, Any]:
    """All that a store says of an object; nothing where it has no word for that."""
    while hasattr(store, "_store"):  # wrappers
        store = store._store
    if hasattr(store, "tag"):
        return dict(await store.tag(path))
    files: Any = getattr(store, "fs", None)
    key = f"{getattr(store, 'path', '')}/{path}".strip("/")
    if not hasattr(files, "_info"):
        return {}
    files.invalidate_cache(key)
    return dict(await files._info(key))


def tag_of(answer: dict[str, Any]) -> str | None:
    """Of what a store says, what is another one where the content is."""
    for name in _TAGS:
        if answer.get(name):
            return f"{name} {answer[name]}"
    found = [f"{name} {answer[name]}" for name in _TIMES if answer.get(name) is not None]
    return ", ".join(found) or None
