"""Where a run is of a part of the volume, and the output of all of it: which part, and how it lies in the output.

Models of nnU-Net are given the box of what is not 0, of the scan; MONAI's CropForeground cuts out what is above a number
of what was interpolated already, where a scan has another spacing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unet_engine.errors import SettingsError
from unet_engine.model.spec import ModelSpec
from unet_engine.plan.box import Box
from unet_engine.prepare.orientation import lying
from unet_engine.prepare.resampling import Grids, as_interpolated, grids
from unet_engine.prepare.spacing import check_spacing
from unet_engine.units import times
from unet_engine.volumes.base import Volume
from unet_engine.volumes.cropped import Cropped, nonzero_box

ROUNDING = 2.0**-20
"""Of what is interpolated between voxels that are alike, relative: it is not above them for that."""


@dataclass(frozen=True)
class Taken:
    """What of a volume the model takes for all of it."""

    whole: Volume
    """All of it, as the model says that volumes lie."""
    volume: Volume
    grids: Grids | None
    """From its voxels to those of the network; None where they are the same."""
    kept: Box | None = None
    """Of `volume`, the voxels outside of which the output is 0; None: all."""


def taken(volume: Volume, spec: ModelSpec, notes: list[str], *, ignore: bool) -> Taken:
    """What a model is given of `volume`, turned and cut out, and how that comes to its spacing, of all of which `notes`
    hear. ignore: the user has spacings and orientations ignored.

    Raises `InputError` where it cannot come to that spacing, `SettingsError` where it should, `DataError` as reading
    does."""
    whole = lying(volume, spec, notes, ignore=ignore)
    volume = _cropped(whole, spec, notes)
    found = _cropped_above(whole, volume, grids(volume, spec, notes, ignore=ignore), spec, notes)
    if found.grids is None:
        check_spacing(found.volume, spec, notes, ignore=ignore)
    return found


def _cropped(volume: Volume, spec: ModelSpec, notes: list[str]) -> Volume:
    """What of `volume` the model takes for all of it, whatever its spacing, which `notes` hear of. Raises `DataError`
    as reading does."""
    if spec.crop != "nonzero":
        return volume
    return _boxed(volume, nonzero_box(volume), "0", spec, notes)


def _cropped_above(whole: Volume, volume: Volume, found: Grids | None, spec: ModelSpec, notes: list[str]) -> Taken:
    """What of `volume`, which is interpolated as `found` says, is above the number that the model says. Raises
    `DataError` as reading does."""
    if spec.crop in (None, "nonzero"):
        return Taken(whole, volume, found)
    above = float(str(spec.crop))
    least = f"at most {above:g}"
    if found is None:
        return Taken(whole, _boxed(volume, _with_margin(volume, above, spec), least, spec, notes), None)
    inside = _with_margin(as_interpolated(volume, found, spec), above + ROUNDING * abs(above), spec)
    if inside.shape == tuple(axis.target for axis in found.image):
        return Taken(whole, volume, found)
    kept = found.nearest_to(inside) if _fades(spec) else found.made_of(inside)
    there, grids = found.part(inside, kept)
    return Taken(whole, _boxed(volume, there, least, spec, notes), grids, kept.relative_to(there.lo))


def _with_margin(volume: Volume, above: float, spec: ModelSpec) -> Box:
    box = nonzero_box(volume, above)
    return box.grow((spec.crop_margin or (0, 0, 0))[-box.ndim :]) & Box.of_shape(volume.shape)


def _fades(spec: ModelSpec) -> bool:
    """Whether what is interpolated between the box and the 0 around it falls below a threshold half way: probabilities
    of channels on their own. The largest of several, and what exceeds 0, are so to the end."""
    assert spec.resampling
    each = spec.activation in ("sigmoid", "probabilities_each")
    return each and spec.resampling.of == "probabilities"


def _boxed(volume: Volume, box: Box, least: str, spec: ModelSpec, notes: list[str]) -> Volume:
    if box.shape == volume.shape:
        return volume
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
