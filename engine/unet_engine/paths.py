"""Text that says where something lies: a path on a local disk, or a URL. What is there, `storage.stores` tells."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from unet_engine.errors import InputError

LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Bytes that systems take."""


def is_local(path: str) -> bool:
    """Whether `path` is one of a local disk, rather than a URL such as ``s3://bucket/scan.zarr``."""
    return "://" not in path


def plain(path: str) -> str:
    """`path`, or the path that it is a URL of, as ``file:///data/scan.zarr`` is: who looks at files does so whatever
    they are called by."""
    return "+".join(map(_plain, _BEFORE_URL.split(path)))


def _plain(path: str) -> str:
    scheme, _, place = path.partition("://")
    if scheme.lower() not in ("file", "local"):
        return path
    return unquote(place.removeprefix("localhost") if place.startswith("localhost/") else place)


_BEFORE_URL = re.compile(r"\+(?=[A-Za-z][A-Za-z0-9.-]*://)")
"""A plus that is followed by a URL."""


def parts(path: str, is_there: Callable[[str], bool] | None = None) -> tuple[str, ...]:
    """The volumes that ``a.tif+b.tif`` names, whose channels are those of one volume; any other path alone. `is_there`:
    whether something is at a relative path, where these begin elsewhere than here.

    What is there under the whole name is that. Of names with a plus, the longest that are there are taken."""
    is_there = is_there or _is_there
    if "+" not in path or (is_local(path) and is_there(path)):
        return (path,)
    return tuple(part for piece in _BEFORE_URL.split(path) for part in _local_parts(piece, is_there))


def _local_parts(path: str, is_there: Callable[[str], bool]) -> list[str]:
    words = path.split("+")
    if not is_local(path) or "" in words:
        return [path]
    found, known = [], False
    while words:
        names = ["+".join(words[:count]) for count in range(len(words), 0, -1)]
        there = next((name for name in names if is_there(name)), None)
        known = known or there is not None
        found.append(there or words[0])
        words = words[found[-1].count("+") + 1 :]
    return found if known else [path]


def _is_there(path: str) -> bool:
    return os.path.lexists(inside(path)[0])


def root_of(path: str) -> str:
    """What the array at `path` lies in: the outermost folder called ``.zarr`` or ``.n5``, else itself, or the file that
    holds it. Absolute."""
    path = inside(path)[0]
    parts = absolute(path.rstrip("/") or path).split("/")
    outermost = next((i for i, part in enumerate(parts) if part.endswith((".zarr", ".n5"))), len(parts) - 1)
    return "/".join(parts[: outermost + 1])


def roots_of(path: str) -> tuple[str, ...]:
    """The same of each volume that `path` names."""
    return tuple(map(root_of, parts(path)))


_HOLDS_SEVERAL = re.compile(r"(.*?\.(?:h5|hdf5|hdf|he5|h5ad|nc|nc4|cdf|ims))(?::(.*))?", re.IGNORECASE | re.DOTALL)


_CHOSEN = re.compile(r"(.*?)((?::image=[^:/]*|:level=[0-9]*)*(?::mask)?)", re.IGNORECASE | re.DOTALL)


def chosen(path: str, **parts: object) -> str:
    """``scene.tif:level=2:mask``: `path` with these `parts` of it, ``image`` or ``level``, besides those that it names;
    what is None is none. Raises `InputError` for a name that cannot stand there."""
    image = str(parts.get("image") or "")
    if ":" in image or "/" in image:
        raise InputError(f"--image {image!r} has a colon or a slash in its name; give its number, counted from 0")
    file, named = _apart(path)
    names = said(path) | {key: str(value) for key, value in parts.items() if value is not None}
    return (
        file
        + "".join(f":{key}={names[key]}" for key in ("image", "level") if key in names)
        + (":mask" if named.lower().endswith(":mask") else "")
    )


