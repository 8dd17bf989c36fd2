"""The output: an OME-Zarr 0.5 group with the result at ``0``, and the journal of committed blocks beside its chunks.

A block counts as done only by its marker, a small object ``0/.journal/<digest>/<block>`` written after its data; chunks that exist
prove nothing, since empty ones are not written and half-written ones may be. The markers go away once the run is complete.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from unet_engine.box import Box
from unet_engine.errors import OutputError, ResumeError, first_line
from unet_engine.volume import fast_codecs

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

PROVENANCE = "unet_engine"
ARRAY = "0"


@dataclass(frozen=True)
class Layout:
    """What the output array looks like. Spatial tuples follow `names`; the stored order is `stored`."""

    names: str
    stored: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    channels: int | None
    """None for labels, which have no channel axis; it is the first one otherwise."""
    dtype: str
    spacing: tuple[float, ...]
    translation: tuple[float, ...]
    unit: str | None
    classes: tuple[str, ...]

    def in_stored_order(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(values[self.names.index(a)] for a in self.stored)

    @property
    def voxel_bytes(self) -> int:
        """Bytes written per voxel, all channels together."""
        return np.dtype(self.dtype).itemsize * (self.channels or 1)

    def ome(self, name: str) -> dict[str, Any]:
        """Multiscales metadata of OME-Zarr 0.5 with one resolution."""
        channel = self.channels is not None
        space = [{"name": a, "type": "space", **({"unit": self.unit} if self.unit else {})} for a in self.stored]
        ones, zeros = ([1.0], [0.0]) if channel else ([], [])
        transforms = [
            {"type": "scale", "scale": ones + list(self.in_stored_order(self.spacing))},
            {"type": "translation", "translation": zeros + list(self.in_stored_order(self.translation))},
        ]
        dataset = {"path": ARRAY, "coordinateTransformations": transforms}
        axes = ([{"name": "c", "type": "channel"}] if channel else []) + space
        return {"version": "0.5", "multiscales": [{"name": name, "axes": axes, "datasets": [dataset]}]}


class Output:
    """An opened output group. `write` and `mark` may be called from several threads on different blocks."""

    def __init__(self, path: str, layout: Layout, digest: str) -> None:
        self.path, self.layout, self.digest = path, layout, digest
        with _writing(path, "opening it"), fast_codecs(path):
            self.group = zarr.open_group(path, mode="r+")
            self.array = self.group[ARRAY]

    @classmethod
    def create(cls, path: str, layout: Layout, digest: str, provenance: Mapping[str, Any]) -> Output:
        """Make the group and the array. The header goes first, so that a run killed right here can be resumed."""
        attributes = {
            "ome": layout.ome(Path(path).stem),
            PROVENANCE: {**provenance, "digest": digest, "complete": False},
        }
        with _writing(path, "creating it"), fast_codecs(path):
            group = zarr.create_group(path, attributes=attributes, zarr_format=3)
            cls._create_array(group, layout)
        return cls(path, layout, digest)

    @staticmethod
    def _create_array(group: zarr.Group, layout: Layout) -> None:
        channel = layout.channels is not None
        group.create_array(
            ARRAY,
            shape=((layout.channels,) if channel else ()) + layout.in_stored_order(layout.shape),
            chunks=((1,) if channel else ())
            + tuple(map(min, layout.in_stored_order(layout.chunk), layout.in_stored_order(layout.shape))),
            dtype=layout.dtype,
            compressors=zarr.codecs.ZstdCodec(level=1),
            fill_value=0,
            dimension_names=(["c"] if channel else []) + list(layout.stored),
        )

    @classmethod
    def resume(cls, path: str, layout: Layout, digest: str, provenance: Mapping[str, Any]) -> Output:
        """Open the output of an earlier run. Raises `ResumeError` naming what differs where that run was another one."""
        try:
            group = zarr.open_group(path, mode="r+")
        except FileNotFoundError as error:
            raise ResumeError(f"--resume: {path} is not an output of unet-engine; choose another --out") from error
        except Exception as error:
            raise OutputError(
                f"--resume: {path} cannot be opened: {first_line(error)}; restore it, or choose another --out"
            ) from error
        header = group.attrs.get(PROVENANCE)
        if not isinstance(header, dict):
            raise ResumeError(f"--resume: {path} is not an output of unet-engine; choose another --out")
        differing = _differences(header.get("identity", {}), provenance["identity"])
        if differing:
            raise ResumeError(
                f"{path} was begun with another {'; '.join(differing)}: repeat that run's settings or use --overwrite"
            )
        if ARRAY not in group:
            with _writing(path, "creating its array"), fast_codecs(path):
                cls._create_array(group, layout)
        output = cls(path, layout, digest)
        if output.complete:
            output._remove_markers()
        return output

    # --- voxels ---

    def write(self, box: Box, values: npt.NDArray[Any]) -> None:
        """Write `values`, shape (*box.shape) or (channels, *box.shape), at `box`, relative to the output's origin.

        Raises `OutputError` where the disk is full or the store refuses; what was written before stays valid.
        """
        layout = self.layout
        lead = 0 if layout.channels is None else 1
        order = [lead + layout.names.index(a) for a in layout.stored]
        target = (slice(None),) * lead + layout.in_stored_order(box.slices())
        with _writing(self.path, f"writing voxels {box}"):
            self._clear(box)
            self.array[target] = np.ascontiguousarray(values.transpose([*range(lead), *order]))

    def _clear(self, box: Box) -> None:
        """Remove the chunks of `box`, which a killed run may have left half-written.

        The native codecs read a chunk that sticks out of the array before they write it. Remote objects are never half-written.
        """
        if "://" in self.path:
            return
        channels = range(self.layout.channels or 1)
        for cell in box.cells(self.layout.chunk):
            corner = tuple(l // c for l, c in zip(cell.lo, self.layout.chunk, strict=True))
            place = self.layout.in_stored_order(corner)
            for c in channels:
                key = self.array.metadata.encode_chunk_key(place if self.layout.channels is None else (c, *place))
                Path(self.path, ARRAY, key).unlink(missing_ok=True)

    # --- journal ---

    @property
    def _journal(self) -> str:
        return f"{ARRAY}/.journal/{self.digest}"

    def mark(self, index: tuple[int, ...]) -> None:
        """Record block `index` as committed; call after its data were written."""
        place = self.group.store_path / self._journal / ".".join(map(str, index))
        with _writing(self.path, f"marking block {index}"):
            sync(place.set(default_buffer_prototype().buffer.from_bytes(b"done\n")))

    def committed(self) -> Iterator[tuple[int, ...]]:
        """Blocks with a marker, in no order."""
        for key in sync(_listed(self.group.store_path / self._journal)):
            name = key.rsplit("/", 1)[-1].split(".")
            if all(part.isdigit() for part in name):  # a run killed while it marked leaves a temporary file here
                yield tuple(map(int, name))

    @property
    def complete(self) -> bool:
        return bool(self.group.attrs[PROVENANCE]["complete"])

    def finish(self, summary: Mapping[str, Any]) -> None:
        """State that every block is there, and how it was made. The markers have served and are removed."""
        with _writing(self.path, "completing it"):
            header = {**self.group.attrs[PROVENANCE], "complete": True, "summary": dict(summary)}
            self.group.attrs[PROVENANCE] = header
        self._remove_markers()

    def _remove_markers(self) -> None:
        with _writing(self.path, "removing its markers"):
            sync((self.group.store_path / ARRAY / ".journal").delete_dir())


@contextmanager
def alone(path: str) -> Iterator[None]:
    """Keep other processes from writing the output at `path`: two runs would take each other's chunks away.

    The lock ends with this process however it dies. Raises `OutputError` where another one holds it. Remote stores, and file systems
    without locks, are not protected.
    """
    if "://" in path or fcntl is None or not Path(path, ARRAY).is_dir():
        yield
        return
    place = Path(path, ARRAY, ".lock")
    with _writing(path, "locking it"):
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise OutputError(f"{path} is being written by another run; wait for it, or choose another --out") from error
    except OSError:  # some network file systems know no locks
        pass
    try:
        yield
    finally:
        place.unlink(missing_ok=True)
        os.close(descriptor)


def exists(path: str) -> bool:
    """Whether something lies at `path`: any file or folder, or a Zarr node in a remote store."""
    if "://" in path:
        try:
            zarr.open(path, mode="r")
        except FileNotFoundError:
            return False
        except Exception as error:
            raise OutputError(
                f"{path} cannot be reached: {first_line(error)}; check the URL and that its file system is installed"
            ) from error
        return True
    try:
        # a run killed while it created the group leaves no more than a temporary file
        return any(not p.name.endswith(".partial") for p in Path(path).iterdir())
    except FileNotFoundError:
        return False
    except OSError:
        return os.path.lexists(path)


def is_ours(path: str) -> bool:
    """Whether the group at `path` carries our header."""
    try:
        return PROVENANCE in zarr.open_group(path, mode="r").attrs
    except Exception:  # whatever it is, we did not write it
        return False


def remove(path: str) -> None:
    """Delete an earlier output. Raises `OutputError` where `path` is anything but one, so that no other data is ever lost."""
    if not is_ours(path):
        raise OutputError(
            f"--overwrite: {path} is not an output of unet-engine and is left alone; choose another --out"
        )
    with alone(path), _writing(path, "removing it"):
        if "://" in path:
            sync(zarr.open_group(path, mode="r+").store_path.delete_dir())
        else:
            shutil.rmtree(path)


async def _listed(place: Any) -> list[str]:
    return [key async for key in place.store.list_prefix(place.path + "/")]


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} ({_short(old.get(key))}, now {_short(new.get(key))})"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


@contextmanager
def _writing(path: str, what: str) -> Iterator[None]:
    """Turn what the store raises into one line. Native codecs report a full disk only in the text of their error."""
    try:
        yield
    except OutputError:
        raise
    except Exception as error:
        full = (
            getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            or "No space left" in str(error)
            or "os error 28" in str(error)
        )
        if full:
            raise OutputError(
                f"{path}: the disk is full ({what}); free some space and run again with --resume"
            ) from error
        raise OutputError(
            f"{path} cannot be written ({what}): {first_line(error)}; check the path and its permissions"
        ) from error
