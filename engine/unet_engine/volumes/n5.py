"""N5: a dataset is a folder with ``attributes.json`` and a file for each block, its axes named from the fastest on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np

from unet_engine.errors import InputError, first_line
from unet_engine.paths import check_file, is_local
from unet_engine.plan.box import Box
from unet_engine.storage.unpacking import longest, unpacked
from unet_engine.units import brief, unit_along
from unet_engine.volumes.axes import check_sizes, checked_axes
from unet_engine.volumes.axis_names import letter
from unet_engine.volumes.base import Array, Selection, StoredVolume, Volume
from unet_engine.volumes.files import Part
from unet_engine.volumes.frame import covered
from unet_engine.volumes.resolution import unlike
from unet_engine.volumes.transformations import axes_of, of_level, placed
from unet_engine.volumes.witness import changed_since

ATTRIBUTES = "attributes.json"
_LONGEST = 2**26
_TYPES = {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)} | {"float32", "float64"}
_HEAD = 4
_LISTED = 24


class N5Format:
    def recognises(self, path: str) -> bool:
        if not is_local(path):
            return False
        folder = Path(path)
        if any((folder / name).exists() for name in ("zarr.json", ".zarray", ".zgroup")):
            return False
        return (folder / ATTRIBUTES).is_file() or (folder.is_dir() and path.rstrip("/").lower().endswith(".n5"))

    def open(self, path: str, axes: str | None) -> Volume:
        folder = _dataset(Path(path.rstrip("/")))
        try:
            return self._opened(path, folder, axes)
        except InputError:
            raise
        except Exception as error:  # attributes of the right form may still say anything
            raise InputError(f"{path}: its attributes make no sense: {first_line(error)}; correct them") from error

    def _opened(self, path: str, folder: Path, axes: str | None) -> Volume:
        said = _attributes(folder)
        shape = tuple(int(n) for n in reversed(said["dimensions"]))
        block = tuple(int(n) for n in reversed(said["blockSize"]))
        if said["dataType"] not in _TYPES:
            raise InputError(
                f"{path} holds {brief(said['dataType'])}; convert it to numbers of {', '.join(sorted(_TYPES))}"
            )
        if len(block) != len(shape):
            raise InputError(
                f"{path} has blocks of {len(block)} axes and {len(shape)} axes itself; correct its attributes"
            )
        check_sizes(path, shape, block)
        dtype = np.dtype(said["dataType"])
        around = _around(folder)
        if not said.get("transform"):
            said |= _of_level(around, folder.name)
        names, top = checked_axes(path, shape, dtype, axes or _names(said, around, len(shape))), _top(folder)
        found = _placed(said, around, top, names, _factors(said, around, top, names, folder.name)).sensible(path)
        return N5Volume(
            path=path,
            axes=names,
            stored_shape=shape,
            stored_chunks=tuple(map(min, block, shape)),
            stored_dtype=dtype,
            stored_spacing=found.scale,
            stored_translation=found.translation,
            unit=found.unit,
            notes=(*found.notes, *_unlike(path, said, _top(folder), names)),
            folder=str(folder),
            block=block,
            codec=_codec(path, said),
            part=Part.of(str(folder / ATTRIBUTES)),
        )


def _attributes(folder: Path) -> dict[str, Any]:
    place = folder / ATTRIBUTES
    try:
        check_file(place, _LONGEST)
        return dict(json.loads(place.read_bytes()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{place} cannot be read: {first_line(error)}; restore it, or give another --in") from error


def _is_dataset(folder: Path) -> bool:
    return "dimensions" in _attributes(folder)


def _dataset(folder: Path) -> Path:
    """The dataset that is meant: itself, the full resolution of a pyramid, or the only one inside. Raises `InputError`
    listing what there is."""
    if _is_dataset(folder):
        return folder
    if _is_dataset(folder / "s0"):
        return folder / "s0"
    found = sorted(_inside(folder))
    if len(found) == 1:
        return _dataset(found[0])
    names = [place.relative_to(folder).as_posix() for place in found[:_LISTED]]
    if not names:
        raise InputError(f"{folder} holds no N5 dataset; give the path of one, e.g. {folder}/volumes/raw")
    raise InputError(f"{folder} holds {len(found)} N5 datasets: {', '.join(names)}; name one, e.g. {folder}/{names[0]}")


def _inside(folder: Path, depth: int = 6) -> Iterator[Path]:
    """Datasets below `folder`, and the groups that hold a pyramid. No block is looked at."""
    if not folder.is_dir() or depth == 0:
        return
    for place in sorted(folder.iterdir()):
        if place.is_dir() and not place.name.isdigit():
            if _is_dataset(place) or _is_dataset(place / "s0"):
                yield place
            else:
                yield from _inside(place, depth - 1)


def _around(folder: Path) -> Mapping[str, Any]:
    """What the group of a pyramid says, of which the dataset is a level."""
    return _attributes(folder.parent) if _is_level(folder) else {}


def _top(folder: Path) -> Mapping[str, Any]:
    """What the full resolution says of itself, of which the dataset is a level."""
    return _attributes(folder.parent / "s0") if _is_level(folder) else {}


def _unlike(path: str, said: Mapping[str, Any], top: Mapping[str, Any], names: str) -> tuple[str, ...]:
    """What is told where a level is unlike the full resolution."""
    if not isinstance(top.get("dimensions"), list) or len(top["dimensions"]) != len(names):
        return ()
    here, full = ((str(s.get("dataType")), _channels(s["dimensions"], names)) for s in (said, top))
    return unlike(path, here, full)


def _channels(dimensions: Sequence[Any], names: str) -> int:
    return int(dimensions[::-1][names.index("c")]) if "c" in names else 1


def _is_level(folder: Path) -> bool:
    return folder.name[:1] == "s" and folder.name[1:].isdigit()


# --- what the attributes say ---


def _names(said: Mapping[str, Any], around: Mapping[str, Any], ndim: int) -> list[str] | None:
    """The axes from the slowest on, where anything names them. x is the fastest, whichever way they are listed."""
    transform = said.get("transform")
    inner = transform.get("axes") if isinstance(transform, Mapping) else None
    for found in (said.get("axes"), inner, around.get("axes")):
        if isinstance(found, list) and len(found) == ndim:
            names = [letter(str(name)) for name in found]
            fastest_first = "x" in names and "y" in names and names.index("x") < names.index("y")
            return names[::-1] if fastest_first else names
    return None


@dataclass(frozen=True)
class _Placed:
    scale: list[float] | None = None
    translation: list[float] | None = None
    unit: str | None = None
    notes: tuple[str, ...] = ()

    def sensible(self, path: str) -> _Placed:
        """The same, without a size that is none."""
        if self.scale is None or all(isfinite(s) and s for s in [*self.scale]):
            return self
        said = ", ".join(f"{s:g}" for s in self.scale)
        return replace(self, scale=None, notes=(*self.notes, f"{path}: its voxel size {said} is none: left out"))

    def measured(self, names: str, units: Mapping[str, str]) -> _Placed:
        """The same sizes along `names`, which were said in `units`, by axis, in one unit."""
        unit, factors, notes = unit_along(units)
        by = [factors.get(a, 1.0) for a in names]
        return replace(
            self,
            scale=self.scale and [s * f for s, f in zip(self.scale, by, strict=True)],
            translation=self.translation and [t * f for t, f in zip(self.translation, by, strict=True)],
            unit=unit,
            notes=(*self.notes, *notes),
        )


def _of_level(around: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the multiscales of a group say of the level `name`, as the level may say it itself."""
    scales = around.get("multiscales")
    for image in scales if isinstance(scales, list) else ():
        for level in image.get("datasets", ()):
            if str(level.get("path", "")).strip("/") != name:
                continue
            if isinstance(level.get("transform"), Mapping):
                return {"transform": level["transform"]}
            axes = [a for a in axes_of(image) if isinstance(a, Mapping)]
            found = placed(of_level(image, level), [str(a["name"]) for a in axes])
            if found.scale:
                units = [str(a.get("unit") or "") for a in axes]
                said = {"axes": [a["name"] for a in axes], "scale": found.scale, "units": units}
                return {"transform": {**said, "translate": found.translation}}
    return {}


