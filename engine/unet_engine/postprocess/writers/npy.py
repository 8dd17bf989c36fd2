"""NumPy's own format (``.npy``), which may hold several arrays one after the other: the voxels, and behind them what is
known of them as text. ``numpy.load`` gives the first."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from unet_engine.postprocess.content import Content
from unet_engine.postprocess.writers.base import account_in, account_text, lost_mask
from unet_engine.volumes.account import npy_text
from unet_engine.volumes.frame import Frame


class NpyWriter:
    name = "an .npy file"
    endings = (".npy",)
    folder = False

    def require(self, path: str, frame: Frame | None) -> None:
        """Needs nothing."""

    def check(self, path: str, content: Content) -> None:
        """Holds everything."""

    def losses(self, content: Content) -> list[str]:
        return lost_mask(content, "An .npy file")

    def write(self, place: Path, content: Content) -> None:
        dtype = content.dtype.newbyteorder("<")
        with place.open("wb") as file:
            npy.write_array_header_2_0(  # type: ignore[no-untyped-call]
                file, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": content.shape}
            )
            offset = file.tell()
        content.write_plain(place, offset, content.axes, dtype)
        with place.open("ab") as file:
            said = io.BytesIO()
            np.save(said, np.frombuffer(account_text(content).encode(), np.uint8))
            file.write(said.getvalue())

    def account(self, path: str) -> Mapping[str, Any] | None:
        return account_in(npy_text(path))
