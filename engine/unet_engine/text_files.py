"""Small files that people write, read whole: TOML, YAML, JSON. Whatever lies there instead is refused, never waited
for."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unet_engine.paths import check_file

MOST = 16 * 2**20
"""Bytes of such a file: what is larger is something else."""


class NotReadable(Exception):
    """What is wrong with a file and what to do, to be said after its path."""


class Missing(NotReadable):
    """There is no such file."""


def read_text(path: Path) -> str:
    """The text of the file at `path`. Raises `NotReadable`."""
    try:
        return _content(path).decode()
    except UnicodeDecodeError as error:
        raise NotReadable(f"is not text in UTF-8: {error.reason} at byte {error.start}; correct it") from error


def _content(path: Path) -> bytes:
    try:
        size = check_file(path).st_size
        if size > MOST:
            raise NotReadable(f"has {size:,} bytes, which is no text somebody wrote; give the right file")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise Missing("does not exist: there is no such file; check the path") from error
    except OSError as error:
        raise NotReadable(f"cannot be read: {error.strerror}; correct its permissions, or give another file") from error


def read_toml(path: Path) -> dict[str, Any]:
    """What the TOML file at `path` says. Raises `NotReadable`."""
    values: dict[str, Any] = _parsed(path, "TOML", tomllib.loads)
    return values


def read_json(path: Path) -> Any:
    """What the JSON file at `path` says. Raises `NotReadable`."""
    return _parsed(path, "JSON", json.loads)


def read_yaml(path: Path) -> Any:
    """What the YAML file at `path` says, plain values alone. Raises `NotReadable`."""
    import yaml

    return _parsed(path, "YAML", yaml.safe_load, yaml.YAMLError)


def _parsed(path: Path, kind: str, parse: Callable[[str], Any], invalid: type[Exception] = ValueError) -> Any:
    content = _content(path)
    try:
        return parse(content.decode())
    except RecursionError as error:
        raise NotReadable(f"is not valid {kind}: it is nested too deep; correct it") from error
    except (ValueError, invalid) as error:  # numbers of thousands of digits raise it too
        raise NotReadable(f"is not valid {kind}: {_reason(error)}; correct it") from error


def _reason(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark and problem:  # of YAML, whose own text has many lines
        return f"{problem} in line {mark.line + 1}"
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]
