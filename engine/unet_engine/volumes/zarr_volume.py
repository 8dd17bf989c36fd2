"""The input: a Zarr array (v2 or v3) or the full resolution of an OME-Zarr group, read by box in the model's axis order."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.core.sync import sync
from zarr.errors import UnstableSpecificationWarning

from unet_engine.errors import DataError, InputError, first_line
from unet_engine.plan.box import Box
from unet_engine.profiling.recorder import PLAIN, Recorder
from unet_engine.storage.codecs import fast_codecs
from unet_engine.units import times

SAMPLES = 64
SAMPLE_VOXELS = 2**16
"""Normalisation and fingerprint look at this many boxes of at most so many voxels, spread over the volume."""

_BY_RANK = {2: "yx", 3: "zyx", 4: "czyx", 5: "tczyx"}


def _with_fast_codecs(path: str, array: zarr.Array) -> zarr.Array:
    """`array` opened again with the native codec pipeline, where that can read it."""
    metadata = array.metadata
    if "://" in path:
        return array
    if metadata.zarr_format == 2 and (
        metadata.order == "F" or not np.dtype(array.dtype).isnative or metadata.fill_value is None
    ):
        return array
    with fast_codecs(path):
        return zarr.open_array(array.store_path, mode="r")


@dataclass(frozen=True)
class Volume:
    """A volume opened for reading. Shapes and boxes are spatial, in the order of `spatial` (z, y, x as far as present)."""

    path: str
    array: zarr.Array
    axes: str
    """Axes of the stored array, e.g. ``czyx``."""
    spacing: tuple[float, ...] | None
    translation: tuple[float, ...]
    unit: str | None

    @property
    def is_local(self) -> bool:
        return "://" not in self.path

    @property
    def has_native_codecs(self) -> bool:
        """Whether chunks are decoded by the native pipeline rather than zarr's own."""
        return type(self.array.async_array.codec_pipeline).__name__ == "ZarrsCodecPipeline"

    @property
    def spatial(self) -> str:
        return "".join(a for a in "zyx" if a in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._along(self.array.shape)

    @property
    def chunks(self) -> tuple[int, ...]:
        """What is read and decoded at once: a chunk, or the inner chunk of a shard."""
        return self._along(self.array.chunks)

    @property
    def stored_spatial(self) -> str:
        """The spatial axes in the order they are stored, which the output keeps."""
        return "".join(a for a in self.axes if a in "zyx")

    @property
    def channels(self) -> int:
        return int(self.array.shape[self.axes.index("c")]) if "c" in self.axes else 1

    @property
    def dtype(self) -> np.dtype[Any]:
        native: np.dtype[Any] = np.dtype(self.array.dtype).newbyteorder("=")
        return native

    @property
    def voxel_bytes(self) -> int:
        """Bytes of one voxel with all its channels."""
        return self.dtype.itemsize * self.channels

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one decoded chunk, no larger than the volume."""
        return int(prod(map(min, self.array.chunks, self.array.shape))) * self.dtype.itemsize

    def _along(self, values: Sequence[int]) -> tuple[int, ...]:
        return tuple(int(values[self.axes.index(a)]) for a in self.spatial)

    def read(self, box: Box, recorder: Recorder = PLAIN) -> npt.NDArray[Any]:
        """The voxels of `box`: shape (channels, *box.shape), the volume's dtype in native byte order, C-contiguous.

        Raises `DataError` naming the chunk that cannot be read.
        """
        try:
            stored = self.array[self._selection(box)]
        except Exception as error:
            raise self._unreadable(box, error) from error
        return self._oriented(np.asarray(stored))

    def _selection(self, box: Box) -> tuple[slice | int, ...]:
        spans: dict[str, slice | int] = dict(zip(self.spatial, box.slices(), strict=True))
        return tuple(spans.get(a, slice(None) if a == "c" else 0) for a in self.axes)

    def _oriented(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        kept = [a for a in self.axes if a in "czyx"]
        wanted = [a for a in "czyx" if a in kept]
        voxels = stored.transpose([kept.index(a) for a in wanted])
        if "c" not in kept:
            voxels = voxels[np.newaxis]
        return np.ascontiguousarray(voxels, dtype=self.dtype)

    def _unreadable(self, box: Box, error: Exception) -> DataError:
        """Find the chunk at fault by reading one by one."""
        for cell in box.cells(self.chunks):
            try:
                self.array[self._selection(cell)]
            except Exception as fault:
                corner = tuple(l // c for l, c in zip(cell.lo, self.chunks, strict=True))
                where = " ".join(f"{a}={i}" for a, i in zip(self.spatial, corner, strict=True))
                return DataError(
                    f"{self.path}: chunk {where} (voxels {cell}) cannot be read: {first_line(fault)}; "
                    "restore the chunk, or delete it to have it read as the fill value"
                )
        return DataError(f"{self.path}: voxels {box} cannot be read: {first_line(error)}")

    # --- what is there ---

    def has_data(self, box: Box) -> bool:
        """Whether any stored chunk (shard, if sharded) meets `box`; missing ones read as the fill value."""
        return any(map(self._exists, self.stored_keys(box)))

    def stored_keys(self, box: Box) -> Iterator[str]:
        """Where the chunks (shards, if sharded) that meet `box` are stored if they are, below the array."""
        units = self.array.shards or self.array.chunks
        step = self._along(units)
        channels = range(-(-self.channels // units[self.axes.index("c")])) if "c" in self.axes else range(1)
        for cell in box.cells(step):
            corner: dict[str, int] = {a: l // s for a, l, s in zip(self.spatial, cell.lo, step, strict=True)}
            for c in channels:
                index = tuple(corner.get(a, c if a == "c" else 0) for a in self.axes)
                yield str(self.array.metadata.encode_chunk_key(index))

    def _exists(self, key: str) -> bool:
        place = self.array.store_path / key
        root = getattr(place.store, "root", None)
        # a local file is asked for directly: a thousand times per block, the detour through the event loop would show
        return Path(root, place.path).exists() if isinstance(root, Path) else bool(sync(place.exists()))

    @property
    def fill_value(self) -> float:
        return float(self.array.fill_value or 0)

    # --- samples ---

    def sample_boxes(self) -> Iterator[Box]:
        """Up to `SAMPLES` boxes inside single chunks, spread by a low-discrepancy sequence; the whole of a small volume.

        Additive recurrence with powers of the generalised golden ratio (M. Roberts, 2018).
        """
        if prod(self.shape) <= SAMPLES * SAMPLE_VOXELS // 4:
            yield from Box.of_shape(self.shape).cells(self.chunks)
            return
        n = len(self.shape)
        ratio = 1.0
        for _ in range(32):
            ratio = (1 + ratio) ** (1 / (n + 1))
        side = round(SAMPLE_VOXELS ** (1 / n))
        for i in range(1, SAMPLES + 1):
            corner = [int(size * ((0.5 + i * ratio ** -(a + 1)) % 1)) for a, size in enumerate(self.shape)]
            lo = [x // c * c + min(x % c, max(0, c - side)) for x, c in zip(corner, self.chunks, strict=True)]
            hi = [min(l + min(side, c), size) for l, c, size in zip(lo, self.chunks, self.shape, strict=True)]
            yield Box(tuple(lo), tuple(hi))

    @cached_property
    def samples(self) -> list[npt.NDArray[Any]]:
        """Values of the sample boxes per channel, flat. Missing chunks are left out, unless all are missing."""
        present = [box for box in self.sample_boxes() if self.has_data(box)] or [next(iter(self.sample_boxes()))]
        blocks = [self.read(box).reshape(self.channels, -1) for box in present]
        return [np.concatenate([block[c] for block in blocks]) for c in range(self.channels)]

    def fingerprint(self) -> str:
        """Tells volumes apart without reading them whole: hash of shape, type, axes and the samples."""
        digest = hashlib.sha256(f"{self.shape} {self.dtype} {self.axes}".encode())
        for values in self.samples:
            digest.update(values.tobytes())
        return digest.hexdigest()[:16]


def open_volume(path: str, axes: str | None = None) -> Volume:
    """Open `path`: a Zarr array, or a group whose multiscales (OME-Zarr 0.4 or 0.5) name the full resolution.

    `axes` overrides what the metadata say, e.g. ``czyx``. Raises `InputError` naming what is missing and what to do.
    """
    path = str(path)
    if "://" not in path and not Path(path).exists():
        raise InputError(f"{path} does not exist; give the path of a Zarr array or group")
    if "://" not in path and not Path(path).is_dir():
        raise InputError(f"{path} is a file, and a Zarr volume is a folder; convert it to Zarr first")
    try:
        with warnings.catch_warnings():
            # of types whose encoding may change: they are no numbers, and refused below
            warnings.simplefilter("ignore", UnstableSpecificationWarning)
            node = zarr.open(path, mode="r")
    except FileNotFoundError as error:
        raise InputError(
            f"{path} holds no Zarr array or group (no zarr.json, .zarray or .zgroup); give the path of one, e.g. {path}/NAME"
        ) from error
    except Exception as error:
        raise InputError(
            f"{path} is not a readable Zarr array or group: {first_line(error)}; restore it, or give another --in"
        ) from error
    if isinstance(node, zarr.Group):
        array, names, spacing, translation, unit = _full_resolution(path, node)
    else:
        array, names, spacing, translation, unit = node, _dimension_names(node), None, None, None
    if np.dtype(array.dtype).kind not in "buif":
        raise InputError(f"{path} holds {array.dtype}; convert it to integers or floating point numbers")
    names = _checked_axes(path, array, axes or names)
    order = [names.index(a) for a in "zyx" if a in names]
    volume = Volume(
        path=path,
        array=_with_fast_codecs(path, array),
        axes=names,
        spacing=tuple(spacing[i] for i in order) if spacing else None,
        translation=tuple(translation[i] for i in order) if translation else (0.0,) * len(order),
        unit=unit,
    )
    if 0 in array.shape:
        raise InputError(f"{path} is empty, its shape is {times(array.shape)}; give a volume with voxels")
    return volume


def _full_resolution(path: str, group: zarr.Group) -> tuple[zarr.Array, str | None, Any, Any, str | None]:
    attributes = dict(group.attrs)
    scales = dict(attributes.get("ome", attributes)).get("multiscales")
    if not scales:
        inside = ", ".join(_children(group)) or "none"
        raise InputError(
            f"{path} is a Zarr group without OME multiscales; name one of the arrays in it ({inside}), e.g. {path}/NAME"
        )
    try:
        level = scales[0]["datasets"][0]
        declared = scales[0].get("axes") or []
        names = "".join(a["name"] if isinstance(a, dict) else a for a in declared).lower() or None
        units = [a.get("unit") for a in declared if isinstance(a, dict) and a.get("type") == "space"]
        scale, translation = _placed(
            [*level.get("coordinateTransformations", []), *scales[0].get("coordinateTransformations", [])]
        )
        where = str(level["path"])
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{path}: its OME multiscales are not valid ({first_line(error)}); name the array itself, e.g. {path}/0"
        ) from error
    try:
        array = zarr.open_array(group.store_path / where, mode="r")
    except Exception as error:
        raise InputError(
            f"{path}: its full resolution {where!r} cannot be opened: {first_line(error)}; restore it, or name another array, e.g. {path}/1"
        ) from error
    if any(values is not None and len(values) != array.ndim for values in (scale, translation)):
        raise InputError(
            f"{path}: scale or translation do not fit the {array.ndim} axes of {where!r}; name the array itself: {path}/{where}"
        )
    return array, names, scale, translation, units[-1] if units else None


def _placed(moves: Sequence[Mapping[str, Any]]) -> tuple[list[float] | None, list[float] | None]:
    """Scale and translation that `moves`, done one after the other, come to. A resolution's own come before those of all resolutions."""
    scale: list[float] | None = None
    translation: list[float] | None = None
    for move in moves:
        kind = move["type"]
        values = [float(v) for v in move[kind]] if kind in ("scale", "translation") else []
        if kind == "scale":
            scale = [s * v for s, v in zip(scale or [1.0] * len(values), values, strict=True)]
            translation = translation and [t * v for t, v in zip(translation, values, strict=True)]
        elif kind == "translation":
            translation = [t + v for t, v in zip(translation or [0.0] * len(values), values, strict=True)]
    return scale, translation


def _children(group: zarr.Group) -> list[str]:
    """Names of what lies in `group`; zarr warns of every file in it that is none of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sorted(name for name, _ in group.members())


def _dimension_names(array: zarr.Array) -> str | None:
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    if not names or any(not n or len(n) != 1 for n in names):
        return None
    return "".join(names).lower()


def _checked_axes(path: str, array: zarr.Array, axes: str | None) -> str:
    names = axes or _BY_RANK.get(array.ndim, "")
    if array.ndim < 2:
        raise InputError(f"{path} has {array.ndim} axes ({times(array.shape)}); give a volume with 2 or 3 spatial axes")
    if len(names) != array.ndim:
        fit = f"which {names!r} does not fit" if names else "and nothing says which"
        raise InputError(f"{path} has {array.ndim} axes ({times(array.shape)}), {fit}; use --axes, e.g. czyx")
    if len(set(names)) != len(names) or not set(names) <= set("tczyx") or not {"y", "x"} <= set(names):
        raise InputError(
            f"axes {names!r} of {path} are not understood; name each of t, c, z, y, x at most once, y and x always"
        )
    if "t" in names and array.shape[names.index("t")] != 1:
        raise InputError(
            f"{path} has {array.shape[names.index('t')]} time points; run one at a time on an array without t"
        )
    return names
