"""The images of a TIFF, as tifffile finds them: which one is meant, and which level of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from unet_engine.errors import InputError
from unet_engine.units import brief, times
from unet_engine.volumes.axes import checked_axes


@dataclass(frozen=True)
class Image:
    full: Any
    """Series of tifffile's: the full resolution."""
    series: Any
    """The same, or a smaller level of it."""
    told: tuple[str, ...]


def image_of(path: str, file: Any, image: str | None, level: str) -> Image:
    """The one called or numbered `image` (None: the only one, or the largest) in the `level` of this number. Raises
    `InputError` listing what there is."""
    full, told = _series(path, file, image)
    if not (level.isascii() and level.isdigit() and int(level[:9]) < len(full.levels)):
        sizes = ", ".join(times(one.shape) for one in full.levels[:_SHOWN])
        raise InputError(f"--level {brief(level)}: {path} has {len(full.levels)} levels ({sizes}); count from 0")
    return Image(full, full.levels[int(level)], told)


_SHOWN = 8
"""Images or levels that are listed."""


def _series(path: str, file: Any, image: str | None) -> tuple[Any, tuple[str, ...]]:
    """The image that is meant: the one called or numbered `image`, the only one, or one that is larger than all others;
    and what the user is to know. Raises `InputError` listing them."""
    if image is not None:
        return _named_series(path, file, image), ()
    found = sorted(file.series, key=lambda s: -prod(s.shape))
    if not found:
        raise InputError(f"{path} holds no image; give another --in")
    if len(found) > 1 and prod(found[0].shape) == prod(found[1].shape):
        raise InputError(
            f"{path} holds {len(found)} images, and nothing says which is meant ({_shown(file.series)}); name one, e.g. "
            "--image 0"
        )
    told = f"{path} holds {len(found)} images; the largest is read, {times(found[0].shape)}"
    return found[0], (told,) if len(found) > 1 else ()


def _named_series(path: str, file: Any, image: str) -> Any:
    called = [one for one in file.series if one.name == image]
    if not called and image.isascii() and image.isdigit():
        called = list(file.series[int(image[:9]) : int(image[:9]) + 1])
    if len(called) != 1:
        why = "several are called so" if called else "there is none"
        raise InputError(f"--image {brief(image)}: {why} in {path}; it has {_shown(file.series)}, numbered from 0")
    return called[0]


def names_of(file: Any) -> list[str]:
    """What each image of a file is called for `image_of`: its number, which none has for a name; none of a single one.
    Raises `InputError`."""
    called = [one.name for one in file.series]
    numbers = [str(number) for number in range(len(called))]
    if odd := next((name for name in called if name in numbers and called.index(name) != int(name)), None):
        raise InputError(f"--image all: an image of it is called {odd}, and is not number {odd}; name one at a time")
    return numbers if len(numbers) > 1 else []


def _shown(series: Sequence[Any]) -> str:
    more = f" and {len(series) - _SHOWN} more" if len(series) > _SHOWN else ""
    return ", ".join(f"{brief(s.name)} " * bool(s.name) + f"{times(s.shape)} {s.axes}" for s in series[:_SHOWN]) + more


def listed(series: Any) -> Iterable[Any]:
    """Its pages, of kinds that list them one by one and may do so over several files; else the first, like which all
    are: a stack of ImageJ has no others."""
    return series if series.kind in ("ome", "mmstack", "ndtiff") else (series.keyframe,)


def unnamed(series: Any) -> str:
    """``z`` where `named_axes` takes axes of which nothing tells what they are for planes."""
    return "z" if "z" not in series.axes.lower() and set("iq") & set(series.axes.lower()) else ""


def named_axes(path: str, series: Any, axes: str | None) -> str:
    """The axes of `series`, one letter each. What tells nothing (I, Q: any sequence) is z, samples are channels."""
    if axes is None:
        names = series.axes.lower()
        if "c" not in names:
            names = names.replace("s", "c")
        for anything in "iq":
            names = names.replace(anything, "z") if "z" not in names else names
        axes = names
    return checked_axes(path, series.shape, series.dtype, axes)
