"""Files of safetensors: their tensors, and in words what is wrong with one that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet_engine.errors import ModelError, first_line
from unet_engine.units import parse_bytes

_LENGTH = 8
"""Bytes at the beginning, which say how long the header behind them is."""
_LONGEST = parse_bytes("100MiB")
"""Header that the library itself reads."""


def tensors_of(path: Path) -> dict[str, Any]:
    """The tensors in the file, by name. Raises `ModelError`."""
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ModelError(f"{path} needs safetensors, which is not installed; run: pip install safetensors") from error
    check_length(path)
    try:
        return dict(load_file(path))
    except Exception as error:  # it raises a type of its own
        raise ModelError(f"{path} is no readable safetensors file: {first_line(error)}; save it again") from error


def check_length(path: Path) -> None:
    """Raise `ModelError` where the file ends before its tensors do, naming the first that is not all there. What its
    header says otherwise, is not looked at."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH), "little")
            header = file.read(min(length, _LONGEST))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}; restore it or correct its permissions") from error
    if size < _LENGTH or (length <= _LONGEST and size < _LENGTH + length and header[:1] in (b"{", b"")):
        raise ModelError(f"{path} is cut short in its header, after {size:,} bytes; download it again")
    missing = _beyond(header, size - _LENGTH - length) if length <= _LONGEST else None
    if missing:
        raise ModelError(f"{path} is cut short, after {size:,} bytes: {missing} is not all there; download it again")


def _beyond(header: bytes, held: int) -> str | None:
    """The first tensor whose values end behind `held` bytes; None where all are there, or nothing can be told."""
    try:
        said = json.loads(header)
    except (ValueError, RecursionError):
        return None
    ends = {}
    for name, one in said.items() if isinstance(said, Mapping) else ():
        place = one.get("data_offsets") if isinstance(one, Mapping) else None
        if isinstance(place, list) and len(place) == 2 and all(isinstance(n, int) for n in place):
            ends[name] = place[1]
    return min((name for name, end in ends.items() if end > held), key=lambda name: ends[name], default=None)
