"""Whether a volume is still what was opened. Chunks that are not stored read as the fill value, and so does all of a
volume that was deleted or unmounted: absence is believed only where the volume's metadata are still there. What was
rewritten, added or removed since a run began is told by times that a local disk keeps anyway.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Any

from zarr.storage import StorePath

from unet_engine.errors import InputError, first_line, of_store
from unet_engine.storage import stores

_EDITABLE = ("attributes", "dimension_names")
"""What may be edited while a volume is read: it decides no voxel."""


@dataclass
class Witness:
    """The metadata of one stored array, as they were when it was opened.

    On a local disk a look is one `stat`, and the file is read only where that tells of a change; elsewhere it is one
    small request.
    """

    path: str
    """The volume, as messages name it."""
    place: StorePath
    """Where its metadata lie."""
    content: bytes | None
    """None where they lie elsewhere, so that nothing can be looked at again."""
    _stamp: tuple[int, ...] | None = field(default=None, repr=False)
    grown: bool = False
    """Whether the array was found to be larger than it was."""

    @classmethod
    def of(cls, path: str, place: StorePath, zarr_format: int) -> Witness:
        """place: of the array"""
        metadata = place / ("zarr.json" if zarr_format == 3 else ".zarray")
        stamp = _stamp(metadata)
        return cls(path, metadata, stores.read(metadata), stamp)

    def confirm(self) -> None:
        """Raises `InputError` where the metadata are gone, cannot be read, or describe another array now."""
        if self.content is None:
            return
        try:
            stamp = _stamp(self.place)
            if stamp is not None and stamp == self._stamp:
                return
            now = stores.read(self.place)
        except Exception as error:
            if lost := of_store(error):
                raise InputError(f"{self.path} cannot be read: {lost.of(self.path)}; {lost.advice}") from error
            raise self._gone(first_line(error)) from error
        if now is None:
            raise self._gone(f"there is no {self.place.path.rpartition('/')[2]} any more")
        if now != self.content and not _same_voxels(self.content, now):
            raise InputError(
                f"{self.path} was changed while it was read: its metadata describe another array now; "
                "run again once it is no longer written, with --overwrite"
            )
        self.grown = self.grown or (now != self.content and _shape(now) != _shape(self.content))
        self._stamp = stamp

    def _gone(self, why: str) -> InputError:
        return InputError(
            f"{self.path} is gone while it was read, deleted or unmounted ({why}); "
            "bring it back and run the same command with --resume"
        )


def _stamp(place: StorePath) -> tuple[int, ...] | None:
    """What changes with the file at `place`; None in stores that are not a local disk, and where there is no file."""
    file = stores.file_of(place)
    try:
        found = os.stat(file) if file else None  # noqa: PTH116  # asked once for every block
    except FileNotFoundError:
        return None
    return found and (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _same_voxels(before: bytes, now: bytes) -> bool:
    """Whether two documents describe arrays that read alike: the later one may have grown."""
    try:
        old, new = ({k: v for k, v in _document(text).items() if k not in _EDITABLE} for text in (before, now))
        shapes = list(old.pop("shape")), list(new.pop("shape"))
        return old == new and all(b <= a for b, a in zip(*shapes, strict=True))
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _shape(text: bytes) -> list[int]:
    return list(_document(text)["shape"])


def changed_since(root: str, keys: Iterable[str], since: float, until: float = inf) -> str | None:
    """The first of the chunks `keys` below `root` that was changed, made or taken away after `since` (seconds), and not
    after `until`; None where none was.

    A file's time of change follows its content whatever time of modification it is given. Of a chunk that is not there,
    the nearest folder tells: its time is that of the last file that came or went in it. Times to come are nobody's.
    """
    last, folders = min(time.time(), until), {}

    def folder(place: str) -> float:
        if place not in folders:
            try:
                folders[place] = os.stat(place).st_mtime  # noqa: PTH116
            except (FileNotFoundError, NotADirectoryError):
                folders[place] = folder(os.path.dirname(place)) if len(place) > len(root) else 0.0  # noqa: PTH120
        return folders[place]

    for key in keys:
        place = f"{root}/{key}"
        try:
            at = os.stat(place).st_ctime  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            at = folder(os.path.dirname(place))  # noqa: PTH120
        if since < at <= last:
            return key
    return None


def _document(text: bytes) -> dict[str, Any]:
    return dict(json.loads(text))
