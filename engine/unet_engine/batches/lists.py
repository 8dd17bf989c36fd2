"""Volumes and settings of their own in a list: CSV, or a JSON object a line."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unet_engine.batches import remote
from unet_engine.errors import InputError, SettingsError, first_line, reworded
from unet_engine.paths import inside, is_local, parts, plain
from unet_engine.text_files import NotReadable, read_text
from unet_engine.units import brief

LISTS = (".csv", ".jsonl", ".ndjson")
"""Endings of lists."""
OF_ONE = (
    "out", "mask", "roi", "axes", "image", "level", "timepoint", "input_channels", "normalize", "nodata", "outside",
)  # fmt: skip
"""Settings that a list may give of each volume."""


@dataclass(frozen=True)
class Item:
    """One volume."""

    input: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the list says of it alone."""
    said_at: str = ""
    """Where a list says so."""
    image: str = ""
    """Which of all images of `collection` it is, where these are asked for."""
    collection: str = ""
    of_cases: str = ""
    """The folder that it was found in, where others would be slices of one volume."""

    @contextmanager
    def told(self) -> Iterator[None]:
        """Errors about its settings name the line that says them."""
        try:
            yield
        except SettingsError as error:
            if not self.said_at:
                raise
            raise reworded(error, f"{self.said_at}: {error}") from error


def is_list(path: str) -> bool:
    """Whether it is called like a list."""
    return _name(path).endswith(LISTS)


def _name(path: str) -> str:
    """`path` in small letters, without what stands behind the ``?`` of a URL."""
    return (path if is_local(path) else path.partition("?")[0]).lower()


def listed(path: str) -> list[Item]:
    """The volumes of a list, in its order; paths in it start where it lies. Raises `InputError` where it cannot be read
    or names none, and `SettingsError` for lines that make no sense."""
    try:
        text = read_text(Path(path)) if is_local(path) else remote.text(path)
    except NotReadable as error:
        raise InputError(f"{path} {error}") from error
    text = text.removeprefix("\ufeff")
    rows = _csv(path, text) if _name(path).endswith(".csv") else _json_lines(path, text)
    found = [_item(path, line, row) for line, row in rows]
    if not found:
        raise InputError(f"{path} names no volume; give a line for each, with its path under input")
    return found


def _csv(path: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text), skipinitialspace=True, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        if "input" not in names:
            raise SettingsError(f"{path}: its first line names no column input; begin it like input,out")
        _check_once(path, 1, names)
        for values in reader:
            if len(values) > len(names):
                raise SettingsError(
                    f"{path}, line {reader.line_num}: it has more values than the first line has columns; quote commas"
                )
            if values:
                row = zip(names, map(str.strip, values), strict=False)  # what is missing at the end is not said
                yield reader.line_num, {name: value for name, value in row if value}
    except csv.Error as error:
        raise SettingsError(f"{path}, line {reader.line_num}: {error}; close its quotes, one volume a line") from error


def _json_lines(path: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue

        def once(pairs: list[tuple[str, Any]], number: int = number) -> dict[str, Any]:
            _check_once(path, number, [key for key, _ in pairs])
            return dict(pairs)

        try:
            row = json.loads(line, object_pairs_hook=once)
        except (ValueError, RecursionError) as error:
            raise SettingsError(f"{path}, line {number}: {first_line(error)}; give one JSON object a line") from error
        if not isinstance(row, dict):
            raise SettingsError(f'{path}, line {number}: it is no JSON object; write it like {{"input": "scan.zarr"}}')
        yield number, row


def _check_once(path: str, line: int, names: Sequence[str]) -> None:
    """Raise `SettingsError` where a name comes twice: one of the two would be dropped without a word."""
    if twice := [name for n, name in enumerate(names) if name in names[:n]]:
        raise SettingsError(f"{path}, line {line}: it says {brief(twice[0])} twice; leave one out")


def _item(path: str, line: int, row: dict[str, Any]) -> Item:
    volume = row.pop("input", None)
    if not isinstance(volume, str) or not volume.strip():
        raise SettingsError(f"{path}, line {line}: it names no volume; give its path under input")
    strange = sorted(set(row) - set(OF_ONE))
    if strange:
        raise SettingsError(
            f"{path}, line {line}: {brief(strange[0])} is not a volume's own setting; a list may give "
            f"input, {', '.join(OF_ONE)}"
        )
    placed: dict[str, Any] = {key: _placed(path, str(row[key])) for key in ("out", "mask") if key in row}
    each = parts(plain(volume.strip()), lambda name: _is_beside(path, name))
    return Item("+".join(_placed(path, part) for part in each), {**row, **placed}, f"{path}, line {line}")


def _is_beside(path: str, name: str) -> bool:
    """Whether there is something that the list at `path` calls `name`."""
    place = _placed(path, name)
    if is_local(place):
        return os.path.lexists(inside(place)[0])
    return remote.is_there(place)


def _placed(path: str, place: str) -> str:
    place = plain(place)
    if not is_local(place):
        return place
    if is_local(path):
        return str(Path(path).parent / place)
    if place.startswith("/") or ".." in place.split("/"):
        raise SettingsError(
            f"{path} names {brief(place)}, a place on this machine or above it; a list behind a URL may name URLs, and "
            "what lies beside it"
        )
    return remote.beside(path, place)
