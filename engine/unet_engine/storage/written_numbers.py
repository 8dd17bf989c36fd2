"""Numbers that lie in a file as text, or as hexadecimal digits: read as the bytes that they are in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

_PIECE = 2**20
_LONGEST = 2**10
"""Characters of a number."""


class Written:
    """A stream of the bytes that pieces of `file` stand for."""

    def __init__(self, file: BinaryIO, meant: Callable[[bytes], tuple[bytes, bytes]]) -> None:
        """meant: of a piece, the bytes that it stands for, and what belongs to the next one; empty ends the file"""
        self._file, self._meant, self._rest, self._ready, self._ended = file, meant, b"", b"", False

    def read(self, count: int) -> bytes:
        """Up to `count` bytes, none at the end. Raises `ValueError` where something else stands there."""
        while not self._ready and not self._ended:
            piece = self._file.read(_PIECE)
            self._ended = not piece
            self._ready, self._rest = self._meant(self._rest + (piece or b" "))
        found, self._ready = self._ready[:count], self._ready[count:]
        return found


def text(file: BinaryIO, dtype: np.dtype[Any]) -> Written:
    """Numbers in decimal, apart by blanks, lines or commas, as those of `dtype`. A whole number is refused where it is
    none, or one that the type cannot hold."""

    def meant(piece: bytes) -> tuple[bytes, bytes]:
        plain = piece.translate(_AS_BLANKS)
        end = max(plain.rfind(b" "), 0)
        if len(plain) - end > _LONGEST:
            raise ValueError(f"no number has more than {_LONGEST} characters")
        return _numbers(plain[:end].split(), dtype).tobytes(), plain[end:]

    return Written(file, meant)


_AS_BLANKS = bytes.maketrans(b"\t\r\n\f\v,", b"      ")


def _numbers(words: list[bytes], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    if any(b"_" in word for word in words):  # which Python takes as part of a number
        raise ValueError("a number has _ in it")
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.array([float(word) for word in words], np.float64).astype(dtype)
    try:
        return np.array([int(word) for word in words], dtype.newbyteorder("=")).astype(dtype)
    except OverflowError as error:
        raise ValueError(f"a number is none of {dtype.newbyteorder('=')}") from error


def hexadecimal(file: BinaryIO) -> Written:
    """Two digits for each byte, with blanks and lines anywhere."""

    def meant(piece: bytes) -> tuple[bytes, bytes]:
        digits = b"".join(piece.split())
        even = len(digits) // 2 * 2
        return bytes.fromhex(digits[:even].decode("ascii")), digits[even:]

    return Written(file, meant)
