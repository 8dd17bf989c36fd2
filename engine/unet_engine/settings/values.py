"""What a setting may be, each by itself, and the ways to write it: text of the command line, of a file and of the
environment, numbers and paths of Python."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationInfo, field_validator

from unet_engine.endings import refuse_other_formats
from unet_engine.paths import plain, unusable
from unet_engine.settings.text import parse_part, parse_tiling, parse_tta, parse_values, parse_window, plausible_window
from unet_engine.units import MOST_BYTES, parse_bytes

KEEP = "keep"
"""Of `Settings.outside`: voxels outside keep what the windows that reach them give."""


def _understood(field: str, by: Callable[[str], object], *words: str) -> Any:
    """A validator: the text of a field is what `by` takes, one of `words`, or None."""

    def checked(value: str | None) -> str | None:
        if value is not None and value not in words:
            by(value)
        return value

    return field_validator(field, check_fields=False)(checked)


class Values(BaseModel):
    """What `unet_engine.settings.settings.Settings` has fields for."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic takes true and false for 1 and 0."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("it is not switched on and off; give its value, or leave it out")
        return value

    @field_validator("overlap", mode="before", check_fields=False)
    @classmethod
    def _fraction(cls, value: Any) -> Any:
        if not isinstance(value, str) or value == "auto":
            return value
        try:
            return float(value)
        except ValueError:
            raise ValueError("give a fraction from 0 to below 1, or auto") from None

    @field_validator("timepoint", mode="before", check_fields=False)
    @classmethod
    def _times(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value.isascii() and value.isdigit():
            return int(value[:12])
        if value != "all" and not re.fullmatch(r"[0-9]{0,9}:[0-9]{0,9}", value):
            raise ValueError("give a number from 0, a range such as 0:10, or all")
        return value

    @field_validator("memory", mode="before", check_fields=False)
    @classmethod
    def _bytes(cls, value: Any) -> Any:
        return parse_bytes(value) if isinstance(value, str) else value

    @field_validator("memory", check_fields=False)
    @classmethod
    def _some(cls, value: int | None) -> int | None:
        if value is not None and not 1 <= value <= MOST_BYTES:
            raise ValueError("give a number of bytes that a machine may have, e.g. 8GiB")
        return value

    @field_validator(
        "outside", "nodata", "image", "folds", "weights", "input_channels", mode="before", check_fields=False
    )
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """Numbers, and lists of numbers and names, as the command line has them."""
        parts = value if isinstance(value, list | tuple) else [value]
        known = parts and all(isinstance(part, str | int | float) and not isinstance(part, bool) for part in parts)
        return ",".join(map(str, parts)) if known else value

    @field_validator("outside", check_fields=False)
    @classmethod
    def _one(cls, value: str | None) -> str | None:
        if value in (None, KEEP):
            return value
        try:
            (number,) = parse_values(str(value))
        except ValueError:
            raise ValueError(f"give a finite number, nan, or {KEEP}") from None
        return repr(number)

    _values = _understood("nodata", parse_values, "none")

    @field_validator("model", mode="before", check_fields=False)
    @classmethod
    def _several(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and value and all(isinstance(part, str | Path) for part in value):
            return ",".join(map(str, value))
        return str(value) if isinstance(value, Path) else value

    @field_validator("input", "out", "into", "mask", "truth", "profile", mode="before", check_fields=False)
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator(
        "input",
        "model",
        "out",
        "into",
        "mask",
        "outside",
        "nodata",
        "tiling",
        "truth",
        "roi",
        "axes",
        "image",
        "input_channels",
        "normalize",
        "folds",
        "weights",
        "head",
        "backend",
        "device",
        "scheduler",
        "cluster",
        "part",
        "profile",
        "dashboard",
        "dashboard_token",
        "tls_ca",
        "tls_cert",
        "tls_key",
        check_fields=False,
    )
    @classmethod
    def _said(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("it is empty; give a value or leave the option out")
        return value

    _zarr = _understood("out", refuse_other_formats)

    @field_validator(
        "input",
        "model",
        "out",
        "into",
        "mask",
        "truth",
        "profile",
        "scheduler",
        "cluster",
        "tls_ca",
        "tls_cert",
        "tls_key",
        check_fields=False,
    )
    @classmethod
    def _place(cls, value: str | None) -> str | None:
        if value is not None and (why := unusable(value)):
            raise ValueError(why)
        return value and plain(value)

    _part = _understood("part", parse_part)
    _tta = _understood("tta", parse_tta)
    _tiling = _understood("tiling", parse_tiling, "auto")

    @field_validator("window", mode="before", check_fields=False)
    @classmethod
    def _window(cls, value: Any) -> Any:
        return parse_window(value) if isinstance(value, str) else value

    @field_validator("window", check_fields=False)
    @classmethod
    def _positive(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if value is None else plausible_window(value)
