"""Labels that are put into an OME-Zarr image in a bucket, where nothing is renamed.

They are made beside the outermost group, as on a disk. Once they are complete the store copies their chunks to
``IMAGE/labels/NAME``, then their metadata, those of their group last; and then the list of the image's labels names
them, by one write on the condition that it is what was read. Until that moment whoever reads the image finds it as it
was: what a kill leaves of the copies is no array and in no list. An object beside the image says that what lies at that
name is ours, so that the next attempt takes it away and copies again from the labels that are whole beside it. Labels
that are replaced leave the list before anything of them goes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from unet_engine.errors import OutputError, ResumeError, writing
from unet_engine.output import output
from unet_engine.output.header import ARRAY, read_header
from unet_engine.paths import root_of
from unet_engine.postprocess.copying import check_empty, check_there, copy_all, largest
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
from unet_engine.postprocess.zarr_v2 import documents_of
from unet_engine.storage import stores
from unet_engine.storage.remote import METADATA
from unet_engine.storage.remote_files import RemoteFile

LABELS = "labels"
_WORK, _PLACING = ".unet-engine", ".placing"


@dataclass(frozen=True)
class StorePlace:
    """Where labels called `name` lie in the group `image`, in a bucket."""

    image: str
    name: str

    @property
    def labels(self) -> str:
        """The group of all labels of the image."""
        return f"{self.image.rstrip('/')}/{LABELS}"

    @property
    def path(self) -> str:
        return f"{self.labels}/{self.name}"

    @property
    def work(self) -> str:
        """What they are made in: beside the outermost group that the image lies in."""
        root = root_of(self.image)
        folder, _, name = root.rpartition("/")
        inner = self.image[len(root) :].split("/")
        return f"{folder}/.{'.'.join([name, *filter(None, inner), self.name])}{_WORK}"

    @property
    def unnumbered(self) -> str:
        """What they are made in where their objects are numbered after that."""
        return f"{self.work}-labels"

    @property
    def placing(self) -> RemoteFile:
        """An object that is there while what lies at `path` is ours, and not whole. It names the run."""
        return self.at(self.work + _PLACING)

    def at(self, url: str) -> RemoteFile:
        """The object at `url`, beside the outermost group or in it: all are of one folder, by one connection."""
        return self._beside.beside(url[len(self._beside.url.rpartition("/")[0]) + 1 :])

    @cached_property
    def _beside(self) -> RemoteFile:
        return RemoteFile(self.work)

    @cached_property
    def is_v2(self) -> bool:
        return self.at(f"{self.image.rstrip('/')}/{GROUP}").content() is None

    def around(self) -> Iterator[str]:
        """The image's group, and those that it lies in."""
        root, group = root_of(self.image), self.image.rstrip("/")
        yield group
        while group != root:
            group = group.rpartition("/")[0]
            yield group


def has_room_beside(image: str) -> bool:
    """Whether anything can lie beside the outermost group of `image`: one that is a whole bucket lies in nothing."""
    return "/" in root_of(image.rstrip("/")).partition("://")[2]


def check(place: StorePlace, *, resume: bool, overwrite: bool) -> None:
    """Raise `OutputError` where labels cannot be put there, or some are there that are not to be replaced."""
    replaces = resume or overwrite
    if stores.exists(place.path):
        check_ours(place.path, replaces=replaces)
    if not replaces and place.placing.content() is not None:
        raise begun_before(place.path)


def check_ours(path: str, *, replaces: bool) -> None:
    """Raise `OutputError` where labels that are at `path` are not ours, or were not said to be replaced."""
    if not output.is_ours(path):
        raise OutputError(f"{path} exists and was not written by unet-engine: it is left alone; choose another name")
    if not replaces:
        raise OutputError(f"{path} exists; use --overwrite to replace it, or another name")


def begun_before(path: str) -> OutputError:
    return OutputError(
        f"{path} was begun by an earlier run; use --resume to continue it, or --overwrite to begin again"
    )


def of_another_run(path: str, found: str | None, digest: str) -> ResumeError:
    return ResumeError(
        f"{path} was made by another run ({found}, now {digest}): repeat that run's settings or use --overwrite"
    )


def settled(place: StorePlace, digest: str) -> bool:
    """Whether the labels of the run `digest` are in the image; where a kill left them on their way, they are brought
    there now. Raises `ResumeError` where those of another run are, unless one to replace them was begun."""
    if _run_of(place.work) == digest and place.placing.content() == digest.encode():
        put_in(place, overwrite=True)
    found = _run_of(place.path)
    if found == digest:
        with writing(place.path, "listing it"):
            _list(place)
            place.placing.discard()
        return True
    if found is None or stores.exists(place.work) or stores.exists(place.unnumbered):
        return False
    raise of_another_run(place.path, found, digest)


