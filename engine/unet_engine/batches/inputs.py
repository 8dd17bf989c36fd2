"""Which volumes are meant: several paths, a glob, a folder or bucket prefix, or a list in CSV or JSON lines."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unet_engine.batches import patterns, remote
from unet_engine.errors import InputError, SettingsError, first_line, reworded
from unet_engine.output.header import read_header
from unet_engine.paths import inside, is_local, parts, plain
from unet_engine.postprocess.formats import account_of, is_remote_file
from unet_engine.settings_files import CONFIG
from unet_engine.storage import stores
from unet_engine.storage.remote import AT_ONCE
from unet_engine.text_files import NotReadable, read_text
from unet_engine.units import brief
from unet_engine.volumes.account import KEY
from unet_engine.volumes.formats import OTHERWISE, are_cases, format_of, images_of, located

LISTS = (".csv", ".jsonl", ".ndjson")
"""Endings of lists."""
OF_ONE = (
    "out",
    "mask",
    "roi",
    "axes",
    "image",
    "level",
    "timepoint",
    "input_channels",
    "normalize",
    "nodata",
    "outside",
)
"""Settings that a list may give of each volume."""
MOST = 10**6
"""Volumes of one command."""


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


def are_several(inputs: Sequence[str], image: object = None, axes: str | None = None) -> bool:
    """Whether `inputs`, of which `image` is asked for and `axes` are said, may stand for another number of volumes than
    one: several paths, a list, a glob, a folder that is no volume itself, or all images of one."""
    several = len(inputs) != 1 or is_list(inputs[0]) or is_glob(inputs[0])
    return image == ALL_IMAGES or several or is_folder(inputs[0], axes)


def is_list(path: str) -> bool:
    return _name(path).endswith(LISTS)


def _name(path: str) -> str:
    """`path` in small letters, without what stands behind the ``?`` of a URL."""
    return (path if is_local(path) else path.partition("?")[0]).lower()


def is_glob(path: str) -> bool:
    """Whether it has a wildcard, and is not the name of what is there."""
    if not is_local(path):
        return bool(re.search(r"[*\[]", path.partition("?")[0]))
    return bool(re.search(r"[*?\[]", path)) and not os.path.exists(inside(path)[0])  # noqa: PTH110


def is_folder(path: str, axes: str | None = None) -> bool:
    """Whether it is a folder, or a prefix of a bucket, that holds volumes and is none: no Zarr, and no series of
    slices, which is one volume, unless these are called as channels of several cases, and nobody says the axes."""
    path = plain(path)
    if not path:  # pathlib takes it for the current folder
        return False
    if not is_local(path):
        named_so = path.endswith("/") or "." not in path.rpartition("/")[2]
        return named_so and not _is_zarr(path.rstrip("/")) and bool(path.endswith("/") or remote.names(path))
    if not Path(path).is_dir() or _is_zarr(path):
        return False
    if not axes and are_cases(path):
        return True
    return format_of(path) is OTHERWISE and bool(_volumes_in(path))


def check_behind(paths: Sequence[str]) -> None:
    """Raise `SettingsError` where one of `paths`, named behind the options, is a bare word that names nothing: most
    likely a slip of the keyboard. What looks like a path is a volume, and its absence that volume's fault."""
    for path in paths:
        if not re.search(r"[./*?\[]", path) and not os.path.lexists(path):
            raise SettingsError(f"{brief(path)} is neither an option nor a volume that is there; correct the command")


def expanded(inputs: Sequence[str], axes: str | None = None) -> list[Item]:
    """The volumes that `inputs` stand for, in the order given; those of a glob or a folder sorted by name. axes: see
    `are_several`.

    Raises `InputError` for what holds none, and `SettingsError` for a list that makes no sense.
    """
    found: list[Item] = []
    for path in inputs:
        if is_list(path):
            found += _listed(path)
        elif is_glob(path):
            found += [Item(match) for match in _matches(path)]
        elif is_folder(path, axes):
            cases = path if is_local(path) and are_cases(path) else ""
            found += [Item(volume, of_cases=cases) for volume in _volumes_in(path)]
        else:
            found.append(Item(path))
        if len(found) > MOST:
            raise SettingsError(f"--in stands for more than {MOST:,} volumes; give fewer at once")
    return found


