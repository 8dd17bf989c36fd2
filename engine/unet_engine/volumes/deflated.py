"""DICOM files whose data are one deflated stream: how much that is, before anything inflates it."""

from __future__ import annotations

import zlib
from pathlib import Path

from unet_engine.storage.unpacking import inflates_beyond
from unet_engine.units import size

_DEFLATED = b"1.2.840.10008.1.2.1.99"
"""The transfer syntax in which all behind the first group is one deflated stream, which pydicom inflates at once."""
_MOST_INFLATED = 2**29


def check_deflated(file: str) -> None:
    """Raise `ValueError` where a file of a deflated transfer syntax inflates to more than any of a slice does."""
    with Path(file).open("rb") as opened:
        head = opened.read(4096)
        if _DEFLATED not in head:
            return
        if head[132:140] != b"\x02\0\0\0UL\x04\0":
            raise ValueError("its first group does not say how long it is")
        opened.seek(144 + int.from_bytes(head[140:144], "little"))
        if inflates_beyond(iter(lambda: opened.read(2**20), b""), -zlib.MAX_WBITS, _MOST_INFLATED):
            raise ValueError(f"it inflates to more than {size(_MOST_INFLATED)}")
