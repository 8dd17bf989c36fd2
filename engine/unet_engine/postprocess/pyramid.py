"""The pyramid of an OME-Zarr group: coarser levels beside its full resolution, made block by block.

Each level is made of the one before. A block of it covers whole voxels of that, so no border shows. Levels are listed
in the group's multiscales once all of them are whole: until then, and after a kill, the group is as it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import zarr
from zarr.core.sync import sync

from unet_engine.errors import InputError, OutputError, SettingsError, writing
from unet_engine.output import array
from unet_engine.output.header import ARRAY, PROVENANCE, read_header
from unet_engine.output.label import KEY as LABEL
from unet_engine.output.locks import hold
from unet_engine.output.multiscales import Listed, listed, placed, relist
from unet_engine.paths import is_local
from unet_engine.postprocess.base import Crew, digest
from unet_engine.postprocess.level_pass import MAJORITY, MEAN, LevelTarget, Source, write_level
from unet_engine.postprocess.levels import Level, levels_of
from unet_engine.storage import stores
from unet_engine.storage.durability import ON_DISK, WHENEVER, make_folder
from unet_engine.units import Tell, silent
from unet_engine.volumes import nodata, samples
from unet_engine.volumes.base import StoredVolume
from unet_engine.volumes.formats import open_stored
from unet_engine.volumes.pick import Pick

FORMAT = 2
"""Changes whenever the same levels would have other bytes than an earlier version's."""
KEY = "pyramid"


@dataclass(frozen=True)
class Wanted:
    """Which pyramid of the group at `path`, and what is to be done with one that is there."""

    path: str
    levels: int | None = None
    """How many with the full resolution; None: until they are small."""
    by: str | None = None
    """What a voxel is of those that it covers: `MAJORITY` or `MEAN`; None: as the group says what it holds."""
    overwrite: bool = False
    durable: bool = True


@dataclass(frozen=True)
class _Made:
    """What is to be made, and of what."""

    wanted: Wanted
    axes: str
    volume: StoredVolume
    array: zarr.Array
    """What the volume reads."""
    listed: Listed
    levels: tuple[Level, ...]
    by: str
    input: str
    """Names the full resolution."""

    @property
    def names(self) -> list[str]:
        first = self.listed.name
        stem = first[:-1] if first.endswith("0") and not first[-2:-1].isdigit() else ""
        return [f"{stem}{k + 1}" for k in range(len(self.levels))]

    @property
    def digests(self) -> list[str]:
        """Of each level, which hangs on those before."""
        said: list[dict[str, Any]] = []
        found = []
        for level in self.levels:
            said.append({"shape": level.shape, "factors": level.factors})
            facts = {KEY: FORMAT, "input": self.input, "by": self.by, "chunk": self.chunk, "levels": said}
            if self.volume.nodata_of and self.by == MEAN:
                facts["nodata_of"] = [list(map(repr, own)) for own in self.volume.nodata_of]
            found.append(digest(facts))
        return found

    @property
    def chunk(self) -> tuple[int, ...]:
        return self.volume.stored_chunks

    def datasets(self) -> list[dict[str, Any]]:
        factors, found = (1,) * len(self.axes), []
        for name, level in zip(self.names, self.levels, strict=True):
            factors = tuple(a * b for a, b in zip(factors, level.factors, strict=True))
            found.append(placed(self.listed, name, factors))
        return found


def pyramid(
    wanted: Wanted, crew: Crew, *, memory: int, levels: Sequence[Level] | None = None, tell: Tell = silent
) -> dict[str, Any]:
    """Give the group its pyramid; returns what is known of it.

    memory: bytes that one box may take; levels: those, rather than what `wanted` comes to

    Raises `InputError` for what is no OME-Zarr group whose levels can be added to, `SettingsError` where nothing says
    how to make them, and `OutputError` where something is in the way.
    """
    made = _planned(wanted, levels)
    if not made.levels:
        tell(f"{wanted.path} is a single voxel, which has no coarser levels")
        return _facts(made, written=0)
    if _there(made):
        _tidy(made)
        tell(f"{wanted.path} has this pyramid already")
        return _facts(made, written=0)
    with _held(made):
        _make_room(made)
        attempt, written = uuid4().hex, 0
        for k in range(len(made.levels)):
            written += _write(made, k, crew, memory, attempt)
        durability = ON_DISK if wanted.durable else WHENEVER
        with writing(wanted.path, "listing its levels"):
            relist(wanted.path, made.datasets(), {KEY: _told(made)}, durability)
        _tidy(made)
    return _facts(made, written)


