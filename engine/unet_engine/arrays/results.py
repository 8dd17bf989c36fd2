"""Results that are arrays: what takes the place of an output while blocks are written, and what is made of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from unet_engine.arrays.apart import check_apart
from unet_engine.arrays.volume import Source
from unet_engine.errors import OutputError
from unet_engine.output.layout import Layout
from unet_engine.plan.box import Box
from unet_engine.prepare.prepare import Prepared
from unet_engine.units import times
from unet_engine.volumes.base import Array


class ArraySink:
    """Writes blocks into an array, see `unet_engine.pipeline.worker.Sink`."""

    def __init__(self, made: Callable[[Layout], Any], out: Any) -> None:
        self.array: Any = None
        self._made, self._out, self._lock = made, out, threading.Lock()

    def __call__(self, prepared: Prepared) -> ArraySink:
        """The same, for this run. Raises `OutputError` where `out` lies in what it reads."""
        survey, job = prepared.survey, prepared.job
        if self._out is not None:
            for volume in (survey.scan, *((survey.mask.volume,) if survey.mask else ())):
                check_apart(volume, self._out)
        self.layout = job.layout
        self.array = self._made(job.layout)
        if job.layout.begin is not None:  # not all of it is written
            self.array[...] = 0
        return self

    def write(self, box: Box, values: Array) -> None:
        with self._lock:  # of several devices
            self.array[self.layout.target(box)] = self.layout.as_stored(values)

    def mark(self, index: tuple[int, ...], stored: object = None) -> None:
        """Nobody will resume it."""

    def doubt(self, blocks: Sequence[tuple[int, ...]], what: str) -> None:
        """Arrays do not tell that they were changed."""

    def settle(self) -> None:
        """Nothing is recorded."""

    def pending(self) -> Callable[[tuple[int, ...]], bool]:
        return lambda _: True


def shape_of(layout: Layout) -> tuple[int, ...]:
    """Shape of the result as it is stored: channels first, where it has any."""
    return (*(() if layout.channels is None else (layout.channels,)), *layout.in_stored_order(layout.shape))


def maker(kind: str, out: Any) -> Callable[[Layout], Any]:
    """Makes what blocks are written into: `out`, or an array of NumPy; of Zarr in memory, compressed, for ``zarr`` and
    ``dask``."""

    def made(layout: Layout) -> Any:
        shape = shape_of(layout)
        if out is not None:
            if not hasattr(out, "shape") or not hasattr(out, "dtype"):
                raise OutputError(
                    f"out is {type(out).__name__}, and predict writes into arrays; give one, or use unet_engine.run"
                )
            if tuple(out.shape) != shape or np.dtype(out.dtype) != np.dtype(layout.dtype):
                raise OutputError(
                    f"out is {times(out.shape)} {out.dtype}, and the result {times(shape)} {layout.dtype}; give such an "
                    "array"
                )
            return out
        if kind == "numpy":
            return np.empty(shape, layout.dtype)
        import zarr

        lead = () if layout.channels is None else (1,)
        chunks = tuple(min(c, n) for c, n in zip((*lead, *layout.in_stored_order(layout.chunk)), shape, strict=True))
        return zarr.create_array(
            {}, shape=shape, chunks=chunks, dtype=layout.dtype, dimension_names=list(_axes(layout))
        )

    return made


def _axes(layout: Layout) -> str:
    return ("" if layout.channels is None else "c") + layout.stored


def wrapped(source: Source, array: Any, layout: Layout) -> Any:
    """What was written, as an array of the same library as the volume's."""
    if source.kind == "dask":
        return _dask(array)
    return _xarray(source, array, layout) if source.kind == "xarray" else array


def _dask(array: Any) -> Any:
    import dask.array

    return dask.array.from_array(array, chunks=getattr(array, "chunks", "auto"))


def _xarray(source: Source, array: Any, layout: Layout) -> Any:
    """With the coordinates of the voxels that it has, and of classes where these have names."""
    import xarray

    given, volume = source.given, source.volume
    dims = {axis: dim for axis, dim in zip(volume.axes, given.dims, strict=True) if axis in layout.stored}
    there = given.isel({dim: 0 for axis, dim in zip(volume.axes, given.dims, strict=True) if axis in "ct"}, drop=True)
    coords: dict[Any, Any] = {}
    if layout.start is not None:
        begins = dict(zip(layout.names, zip(layout.start, layout.shape, strict=True), strict=True))
        cut = there.isel({dim: slice(begins[a][0], begins[a][0] + begins[a][1]) for a, dim in dims.items()})
        coords = dict(cut.coords)
    else:
        for i, axis in enumerate(layout.names):
            values = layout.translation[i] + layout.spacing[i] * np.arange(layout.shape[i])
            coords[dims[axis]] = (dims[axis], values, dict(given[dims[axis]].attrs))
    names = [dims[axis] for axis in layout.stored]
    if layout.channels is not None:
        names.insert(0, "class")
        if len(set(layout.classes)) == layout.channels:
            coords["class"] = list(layout.classes)
    data = _dask(array) if given.chunks else array
    return xarray.DataArray(data, dims=names, coords=coords, name=given.name, attrs=_attributes(given))


def _attributes(given: Any) -> dict[str, Any]:
    """What is said of the place, and nothing that is said of the values."""
    return {key: value for key, value in given.attrs.items() if key in ("crs", "grid_mapping", "transform")}
