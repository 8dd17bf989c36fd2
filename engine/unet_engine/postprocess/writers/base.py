"""What a writer is, and what writers have in common."""

from __future__ import annotations

import gzip
import importlib
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from unet_engine.errors import OutputError
from unet_engine.postprocess.content import Content
from unet_engine.units import times
from unet_engine.version import version_of
from unet_engine.volumes import nodata
from unet_engine.volumes.account import KEY
from unet_engine.volumes.alpha import named
from unet_engine.volumes.frame import Frame

GZIP_LEVEL = 4
"""Labels pack well at any level; images take three times as long at 9 as at 4, for a percent."""


class Writer(Protocol):
    """A format that is written. It reads its content in an order of its own, by pieces."""

    @property
    def name(self) -> str:
        """As in a message: ``a NIfTI file``."""

    @property
    def endings(self) -> tuple[str, ...]: ...

    @property
    def folder(self) -> bool:
        """Whether it is a folder."""

    def require(self, path: str, frame: Frame | None) -> None:
        """Raise `OutputError` where a library is missing that writes to `path` what lies in `frame`."""

    def check(self, path: str, content: Content) -> None:
        """Raise `OutputError` where the format cannot hold it, or a library is missing. Nothing is read yet."""

    def losses(self, content: Content) -> list[str]:
        """What the format cannot hold of what is known, as the user is told."""

    def write(self, place: Path, content: Content) -> None:
        """Make the file, or folder, at `place`, where nothing is; temporary files may lie beside it. May raise
        anything."""

    def account(self, path: str) -> Mapping[str, Any] | None:
        """What was written of `Content.said`; None where nothing is found. May raise anything."""


def library(path: str, kind: str, module: str, extra: str) -> Any:
    """The library that writes `kind`. Raises `OutputError` naming the extra of ours that brings it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise OutputError(
            f"{path}: {kind} needs {name}, which is not installed here; pip install 'unet-engine[{extra}]'"
        ) from error


def account_text(content: Content) -> str:
    """All that formats have no place of their own for, as JSON: see `unet_engine.volumes.account`."""
    frame = content.frame
    facts = {
        "shape": list(content.shape),
        "axes": content.axes,
        "spacing": None if content.spacing is None else list(content.spacing),
        "translation": list(content.translation),
        "unit": content.unit,
        "frame": frame.facts() if frame else None,
        "channel_names": list(content.channel_names),
        **({"time": [content.timing.step, content.timing.start, content.timing.unit]} if content.timing else {}),
        **_nodata(content),
        "versions": {"unet-engine": version_of("unet-engine")},
        **{key: value for key, value in content.said.items() if key not in _OF_ZARR},
    }
    return json.dumps({KEY: facts})


def _nodata(content: Content) -> dict[str, Any]:
    """Of all channels, or of each."""
    found = nodata.same(content.missing)
    if found is None:
        return {"nodata_of": [[repr(float(value)) for value in own] for own in content.missing]}
    return {"nodata": [repr(float(value)) for value in found]} if found else {}


def lost_crs(content: Content, kind: str) -> list[str]:
    """What people are told where `kind` has no place for the reference system of `content`."""
    return [f"{kind} has no place for a map's CRS, which is left out"] if content.frame and content.frame.crs else []


def lost_mask(content: Content, kind: str) -> list[str]:
    """The same of alpha or a mask: what was not measured is then told by nothing."""
    if content.measured is None and content.gaps is None:
        return []
    return [f"{kind} has no place for what alpha or a mask leaves out: its values are written as they are"]


def lost_measured(content: Content, kind: str) -> list[str]:
    """The same of a format that has no place for nodata either. NaN says by itself that it is none."""
    if nodata.same(content.missing) is None:
        found = [
            f"{kind} has no place for nodata, of which channels have others: all values are read as measured there"
        ]
    else:
        values = ", ".join(f"{value:g}" for value in nodata.union(content.missing) if not isnan(value))
        found = [f"{kind} has no place for nodata: give --nodata {values} where it is read"] if values else []
    if alpha := named(content.channel_names, {}, content.count("c")):
        found.append(f"{kind} has no names of channels: that channel {alpha[0]} is alpha is left out")
    return found + lost_mask(content, kind)


_OF_ZARR = (
    "array",
    "blocks",
    "grid",
    "frame",
    "shape",
    "axes",
    "spacing",
    "translation",
    "unit",
    "channel_names",
    "time",
)
"""Of what a run says what is about the array that it wrote, or said anew."""


def account_in(text: str | None) -> Mapping[str, Any] | None:
    """What `account_text` made, read again."""
    try:
        found = json.loads(text or "").get(KEY)
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, dict) else None


def check_type(path: str, content: Content, kind: str, types: Sequence[str]) -> None:
    """Raise `OutputError` unless `kind` holds voxels of this type: ``u1``, ``f4`` and such. Bool counts as ``u1``."""
    if plain_type(content.dtype).str[1:] not in types:
        held = ", ".join(np.dtype(t).name for t in types)
        hint = (
            "write .zarr, or have a run make it with --dtype float32" if content.dtype == np.float16 else "write .zarr"
        )
        raise OutputError(f"{path}: {kind} cannot hold {content.dtype} ({held}); {hint}")


def plain_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """As it is written, in the order of bytes that all formats here have."""
    return np.dtype("u1") if dtype == np.bool_ else dtype.newbyteorder("<")


def chunks_of(content: Content) -> tuple[int, ...]:
    """In which a chunked format stores it: as it is read best, where that is a size that reads well in general."""
    return tuple(
        1 if a in "tc" else min(n, c if CHUNK // 4 <= c <= 2 * CHUNK else CHUNK)
        for a, n, c in zip(content.axes, content.shape, content.chunks, strict=True)
    )


CHUNK = 128
"""Voxels along a spatial axis."""


def check_axes(path: str, content: Content, kind: str, held: str) -> None:
    """Raise `OutputError` where there is an axis, longer than one, that `kind` does not hold."""
    said = {"t": "several time points", "c": "several channels", "z": "a stack of planes"}
    for axis, n in zip(content.axes, content.shape, strict=True):
        if axis not in held and n > 1:
            raise OutputError(
                f"{path}: {kind} holds no {said[axis].removeprefix('a ')} ({content.axes} {times(content.shape)}); "
                + ("pick one with --timepoint, or " if axis == "t" else "")
                + "write .zarr"
            )


def pack(raw: Path, out: Path) -> None:
    """Append `raw` to `out`, compressed with gzip, and remove it; the same bytes at any time and for any name."""
    with (
        raw.open("rb") as source,
        out.open("ab") as target,
        gzip.GzipFile("", "wb", GZIP_LEVEL, target, mtime=0) as packed,
    ):
        shutil.copyfileobj(source, packed, 2**20)
    raw.unlink()
