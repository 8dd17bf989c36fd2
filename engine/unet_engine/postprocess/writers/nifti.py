"""NIfTI 1, and 2 where a volume is larger than that can say; headers by nibabel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.paths import absolute
from unet_engine.postprocess.content import Content
from unet_engine.postprocess.writers.base import (
    account_in,
    account_text,
    check_type,
    library,
    lost_crs,
    lost_measured,
    pack,
    plain_type,
)
from unet_engine.units import micrometers
from unet_engine.volumes.base import Timing
from unet_engine.volumes.frame import Frame

_UNITS = {"meter": "meter", "millimeter": "mm", "micrometer": "micron"}
_COMMENT = 6
"""Of a header's extensions: text for people."""
_LONGEST = 2**15 - 1
"""Voxels along an axis that NIfTI 1 can say."""


class NiftiWriter:
    name = "a NIfTI file"
    endings = (".nii", ".nii.gz")
    folder = False

    def require(self, path: str, frame: Frame | None) -> None:
        library(path, self.name, "nibabel", "nifti")

    def check(self, path: str, content: Content) -> None:
        self.require(path, content.frame)
        check_type(path, content, self.name, ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])

    def losses(self, content: Content) -> list[str]:
        found = lost_measured(content, "NIfTI") + lost_crs(content, "NIfTI")
        if content.unit and content.unit not in _UNITS and micrometers(1.0, content.unit) is None:
            found.append(f"NIfTI has no unit {content.unit}, which is left out")
        return found

    def write(self, place: Path, content: Content) -> None:
        header = _header(content)
        packed = place.name.lower().endswith(".gz")
        raw = place.with_name("raw.nii")
        with (raw if packed else place).open("wb") as file:
            header.write_to(file)
        offset = int(header["vox_offset"])
        content.write_plain(raw if packed else place, offset, "ctzyx", plain_type(content.dtype))
        if packed:
            pack(raw, place)

    def account(self, path: str) -> Mapping[str, Any] | None:
        nibabel = library(path, self.name, "nibabel", "nifti")
        for extension in nibabel.load(absolute(path)).header.extensions:
            if extension.get_code() == _COMMENT and (found := account_in(_text(extension))):
                return found
        return None


def _text(extension: Any) -> str:
    content = extension.get_content()
    return content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content)


def _header(content: Content) -> Any:
    import nibabel
    from nibabel.nifti1 import Nifti1Extension

    shape = [content.count(a) for a in "xyztc"]
    while len(shape) > len(content.spatial) and shape[-1] == 1:
        shape.pop()
    header = (nibabel.Nifti1Header if max(shape) <= _LONGEST else nibabel.Nifti2Header)()
    header.set_data_dtype(plain_type(content.dtype))
    header.set_data_shape(shape)
    if content.count("c") > 1:
        header.set_intent("vector")  # without it ITK takes channels for a fifth axis, and refuses
    place, unit = content.in_unit(_UNITS)
    time = (content.timing or Timing(1.0)).in_seconds()
    header.set_xyzt_units(xyz=unit, t="sec" if time.unit == "second" else None)
    affine = np.eye(4)
    n = len(content.spatial)
    rows = np.asarray(place.seen_in("RAS").affine)
    affine[:n, :n], affine[:n, 3] = rows[:, :n], rows[:, n]
    _place(header, affine)
    if content.count("t") > 1:
        header["pixdim"][4], header["toffset"] = time.step, time.start
    header.extensions.append(Nifti1Extension(_COMMENT, account_text(content).encode()))
    return header


def _place(header: Any, affine: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    """As matrix, and as quaternion where one can say it: tools differ in which they read."""
    header.set_qform(affine, "scanner")
    if not np.allclose(header.get_qform(), affine, rtol=1e-5, atol=1e-5 * np.abs(affine[:3, :3]).max()):
        header.set_qform(None, 0)
    n = len(header.get_zooms())
    header.set_zooms([float(np.linalg.norm(affine[:3, i])) if i < 3 else 1.0 for i in range(n)])
    header.set_sform(affine, "scanner")