def _factors(
    said: Mapping[str, Any], around: Mapping[str, Any], top: Mapping[str, Any], names: str, name: str
) -> list[float]:
    """How many voxels of the full resolution one of the level `name` covers: as it says, its group does, or as follows
    from how many there are."""
    factors = said.get("downsamplingFactors")
    level = int(name[1:]) if name[:1] == "s" and name[1:].isdecimal() else 0
    for key in ("downsamplingFactors", "scales"):
        listed = around.get(key)
        if (
            factors is None
            and isinstance(listed, list)
            and level < len(listed)
            and isinstance(listed[level], list | str)
        ):
            factors = listed[level]
    found = _numbers(factors, names, 1.0)
    if found and all(isfinite(f) and f > 0 for f in found):
        return found
    full, here = top.get("dimensions"), said.get("dimensions")
    if not (isinstance(full, list) and isinstance(here, list) and len(full) == len(here) == len(names)):
        return [1.0] * len(names)
    pairs = zip(names, reversed(full), reversed(here), strict=True)
    return [covered(int(n), int(m)) if a in "zyx" else 1.0 for a, n, m in pairs]


def _placed(
    said: Mapping[str, Any],
    around: Mapping[str, Any],
    top: Mapping[str, Any],
    names: str,
    factors: Sequence[float],
) -> _Placed:
    """Where voxels lie. ``transform`` names its axes; all else is in the order of the dimensions, x first."""
    transform = said.get("transform")
    if isinstance(transform, Mapping) and transform.get("axes"):
        axes = [letter(str(a)) for a in transform["axes"]]
        scale = dict(zip(axes, map(float, transform["scale"]), strict=True))
        moved = dict(zip(axes, map(float, transform.get("translate") or [0.0] * len(axes)), strict=True))
        said_in = dict(zip(axes, map(str, transform.get("units") or [""] * len(axes)), strict=True))
        units = {a: u for a, u in said_in.items() if a in "zyx"}
        return _Placed([scale.get(a, 1.0) for a in names], [moved.get(a, 0.0) for a in names]).measured(names, units)
    own, full = _sizes(said, names), around
    if own and any(f != 1 for f in factors) and own == _sizes(top, names):
        full = said  # n5-viewer has every level say the voxel size of the full resolution
    elif own:
        moved_by = _numbers(said.get("offset"), names) or [0.0] * len(names)
        units = _units_of(said, names) or _units_of(around, names)
        return _Placed(own, moved_by, notes=_doubt(said, own, names)).measured(names, units)
    sizes = _sizes(full, names)
    if not sizes:
        return _Placed()
    start = _numbers(full.get("offset"), names) or [0.0] * len(names)
    start = [t + s * (f - 1) / 2 for t, s, f in zip(start, sizes, factors, strict=True)]
    scale_of = [s * f for s, f in zip(sizes, factors, strict=True)]
    units = _units_of(full, names) or _units_of(around, names)
    return _Placed(scale_of, start, notes=_doubt(full, sizes, names)).measured(names, units)


