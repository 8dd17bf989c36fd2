"""Where a run is of a part of the volume, and the output of all of it: which part, and how it lies in the output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unet_engine.errors import SettingsError
from unet_engine.model.spec import ModelSpec
from unet_engine.plan.box import Box
from unet_engine.prepare.resampling import grids
from unet_engine.units import times
from unet_engine.volumes.base import Volume
from unet_engine.volumes.cropped import Cropped, nonzero_box


def cropped(volume: Volume, spec: ModelSpec, notes: list[str], *, ignore: bool) -> Volume:
    """What of `volume` the model takes for all of it, which `notes` hear of. ignore: the user has spacings ignored.
    Raises `DataError` as reading does."""
    if spec.crop is None:
        return volume
    above = None if spec.crop == "nonzero" else float(spec.crop)
    if above is not None and grids(volume, spec, [], ignore=ignore):
        notes.append(
            f"{spec.name} was cropped to what is above {above:g} once it was of its spacing; all of {volume.path} is "
            "inferred, as it is brought to that"
        )
        return volume
    box = nonzero_box(volume, above)
    if box.shape == volume.shape:
        return volume
    least = "0" if above is None else f"at most {above:g}"
    notes.append(
        f"{volume.path} is {least} outside of {times(box.shape)} of its {times(volume.shape)} voxels: {spec.name} is "
        "given these alone, and the output is 0 outside"
    )
    return Cropped(volume, box)


@dataclass(frozen=True)
class Region:
    """What is asked for, and what of that there is something to compute of."""

    roi: Box
    asked: Box | None
    """Both in voxels of the volume that windows see; None: the same."""


def region(scan: Volume, asked: Box) -> Region:
    """asked: in voxels of all that lies in the file, turned. Raises `SettingsError` where it is outside altogether."""
    if not isinstance(scan, Cropped):
        return Region(asked, None)
    inside = asked & scan.box
    if inside.is_empty:
        raise SettingsError(
            f"--roi {asked}: of {scan.path} the model takes {scan.box} alone, outside of which all of the output is 0; "
            "choose a region that meets it"
        )
    there = asked.relative_to(scan.box.lo)
    return Region(inside.relative_to(scan.box.lo), there)


def in_chunks(roi: Box, asked: Box, chunk: Sequence[int], backwards: Sequence[bool]) -> Box:
    """`roi`, a part of `asked`, with all of the chunks that it meets, as far as these lie in `asked`, with whose first
    voxel they begin; along axes that are `backwards`, with its last one."""
    spans = []
    for a, n in enumerate(chunk):
        lo, hi = asked.lo[a], asked.hi[a]
        if backwards and backwards[a]:
            spans.append((max(lo, hi - -(-(hi - roi.lo[a]) // n) * n), hi - (hi - roi.hi[a]) // n * n))
        else:
            spans.append((lo + (roi.lo[a] - lo) // n * n, min(hi, lo + -(-(roi.hi[a] - lo) // n) * n)))
    return Box(*map(tuple, zip(*spans, strict=True)))
