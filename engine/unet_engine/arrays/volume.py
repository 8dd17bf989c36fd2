"""An array that is open, as a volume: read by box, with whatever threads its library has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.arrays.apart import overwritten, same_place, share_memory
from unet_engine.errors import InputError, first_line
from unet_engine.paths import plain
from unet_engine.units import unit_name
from unet_engine.volumes import alpha
from unet_engine.volumes.axes import check_sizes, checked_axes
from unet_engine.volumes.axis_names import letter
from unet_engine.volumes.base import Array, Selection, StoredVolume, Volume
from unet_engine.volumes.files import plain_chunks
from unet_engine.volumes.formats import open_volume

PLACE = "array://"
"""What paths of volumes begin with that lie in memory; nobody opens them by that."""
_EVEN = 1e-3


@dataclass(frozen=True, eq=False, kw_only=True)
class ArrayVolume(StoredVolume):
    """Voxels that `get` gives for a selection in stored order."""

    get: Callable[[Selection], Any]
    target: Any = None
    """What the result is written into, where that is given: as blocks are written while others are read, voxels may not
    lie in its memory."""
    remedy = "give another array"

    def stored(self, selection: Selection) -> Array:
        return np.asarray(self.get(selection))

    def _oriented(self, stored: Array) -> Array:
        """Never a view of what is given: who reads may write to voxels, as where nothing was measured. Raises
        `OutputError` for voxels of the target."""
        if share_memory(self.target, stored):
            raise overwritten()
        voxels = super()._oriented(stored)
        return voxels.copy() if np.may_share_memory(voxels, stored) else voxels


@dataclass(frozen=True)
class Source:
    """A volume, and what its result is to be like."""

    volume: Volume
    kind: str
    """``numpy``, ``zarr``, ``dask`` or ``xarray``."""
    given: Any
    """The array, for its coordinates."""

    @property
    def result_kind(self) -> str:
        """Which array blocks of the result are written into."""
        if self.kind == "xarray":
            return "zarr" if self.given.chunks else "numpy"
        return "zarr" if self.kind == "dask" else self.kind

    def written_into(self, out: Any) -> Source:
        """The same, with what the result is written into. Raises `OutputError` where both are one array of a store or a
        file; where both lie in one memory, reading does."""
        if out is None or not isinstance(self.volume, ArrayVolume):
            return self
        if same_place(self.given, out):
            raise overwritten()
        return replace(self, volume=replace(self.volume, target=out))


def kind_of(array: Any) -> str | None:
    """Which library's array it is: ``numpy`` for all that NumPy can index, ``store`` for what holds Zarr; None for no
    array. Nothing is imported for it."""
    root = type(array).__module__.partition(".")[0]
    if root == "xarray" and hasattr(array, "dims") and hasattr(array, "isel") and hasattr(array, "dtype"):
        return "xarray"
    if root == "dask" and hasattr(array, "chunksize"):
        return "dask"
    if root == "zarr":
        return "zarr" if hasattr(array, "chunks") else "store"
    return "numpy" if hasattr(array, "shape") and hasattr(array, "dtype") and hasattr(array, "__getitem__") else None


def source_of(
    array: Any, axes: str | None = None, spacing: Sequence[float] | None = None, unit: str | None = None
) -> Source:
    """The volume that `array` is: an array of NumPy, Zarr, dask or xarray, anything that is indexed like one (h5py's
    datasets, tensors on the CPU), a Zarr group or store with an OME-Zarr image, or the path or URL of a volume.

    axes: its axes, e.g. ``czyx``; default: what it says, else ``yx``, ``zyx``, ``czyx`` or ``tczyx``
    spacing: distance of voxels along its spatial axes, z, y, x as far as present; default: what it says
    unit: of the spacing, e.g. ``micrometer``

    Raises `InputError` for what is no volume.
    """
    if isinstance(array, StoredVolume):
        return Source(_placed(array, spacing, unit), "numpy", None)
    if isinstance(array, str | Path):
        return Source(_placed(open_volume(plain(str(array)), axes), spacing, unit), "zarr", None)
    kind, said = kind_of(array), None
    if kind is None:
        raise InputError(f"{type(array).__name__} is no volume; give an array, a path, or a Zarr group or store")
    if kind == "store":
        array, axes, spacing, unit, said = _in_store(array, axes, spacing, unit)
        kind = "zarr"
    made = {"xarray": _xarray, "dask": _dask, "zarr": _zarr, "numpy": _numpy}[kind]
    found = _placed(made(array, axes), spacing, unit)
    return Source(_with_names(found, said, dict(array.attrs)) if said else found, kind, array)


def _with_names(volume: Volume, names: tuple[str, ...], attributes: dict[str, Any]) -> Volume:
    """`volume` with what its channels are called, and which of them is alpha."""
    assert isinstance(volume, StoredVolume)
    found, doubts = alpha.settled(volume.path, alpha.named(names, attributes, volume.channels), volume.channels)
    return replace(volume, channel_names=names, alpha=found, notes=(*volume.notes, *doubts))


def _placed(volume: Volume, spacing: Sequence[float] | None, unit: str | None) -> Volume:
    if spacing is None and unit is None:
        return volume
    if not isinstance(volume, StoredVolume):
        raise InputError(f"{volume.path} says its spacing itself; leave spacing and unit out")
    if spacing is None:
        return replace(volume, unit=unit)
    if len(spacing) != len(volume.spatial) or not all(isfinite(s) and s for s in spacing):
        raise InputError(
            f"spacing {tuple(spacing)} does not fit the axes {volume.spatial}; give a distance for each axis"
        )
    of = dict(zip(volume.spatial, map(float, spacing), strict=True))
    return replace(volume, stored_spacing=tuple(of.get(axis, 1.0) for axis in volume.axes), unit=unit or volume.unit)


def _volume(
    name: str,
    array: Any,
    axes: Sequence[str] | None,
    chunks: Sequence[int] | None,
    get: Callable[[Selection], Any],
    **facts: Any,
) -> ArrayVolume:
    path, dtype = PLACE + name, np.dtype(array.dtype)
    if not all(isfinite(n) for n in array.shape):
        raise InputError(f"{path} does not know its shape; give it after compute_chunk_sizes()")
    shape = tuple(map(int, array.shape))
    check_sizes(path, shape, shape)
    names = checked_axes(path, shape, dtype, axes)
    return ArrayVolume(
        path=path,
        axes=names,
        stored_shape=shape,
        stored_chunks=tuple(chunks) if chunks else plain_chunks(names, shape),
        stored_dtype=dtype,
        get=get,
        **facts,
    )


def _numpy(array: Any, axes: str | None) -> Volume:
    if not isinstance(array.dtype, np.dtype):
        array = _of_tensor(array)
    if isinstance(array, np.ma.MaskedArray):
        if hidden := int(np.ma.getmaskarray(array).sum()):
            raise InputError(
                f"{PLACE}numpy has {hidden:,} masked voxels, and a network is given numbers; give array.filled(VALUE), and "
                "nodata=VALUE where they are to be left out"
            )
        array = array.data
    return _volume("numpy", array, axes, getattr(array, "chunks", None), lambda selection: array[selection])


def _of_tensor(array: Any) -> Any:
    """As an array of NumPy, of a tensor on the CPU without copying it. Raises `InputError` for what cannot be one."""
    with suppress(AttributeError):
        array = array.detach()
    try:
        return np.asarray(array)
    except Exception as error:
        raise InputError(
            f"{type(array).__name__} cannot be read as an array ({first_line(error)}); give one on the CPU, of a type "
            "that NumPy has"
        ) from error


def _dask(array: Any, axes: str | None) -> Volume:
    def get(selection: Selection) -> Any:
        return array[selection].compute(scheduler="threads")

    return _volume("dask", array, axes, array.chunksize, get)


def _zarr(array: Any, axes: str | None) -> Volume:
    names = getattr(array.metadata, "dimension_names", None)
    known = [letter(str(name)) for name in names] if names and all(names) else None
    fill = array.fill_value
    return _volume(
        "zarr", array, axes or known, array.chunks, lambda selection: array[selection],
        fill_value=float(fill) if isinstance(fill, int | float | np.number) else 0.0,
    )  # fmt: skip


def _in_store(
    store: Any, axes: str | None, spacing: Sequence[float] | None, unit: str | None
) -> tuple[Any, str | None, Sequence[float] | None, str | None, tuple[str, ...]]:
    """The full resolution of the image in a Zarr group or store, and what its metadata say where nobody else does."""
    import zarr

    from unet_engine.volumes.ome import full_resolution

    node = store if isinstance(store, zarr.Group) else zarr.open(store, mode="r")
    if isinstance(node, zarr.Array):
        return node, axes, spacing, unit, ()
    found = full_resolution(PLACE + "zarr", node)
    names = "".join(found.axes) if found.axes else None
    if spacing is None and found.scale and names:
        of = dict(zip(names, found.scale, strict=True))
        spacing = [of[axis] for axis in "zyx" if axis in of]
    return found.array, axes or names, spacing, unit or found.unit, found.channel_names


# --- xarray ---


def _xarray(array: Any, axes: str | None) -> Volume:
    names = list(axes) if axes else [letter(str(dim)) for dim in array.dims]
    steps = [_steps(array, dim) if name in "zyx" else None for dim, name in zip(array.dims, names, strict=False)]
    even = len(names) == len(array.dims) and all(step for step, name in zip(steps, names, strict=True) if name in "zyx")
    units = {
        unit_name(str(array[dim].attrs.get("units", ""))) for dim, step in zip(array.dims, steps, strict=False) if step
    }
    chunks = [max(sizes) for sizes in array.chunks] if array.chunks else None

    def get(selection: Selection) -> Any:
        return array.isel(dict(zip(array.dims, selection, strict=True))).values

    return _volume(
        "xarray", array, names, chunks, get,
        stored_translation=tuple(step[0] if step else 0.0 for step in steps) if even else None,
        stored_spacing=tuple(step[1] if step else 1.0 for step in steps) if even else None,
        unit=(units.pop() or None) if even and len(units) == 1 else None,
    )  # fmt: skip


def _steps(array: Any, dim: Any) -> tuple[float, float] | None:
    """Where the first voxel lies and how far the next, along a dimension with evenly spaced coordinates."""
    if dim not in array.coords:
        return None
    values = np.asarray(array[dim].values)
    if values.ndim != 1 or len(values) < 2 or values.dtype.kind not in "iuf":
        return None
    steps = np.diff(values.astype(np.float64))
    mean = float(steps.mean())
    if not isfinite(mean) or not mean or np.abs(steps - mean).max() > _EVEN * abs(mean):
        return None
    return float(values[0]), mean