def with_images(items: Sequence[Item], image: str | None) -> list[Item]:
    """`items`, of which those of which all images are asked for, by what is said of each or else by `image`, are one
    for each image. Raises `InputError`."""
    found: list[Item] = []
    for item in items:
        if item.settings.get("image", image) != ALL_IMAGES:
            found.append(item)
            continue
        with item.told():
            names = images_of(item.input)
        alone = {**item.settings, "image": None}
        whole = replace(item, settings=alone, collection=item.input)
        found += [replace(whole, input=located(item.input, name, None), image=name) for name in names] or [
            replace(item, settings=alone)
        ]
    return found


ALL_IMAGES = "all"

# --- globs and folders ---


def _matches(pattern: str) -> list[str]:
    pattern = plain(pattern)
    called = _called(pattern)
    if not called and "+" in pattern:
        return patterns.together(pattern, _called)
    found = [path for path in called if not _is_output(path)] if is_local(pattern) else _without_outputs(called)
    if called and not found:
        raise InputError(
            f"--in {pattern}: only outputs of earlier runs are called so, such as {called[0]}; name those that are meant"
        )
    if not found:
        raise InputError(f"--in {pattern}: nothing there is called so; check the pattern, and quote it in a shell")
    return found


def _called(pattern: str) -> list[str]:
    """All that is there of such a name."""
    if not is_local(pattern):
        return remote.matches(pattern)
    found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  # patterns may be absolute
    return [path for path in found if Path(path).name != CONFIG]


def _volumes_in(folder: str) -> list[str]:
    """What in `folder` itself is a volume, sorted by name: no other folders are looked into, no outputs of ours."""
    folder = plain(folder)
    if is_local(folder):
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
        found = [os.path.join(folder, name) for name in names]  # noqa: PTH118  # as the user wrote it
        found = [path for path in found if _is_volume(path)]
    else:
        there = [f"{folder.rstrip('/')}/{name}" for name in remote.names(folder) if not name.startswith(".")]
        found = _without_outputs([path for path in there if _is_called_so(path)])
        if not found:
            raise InputError(
                f"{folder} holds nothing that is called like a volume (.zarr, .ozx, .nii.gz, .tif, …); give the path of "
                "a volume, or of a folder of them"
            )
        return found
    return [path for path in found if not _is_output(path)]


def _is_called_so(url: str) -> bool:
    return url.lower().endswith((".zarr", ".ozx")) or format_of(url) is not OTHERWISE


def _without_outputs(urls: Sequence[str]) -> list[str]:
    """Those that no run of ours has written. Several are looked at at once."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        written = list(pool.map(_is_output_behind, urls))
    return [url for url, ours in zip(urls, written, strict=True) if not ours]


def _is_output_behind(url: str) -> bool:
    """Of a file, what can be told by a few small requests decides whether it is looked at as a whole."""
    if format_of(url) is OTHERWISE:
        return _is_output(url)
    return is_remote_file(url) and remote.holds(url, KEY) and _is_made(account_of(url))


def _is_volume(path: str) -> bool:
    format = format_of(path)
    return _is_zarr(path) if format is OTHERWISE else format is not None


def _is_zarr(path: str) -> bool:
    if is_local(path):
        return any(Path(path, name).exists() for name in ("zarr.json", ".zarray", ".zgroup"))
    return stores.exists(path)


def _is_output(path: str) -> bool:
    """Whether a run or a pass of ours made it: what `convert` makes of a volume is a volume."""
    return _is_made(_said_of(path))


def _is_made(said: Mapping[str, Any] | None) -> bool:
    return any(key in (said or {}) for key in ("output", "digest", "identity"))


def _said_of(path: str) -> Mapping[str, Any] | None:
    """What whoever made it said of itself."""
    if is_local(path) and not Path(path).is_dir():
        return account_of(path)
    return read_header(path) if _is_zarr(path) else None


# --- lists ---


def _listed(path: str) -> list[Item]:
    """Paths in a list start where the list lies."""
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
