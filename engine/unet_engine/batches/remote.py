"""What lies behind a URL: names below a prefix, those that a pattern matches, and the text of a list."""

from __future__ import annotations

import re
import zlib
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any

from zarr.core.sync import sync

from unet_engine.errors import InputError, first_line
from unet_engine.paths import inside, is_local
from unet_engine.storage import objects, stores
from unet_engine.storage.remote_files import RemoteFile
from unet_engine.text_files import NotReadable

LONGEST = 2**26
"""Bytes of a list."""
_WHOLE = (".zarr", ".n5", ".ozx", ".zip")
"""Endings of what ``**`` does not look into: there are nothing but chunks."""


def names(prefix: str) -> list[str]:
    """What lies right below a prefix, sorted. Raises `InputError` where that cannot be listed."""
    try:
        if objects.usable(prefix):
            found = sync(_listed(stores.Url().location(prefix)))
        else:
            import fsspec  # type: ignore[import-untyped]

            files, _, where = fsspec.get_fs_token_paths(prefix)
            found = files.ls(where[0].rstrip("/"), detail=False)
        return sorted({name for path in found if (name := str(path).rstrip("/").rpartition("/")[2])})
    except FileNotFoundError:
        return []
    except Exception as error:
        raise InputError(
            f"{prefix} cannot be listed: {first_line(error)}; name the volumes one by one, or in a list"
        ) from error


async def _listed(store: Any) -> list[str]:
    return [name async for name in store.list_dir("")]


def matches(pattern: str) -> list[str]:
    """What is called like `pattern`, sorted: ``*`` and ``[ab]`` within a name, ``**`` for any number of folders."""
    scheme, _, rest = pattern.rstrip("/").partition("://")
    first, *parts = rest.split("/")
    base = f"{scheme}://{first}"
    while parts and not re.search(r"[*\[]", parts[0]):
        base += "/" + parts.pop(0)
    return sorted(set(_below(base, parts)))


def _below(base: str, parts: list[str]) -> list[str]:
    if not parts:
        return [base]
    head, rest = parts[0], parts[1:]
    found: list[str] = []
    there = [name for name in names(base + "/") if head.startswith(".") or not name.startswith(".")]
    for name in there:
        if head == "**":
            if not name.lower().endswith(_WHOLE):
                found += _below(f"{base}/{name}", parts)
        elif fnmatchcase(name, head):
            found += _below(f"{base}/{name}", rest)
    return found + (_below(base, rest) if head == "**" and rest else [])


def text(url: str) -> str:
    """Raises `NotReadable` for what is no text, and `InputError` where it cannot be had."""
    data = RemoteFile(url).read(0, LONGEST + 1)
    if len(data) > LONGEST:
        raise NotReadable(f"has more than {LONGEST:,} bytes; give a shorter list")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotReadable(f"is not text in UTF-8: {first_line(error)}; save it as UTF-8") from error


def is_there(url: str) -> bool:
    """Whether a file or a Zarr lies there. Raises `InputError` where that cannot be found out."""
    place = inside(url)[0]
    return RemoteFile(place).exists() or stores.exists(place)


def holds(url: str, text: str) -> bool:
    """Whether the file begins or ends with something that holds `text`, where it can be had: formats have what is said
    of them there. What is packed by gzip is unpacked for that."""
    try:
        file = RemoteFile(url)
        length = file.about().length
        ends = [file.read(0, _ENDS)]
        if length and length > _ENDS:
            ends.append(file.read(max(_ENDS, length - _ENDS), length))
    except InputError:  # it is told once it is read
        return False
    with suppress(zlib.error):
        ends.append(zlib.decompressobj(31).decompress(ends[0], _ENDS))
    return any(text.encode() in end for end in ends)


_ENDS = 2**16
"""Bytes that are looked at."""


def beside(url: str, place: str) -> str:
    """What a list at `url` calls `place`."""
    assert is_local(place)
    folder, mark, query = url.partition("?") if url.lower().startswith(("http://", "https://")) else (url, "", "")
    return f"{folder.rpartition('/')[0]}/{place.removeprefix('./')}{mark}{query}"
