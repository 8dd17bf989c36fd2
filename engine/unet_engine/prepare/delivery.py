"""Which file a run is to end in, and where its blocks are written until then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from unet_engine.endings import called
from unet_engine.errors import OutputError, SettingsError
from unet_engine.model.spec import ModelSpec
from unet_engine.output import output
from unet_engine.paths import inside, is_local, parts, plain
from unet_engine.plan.box import Box
from unet_engine.postprocess.components import rules_of
from unet_engine.postprocess.content import Content
from unet_engine.postprocess.formats import writer_of
from unet_engine.postprocess.joining import Rules
from unet_engine.postprocess.labelling import cc3d
from unet_engine.postprocess.levels import levels_of
from unet_engine.postprocess.working import is_file, is_handed_over, labels_of, work_of
from unet_engine.prepare.decisions import dtype_of
from unet_engine.prepare.into import named_into
from unet_engine.prepare.notes import fall_back
from unet_engine.prepare.places import named_of
from unet_engine.settings.settings import Settings
from unet_engine.volumes.base import Selection, Volume
from unet_engine.volumes.formats import is_series

_ZARR = ".zarr"
_LIKE = {
    ".nii.gz": ".nii.gz .nii .nii.bz2 .hdr .img .img.gz .hdr.gz .mgh .mgz",
    ".nrrd": ".nrrd .nhdr",
    ".mha": ".mha .mhd",
    ".npy": ".npy",
    ".h5": ".h5 .hdf5 .hdf .he5 .nc .nc4 .cdf",
    ".ome.tif": ".tif .tiff .btf .tf2 .tf8 .lsm .svs .ndpi .stk .qptiff .scn .png .jpg .jpeg",
    ".tif": ".vrt .jp2 .j2k",
}
"""What an output is where nobody names it, by the ending of the input."""
_BY_INPUT = {ending: out for out, endings in _LIKE.items() for ending in endings.split()}


@dataclass(frozen=True)
class Delivery:
    named: str
    """What the user gets: a Zarr group, or a file of another format."""
    work: str
    """The Zarr group that blocks are written to: the same, or one beside the file, which goes once that is whole."""
    objects: Rules | None = None
    """Which objects are numbered, where these are wanted: blocks are then written to a group that goes as well."""


def delivery_of(
    settings: Settings, spec: ModelSpec, place: str, written: Volume, roi: Box, notes: list[str]
) -> Delivery:
    """Where a run of the volume at `place` ends that writes `roi` of the grid of `written`. Raises `OutputError` where
    the format that is asked for cannot hold its result; `notes` hear what that leaves out, and what was chosen where
    nothing is asked for."""
    content = _expected(settings, spec, place, written, roi)
    into = named_into(settings, spec, place) if settings.into else None
    named = into or settings.out or _default(settings, spec, place, content, notes)
    objects = _objects(settings, len(written.spatial))
    work = named
    if settings.pyramid:
        _check_pyramid(settings, named, content)
    if is_file(named):
        writer = writer_of(named)
        writer.check(named, content)
        for loss in writer.losses(content):
            fall_back(settings, notes, f"{named}: {loss}")
    if is_handed_over(named):
        work = work_of(named)
    return Delivery(named, labels_of(named) if objects else work, objects)


def require_libraries(settings: Settings, volume: Volume) -> None:
    """Raise `OutputError` where a library is missing that writes the output of a run of `volume`, `UnetEngineError` for
    one that finds its objects: all that can be told without its model."""
    if settings.components:
        cc3d()
    if settings.out and not settings.into and is_file(settings.out):
        writer_of(settings.out).require(settings.out, volume.frame)


def _check_pyramid(settings: Settings, named: str, content: Content) -> None:
    """Raise `SettingsError` where the output cannot have the levels that are asked for."""
    if is_file(named):
        raise SettingsError(f"--pyramid is of OME-Zarr, and {named} is another format; use --out NAME.zarr")
    spacing = dict(zip(content.spatial, content.spacing or (), strict=False))
    levels_of(content.axes, content.shape, spacing, settings.levels)


def _objects(settings: Settings, ndim: int) -> Rules | None:
    """Which objects are wanted. Raises `SettingsError` where they make no sense, and `UnetEngineError` where what finds
    them is not installed: now, rather than once the labels are there."""
    if not settings.components:
        return None
    cc3d()
    return rules_of(
        ndim,
        settings.connectivity,
        min_size=settings.min_size,
        fill_holes=settings.fill_holes,
        largest=settings.largest,
    )


def _default(settings: Settings, spec: ModelSpec, place: str, content: Content, notes: list[str]) -> str:
    """Beside the input, named after it and the model, and of its format, where that can hold the result. An output that
    an earlier version began as Zarr stays that."""
    usual = f"{called(named_of(settings, place))}-{spec.name}"
    ending = _ZARR if settings.pyramid else _ending(named_of(settings, place), content)
    if ending == _ZARR or (settings.resume and output.is_ours(usual + _ZARR)):
        return usual + _ZARR
    try:
        writer_of(usual + ending).check(usual + ending, content)
    except OutputError as error:
        notes.append(f"the output is OME-Zarr, {usual}{_ZARR}, and not of the format of the input: {error}")
        return usual + _ZARR
    notes.append(f"the output is of the format of the input, {usual}{ending}; --out NAME.zarr writes OME-Zarr")
    return usual + ending


def _ending(path: str, content: Content) -> str:
    file = inside(plain(parts(path)[0]))[0]
    if file.lower().startswith(("http://", "https://")):
        return _ZARR
    if is_local(file) and is_series(file):
        return ".dcm"
    if is_local(file) and Path(file).is_dir():
        return _ZARR
    if content.frame and content.frame.space == "crs":
        return ".tif"
    found = [ending for ending in _BY_INPUT if file.lower().endswith(ending)]
    return _BY_INPUT[max(found, key=len)] if found else _ZARR


def _expected(settings: Settings, spec: ModelSpec, place: str, written: Volume, roi: Box) -> Content:
    """What the run will have made, as far as it is known."""
    whole = settings.output == "labels"
    labels = whole and not settings.components
    shape: Sequence[int] = roi.shape if whole else (spec.channels_out, *roi.shape)
    return Content(
        origin=settings.input,
        axes=written.spatial if whole else "c" + written.spatial,
        shape=tuple(shape),
        chunks=tuple(shape),
        dtype=np.dtype("u4" if settings.components else dtype_of(settings, spec)),
        read=_unread,
        spacing=written.spacing,
        translation=written.translation,
        unit=written.unit,
        frame=written.frame,
        labels=labels,
        classes=spec.class_names if labels else (),
        source=place,
    )


def _unread(_: Selection) -> NoReturn:
    raise AssertionError("nothing is read of what is not written yet")
