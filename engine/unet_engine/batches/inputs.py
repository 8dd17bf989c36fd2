"""Which volumes are meant: several paths, a glob, a folder or bucket prefix, or a list in CSV or JSON lines."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from unet_engine.batches import patterns, remote
from unet_engine.batches.lists import Item, is_list, listed
from unet_engine.errors import InputError, SettingsError
from unet_engine.model.file import is_model
from unet_engine.output.header import read_header
from unet_engine.paths import inside, is_local, parts, plain
from unet_engine.postprocess.formats import account_of, is_remote_file
from unet_engine.settings.files import CONFIG
from unet_engine.storage import stores
from unet_engine.storage.remote import AT_ONCE
from unet_engine.units import brief
from unet_engine.volumes.account import KEY
from unet_engine.volumes.formats import OTHERWISE, are_cases, format_of, images_of, located

MOST = 10**6
"""Volumes of one command."""


def are_several(inputs: Sequence[str], image: object = None, axes: str | None = None) -> bool:
    """Whether `inputs`, of which `image` is asked for and `axes` are said, may stand for another number of volumes than
    one: several paths, a list, a glob, a folder that is no volume itself, or all images of one."""
    several = len(inputs) != 1 or is_list(inputs[0]) or is_glob(inputs[0])
    return image == ALL_IMAGES or several or is_folder(inputs[0], axes)


def is_glob(path: str) -> bool:
    """Whether it has a wildcard, and is not the name of what is there."""
    if not is_local(path):
        return bool(re.search(r"[*\[]", path.partition("?")[0]))
    if not re.search(r"[*?\[]", path):
        return False
    each = parts(plain(path))
    return not all(is_local(part) and os.path.exists(inside(part)[0]) for part in each)  # noqa: PTH110


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
    """Raise `SettingsError` where one of `paths`, named behind the options, is called like a model file, or is a bare
    word that names nothing: most likely a slip of the keyboard. What else looks like a path is a volume, and its
    absence that volume's fault."""
    for path in paths:
        if is_model(path):
            raise SettingsError(f"{brief(path)} is called like a model, not a volume; give it by --model")
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
            found += listed(path)
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
    if os.path.lexists(inside(pattern)[0]):
        return [pattern]
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
