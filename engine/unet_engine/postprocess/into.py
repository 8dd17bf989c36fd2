"""Labels that are put into the OME-Zarr image which they are of: ``IMAGE/labels/NAME``, listed in ``IMAGE/labels``.

They are made beside the outermost group, as any output is. Once they are complete they are brought to the form of the
image's Zarr version, moved in by one rename, and listed: by one rename of the whole folder ``labels``, where there is
none yet, else by one write of its metadata. So a kill leaves an image that is as it was, or has them; what is left of
the work lies beside it, and the next attempt goes on from there. Nothing that was in the image is written to but the
list of its labels, and metadata of all that lies in a group, where the group keeps these.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from unet_engine.errors import OutputError, of_store, writing
from unet_engine.output.header import read_header
from unet_engine.paths import absolute, is_local, root_of
from unet_engine.postprocess import into_store
from unet_engine.postprocess.into_metadata import (
    GROUP,
    V2_ALL,
    V2_GROUP,
    consolidated,
    described,
    list_of,
    names_in,
    text,
    with_names,
)
from unet_engine.postprocess.into_store import LABELS, StorePlace, begun_before, check_ours, of_another_run
from unet_engine.postprocess.zarr_v2 import as_v2
from unet_engine.storage import stores
from unet_engine.storage.durability import Durability, exchange, put

_WORK, _PLACING, _REPLACING, _WHOLE, _OLD = ".unet-engine", ".placing", ".replacing", ".labels", ".old"


@dataclass(frozen=True)
class Place:
    """Where labels called `name` lie in the group `image`."""

    image: str
    name: str

    @property
    def path(self) -> Path:
        return Path(self.image, LABELS, self.name)

    @property
    def work(self) -> Path:
        """What they are made in: beside the outermost group that the image lies in."""
        root = Path(root_of(self.image))
        parts = [root.name, *Path(absolute(self.image)).relative_to(root).parts, self.name]
        return root.with_name(f".{'.'.join(parts)}{_WORK}")

    @property
    def placing(self) -> Path:
        """The same, once they are complete."""
        return self.work.with_name(self.work.name + _PLACING)

    @property
    def whole(self) -> Path:
        """A folder ``labels`` with nothing but them, on its way to an image that has none."""
        return self.work.with_name(self.work.name + _WHOLE)

    @property
    def replacing(self) -> Path:
        """A file that names their run while they change places with others."""
        return self.work.with_name(self.work.name + _REPLACING)

    @property
    def old(self) -> Path:
        """Those that they replaced."""
        return self.work.with_name(self.work.name + _OLD)

    @property
    def is_v2(self) -> bool:
        return not Path(self.image, "zarr.json").exists()


def place_of(named: str) -> Place | StorePlace | None:
    """The place that `named` is; None where it is no path of labels in an OME-Zarr image. Raises `OutputError` where a
    store cannot be asked."""
    image, slash, rest = named.rstrip("/").rpartition(f"/{LABELS}/")
    if not slash or "/" in rest or not rest or not is_image(image):
        return None
    return Place(image, rest) if is_local(named) else StorePlace(image, rest)


def is_image(path: str) -> bool:
    """Whether an OME-Zarr group with multiscales lies at `path`."""
    try:
        attributes = dict(stores.open_group(path, "r").attrs)
    except Exception as error:
        if lost := of_store(error):
            raise OutputError(f"{path} cannot be read: {lost.of(path)}; {lost.advice}") from error
        return False  # whatever it is
    inner = attributes.get("ome")
    return isinstance((inner if isinstance(inner, dict) else attributes).get("multiscales"), list)


def check(place: Place | StorePlace, *, resume: bool, overwrite: bool) -> None:
    """Raise `OutputError` where labels cannot be put there safely, or some are there that are not to be replaced."""
    if isinstance(place, StorePlace):
        into_store.check(place, resume=resume, overwrite=overwrite)
        return
    parent, image = place.work.parent, Path(place.image)
    for folder in dict.fromkeys([parent, image, *([image / LABELS] if (image / LABELS).exists() else [])]):
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(
                f"{place.path} cannot be written: {folder} is no folder that may be written to, and labels are made "
                f"in {parent} and moved to the image; have it writable, or use --out NAME.zarr"
            )
    if parent.stat().st_dev != image.stat().st_dev:
        raise OutputError(
            f"{place.path} cannot be written: {image} is on another disk than {parent}, where labels are made, so that "
            "they could not be moved in at once; use --out NAME.zarr"
        )
    replaces = resume or overwrite
    if os.path.lexists(place.path):
        check_ours(str(place.path), replaces=replaces)
    if place.placing.exists() and not replaces:
        raise begun_before(str(place.path))


def are_on_their_way(place: Place | StorePlace) -> bool:
    """Whether a kill left complete labels on their way to the image."""
    return place.placing.content() is not None if isinstance(place, StorePlace) else place.placing.exists()


def settled(place: Place | StorePlace, digest: str, durability: Durability) -> bool:
    """Whether the labels of the run `digest` are in the image; where a kill left them on their way, they are brought
    there now. Raises `ResumeError` where those of another run are, unless one to replace them was begun."""
    if isinstance(place, StorePlace):
        return into_store.settled(place, digest)
    with _alone(place):
        _recover(place)
        if place.placing.exists() and _run_of(place.placing) == digest:
            _finish(place, durability, replace=True)
        if not os.path.lexists(place.path):
            return False
        found = _run_of(place.path)
        if found == digest:
            _list(place, durability)
            return True
    if place.work.exists() or place.work.with_name(place.work.name + "-labels").exists():
        return False
    raise of_another_run(str(place.path), found, digest)


def _run_of(path: Path) -> str | None:
    header = read_header(str(path)) or {}
    return header.get("run") or header.get("digest")


def put_in(place: Place | StorePlace, durability: Durability, *, overwrite: bool) -> None:
    """Move the complete group at `Place.work` into the image, and list it. Raises `OutputError`."""
    if isinstance(place, StorePlace):
        into_store.put_in(place, overwrite=overwrite)
        return
    with _alone(place), writing(str(place.path), "moving it into the image"):
        _recover(place)
        if place.work.exists():
            if os.path.lexists(place.path):
                check_ours(str(place.path), replaces=True)
            if place.placing.exists():  # of another run, which was killed
                shutil.rmtree(place.placing)
            place.work.rename(place.placing)
            durability.folders([place.work.parent])
        _finish(place, durability, replace=overwrite)


def _finish(place: Place, durability: Durability, *, replace: bool) -> None:
    """Bring what is at `Place.placing` to the image. May be killed anywhere, and called again."""
    _recover(place)
    _describe(place.placing, place, durability)
    labels = Path(place.image, LABELS)
    if not labels.exists():
        place.whole.mkdir()
        _write(place.whole, [place.name], durability, v2=place.is_v2)
        place.placing.rename(place.whole / place.name)
        durability.folders([place.whole])
        place.whole.rename(labels)
        durability.folders([labels.parent, place.work.parent])
    elif not os.path.lexists(place.path):
        place.placing.rename(place.path)
        durability.folders([labels, place.work.parent])
    elif not replace:
        raise OutputError(f"{place.path} appeared meanwhile and is kept; use --overwrite to replace it")
    else:
        _replace(place, durability)
    _list(place, durability)


def _recover(place: Place) -> None:
    """Take up what a kill left of bringing labels to the image."""
    if (place.whole / place.name).exists():
        (place.whole / place.name).rename(place.placing)
    if place.replacing.exists():
        if _run_of(place.path) == place.replacing.read_text():  # they have changed places
            shutil.rmtree(place.placing, ignore_errors=True)
        place.replacing.unlink()
    for left in (place.whole, place.old):
        shutil.rmtree(left, ignore_errors=True)


def _replace(place: Place, durability: Durability) -> None:
    """Have the new labels take the place of those that are there: at once, where the system can."""
    labels = Path(place.image, LABELS)
    put(place.replacing, (_run_of(place.placing) or "").encode(), durability)
    if exchange(place.placing, place.path):
        place.placing.rename(place.old)
    else:
        _unlist(place, durability)
        place.path.rename(place.old)
        place.placing.rename(place.path)
    durability.folders([labels, place.work.parent])
    place.replacing.unlink()
    shutil.rmtree(place.old, ignore_errors=True)


@contextmanager
def _alone(place: Place) -> Iterator[None]:
    """Nobody else puts labels into this image meanwhile."""
    descriptor = os.open(place.image, os.O_RDONLY)
    try:
        with suppress(OSError):  # file systems without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# --- metadata ---


def _describe(group: Path, place: Place, durability: Durability) -> None:
    """Say of the group which image its labels are of, in the form of that image."""
    if (group / GROUP).exists():
        put(group / GROUP, text(described(json.loads((group / GROUP).read_bytes()), place.name)), durability)
        if place.is_v2:
            as_v2(group, durability)


def _list(place: Place, durability: Durability) -> None:
    """Have the list of the image's labels name these; nothing is written where it does."""
    labels = Path(place.image, LABELS)
    names = names_in(_read(labels / list_of(v2=place.is_v2)), v2=place.is_v2)
    if place.name not in names:
        _write(labels, [*names, place.name], durability, v2=place.is_v2)
    for group in _around(place):
        _consolidate(group, labels, durability)


