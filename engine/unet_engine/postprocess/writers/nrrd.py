"""NRRD, packed with gzip; class names and colours as 3D Slicer reads them from a segmentation (``.seg.nrrd``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet_engine.output.colours import colour_of
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
from unet_engine.volumes.frame import Frame

_TYPES = {
    "i1": "int8", "u1": "uint8", "i2": "int16", "u2": "uint16", "i4": "int32", "u4": "uint32", "i8": "int64",
    "u8": "uint64", "f4": "float", "f8": "double",
}  # fmt: skip
_SPACES = {"RAS": "right-anterior-superior", "LAS": "left-anterior-superior", "LPS": "left-posterior-superior"}
_KEY = "unet_engine"


class NrrdWriter:
    name = "an NRRD file"
    endings = (".nrrd",)
    folder = False

    def require(self, path: str, frame: Frame | None) -> None:
        library(path, self.name, "nrrd", "nrrd")

    def check(self, path: str, content: Content) -> None:
        self.require(path, content.frame)
        check_type(path, content, self.name, list(_TYPES))

    def losses(self, content: Content) -> list[str]:
        return lost_measured(content, "NRRD") + lost_crs(content, "NRRD")

    def write(self, place: Path, content: Content) -> None:
        raw = place.with_name("raw.nrrd")
        raw.touch()
        channel = content.count("c") > 1
        several = content.count("t") > 1  # ITK refuses an axis of time, whatever its length
        axes = "".join(a for a in "tzyx" if a in content.axes and (a != "t" or several)) + "c" * channel
        place.write_bytes(_header(content, axes))
        content.write_plain(raw, 0, axes, plain_type(content.dtype))
        pack(raw, place)

    def account(self, path: str) -> Mapping[str, Any] | None:
        header = library(path, self.name, "nrrd", "nrrd").read_header(path)
        return account_in(str(header.get(_KEY, "")).replace("\\\\", "\\"))


def _header(content: Content, axes: str) -> bytes:
    """For the axes of the file, the slowest first."""
    place, spatial = content.place, content.spatial
    fastest = axes[::-1]
    affine = {a: [row[i] for row in place.affine] for i, a in enumerate(reversed(spatial))}
    origin = [row[-1] for row in place.affine]
    kinds = {"t": "time", "c": "vector"}
    lines = [
        "NRRD0005",
        f"type: {_TYPES[plain_type(content.dtype).str[1:]]}",
        f"dimension: {len(axes)}",
        f"space: {_SPACES[place.space]}" if place.space in _SPACES and len(spatial) == 3
        else f"space dimension: {len(spatial)}",
        f"sizes: {' '.join(str(content.count(a)) for a in fastest)}",
        f"space directions: {' '.join(_vector(affine[a]) if a in affine else 'none' for a in fastest)}",
        f"kinds: {' '.join(kinds.get(a, 'domain') for a in fastest)}",
        *_times(content, fastest),
        "endian: little",
        "encoding: gzip",
        f"space origin: {_vector(origin)}",
        *([f"space units: {' '.join([_quoted(content.unit)] * len(spatial))}"] if content.unit else []),
        *(f"{key}:={value}" for key, value in _segments(content).items()),
        f"{_KEY}:={account_text(content)}".replace("\\", "\\\\"),
    ]  # fmt: skip
    return ("\n".join(lines) + "\n\n").encode()


def _times(content: Content, fastest: str) -> list[str]:
    """When time points were taken: as NRRD has it, and as 3D Slicer does of its sequences, which lists each of them."""
    time = content.timing
    if time is None or "t" not in fastest:
        return []
    at = fastest.index("t")
    each = [time.start + i * time.step for i in range(content.count("t"))]
    return [
        f"spacings: {' '.join(repr(time.step) if a == 't' else 'NaN' for a in fastest)}",
        f"axis mins: {' '.join(repr(time.start) if a == 't' else 'NaN' for a in fastest)}",
        *(
            [f"units: {' '.join(_quoted(time.unit or '') if a == 't' else _quoted('') for a in fastest)}"]
            if time.unit
            else []
        ),
        f"axis {at} index type:=numeric",
        *([f"axis {at} index unit:={time.unit}"] if time.unit else []),
        f"axis {at} index values:={' '.join(map(repr, each))}",
    ]


def _vector(values: list[float]) -> str:
    return f"({','.join(repr(v + 0.0) for v in values)})"


def _quoted(unit: str) -> str:
    return '"' + unit.replace('"', "") + '"'


def _segments(content: Content) -> dict[str, str]:
    """Classes but the background."""
    if not content.classes:
        return {}
    found = {"Segmentation_MasterRepresentation": "Binary labelmap"}
    for label, name in enumerate(content.classes):
        if label:
            start = f"Segment{label - 1}_"
            colour = " ".join(f"{v / 255:.4f}" for v in colour_of(label, content.colours))
            found |= {f"{start}ID": f"Segment_{label}", f"{start}Name": _line(name), f"{start}Color": colour}
            found |= {f"{start}LabelValue": str(label), f"{start}Layer": "0"}
    return found


def _line(text: str) -> str:
    return " ".join(text.split())
