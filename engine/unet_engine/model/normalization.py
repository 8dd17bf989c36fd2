"""How raw voxels become numbers for a network: what a model file says of it, or ``--normalize``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_serializer, model_validator
from pydantic_core.core_schema import SerializerFunctionWrapHandler

from unet_engine.errors import SettingsError

Mode = Literal["none", "zscore", "minmax", "percentile", "range", "fixed", "each"]
Pair = tuple[float, float]
NONZERO = "nonzero"
FILLED = "filled"
SHORT = {"imagenet": "fixed:mean=0.485/0.456/0.406,std=0.229/0.224/0.225,divide=255"}
"""Words for what is said often. The figures are those of torchvision, for red, green and blue from 0 to 255."""
EXAMPLES = (
    "none, zscore, minmax, percentile:1,99 or range:-1000,400; also fixed:mean=100,std=200 (A/B/C: one per channel), "
    "imagenet, and clip, clip=-1024:3071, clip=0.5%:99.5%, to=-1:1, foreground behind them"
)
_FIRST = ("mode", "low", "high")
_MEASURED = ("zscore", "minmax", "percentile")
_FLAGS = ("everywhere", "together", "whole")
_WORDS = ("clip_of", "measured_of")


class Normalization(BaseModel):
    """``(x - shift) * scale`` with one pair per channel for the whole volume; x is clipped first where `clip` says so.

    none        x as it is
    zscore      mean to 0, standard deviation to 1
    minmax      smallest value to 0, largest to 1
    percentile  the `low`-th percentile to 0, the `high`-th to 1
    range       `low` to 0, `high` to 1 (raw units, e.g. HU)
    fixed       `mean` to 0, `mean` + `std` to 1: figures of the training data, after division by `divide`
    each        each channel in a way of its own, see `each`; as text these ways, parted by semicolons

    As text: the mode, and what belongs to it behind a colon, e.g. ``percentile:1,99,clip`` or
    ``fixed:mean=99.4,std=39.4,clip=-41:176``; values per channel are parted by slashes. `str` gives the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mode: Mode = "none"
    low: float | None = None
    high: float | None = None
    mean: tuple[float, ...] | None = None
    """Of `fixed`, for all channels or each."""
    std: tuple[float, ...] | None = None
    divide: float = 1.0
    """Of `fixed`: what voxels are divided by before `mean` and `std` hold, e.g. 255."""
    to: Pair | None = None
    """Of `range`, `percentile` and `minmax`: what the ends become instead of 0 and 1."""
    clip: tuple[Pair, ...] | None = None
    """Bounds in raw units, for all channels or each. What is measured is measured of clipped voxels."""
    clip_percentiles: Pair | None = None
    """Bounds as percentiles of the volume, per channel. Beside `clip`: voxels are limited to both."""
    clip_of: Literal["each", "all"] | None = None
    """Whether `clip_percentiles` are of each channel's voxels or of all together. None: as `together` says."""
    measured_of: Literal["raw", "clipped"] | None = None
    """Whether what is measured is measured of voxels as they come or as they were clipped. None: as they were clipped,
    but for percentiles beside `clip_percentiles`."""
    foreground: Literal["nonzero", "filled"] | float | None = None
    """What is measured is measured of voxels that are not 0, or above this value; all others become 0. ``filled``: of
    those that are not 0 in any channel, and of the holes in there, as nnU-Net has it."""
    everywhere: bool = False
    """Whether voxels outside the foreground are normalised like the others, instead of becoming 0."""
    eps: float = 0.0
    """Added to what is divided by, the deviation or the distance of the ends."""
    together: bool = False
    """Whether statistics are of all channels at once, instead of each channel's own."""
    whole: bool = False
    """Whether what is measured is measured of every voxel, and not of samples of a large volume."""
    each: tuple[Normalization, ...] | None = None
    """One for each channel, of the other modes."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, said: Any) -> Any:
        return _parsed(said) if isinstance(said, str) else said

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _for_all(cls, said: Any) -> Any:
        return (said,) if isinstance(said, int | float) else said

    @field_validator("clip", mode="before")
    @classmethod
    def _one_pair(cls, said: Any) -> Any:
        flat = isinstance(said, Sequence) and len(said) == 2 and all(isinstance(v, int | float) for v in said)
        return (said,) if flat else said

    @field_validator("foreground", mode="before")
    @classmethod
    def _yes(cls, said: Any) -> Any:
        return {True: NONZERO, False: None}[said] if isinstance(said, bool) else said

    @model_validator(mode="after")
    def _consistent(self) -> Normalization:
        self._check_bounds()
        self._check_fixed()
        self._check_each()
        if self.to is not None and (self.mode not in ("range", "percentile", "minmax") or self.to[0] == self.to[1]):
            raise ValueError("to=A:B belongs to range, percentile or minmax, and A differs from B")
        self._check_clip()
        if self.foreground is not None and self.mode == "none":
            raise ValueError("none has no foreground")
        if self.everywhere and self.foreground is None:
            raise ValueError("everywhere is said of a foreground")
        if self.eps < 0 or ((self.eps or self.together) and self.mode not in _MEASURED):
            raise ValueError("eps, above 0, and together belong to zscore, minmax or percentile")
        if self.whole and not self.looks:
            raise ValueError("whole is said of what is measured: zscore, minmax, percentile, or clip=A%:B%")
        return self

    def _check_bounds(self) -> None:
        needs = self.mode in ("percentile", "range")
        if needs and (self.low is None or self.high is None or not self.low < self.high):
            raise ValueError(f"{self.mode} needs low < high")
        if self.mode == "percentile" and not ((self.low or 0) >= 0 and (self.high or 0) <= 100):
            raise ValueError("percentiles lie between 0 and 100")
        if needs and not _is_invertible((self.high or 0.0) - (self.low or 0.0)):
            raise ValueError(f"{self.mode} has bounds too far apart, or too near")
        if not needs and (self.low is not None or self.high is not None):
            raise ValueError(f"{self.mode} takes no bounds")

    def _check_clip(self) -> None:
        bounds = [*(self.clip or ()), *([self.clip_percentiles] if self.clip_percentiles else ())]
        if not all(a < b for a, b in bounds) or self.clip == ():
            raise ValueError("clip=A:B needs A below B")
        if self.clip_percentiles and not (self.clip_percentiles[0] >= 0 and self.clip_percentiles[1] <= 100):
            raise ValueError("percentiles lie between 0 and 100")
        if self.clip_of and not self.clip_percentiles:
            raise ValueError("clip_of is said of percentiles, clip=A%:B%")
        if self.measured_of and (self.mode not in _MEASURED or not (self.clip or self.clip_percentiles)):
            raise ValueError("measured_of is said of zscore, minmax or percentile with a clip")
        of_parts = self.together and self.clip_of == "each" and self.measures_clipped
        if of_parts and self.mode == "percentile" and (self.low, self.high) != (0, 100):
            raise ValueError("percentiles of all channels together, each cut off at its own, are not measured")

    def _check_fixed(self) -> None:
        if self.mode != "fixed":
            if self.mean is not None or self.std is not None or self.divide != 1:
                raise ValueError("mean, std and divide belong to fixed")
            return
        if not self.mean or not self.std:
            raise ValueError("fixed needs mean and std")
        if len(self.mean) != len(self.std) and 1 not in (len(self.mean), len(self.std)):
            raise ValueError(f"{len(self.mean)} values of mean and {len(self.std)} of std")
        if min(self.std) <= 0 or self.divide <= 0:
            raise ValueError("std and divide are above 0")
        if not all(_is_invertible(std * self.divide) for std in self.std):
            raise ValueError("std is too large, or too small")

    def _check_each(self) -> None:
        if (self.mode == "each") != bool(self.each):
            raise ValueError("each channel's way is said with mode each, and nowhere else")
        if any(one.each or one.together or one.clip_of == "all" for one in self.each or ()):
            raise ValueError("a channel of its own has no channels, and no statistics together with others")
        if self.each and (self.clip or self.clip_percentiles or self.foreground is not None):
            raise ValueError("clip and foreground are said of each channel")

    def check_channels(self, channels: int) -> None:
        """Raise `ValueError` where what is said per channel is not said for so many."""
        for name, values in (("mean", self.mean), ("std", self.std), ("clip", self.clip)):
            if values is not None and len(values) not in (1, channels):
                raise ValueError(
                    f"{name} has {len(values)} values for {channels} input channels; give one, or one each"
                )
        if self.each and len(self.each) != channels:
            raise ValueError(f"{len(self.each)} ways are said for {channels} input channels; say one for each")
        for one in self.each or ():
            one.check_channels(1)

    @classmethod
    def parse(cls, text: str) -> Normalization:
        """Read what ``--normalize`` says; see the class. Raises `SettingsError` naming what is not understood."""
        try:
            return cls.model_validate(text)
        except ValidationError as error:
            why = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise SettingsError(f"--normalize {text!r} is not understood ({why}); use {EXAMPLES}") from error

    @property
    def clips_together(self) -> bool:
        """Whether `clip_percentiles` are of all channels' voxels."""
        return self.together if self.clip_of is None else self.clip_of == "all"

    @property
    def measures_clipped(self) -> bool:
        """Whether what is measured is measured of clipped voxels."""
        if self.measured_of is None:
            return not (self.mode == "percentile" and self.clip_percentiles)
        return self.measured_of == "clipped"

    @property
    def looks(self) -> bool:
        """Whether voxels have to be looked at to tell shift, scale and clip."""
        if self.each:
            return any(one.looks for one in self.each)
        return self.mode in _MEASURED or self.clip_percentiles is not None

    @property
    def of_all(self) -> bool:
        """Whether every voxel has to be looked at."""
        return self.whole or (self.looks and self.fills) or any(one.of_all for one in self.each or ())

    @property
    def fills(self) -> bool:
        """Whether the foreground of some channel is that of all channels, with its holes filled."""
        return self.foreground == FILLED or any(one.fills for one in self.each or ())

    def measured_of_all(self) -> Normalization:
        """The same, but that what is measured is measured of every voxel."""
        if self.each:
            return self.model_copy(update={"each": tuple(one.measured_of_all() for one in self.each)})
        return self.model_copy(update={"whole": True}) if self.looks else self

    @property
    def is_affine(self) -> bool:
        """Whether it is a shift and a scale alone."""
        if self.each:
            return all(one.is_affine for one in self.each)
        return self.clip is None and self.clip_percentiles is None and (self.foreground is None or self.everywhere)

    @property
    def span(self) -> Pair | None:
        """What most normalised voxels lie between; None where nothing is promised."""
        return (self.to or (0.0, 1.0)) if self.mode in ("range", "minmax", "percentile") else None

    def __str__(self) -> str:
        if self.each:
            return ";".join(map(str, self.each))
        parts = [] if self.low is None else [f"{self.low:g}", f"{self.high:g}"]
        for name, values in (("mean", self.mean), ("std", self.std)):
            parts += [f"{name}={'/'.join(map(_number, values))}"] if values else []
        parts += [f"divide={_number(self.divide)}"] if self.divide != 1 else []
        parts += [f"to={_pair(self.to)}"] if self.to else []
        parts += [f"clip={'/'.join(map(_pair, self.clip))}"] if self.clip else []
        parts += [f"clip={_pair(self.clip_percentiles, '%')}"] if self.clip_percentiles else []
        parts += [f"{name}={value}" for name in _WORDS if (value := getattr(self, name))]
        if self.foreground is not None:
            value = (
                "" if self.foreground == NONZERO else f"={self.foreground if self.fills else _number(self.foreground)}"
            )
            parts.append(f"foreground{value}")
        parts += [name for name in _FLAGS if getattr(self, name)]
        parts += [f"eps={_number(self.eps)}"] if self.eps else []
        return self.mode + (":" if parts else "") + ",".join(parts)

    @model_serializer(mode="wrap")
    def _what_is_said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what came later and is not used: so files stay readable for older versions, and digests what they
        were."""
        fields, values = type(self).model_fields, handler(self)
        return {k: v for k, v in values.items() if k in _FIRST or getattr(self, k) != fields[k].default}


def _is_invertible(width: float) -> bool:
    return width != 0 and isfinite(width) and isfinite(1 / width)


def _number(value: float | str) -> str:
    return repr(value).removesuffix(".0")


def _pair(pair: Pair | None, unit: str = "") -> str:
    assert pair is not None
    return ":".join(_number(v) + unit for v in pair)


def _parsed(text: str) -> Mapping[str, Any]:
    """The fields that `text` says. Raises `ValueError` naming the part that says nothing."""
    if ";" in text:
        return {"mode": "each", "each": text.split(";")}
    mode, _, rest = SHORT.get(text.strip(), text.strip()).partition(":")
    said: dict[str, Any] = {"mode": mode}
    bounds: list[float] = []
    for part in rest.split(",") if rest else []:
        name, equals, value = part.strip().partition("=")
        if not equals and name not in ("clip", "foreground", *_FLAGS):
            bounds.append(_float(name))
            continue
        found = _part(mode, name, value if equals else None, bounds)
        if said.keys() & found:
            raise ValueError(f"{name} is said twice")
        said |= found
    if bounds:
        if len(bounds) != 2:
            raise ValueError(f"{len(bounds)} bounds where two are meant")
        said |= {"low": bounds[0], "high": bounds[1]}
    return said


def _part(mode: str, name: str, value: str | None, bounds: list[float]) -> dict[str, Any]:
    """The fields that ``name=value`` says, or a word alone."""
    if name == "clip":
        return _clip_to_ends(mode, bounds) if value is None else _clip(value)
    if name == "foreground":
        if value in (None, NONZERO, FILLED):
            return {"foreground": value or NONZERO}
        return {"foreground": _float(str(value))}
    if name in _FLAGS and value is None:
        return {name: True}
    if name not in _VALUES or value is None:
        raise ValueError(f"{name!r} means nothing here")
    return {name: _VALUES[name](value)}


def _clip(value: str) -> dict[str, Any]:
    if "%" in value:
        return {"clip_percentiles": _ends(value.replace("%", ""))}
    return {"clip": tuple(map(_ends, value.split("/")))}


def _clip_to_ends(mode: str, bounds: list[float]) -> dict[str, Any]:
    """``clip`` alone: to the ends of the mode, so that nothing leaves 0 to 1."""
    if mode == "minmax":
        return {"clip_percentiles": (0.0, 100.0)}
    if mode not in ("range", "percentile") or len(bounds) != 2:
        raise ValueError("clip alone follows the bounds of range or percentile, or minmax; else write clip=A:B")
    ends = (bounds[0], bounds[1])
    return {"clip": (ends,)} if mode == "range" else {"clip_percentiles": ends}


def _ends(text: str) -> Pair:
    parts = text.split(":")
    if len(parts) != 2:
        raise ValueError(f"{text!r} is not LOW:HIGH")
    return _float(parts[0]), _float(parts[1])


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(_float, text.split("/")))


def _float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None
    if not isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


_VALUES: dict[str, Callable[[str], Any]] = {
    "to": _ends,
    "mean": _numbers,
    "std": _numbers,
    "divide": _float,
    "eps": _float,
    "clip_of": str,
    "measured_of": str,
}
