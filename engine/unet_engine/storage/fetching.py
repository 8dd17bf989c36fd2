"""Files behind a URL that are needed on the disk: fetched once into the user's cache."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from unet_engine.errors import InputError, first_line
from unet_engine.paths import is_local, plain
from unet_engine.storage import cache
from unet_engine.units import Tell, silent, size

MOST = 8 * 2**30
"""Bytes that are fetched at most."""
SECONDS = 60.0
"""Without an answer."""
_PIECE = 2**20


def fetched(url: str, tell: Tell = silent, most: int = MOST) -> str:
    """The path of a copy of what lies at `url`, or `url` itself where it is a path. Fetched where it is not in the
    cache; behind ``#sha256=`` stands what it has to be.

    Raises `InputError` where it cannot be had, is larger than `most` bytes, or is something else.
    """
    url = plain(url)
    if is_local(url):
        return url
    place, _, fragment = url.partition("#")
    wanted = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if fragment and not wanted:
        raise InputError(f"{url}: behind # may stand sha256= and 64 hexadecimal digits; correct it")
    folder = cache.place() / "fetched" / hashlib.sha256(place.encode()).hexdigest()[:32]
    name = unquote(urlsplit(place).path.rstrip("/").rpartition("/")[2]) or "file"
    path = folder / re.sub(r"[^\w.+-]", "_", name)[-120:]
    try:
        if not cache.made(cache.place()) or not cache.made(folder):
            raise InputError(f"{cache.place()} may be written by others; correct that, or set {cache.FOLDER}")
        if not path.exists():
            digest = _fetch(place, path, most, wanted[1].lower() if wanted else None)
            tell(f"{place} was fetched, {size(path.stat().st_size)}, sha256 {digest}")
        elif wanted:
            _check(place, _sha256(path), wanted[1].lower())
    except OSError as error:
        raise InputError(f"{place} cannot be fetched: {first_line(error)}; check the URL, or give a file") from error
    return str(path)


def _fetch(url: str, path: Path, most: int, wanted: str | None) -> str:
    """Write what lies at `url` to `path`, whole or not at all. Returns its SHA-256."""
    number, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    digest, count = hashlib.sha256(), 0
    try:
        with os.fdopen(number, "wb") as file:
            source, length = _opened(url)
            with source:
                while piece := source.read(_PIECE):
                    count += len(piece)
                    if count > most or (length or 0) > most:
                        raise InputError(f"{url} has more than {size(most)}; fetch it yourself, and give the file")
                    digest.update(piece)
                    file.write(piece)
        if length is not None and count != length:
            raise InputError(f"{url} ended after {count:,} of {length:,} bytes; try once more")
        if wanted:
            _check(url, digest.hexdigest(), wanted)
        os.replace(partial, path)  # noqa: PTH105
    finally:
        with suppress(FileNotFoundError):
            Path(partial).unlink()
    return digest.hexdigest()


def _opened(url: str) -> tuple[Any, int | None]:
    """A file to read from, and its length where that is said."""
    if url.startswith(("http://", "https://")):
        from urllib.request import urlopen

        answer = urlopen(url, timeout=SECONDS)  # of these two schemes
        said = answer.headers.get("Content-Length")
        return answer, int(said) if said and said.isascii() and said.isdigit() else None
    try:
        import fsspec  # type: ignore[import-untyped]

        file = fsspec.open(url, "rb").open()
        return file, getattr(file, "size", None)
    except OSError:
        raise
    except Exception as error:
        raise InputError(f"{url} cannot be fetched: {first_line(error)}; check the URL, or give a file") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(url: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise InputError(
            f"{url} is another file: its SHA-256 is {found}, and {wanted} is asked for; check the URL, and what stands "
            "behind its #"
        )