def _run_of(path: str) -> str | None:
    """The run that made the complete group at `path`; None where there is none."""
    header = read_header(path) or {}
    return header.get("run") or header.get("digest") if header.get("complete") else None


def put_in(place: StorePlace, *, overwrite: bool) -> None:
    """Have the store copy the complete group at `StorePlace.work` into the image, list it there, and remove it. May be
    killed anywhere, and called again. Raises `OutputError`."""
    with writing(place.path, "putting it into the image"):
        run = _run_of(place.work)
        if run is not None and _run_of(place.path) != run:
            _make_room(place, run, overwrite=overwrite)
            _copy(place)
        _list(place)
        place.placing.discard()
    if run is not None:
        output.remove(place.work)


def _make_room(place: StorePlace, run: str, *, overwrite: bool) -> None:
    """Have nothing lie there any more, and the object beside the image say that what comes is ours."""
    begun, there = place.placing.content() is not None, stores.exists(place.path)
    if there:
        check_ours(place.path, replaces=begun or overwrite)
    elif not begun:
        check_empty(place.at(place.path))
    place.placing.replace(run.encode())
    _unlist(place)
    stores.empty(place.path, ARRAY)
    for name in METADATA:
        place.at(f"{place.path}/{name}").discard()


def _copy(place: StorePlace) -> None:
    """Chunks first, then metadata, those of the group last."""
    work, target = place.at(place.work), place.at(place.path)
    names = work.names()
    nodes = sorted((name for name in names if name.rpartition("/")[2] == GROUP), key=lambda name: -name.count("/"))
    found = {name.rpartition("/")[0]: json.loads(place.at(f"{place.work}/{name}").content() or b"") for name in nodes}
    found[""] = described(found[""], place.name)
    arrays = {name: document for name, document in found.items() if document["node_type"] == "array"}
    chunks = {
        name: f"{array}/{name.removeprefix(f'{array}/c/') if place.is_v2 else name.removeprefix(f'{array}/')}"
        for array in arrays
        for name in names
        if name.startswith(f"{array}/c/")
    }
    written = _written(place, found)
    places = {f"{work.key}/{name}": f"{target.key}/{new}" for name, new in chunks.items()}
    copy_all(work, places, max(map(largest, arrays.values())))
    check_there(target, chunks.values())
    for name, data in written.items():
        place.at(f"{place.path}/{name}").replace(data)


def _written(place: StorePlace, found: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    """The metadata, as the image's version of Zarr has them, in the order in which they are written."""
    return {
        f"{node}/{file}".lstrip("/"): text(said)
        for node, document in found.items()
        for file, said in (documents_of(f"{place.work}/{node}", document) if place.is_v2 else {GROUP: document}).items()
    }


# --- the list ---


def _list(place: StorePlace) -> None:
    """Have the list of the image's labels name these; nothing is written where it does."""
    v2 = place.is_v2

    def added(found: bytes | None) -> bytes | None:
        names = names_in(found, v2=v2)
        return None if place.name in names else with_names(found, [*names, place.name], v2=v2)

    if v2:
        place.at(f"{place.labels}/{V2_GROUP}").change(lambda found: found or text({"zarr_format": 2}))
    place.at(f"{place.labels}/{list_of(v2=v2)}").change(added)
    for group in place.around():
        nodes = [place.labels, place.path, *(f"{place.path}/{level}" for level in _levels(place))]
        _consolidate(place, group, nodes)


def _unlist(place: StorePlace) -> None:
    v2 = place.is_v2

    def removed(found: bytes | None) -> bytes | None:
        names = names_in(found, v2=v2)
        if place.name not in names:
            return None
        return with_names(found, [name for name in names if name != place.name], v2=v2)

    place.at(f"{place.labels}/{list_of(v2=v2)}").change(removed)
    for group in place.around():
        _consolidate(place, group, [place.labels])


def _consolidate(place: StorePlace, group: str, nodes: list[str]) -> None:
    """Where a group keeps the metadata of all that lies in it, have it keep those of `nodes`, and no others of these
    labels."""
    v2 = place.is_v2

    def changed(found: bytes | None) -> bytes | None:
        if found is None or b'"metadata"' not in found:
            return None
        documents: dict[str, Any] = {}
        for node in nodes:
            for name in (V2_GROUP, ".zattrs", ".zarray") if v2 else (GROUP,):
                if data := place.at(f"{node}/{name}").content():
                    documents[(f"{node}/{name}" if v2 else node)[len(group) + 1 :]] = json.loads(data)
        return consolidated(found, place.path[len(group) + 1 :], documents, v2=v2)

    place.at(f"{group}/{V2_ALL if v2 else GROUP}").change(changed)


def _levels(place: StorePlace) -> list[str]:
    attributes = dict(stores.open_group(place.path, "r").attrs)
    said = attributes.get("ome") or attributes
    return [str(one["path"]) for one in said["multiscales"][0]["datasets"]]