def _facts(made: _Made, written: int) -> dict[str, Any]:
    shapes = [list(made.volume.stored_shape), *(list(level.shape) for level in made.levels)]
    return {"out": made.wanted.path, "levels": len(shapes), "shapes": shapes, "by": made.by, "boxes_written": written}


def _told(made: _Made) -> dict[str, Any]:
    return {"by": made.by, "factors": [list(level.factors) for level in made.levels]}


# --- what is to be made ---


def _planned(wanted: Wanted, levels: Sequence[Level] | None) -> _Made:
    path = wanted.path
    found = listed(path)
    header = read_header(path) or {}
    if header.get("complete") is False:
        raise InputError(f"{path} is not complete; run the command that makes it again with --resume")
    volume = open_stored(path)
    full = zarr.open_array(stores.open_group(path, "r").store_path / found.name, mode="r")
    if not isinstance(volume, StoredVolume) or _PACKED & {*full.attrs}:
        raise InputError(
            f"{path} holds packed numbers (scale_factor); convert it first: unet-engine convert IN OUT.zarr"
        )
    spacing = dict(zip(volume.spatial, volume.spacing or (), strict=False))
    if levels is None:
        levels = levels_of(volume.axes, volume.stored_shape, spacing, wanted.levels)
    by = wanted.by or _by(path, volume, header)
    if by == MAJORITY and volume.dtype.kind not in "biu":
        raise SettingsError(f"--by majority is for labels, and {path} holds {volume.dtype}; use --by mean")
    if by == MEAN and volume.dtype.kind == "b":
        raise SettingsError(f"--by mean is for numbers, and {path} holds {volume.dtype}; use --by majority")
    name = _name_of(path, found.name, volume, header)
    return _Made(wanted, volume.axes, volume, full, found, tuple(levels), by, name)


_PACKED = {"scale_factor", "add_offset", "_Unsigned"}
"""Attributes by which stored numbers stand for others."""


def _by(path: str, volume: StoredVolume, header: Mapping[str, Any]) -> str:
    """How voxels of what the group holds are brought together. Raises `SettingsError` where nothing says that."""
    if (output := header.get("output")) in _BY:
        return _BY[str(output)]
    ome = dict(stores.open_group(path, "r").attrs.get("ome") or {})
    if LABEL in ome or volume.dtype.kind == "b":
        return MAJORITY
    if volume.dtype.kind == "f" or "omero" in ome:
        return MEAN
    raise SettingsError(
        f"{path} holds {volume.dtype}, and nothing says whether that is an image or labels; say --by mean for an image, "
        "--by majority for labels"
    )


_BY = {"labels": MAJORITY, "objects": MAJORITY, "masks": MAJORITY, "probabilities": MEAN, "logits": MEAN}
"""For what runs write."""


def _name_of(path: str, name: str, volume: StoredVolume, header: Mapping[str, Any]) -> str:
    if header.get("digest"):
        return str(header["digest"])
    place = stores.file_of(stores.open_group(path, "r").store_path / name / array.METADATA)
    stamp = place.stat().st_mtime_ns if place else 0
    return f"{samples.fingerprint(volume.picked(Pick(0)))}:{stamp}"


# --- what is there ---


def _stored_digest(made: _Made, name: str) -> str | None:
    """Which pyramid the array `name` is a level of; None where it is there and none of ours, empty where nothing is."""
    place = stores.open_group(made.wanted.path, "r").store_path / name
    try:
        found = stores.read(place / array.METADATA)
        if found is None:
            return None if _is_there(place) else ""
        return str(json.loads(found)["attributes"][PROVENANCE][KEY])
    except Exception:  # whatever it is, we did not write it
        return None


def _is_there(place: zarr.storage.StorePath) -> bool:
    folder = stores.file_of(place)
    if folder is None:
        return any(stores.holds(place / name) for name in (".zarray", ".zgroup"))
    # a kill before its metadata were written leaves a folder with nothing but a lock in it
    return folder.exists() and not (folder.is_dir() and all(p.name.startswith(".lock") for p in folder.iterdir()))


