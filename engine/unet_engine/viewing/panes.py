"""What a path is shown as: an image or labels, with names, colours, contrast and where its voxels lie. No viewer is
known here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from unet_engine import endings
from unet_engine.errors import InputError, SettingsError
from unet_engine.output.colours import colour_of
from unet_engine.output.header import read_header
from unet_engine.paths import parts, plain
from unet_engine.plan.box import Box
from unet_engine.postprocess.content import Content, content_of
from unet_engine.postprocess.formats import account_of, is_one_file
from unet_engine.units import micrometers
from unet_engine.viewing.levels import Levels
from unet_engine.volumes import samples
from unet_engine.volumes.base import Array, Volume
from unet_engine.volumes.formats import located, open_stored
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.pick import ALL, Pick
from unet_engine.volumes.reference_systems import same_system

Kind = Literal["image", "labels", "probabilities"]
MOST_NAMED = 4096
"""Classes that get a name and a colour of their own; numbers of objects beyond get theirs from the viewer."""
_NO_NAMES = {"gray", "grey", "palette", "undefined"}
"""What a file of one band says of it that nobody named."""
_LOOKED = 2**19
"""Voxels of a sample that are looked at for whether they are labels."""
_ALIKE = 0.5
"""Part of neighbouring voxels that are equal at least where voxels are labels; of scans and photographs it is some
percent."""


@dataclass(frozen=True)
class Pane:
    """One volume, as it is shown."""

    name: str
    path: str
    kind: Kind
    levels: Levels
    place: Frame
    """Where voxels lie, in metres if `known`, else in units of nobody knows what."""
    known: bool
    names: tuple[str, ...] = ()
    """Of labels 0, 1, …, or of channels."""
    colours: tuple[str, ...] = ()
    """As ``#RRGGBB``: of labels or channels, as many as have a name."""
    contrast: tuple[float, float] | None = None
    """Values that are shown black and white; None where nothing says them."""
    one: float = 1.0
    """What stands for a probability of one."""
    growing: bool = False
    """Whether it is an output that is not complete."""
    notes: tuple[str, ...] = ()

    @property
    def volume(self) -> Volume:
        return self.levels.full

    @property
    def spacing(self) -> tuple[float, ...]:
        """Of voxels along their own axes z, y, x, without signs, as `place` counts."""
        return tuple(size or 1.0 for size in self.place.sizes)

    def facts(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "name": self.name, "path": self.path, "kind": self.kind, "shape": list(self.volume.shape),
            "channels": self.volume.channels, "dtype": str(self.volume.dtype),
            "levels": [list(level.factors) for level in self.levels.stored],
            "spacing": list(self.spacing), "unit": "meter" if self.known else None,
            "names": list(self.names), "complete": not self.growing,
        }  # fmt: skip


def pane_of(path: str, *, axes: str | None = None, image: str | None = None, pick: Pick = ALL,
            kind: Kind | None = None, name: str | None = None) -> Pane:  # fmt: skip
    """Open what lies at `path`. kind: what it is, where that is known better than by what it says of itself and its
    voxels. Raises `InputError` for what cannot be read."""
    path = plain(path)
    where = located(path, image, None)
    pick = replace(pick, timepoint=pick.timepoint or 0)  # of several time points the first
    stored = open_stored(where, axes)
    volume, header = stored.picked(pick), _said(where)
    content = content_of(stored, pick, header)
    kind = kind or _kind(header, content, volume)
    if kind == "labels" and volume.channels > 1:
        raise SettingsError(
            f"{path} has {volume.channels} channels and labels have one; choose it with --input-channels"
        )
    place, known = _in_metres(content)
    growing = bool(header.get("digest")) and header.get("complete") is False
    names, colours = _named(content, header, kind, volume.channels)
    told = () if kind != "labels" or header else (f"{path} is shown as labels; with --as-image {path} as an image",)
    return Pane(
        name=name or _name_of(path),
        path=path,
        kind=kind,
        levels=Levels.of(where, volume, pick, changing=growing),
        place=place,
        known=known,
        names=names,
        colours=colours,
        contrast=_contrast(volume) if kind == "image" else None,
        one=float(header.get("probability_scale") or 1.0),
        growing=growing,
        notes=(*volume.notes, *told),
    )  # fmt: skip


def _name_of(path: str) -> str:
    several = parts(path)
    return Path((endings.together(several)[0] if len(several) > 1 else path).rstrip("/")).name or path


def _said(path: str) -> Mapping[str, Any]:
    """What a run or pass of ours says of it; empty where none made it."""
    if is_one_file(path):
        return account_of(path) or {}
    folder = path.rstrip("/")
    return read_header(folder) or read_header(folder.rpartition("/")[0]) or {}


def _kind(header: Mapping[str, Any], content: Content, volume: Volume) -> Kind:
    if header.get("output") in ("labels", "objects"):
        return "labels"
    if header.get("output") in ("probabilities", "masks"):
        return "probabilities"
    named = set(content.channel_names) - _NO_NAMES
    if header.get("output") or named or volume.channels > 1 or volume.dtype.kind not in "iub":
        return "image"
    return "labels" if _is_labelled(volume) else "image"


