"""A run that ends in a file of another format than Zarr writes its blocks to a Zarr group beside it, as any run does:
resumed, in parts, on many workers. Once that is complete the file is made of it, and it goes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from unet_engine.errors import OutputError, ResumeError, UnetEngineError
from unet_engine.output import completion, output
from unet_engine.output.header import read_header
from unet_engine.paths import plain
from unet_engine.postprocess import into
from unet_engine.postprocess.base import ALONE, Crew
from unet_engine.postprocess.content import content_of
from unet_engine.postprocess.deliver import check_place, deliver, is_there
from unet_engine.postprocess.formats import account_of, writer_of
from unet_engine.postprocess.into import Place, place_of
from unet_engine.postprocess.into_levels import add_levels
from unet_engine.postprocess.into_store import StorePlace
from unet_engine.storage import stores
from unet_engine.storage.durability import ON_DISK, Durability
from unet_engine.volumes.formats import open_stored

_ENDING = ".unet-engine"


def work_of(named: str) -> str:
    """The group that blocks of a run to the file `named`, or labels in an image, are written to."""
    if place := place_of(named):
        return str(place.work)
    folder, slash, name = named.rstrip("/").rpartition("/")
    return f"{folder}{slash}.{name}{_ENDING}"


def labels_of(named: str) -> str:
    """The group that blocks of a run are written to which ends in objects: these are then found in it."""
    return f"{work_of(named)}-labels"


def is_file(named: str) -> bool:
    """Whether an output of this name is a file of another format, rather than a Zarr group, which may be called
    anything else."""
    try:
        return not writer_of(named).folder
    except OutputError:
        return False


def is_handed_over(named: str) -> bool:
    """Whether an output of this name is made of a group beside it: a file, or labels in an image."""
    return is_file(named) or place_of(named) is not None


def said_of(named: str) -> Mapping[str, Any] | None:
    """What the run that made it said of itself; None where nothing is found there."""
    return read_header(named) if place_of(named) else account_of(named)


def check_named(named: str, *, resume: bool, overwrite: bool) -> None:
    """Raise `OutputError` where nothing can be made at `named`, or what is there is not to be replaced."""
    if place := place_of(named):
        into.check(place, resume=resume, overwrite=overwrite)
    elif not resume:
        check_place(named, overwrite=overwrite)


def settled(named: str, digest: str) -> bool:
    """Whether the file `named` is there, made by the run `digest`; what it was made of is then taken away. Raises
    `ResumeError` where another run made it, or nothing in it says which, unless a run to replace it was begun."""
    if place := place_of(named):
        return _settled_in(place, digest)
    if not is_there(named):
        return False
    work = work_of(named)
    found = _run_of(account_of(named))
    if found == digest:
        for left in (work, labels_of(named)):
            if stores.exists(left) and _run_of(read_header(left)) == digest:
                output.remove(left)
        return True
    if stores.exists(work) or stores.exists(labels_of(named)):
        return False
    if found is None:
        raise ResumeError(f"{named} exists, and nothing in it says which run made it; use --overwrite to replace it")
    raise ResumeError(
        f"{named} was made by another run ({found}, now {digest}): repeat that run's settings or use --overwrite"
    )


def _settled_in(place: Place | StorePlace, digest: str) -> bool:
    found = into.settled(place, digest, ON_DISK)
    for left in (str(place.work), labels_of(str(place.path))):
        if found and _run_of(read_header(left)) == digest:
            output.remove(left)
    return found


def _run_of(said: Mapping[str, Any] | None) -> str | None:
    """The run that ends in an output: objects name theirs, labels are the run's own."""
    said = said or {}
    return said.get("run") or said.get("digest")


def hand_over(
    named: str,
    *,
    overwrite: bool,
    run: str | None = None,
    durability: Durability = ON_DISK,
    crew: Crew = ALONE,
    memory: int = 2**28,
) -> list[str]:
    """Make the file `named` of the complete group beside it, which goes then, or put labels into their image; what
    people are told. run: whose file it is to be, where that is known: parts that end together may all make it, and one
    does. crew, memory: who makes the levels of labels, and what one box may take

    Raises what `unet_engine.postprocess.deliver.deliver` raises."""
    try:
        if (place := place_of(named)) and stores.exists(work_of(named)):
            told: list[str] = []
            _check_whole(named)
            add_levels(place, crew, memory=memory, durable=durability.waits, tell=told.append)
            into.put_in(place, durability, overwrite=overwrite)
            return told
        return _made(named, overwrite=overwrite, durability=durability)
    except UnetEngineError:
        if run is None or _run_of(said_of(named)) != run:
            raise
        return []  # another part was faster, and has taken away what it was made of


def _made(named: str, *, overwrite: bool, durability: Durability) -> list[str]:
    work, header = work_of(named), _check_whole(named)
    digest = str(header.get("digest"))
    content = content_of(open_stored(work), header=header)
    told = deliver(content, named, overwrite=overwrite, durability=durability, settled=lambda: _is_of(named, digest))
    if stores.exists(work):
        with suppress(OutputError):  # another part may be at it; what is left, the next resume takes away
            output.remove(work)
    return told


def _check_whole(named: str) -> Mapping[str, Any]:
    """What the group beside the output says of itself. Raises `OutputError` where it is not complete, or gone."""
    work = work_of(named)
    header = read_header(work)
    if header is None:
        raise OutputError(f"{work} is gone, which {named} was to be made of; run again with --resume")
    if not header.get("complete"):
        raise OutputError(f"{work} is not complete, which {named} is to be made of; run again with --resume")
    return header


def _is_of(named: str, digest: str) -> bool:
    return is_there(named) and (account_of(named) or {}).get("digest") == digest


def finish(path: str, *, verify: bool = False) -> dict[str, Any]:
    """`unet_engine.output.completion.finish` for outputs of any format."""
    path = plain(path)
    if not is_handed_over(path):
        return completion.finish(path, verify)
    work, place = work_of(path), place_of(path)
    there = stores.exists(path) if place else is_there(path)
    if place and into.are_on_their_way(place):
        into.put_in(place, ON_DISK, overwrite=True)
    if stores.exists(work):
        facts: Mapping[str, Any] = completion.finish(work, verify)
        hand_over(path, overwrite=there)
        return {**facts, "out": path}
    if not there:
        raise OutputError(f"{path} does not exist; give the --out of the run")
    found = said_of(path)
    if found is None or "digest" not in found:
        raise OutputError(f"{path} is not an output of unet-engine; give the --out of the run")
    return {"out": path, "complete": True, **dict(found.get("summary") or {})}