def _unlist(place: Place, durability: Durability) -> None:
    labels = Path(place.image, LABELS)
    names = names_in(_read(labels / list_of(v2=place.is_v2)), v2=place.is_v2)
    _write(labels, [name for name in names if name != place.name], durability, v2=place.is_v2)


def _write(labels: Path, names: list[str], durability: Durability, *, v2: bool) -> None:
    """Have the group of labels name these, beside what it says already."""
    file = labels / list_of(v2=v2)
    put(file, with_names(_read(file), names, v2=v2), durability)
    if v2 and not (labels / V2_GROUP).exists():
        put(labels / V2_GROUP, text({"zarr_format": 2}), durability)


def _around(place: Place) -> Iterator[Path]:
    """The image's group, and those that it lies in."""
    root, group = Path(root_of(place.image)), Path(absolute(place.image))
    yield group
    while group not in (root, group.parent):
        group = group.parent
        yield group


def _consolidate(group: Path, labels: Path, durability: Durability) -> None:
    """Where the group keeps the metadata of all that lies in it, have it keep those of the labels as they are now."""
    v2 = (group / V2_ALL).exists()
    file, names = group / (V2_ALL if v2 else GROUP), (V2_GROUP, ".zarray", ".zattrs") if v2 else (GROUP,)
    found = _read(file)
    if found is None or b'"metadata"' not in found:
        return
    inside = Path(absolute(str(labels))).relative_to(group)
    documents = {
        (inside / (said if v2 else said.parent).relative_to(labels)).as_posix(): json.loads(said.read_bytes())
        for name in names
        for said in labels.rglob(name)
    }
    if (new := consolidated(found, inside.as_posix(), documents, v2=v2)) is not None:
        put(file, new, durability)


def _read(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None