def _is_labelled(volume: Volume) -> bool:
    """Whether voxels of whole numbers look like labels: few are negative, and hardly any differs from its neighbour."""
    if volume.dtype.kind == "b":
        return True
    equal = compared = 0
    for box in list(samples.boxes(volume))[:: max(1, samples.SAMPLES // 16)]:
        if not volume.has_data(box):
            continue
        voxels = volume.read(_middle(box))[0]
        if voxels.size and voxels.min() < 0:
            return False
        left, right = voxels[..., :-1], voxels[..., 1:]
        there = (left != 0) | (right != 0)
        compared += int(there.sum())
        equal += int((there & (left == right)).sum())
    return compared > 0 and equal >= _ALIKE * compared


def _middle(box: Box) -> Box:
    """At most `_LOOKED` voxels around the middle of `box`."""
    side = round(_LOOKED ** (1 / len(box.shape)))
    lo = [l + max(0, n - side) // 2 for l, n in zip(box.lo, box.shape, strict=True)]
    return Box(tuple(lo), tuple(min(l + side, h) for l, h in zip(lo, box.hi, strict=True)))


def _in_metres(content: Content) -> tuple[Frame, bool]:
    """Where voxels lie, and whether in metres."""
    place = content.place
    factor = micrometers(1.0, content.unit) if content.unit else None
    if factor is None or (content.spacing is None and content.frame is None):
        return place, False
    return place.times(factor * 1e-6), True


def _named(
    content: Content, header: Mapping[str, Any], kind: Kind, channels: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if kind == "image":
        return content.channel_names if len(content.channel_names) == channels else (), ()
    said = tuple(str(name) for name in header.get("classes") or ())
    colours = tuple(map(str, header.get("colours") or ()))
    if kind == "probabilities":
        names = content.channel_names or (said if len(said) == channels else ())
        names = names or tuple(f"channel {i}" for i in range(channels))
        return names, _shades(len(names), colours)
    if header.get("output") == "objects":
        return (), ()
    names = (content.classes or said)[:MOST_NAMED]
    return names, _shades(len(names), colours)


def _shades(count: int, named: Sequence[str]) -> tuple[str, ...]:
    return tuple("#{:02x}{:02x}{:02x}".format(*colour_of(i, named)) for i in range(count))


def _contrast(volume: Volume) -> tuple[float, float] | None:
    """Between the first and the last percent of what is sampled; where that is one value, as of a volume that is empty
    nearly everywhere, of the middle, which is shown first."""
    low, high = 0.0, 0.0
    for look in (_sampled, _in_the_middle):
        found = look(volume)
        values = found[np.isfinite(found)] if found.dtype.kind == "f" else found
        if not values.size:
            return None
        low, high = (float(v) for v in np.percentile(values.astype(np.float64), (1, 99)))
        if high > low:
            return low, high
    return low, low + 1.0


def _sampled(volume: Volume) -> Array:
    return np.concatenate([one[:: max(1, len(one) // 2**16)] for one in samples.measured(volume)])


def _in_the_middle(volume: Volume) -> Array:
    """Voxels of the first channel there, at most 64 along each axis."""
    lo = tuple(max(0, n // 2 - 32) for n in volume.shape)
    voxels = volume.read(Box(lo, tuple(min(l + 64, n) for l, n in zip(lo, volume.shape, strict=True))))
    found: Array = voxels[0].ravel()
    return found


def together(panes: Sequence[Pane]) -> list[tuple[tuple[float, ...], ...]]:
    """For each pane the matrix, rows of z, y, x and the origin, that takes its voxels to those of the first, so that
    what lies at one place in the world is shown at one place. Of a pane that does not know its unit, where the first
    one does (or the other way round), voxels lie on one another."""
    first = panes[0].place
    n = len(first.matrix)
    back = np.linalg.inv(_square(first, panes[0].path))
    found = []
    for pane in panes:
        if len(pane.place.matrix) != n:
            raise InputError(
                f"{pane.path} has {len(pane.place.matrix)} axes and {panes[0].path} has {n}; show them one by one"
            )
        same = pane.known == panes[0].known and _comparable(pane.place, first)
        matrix = back @ _square(pane.place.seen_in(first.space), pane.path) if same else np.eye(n + 1)
        found.append(tuple(tuple(float(v) for v in row) for row in matrix[:n]))
    return found


def misplaced(panes: Sequence[Pane]) -> list[str]:
    """What is said of panes that lie elsewhere in the world than they are shown, see `together`."""
    first = panes[0]
    told = []
    for pane in panes[1:]:
        if not _comparable(pane.place, first.place):
            why = "they are in different coordinate systems (CRS)"
        elif pane.known != first.known and pane.volume.shape != first.volume.shape:
            lacking = first if pane.known else pane
            why = f"{lacking.path} does not say how large its voxels are, in a unit"
        else:
            continue
        told.append(f"voxels of {pane.path} are shown on those of {first.path}, number by number: {why}")
    return told


def _comparable(one: Frame, other: Frame) -> bool:
    """Whether both count in the same world, as far as they say."""
    return not (one.crs and other.crs) or bool(same_system(one.crs, other.crs))


def _square(frame: Frame, path: str) -> Array:
    """``(z, y, x, 1)`` of voxels to the world's x, y, z."""
    n = len(frame.matrix)
    matrix = np.eye(n + 1)
    matrix[:n, :n], matrix[:n, n] = frame.matrix, frame.origin
    if not np.linalg.det(matrix[:n, :n]):
        raise InputError(f"{path} says that its voxels have no size along an axis; correct its metadata")
    return matrix
