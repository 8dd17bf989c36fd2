"""Files behind a URL that are needed on the disk: fetched once into the user's cache."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote, urlsplit

from unet_engine.errors import InputError, first_line
from unet_engine.paths import is_local, plain
from unet_engine.storage import cache
from unet_engine.storage.patience import once_only
from unet_engine.storage.remote_files import About, RemoteFile
from unet_engine.units import Tell, silent, size

MOST = 8 * 2**30
"""Bytes that are fetched at most."""
_TAG = ".tag"
_NOT_MEANT = {
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a pointer of Git LFS",
}
"""What comes in place of a file, by how it begins, in small letters."""


def fetched(url: str, tell: Tell = silent, most: int = MOST) -> str:
    """The path of a copy of what lies at `url`, or `url` itself where it is a path. Fetched where it is not in the
    cache; behind ``#sha256=`` stands what it has to be. Without that, `tell` hears where another file lies at `url` by
    now than the copy is of.

    Raises `InputError` where it cannot be had, is larger than `most` bytes, or is something else.
    """
    url = plain(url)
    if is_local(url):
        return url
    place, _, fragment = url.partition("#")
    wanted = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if fragment and not wanted:
        raise InputError(
            f"{url}: what follows # has to be sha256= and 64 hexadecimal digits; correct it, or leave it out"
        )
    folder = cache.place() / "fetched" / hashlib.sha256(place.encode()).hexdigest()[:32]
    name = unquote(urlsplit(place).path.rstrip("/").rpartition("/")[2]) or "file"
    path = folder / re.sub(r"[^\w.+-]", "_", name)[-120:]
    try:
        if not cache.made(cache.place()) or not cache.made(folder):
            raise InputError(
                f"others may write to {cache.place()}; chmod 700 it, or set {cache.FOLDER} to another folder"
            )
        if not path.exists():
            digest = _fetch(place, path, most, wanted[1].lower() if wanted else None)
            tell(f"{place} was fetched, {size(path.stat().st_size)}, sha256 {digest}")
        elif wanted:
            _check(place, _sha256(path), wanted[1].lower())
        elif _is_another(place, path):
            day = time.strftime("%Y-%m-%d", time.gmtime(path.stat().st_mtime))
            tell(f"{place} is another file by now; its copy of {day} is taken, {path}: remove it to have the new one")
    except OSError as error:
        raise InputError(f"{place} cannot be fetched: {first_line(error)}; check the URL, or give a file") from error
    return str(path)


@lru_cache
def _is_another(url: str, path: Path) -> bool:
    """Whether the server says so; asked once, as whoever is not connected has the copy all the same."""
    with suppress(OSError, InputError), once_only():
        return path.with_name(path.name + _TAG).read_text() != str(RemoteFile(url).about().tag)
    return False


def _fetch(url: str, path: Path, most: int, wanted: str | None) -> str:
    """Write what lies at `url` to `path`, whole or not at all. Returns its SHA-256."""
    number, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    try:
        with os.fdopen(number, "w+b") as file:
            about = _copied(url, file, most)
            file.seek(0)
            _check_meant(url, file.read(64))
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if wanted:
            _check(url, digest, wanted)
        tag = path.with_name(path.name + _TAG)
        tag.unlink(missing_ok=True)  # of a copy that was removed
        if about.tag is not None:
            tag.write_text(about.tag)
        os.replace(partial, path)  # noqa: PTH105
    finally:
        with suppress(FileNotFoundError):
            Path(partial).unlink()
    return digest


def _copied(url: str, file: BinaryIO, most: int) -> About:
    remote = RemoteFile(url)
    about = remote.about()
    if (about.length or 0) > most:
        raise _too_long(url, most)
    remote.copy_to(cast("BinaryIO", _Bounded(file, url, most)), about)
    file.flush()
    return about


class _Bounded:
    """A file that takes so many bytes and no more: of an answer without a length nobody knows how long it will be."""

    def __init__(self, file: BinaryIO, url: str, most: int) -> None:
        self._file, self._url, self._most = file, url, most
        self.seek, self.tell, self.truncate = file.seek, file.tell, file.truncate

    def write(self, data: bytes) -> int:
        if self.tell() + len(data) > self._most:
            raise _too_long(self._url, self._most)
        return self._file.write(data)


def _too_long(url: str, most: int) -> InputError:
    return InputError(f"{url} has more than {size(most)}; fetch it yourself, and give the file")


def _check_meant(url: str, head: bytes) -> None:
    begins = head.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    for mark, what in _NOT_MEANT.items():
        if begins.startswith(mark):
            raise InputError(
                f"{url} answers with {what} and no model; give the address that the file is downloaded from"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(url: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise InputError(
            f"{url} is another file: its SHA-256 is {found}, and {wanted} is asked for; check the URL, and what stands "
            "behind its #"
        )
