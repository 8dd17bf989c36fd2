"""Web servers: what they answer is read by byte ranges where they give these, and whole where they do not.

fsspec's file system has the session, and lists folders where a server shows them as pages. Requests are ours: it takes
the whole file for the range it asked for, and any fault for a file that is not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.storage import FsspecStore

from unet_engine.storage.patience import STALLED, Answered, Broken, limit
from unet_engine.storage.remote import LONGEST_METADATA, is_metadata, located, spanned, too_long

_PIECE = 2**20
_GONE = (404, 410)


class Web(FsspecStore):  # type: ignore[misc]
    """Everything below a URL of ``http`` or ``https``. What stands behind its ``?``, such as a signature, is sent with
    every request."""

    supports_writes: bool = False
    supports_deletes: bool = False

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        async with await self._asked("get", key, _header(byte_range)) as answer:
            if answer.status in _GONE:
                return None
            if answer.status == 416:  # of a range that begins behind the end
                return prototype.buffer.from_bytes(b"")
            _check(answer)
            data = await _body(answer, _needed(key, byte_range, answer.status))
        if byte_range is None and is_metadata(key) and len(data) > LONGEST_METADATA:
            raise too_long(key)
        if byte_range is None:
            return prototype.buffer.from_bytes(data)
        if answer.status == 206:
            _compare(answer, byte_range, len(data))
            return prototype.buffer.from_bytes(data)
        lo, hi = spanned(byte_range, len(data))
        return prototype.buffer.from_bytes(data[lo:hi])

    async def exists(self, key: str) -> bool:
        async with await self._asked("head", key, None) as answer:
            if answer.status in (405, 501):
                pass  # no such method: ask for it as a file
            elif answer.status in _GONE:
                return False
            else:
                _check(answer)
                return True
        async with await self._asked("get", key, "bytes=0-0") as answer:
            if answer.status in _GONE:
                return False
            if answer.status != 416:
                _check(answer)
            return True

    async def getsize(self, key: str) -> int:
        async with await self._asked("head", key, None) as answer:
            if answer.status in _GONE:
                raise FileNotFoundError(key)
            _check(answer)
            if answer.content_length is None:
                raise OSError(f"{key}: the server does not say how long it is")
            return int(answer.content_length)

    async def tag(self, key: str) -> dict[str, str]:
        """What the server says of a file that is another where its content is."""
        async with await self._asked("head", key, None) as answer:
            if answer.status in _GONE:
                raise FileNotFoundError(key)
            _check(answer)
            said = answer.headers
            names = {"ETag": "ETag", "LastModified": "Last-Modified", "size": "Content-Length"}
            return {name: said[header] for name, header in names.items() if header in said}

    async def looked_at(self, key: str) -> tuple[int | None, dict[str, str], bool]:
        """Of a file: its length in bytes where the server says it, what changes with its content, and whether parts of
        it are given. By one byte of it, as servers say of a HEAD what they like. What is packed on the way has no
        length."""
        async with await self._asked("get", key, "bytes=0-0", raw=True) as answer:
            if answer.status in _GONE:
                raise FileNotFoundError(key)
            names = {"ETag": "ETag", "LastModified": "Last-Modified"}
            tags = {name: answer.headers[header] for name, header in names.items() if header in answer.headers}
            if answer.status == 416:
                return 0, tags, True
            _check(answer)
            plain = "Content-Encoding" not in answer.headers
            if answer.status == 206 and plain:
                size = answer.headers.get("Content-Range", "").rpartition("/")[2].strip()
                await _body(answer, 2)
                return (int(size), {**tags, "size": size}, True) if size.isdigit() else (None, tags, False)
            length = answer.content_length if answer.status == 200 and plain else None
            return length, {**tags, **({} if length is None else {"size": str(length)})}, False

    async def stream(self, key: str, write: Callable[[bytes], Any]) -> None:
        """Hand all of a file to `write`, piece by piece. Raises `Broken` where it is cut off. Of a file that is packed,
        servers say that it was packed on the way: it is left as it is."""
        raw = key.lower().endswith((".gz", ".mgz", ".bz2"))
        async with await self._asked("get", key, None, raw=raw) as answer:
            if answer.status in _GONE:
                raise FileNotFoundError(key)
            _check(answer)
            count, said = 0, answer.content_length
            while piece := await answer.content.read(_PIECE):
                write(piece)
                count += len(piece)
            if said is not None and (raw or "Content-Encoding" not in answer.headers) and said != count:
                raise Broken(f"the answer was cut off after {count:,} of {said:,} bytes")

    async def _asked(self, method: str, key: str, span: str | None, *, raw: bool = False) -> Any:
        """raw: leave what the server has packed on the way as it comes."""
        import aiohttp

        session = await self.fs.set_session()
        silence = limit(STALLED)
        keywords = {
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=silence, sock_read=silence), **self.fs.kwargs
        }  # fmt: skip
        headers = {"Accept-Encoding": "identity", **keywords.pop("headers", {}), **({"Range": span} if span else {})}
        packed = {"auto_decompress": False} if raw else {}
        url = self.fs.encode_url(located(self.path, key))
        return getattr(session, method)(url, headers=headers, allow_redirects=True, **keywords, **packed)


def _header(byte_range: Any) -> str | None:
    if isinstance(byte_range, RangeByteRequest):
        return f"bytes={byte_range.start}-{byte_range.end - 1}"
    if isinstance(byte_range, OffsetByteRequest):
        return f"bytes={byte_range.offset}-"
    if isinstance(byte_range, SuffixByteRequest):
        return f"bytes=-{byte_range.suffix}"
    return None


def _check(answer: Any) -> None:
    if answer.status >= 300:
        raise Answered(answer.status, "", answer.headers.get("Retry-After"))


def _needed(key: str, byte_range: Any, status: int) -> int | None:
    """The bytes of an answer that are looked at, its first; None for all. A server may send whatever it likes."""
    if isinstance(byte_range, RangeByteRequest):
        return int(byte_range.end - byte_range.start + 1 if status == 206 else byte_range.end)
    return LONGEST_METADATA + 1 if is_metadata(key) and byte_range is None else None


async def _body(answer: Any, needed: int | None) -> bytes:
    """What is sent, but no more than `needed` bytes."""
    found = bytearray()
    while piece := await answer.content.read(_PIECE):
        found += piece
        if needed is not None and len(found) >= needed:
            return bytes(found[:needed])
    said = answer.content_length
    if said is not None and "Content-Encoding" not in answer.headers and said != len(found):
        raise Broken(f"the answer was cut off after {len(found):,} of {said:,} bytes")
    return bytes(found)


def _compare(answer: Any, byte_range: Any, length: int) -> None:
    """Raises `Broken` where a part of a file is not the one that was asked for."""
    said = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("Content-Range", "").strip())
    if not said:
        raise Broken("a part of a file came that does not say which")
    first, last = int(said[1]), int(said[2])
    size = int(said[3]) if said[3] != "*" else last + 1
    wanted = spanned(byte_range, size)
    if said[3] == "*" and isinstance(byte_range, SuffixByteRequest):
        wanted = (first, first + byte_range.suffix)
    if (first, last + 1) != wanted or length != last + 1 - first:
        raise Broken(f"bytes {wanted[0]:,} to {wanted[1]:,} were asked for, and {length:,} bytes from {first:,} came")