def said(path: str) -> dict[str, str]:
    """Which ``image``, ``level`` or ``mask`` of a file `path` names, as text; that of a mask is empty."""
    _, named = _apart(path)
    return {part.partition("=")[0].lower(): part.partition("=")[2] for part in named.split(":") if part}


def _apart(path: str) -> tuple[str, str]:
    """The file, and which of its parts `path` names, each behind a colon; none where something is called like all of
    it, or it is to be the name of a Zarr group."""
    found = _CHOSEN.fullmatch(path)
    assert found is not None  # any text is a file
    if found[2] and is_local(path) and (path.lower().endswith(_NO_FILE) or os.path.lexists(path)):
        return path, ""
    return found[1], found[2]


_NO_FILE = (".zarr", ".n5", ".ozx")


def inside(path: str) -> tuple[str, str | None]:
    """A path such as ``scan.h5:/volumes/raw`` as that of the file and what is named in it; others as they are, and
    None. Text alone decides."""
    file, chosen = _apart(path)  # of what is not Zarr
    if chosen:
        return file, chosen[1:]
    if is_local(path):
        found = _HOLDS_SEVERAL.fullmatch(path)
        return (found[1], found[2] or None) if found else (path, None)
    return _inside_url(path)


def _inside_url(url: str) -> tuple[str, str | None]:
    """The same of a URL, whose colons before the name of a file say other things. A query may stand on either side of
    what is named."""
    scheme, _, rest = url.partition("://")
    host, slash, rest = rest.partition("/")
    place, mark, query = rest.partition("?")
    found = _HOLDS_SEVERAL.fullmatch(place)
    if not found:
        return url, None
    before, named, within = re.fullmatch(r"(.*?)(:(/[^/].*))?", query, re.DOTALL).groups()  # type: ignore[union-attr]
    if found[2] or not named:
        before, within = query, found[2]
    return f"{scheme}://{host}{slash}{found[1]}{mark}{before}", within or None


def several(path: str) -> list[str]:
    """``a.onnx,b.onnx`` as its parts; a path that is there as it is, with whatever commas it has."""
    if "," not in path or os.path.exists(path):  # noqa: PTH110  # where a path has a NUL, pathlib raises
        return [path]
    return [part.strip() for part in path.split(",")]


def absolute(path: str) -> str:
    """`path` as other processes find it, whose working folder is another one. A URL stays as it is.

    No symlinks are resolved: what lies beside a volume lies beside where the user says the volume is.
    """
    return os.path.abspath(path) if is_local(path) else path  # noqa: PTH100


def unusable(path: str) -> str:
    """Why nothing can lie at `path`, or nothing that Zarr and its codecs could open, and what to do; empty where
    something may."""
    if "\0" in path:
        return "it has a NUL character in it; leave that out"
    try:
        whole = absolute(path).encode()
    except UnicodeEncodeError:
        other = sys.getfilesystemencoding() != "utf-8"  # as an old locale has it
        return f"its name is not text in UTF-8; {'set PYTHONUTF8=1' if other else 'rename it'}"
    several = parts(path)
    if len(several) > 1 or not is_local(path):
        return next(filter(None, map(unusable, several)), "") if len(several) > 1 else ""
    longest = max(map(len, whole.split(b"/")))
    if longest > LONGEST_NAME:
        return f"a name in it has {longest} bytes, and systems take {LONGEST_NAME}; give a shorter one"
    if len(whole) > LONGEST_PATH:
        return f"it has {len(whole)} bytes, and systems take {LONGEST_PATH}; give a shorter one"
    return ""


def check_file(path: Path | str, longest: int | None = None) -> os.stat_result:
    """What is known of the file at `path`, after links. Raises `OSError` where it is missing, has more than `longest`
    bytes, or is anything but a file: who opens a pipe or a device waits, maybe for ever, or reads what never ends."""
    found = os.stat(path)  # noqa: PTH116  # asked of every chunk
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file but a pipe, a device or a socket")
    if longest is not None and found.st_size > longest:
        raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes, and none like it has more than {longest:,}")
    return found
