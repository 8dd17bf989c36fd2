"""The objects of a table, as links that take the viewer to them."""

from __future__ import annotations

import csv
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unet_engine.errors import InputError, UnetEngineError, first_line

MOST = 20_000
"""Objects that are listed, the largest first."""


@dataclass(frozen=True)
class Entry:
    """One object."""

    number: int
    kind: str
    """Its class; empty where the table does not say."""
    voxels: int
    at: tuple[float, ...]
    """The middle of its box, in voxels of the labels, z, y, x."""


def read(path: str) -> list[Entry]:
    """The rows of a table that ``unet-engine table`` wrote, the largest object first. Raises `InputError` for any
    other."""
    if not Path(path).is_file():
        raise InputError(f"{path} is not there; make it with: unet-engine table LABELS {path}")
    rows = _parquet(path) if path.lower().endswith(".parquet") else _csv(path)
    try:
        return sorted((_entry(row) for row in rows), key=lambda entry: (-entry.voxels, entry.number))
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} is no table of objects: {_lacking(error)}; make one with: unet-engine table LABELS {path}"
        ) from error


def _lacking(error: Exception) -> str:
    return f"it has no column {error.args[0]}" if isinstance(error, KeyError) else first_line(error)


def _csv(path: str) -> Sequence[Mapping[str, Any]]:
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}; give a table of unet-engine table") from error


def _parquet(path: str) -> Sequence[Mapping[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UnetEngineError(f"{path}: Parquet needs pyarrow; pip install 'unet-engine[tables]'") from error
    try:
        found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except Exception as error:
        raise InputError(f"{path} is no Parquet file: {error}; give a table of unet-engine table") from error
    return found


def _entry(row: Mapping[str, Any]) -> Entry:
    axes = [a for a in "zyx" if f"voxel_{a}0" in row]
    if not axes:
        raise KeyError("voxel_x0")
    at = tuple((float(row[f"voxel_{a}0"]) + float(row[f"voxel_{a}1"])) / 2 for a in axes)
    kind = row.get("class_name") or row.get("class")
    return Entry(int(row["id"]), "" if kind is None else str(kind), int(row["voxels"]), at)


def page(title: str, entries: Sequence[Entry]) -> str:
    """A page of links, one for each object: ``NUMBER`` relative to where the page lies."""
    rows = "".join(
        f'<tr><td><a href="objects/{entry.number}">{entry.number}</a></td><td>{html.escape(entry.kind)}</td>'
        f"<td>{entry.voxels:,}</td></tr>\n"
        for entry in entries[:MOST]
    )
    more = f"<p>The {MOST:,} largest of {len(entries):,}.</p>" if len(entries) > MOST else ""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>' + html.escape(title) + "</title>"
        "<style>body{font:14px sans-serif;margin:1em}td,th{padding:2px 12px;text-align:left}"
        "td:nth-child(3){text-align:right}</style>"
        f"<h1>{html.escape(title)}</h1>{more}<table><tr><th>object</th><th>class</th><th>voxels</th></tr>\n{rows}</table>"
    )