def _there(made: _Made) -> bool:
    """Whether the group has this pyramid. Raises `OutputError` where it has another one, or something is in the way,
    and is not to be replaced."""
    path, others = made.wanted.path, made.listed.others
    found = [_stored_digest(made, name) for name in made.names]
    if list(others) == made.names and found == made.digests:
        return True
    strange = [name for name in (*made.names, *others) if _stored_digest(made, name) is None]
    if strange:
        raise OutputError(
            f"{path} has {'a pyramid' if others else strange[0]} already that unet-engine did not write; it is "
            "left alone: write the array to a group of its own with unet-engine convert"
        )
    if others and not made.wanted.overwrite:
        raise OutputError(f"{path} has another pyramid of {len(others) + 1} levels; use --overwrite to replace it")
    return False


def _make_room(made: _Made) -> None:
    """Take levels of another pyramid away. They are unlisted first: what is listed is whole, whatever happens."""
    path, durability = made.wanted.path, ON_DISK if made.wanted.durable else WHENEVER
    with writing(path, "removing levels"):
        if made.listed.others:
            relist(path, [], {KEY: None}, durability)
        root = stores.open_group(path, "r+").store_path
        for name, wanted in zip(made.names, made.digests, strict=True):
            if _stored_digest(made, name) not in ("", wanted):
                _remove(root / name)
        for name in (*made.listed.others, *_beyond(made)):
            if name not in made.names:
                _remove(root / name)


def _beyond(made: _Made) -> Iterator[str]:
    """Levels of ours beyond those that are wanted, which an attempt at more of them left."""
    stem, k = made.names[-1][: -len(str(len(made.levels)))], len(made.levels) + 1
    while _stored_digest(made, f"{stem}{k}"):
        yield f"{stem}{k}"
        k += 1


def _remove(place: zarr.storage.StorePath) -> None:
    folder = stores.file_of(place)
    if folder is None:
        sync(place.delete_dir())
    elif folder.exists():
        for chunk in [*folder.glob("c"), *folder.glob(".journal*")]:
            shutil.rmtree(chunk)
        for file in folder.iterdir():
            if not file.name.startswith(".lock"):  # of ours, which goes by itself
                file.unlink()


@contextmanager
def _held(made: _Made) -> Iterator[None]:
    """Nobody else writes to the output, or makes its pyramid, meanwhile."""
    path = made.wanted.path
    if is_local(path):
        with writing(path, "making a folder in it"):
            make_folder(Path(path, made.names[0]), WHENEVER)
    with hold(path, array=made.names[0]):
        if made.listed.name == ARRAY and read_header(path) is not None:
            with hold(path):
                yield
        else:
            yield


# --- writing ---


def _write(made: _Made, k: int, crew: Crew, memory: int, attempt: str) -> int:
    """Make level `k` + 1, as far as it is not there; how many boxes were written."""
    path, volume, name, level = made.wanted.path, made.volume, made.names[k], made.levels[k]
    metadata = array.described(
        level.shape, made.chunk, volume.stored_dtype, list(made.axes), made.array.fill_value or 0
    )
    metadata["attributes"] = {PROVENANCE: {KEY: made.digests[k]}, **_kept(made.array)}
    target = LevelTarget(path, name, made.digests[k], made.wanted.durable, attempt)
    with writing(path, f"creating level {name}"):
        array.make(stores.open_group(path, "r+").store_path / name, metadata, target.durability)
    source = Source(f"{path.rstrip('/')}/{made.names[k - 1] if k else made.listed.name}", made.axes, attempt)
    before = made.levels[k - 1].shape if k else volume.stored_shape
    chunk = tuple(map(min, made.chunk, level.shape))
    return write_level(source, before, level, chunk, (made.by, volume.missing), target, crew, memory=memory)


def _kept(full: zarr.Array) -> dict[str, Any]:
    """Of the attributes of the full resolution what says which voxels were not measured."""
    names = {key.lower() for key in nodata.KEYS}
    return {key: value for key, value in dict(full.attrs).items() if key.lower() in names}


def _tidy(made: _Made) -> None:
    """Take away what served to make levels that are listed."""
    for name, wanted in zip(made.names, made.digests, strict=True):
        LevelTarget(made.wanted.path, name, wanted, durable=False, attempt="").journal.remove()
