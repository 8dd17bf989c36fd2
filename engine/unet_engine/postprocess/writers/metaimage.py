"""MetaImage: ``.mha``, in a single file. Its header is a few lines of text, as ITK writes and reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet_engine.postprocess.content import Content
from unet_engine.postprocess.writers.base import (
    account_in,
    account_text,
    check_type,
    lost_crs,
    lost_measured,
    plain_type,
)
from unet_engine.units import micrometers
from unet_engine.volumes.base import Timing
from unet_engine.volumes.frame import Frame

_TYPES = {
    "i1": "MET_CHAR", "u1": "MET_UCHAR", "i2": "MET_SHORT", "u2": "MET_USHORT", "i4": "MET_INT", "u4": "MET_UINT",
    "i8": "MET_LONG_LONG", "u8": "MET_ULONG_LONG", "f4": "MET_FLOAT", "f8": "MET_DOUBLE",
}  # fmt: skip
_KEY = "unet_engine"
_COMMENT = "Comment"
"""Where earlier versions said what is now under keys of our own: ITK refuses a comment of more than some 250 letters."""
_VALUE = 4000
"""Letters of a value that ITK reads."""
_LONGEST = 2**24


class MetaImageWriter:
    name = "a MetaImage"
    endings = (".mha",)
    folder = False

    def require(self, path: str, frame: Frame | None) -> None:
        """Needs nothing."""

    def check(self, path: str, content: Content) -> None:
        check_type(path, content, self.name, list(_TYPES))

    def losses(self, content: Content) -> list[str]:
        found = lost_measured(content, "MetaImage") + lost_crs(content, "MetaImage")
        if content.unit and micrometers(1.0, content.unit) is None:
            found.append(f"MetaImage is in millimetres and has no unit {content.unit}: numbers are as they were")
        return found

    def write(self, place: Path, content: Content) -> None:
        held = content.axes + "z" * (content.count("t") > 1)  # time is the fourth axis
        axes = "".join(a for a in "tzyx" if a in held and (a != "t" or content.count("t") > 1)) + "c"
        place.write_bytes(_header(content, axes[:-1]))
        content.write_plain(place, place.stat().st_size, axes, plain_type(content.dtype))

    def account(self, path: str) -> Mapping[str, Any] | None:
        said = ""
        with Path(path).open("rb") as file:
            for line in iter(lambda: file.readline(_LONGEST), b""):
                key, _, value = line.decode("utf-8", "replace").removesuffix("\n").partition(" = ")
                if key == _COMMENT or key.startswith(f"{_KEY}_"):
                    said += value
                if key == "ElementDataFile":
                    break
        return account_in(said)


def _header(content: Content, axes: str) -> bytes:
    """For the axes of voxels, the slowest first. Of a series in time, the first three axes are those of space."""
    frame, _ = content.in_unit({"millimeter": "mm"})
    frame = frame.seen_in("LPS")
    n, spatial = len(axes), len(content.spatial)
    affine = frame.affine
    time = content.timing or Timing(1.0)  # of the fourth axis, which has no unit here
    sizes = [*reversed(frame.sizes), *(1.0,) * (min(n, 3) - spatial), *(time.step,) * (n - 3)]
    # a row of the file is the direction of an axis
    turned = [
        [affine[w][v] / sizes[v] if v < spatial and w < spatial else float(v == w) for w in range(n)] for v in range(n)
    ]
    origin = [affine[w][spatial] if w < spatial else time.start * (w == 3) for w in range(n)]
    lines = {
        "ObjectType": "Image",
        "NDims": str(n),
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": _numbers([v for row in turned for v in row]),
        "Offset": _numbers(origin),
        "CenterOfRotation": _numbers([0.0] * n),
        **({"AnatomicalOrientation": "RAI"} if frame.space == "LPS" and n == 3 else {}),
        "ElementSpacing": _numbers(sizes),
        "DimSize": " ".join(str(content.count(a)) for a in reversed(axes)),
        **({"ElementNumberOfChannels": str(content.count("c"))} if content.count("c") > 1 else {}),
        **_account(content),
        "ElementType": _TYPES[plain_type(content.dtype).str[1:]],
        "ElementDataFile": "LOCAL",
    }
    return "".join(f"{key} = {value}\n" for key, value in lines.items()).encode()


def _account(content: Content) -> dict[str, str]:
    """In pieces, none of which begins or ends with a blank, as ITK takes these away."""
    text, found = account_text(content), dict[str, str]()
    while text:
        length = len(text[:_VALUE].rstrip())
        while length < len(text) and text[length - 1 : length + 1] != text[length - 1 : length + 1].strip():
            length -= 1
        found[f"{_KEY}_{len(found)}"], text = text[:length], text[length:]
    return found


def _numbers(values: list[float]) -> str:
    return " ".join(repr(v + 0.0) for v in values)