def _sizes(said: Mapping[str, Any], names: str) -> list[float] | None:
    pixel = said.get("pixelResolution")
    found = pixel.get("dimensions") if isinstance(pixel, Mapping) else pixel or said.get("resolution")
    return _numbers(found, names, 1.0)


def _numbers(values: Any, names: str, other: float = 0.0) -> list[float] | None:
    """Numbers from x on, for all axes or the spatial ones, as they are stored; as a list, or as text of one."""
    if isinstance(values, str):
        values = _listed(values)
    if not isinstance(values, list) or not values:
        return None
    numbers = [float(v) for v in reversed(values)]
    if len(numbers) == len(names):
        return numbers
    spatial = [a for a in names if a in "zyx"]
    if len(numbers) != len(spatial):
        raise ValueError(f"{len(numbers)} numbers for the axes {names}")
    of = dict(zip(spatial, numbers, strict=True))
    return [of.get(a, other) for a in names]


def _listed(text: str) -> list[str]:
    """What ``[2, 2, 1]``, ``2,2,1`` or ``2x2x1`` lists; nothing where it lists no numbers."""
    found = re.split(r"[\s,;x×]+", text.strip().strip("[](){}").strip())
    return found if all(re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", one, re.I) for one in found) else []


def _units_of(said: Mapping[str, Any], names: str) -> dict[str, str]:
    """By spatial axis of `names`; empty where nothing is said."""
    pixel, spatial = said.get("pixelResolution"), [a for a in names if a in "zyx"]
    units = pixel.get("unit") if isinstance(pixel, Mapping) else None
    units = units or said.get("units") or []
    listed = [str(u or "") for u in reversed(units)] if isinstance(units, list) else [str(units)] * len(spatial)
    if len(listed) == len(names):
        return {a: u for a, u in zip(names, listed, strict=True) if a in "zyx"}
    of_all = [u for u in listed if u][:1] * len(spatial)
    return dict(zip(spatial, listed if len(listed) == len(spatial) else of_all, strict=True)) if of_all else {}


def _doubt(said: Mapping[str, Any], sizes: Sequence[float], names: str) -> tuple[str, ...]:
    """A note where it matters that some tools write ``resolution`` of N5 the other way round."""
    spatial = [s for s, a in zip(sizes, names, strict=True) if a in "zyx"]
    if "pixelResolution" in said or len(set(spatial)) < 2:
        return ()
    told = ", ".join(f"{a} {s:g}" for a, s in zip((a for a in names if a in "zyx"), spatial, strict=True))
    return (f"resolution of N5 is taken from x on ({told}); some tools write it from z on",)


_CODECS: Mapping[str, Any] = {
    "raw": lambda _: None,
    "gzip": lambda said: numcodecs.Zlib() if said.get("useZlib") else numcodecs.GZip(),
    "bzip2": lambda _: numcodecs.BZ2(),
    "xz": lambda _: numcodecs.LZMA(),
    "zstd": lambda _: numcodecs.Zstd(),
    "zstandard": lambda _: numcodecs.Zstd(),
    "blosc": lambda _: numcodecs.Blosc(),
}


def _codec(path: str, said: Mapping[str, Any]) -> Any:
    packing = said.get("compression", said.get("compressionType", "raw"))
    packing = packing if isinstance(packing, Mapping) else {"type": packing}
    if packing.get("type") not in _CODECS:
        raise InputError(
            f"{path} is packed by {brief(packing.get('type'))}, and {', '.join(_CODECS)} are read; convert it to one of them"
        )
    return _CODECS[str(packing["type"])](packing)


# --- reading ---


@dataclass(frozen=True, eq=False, kw_only=True)
class N5Volume(StoredVolume):
    """Read block by block; one that is not stored is zeros."""

    folder: str
    block: tuple[int, ...]
    codec: Any
    part: Part

    remedy = "restore the block, or delete it to have it read as zeros"

    def stored(self, selection: Selection) -> Array:
        spans = [part.indices(n)[:2] for part, n in zip(selection, self.stored_shape, strict=True)]
        found = np.zeros([max(0, hi - lo) for lo, hi in spans], self.stored_dtype)
        missing = False
        for index in product(*(range(lo // b, -(-hi // b)) for (lo, hi), b in zip(spans, self.block, strict=True))):
            voxels = self._read(index)
            if voxels is None:
                missing = True
                continue
            source, target = [], []
            for i, b, n, (lo, hi) in zip(index, self.block, voxels.shape, spans, strict=True):
                first, last = max(lo, i * b), min(hi, i * b + n)
                source.append(slice(first - i * b, max(first, last) - i * b))
                target.append(slice(first - lo, max(first, last) - lo))
            found[tuple(target)] = voxels[tuple(source)]
        if missing:
            self.confirm()
        return found

    def _read(self, index: Sequence[int]) -> Array | None:
        """The voxels of a block, from the slowest axis on; None where it is not stored."""
        place = f"{self.folder}/{_key(index)}"
        most = longest(prod(self.block) * self.stored_dtype.itemsize) + 2**10
        try:
            check_file(place, most)
        except (FileNotFoundError, NotADirectoryError):
            return None
        data = Path(place).read_bytes()
        kind, ndim = (int(n) for n in np.frombuffer(data, ">u2", 2))
        begin = _HEAD + 4 * ndim + 4 * (kind == 1)
        if kind > 1 or ndim != len(self.block) or len(data) < begin:
            raise ValueError("it is no block of this dataset")
        shape = tuple(int(n) for n in reversed(np.frombuffer(data, ">u4", ndim, _HEAD)))
        if kind == 1 and (count := int(np.frombuffer(data, ">u4", 1, begin - 4)[0])) != prod(shape):
            raise ValueError(f"it is a block of varying length, of {count:,} numbers, and has {prod(shape):,} voxels")
        if any(n > b for n, b in zip(shape, self.block, strict=True)):
            raise ValueError(f"it says that it has {shape} voxels, and a block has {self.block}")
        size = prod(shape) * self.stored_dtype.itemsize
        numbers = unpacked(self.codec, data[begin:], size) if self.codec else data[begin:]
        if len(numbers) != size:
            raise ValueError(f"it has {len(numbers):,} bytes of {size:,}")
        return np.frombuffer(numbers, self.stored_dtype.newbyteorder(">")).reshape(shape)

    def _keys(self, box: Box) -> Iterator[str]:
        spans = [part.indices(n)[:2] for part, n in zip(self._selection(box), self.stored_shape, strict=True)]
        for index in product(*(range(lo // b, -(-hi // b)) for (lo, hi), b in zip(spans, self.block, strict=True))):
            yield _key(index)

    def has_data(self, box: Box) -> bool:
        if any(Path(self.folder, key).exists() for key in self._keys(box)):
            return True
        self.confirm()
        return False

    def changed(self, box: Box, since: float) -> str | None:
        key = changed_since(self.folder, self._keys(box), since)
        return f"block {key} of {self.path}" if key else None

    def confirm(self) -> None:
        self.part.confirm(self.path)


def _key(index: Sequence[int]) -> str:
    return "/".join(map(str, reversed(index)))
