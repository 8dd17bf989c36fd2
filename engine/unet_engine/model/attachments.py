"""Things kept inside an ONNX file beside its network: verdicts of the gate, and the network in other precisions.

An ONNX file is a protobuf message, and such messages may be continued: fields written behind the last one belong to it
as if they had been there from the start. So an attachment is one more entry of ``metadata_props`` at the end of the
file. Every reader of ONNX skips it, the bytes of the network stay what they were, and so does their hash: it is taken
over everything but the attachments, wherever these lie. https://protobuf.dev/programming-guides/encoding (tag, length,
value; repeated fields of concatenated messages are concatenated)
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from unet_engine.errors import ModelError, OutputError

PREFIX = "unet_engine.attached."
"""Keys of attachments begin like this; the spec's key does not, since another spec is another model."""
_METADATA = 14
"""Number of ``metadata_props`` in ONNX's ModelProto; 1 and 2 are key and value in an entry."""
_PIECE = 2**20


@dataclass(frozen=True)
class Attachment:
    """Where an attachment lies in its file, in bytes: the whole entry and the value in it."""

    key: str
    start: int
    stop: int
    value_start: int
    value_stop: int


def attachments(path: Path) -> list[Attachment]:
    """What is attached to the ONNX file at `path`; fields of other kinds are skipped without being read.

    Raises `ModelError` for a file that is no protobuf message.
    """
    try:
        with path.open("rb") as file:
            return list(_scan(file, path.stat().st_size))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}; restore it or correct its permissions") from error
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not a readable ONNX file: {error}; export it again") from error


def _scan(file: BinaryIO, size: int) -> Iterator[Attachment]:
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(20)
        tag, used = _varint(head, 0)
        kind = tag & 7
        if kind == 2:
            length, used = _varint(head, used)
        else:
            length = {0: _varint(head, used)[1] - used, 1: 8, 5: 4}.get(kind, -1)
        stop = at + used + length
        if length < 0 or stop > size:
            raise ValueError(f"it breaks off or is corrupt at byte {at}")
        if tag >> 3 == _METADATA and kind == 2 and (found := _entry(file, at, at + used, stop)):
            yield found
        at = stop


def _entry(file: BinaryIO, start: int, inside: int, stop: int) -> Attachment | None:
    """The entry of ``metadata_props`` at `start`, where it is one of ours: key first, as we and protobuf write it."""
    file.seek(inside)
    head = file.read(min(stop - inside, 256))
    if head[:1] != b"\x0a":
        return None
    length, used = _varint(head, 1)
    key = head[used : used + length].decode(errors="replace")
    if not key.startswith(PREFIX):
        return None
    value = used + length
    if head[value : value + 1] != b"\x12":
        raise ValueError(f"its entry {key} has no value")
    length, used = _varint(head, value + 1)
    return Attachment(key.removeprefix(PREFIX), start, stop, inside + used, inside + used + length)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, seven bits a byte, least first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number in it is too long")


def read(path: Path, key: str) -> bytes | None:
    """The value attached to `path` under `key`, or None."""
    for found in attachments(path):
        if found.key == key:
            with path.open("rb") as file:
                file.seek(found.value_start)
                return file.read(found.value_stop - found.value_start)
    return None


def own_bytes(path: Path) -> Iterator[bytes]:
    """The file without its attachments, in pieces: the network and its spec."""
    found = attachments(path)
    with path.open("rb") as file:
        at = 0
        for start, stop in [*((a.start, a.stop) for a in found), (path.stat().st_size, 0)]:
            file.seek(at)
            left = start - at
            while left > 0:
                piece = file.read(min(left, _PIECE))
                left -= len(piece)
                yield piece
            at = stop


def attach(source: Path, target: Path, values: Mapping[str, bytes]) -> None:
    """Write the network of `source` to `target` (which may be `source`) with exactly `values` attached, all of them
    UTF-8.

    `target` is replaced in one step, and keeps its permissions; where it is a link, what it leads to is replaced.
    Raises `OutputError` where it cannot be written.
    """
    target = Path(os.path.realpath(target))
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", dir=target.parent)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}; choose a folder that can be written") from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as out:
            for piece in own_bytes(source):
                out.write(piece)
            for key, value in values.items():
                entry = _field(1, f"{PREFIX}{key}".encode()) + _field(2, value)
                out.write(_field(_METADATA, entry))
        temporary.chmod(stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o644)
        temporary.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}; choose a folder that can be written") from error
    finally:
        temporary.unlink(missing_ok=True)


def _field(number: int, value: bytes) -> bytes:
    return _number(number << 3 | 2) + _number(len(value)) + value


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
