"""The output of a pass: an OME-Zarr group as a run writes it, with the same header, journal, locks and markers.

Its array is made once the pass knows what it will hold, so a pass that was killed early leaves a group without one.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from unet_engine.errors import OutputError, ResumeError, SettingsError, writing
from unet_engine.output import array
from unet_engine.output.completion import conclude, refuse_incomplete
from unet_engine.output.header import ARRAY, PROVENANCE, Header, read_header
from unet_engine.output.inspection import Look, in_words, inspect
from unet_engine.output.layout import Layout
from unet_engine.output.locks import Holding, clear, hold
from unet_engine.output.output import Output, differences, is_ours, remove
from unet_engine.paths import is_local
from unet_engine.plan.box import Box
from unet_engine.plan.plan import Index
from unet_engine.postprocess.base import Array, Boxes, Crew, Keep, Parts, WritingPass, digest, write_boxes
from unet_engine.redaction import redacted
from unet_engine.storage import stores
from unet_engine.storage.durability import ON_DISK, WHENEVER, Durability, make_folder
from unet_engine.units import Tell
from unet_engine.version import version_of


@dataclass(frozen=True)
class OutputTarget:
    """The array of an output."""

    path: str
    layout: Layout
    digest: str
    durable: bool
    attempt: str
    """Another one for every command: what a worker keeps open of an earlier one, its scratch folders say, is gone."""

    def put(self, index: Index, box: Box, values: Array) -> None:
        output = _opened(self)
        output.mark(index, output.write(box, values))
        output.settle()


@lru_cache(maxsize=4)
def _opened(target: OutputTarget) -> Output:
    return Output(target.path, target.layout, target.digest, durability=_durability(target.durable))


def _durability(durable: bool) -> Durability:  # noqa: FBT001  # a state, not an option
    return ON_DISK if durable else WHENEVER


@dataclass(frozen=True)
class Wish:
    """Which output, and what is to be done with one that is there."""

    path: str
    resume: bool = False
    overwrite: bool = False
    verify: bool = False
    durable: bool = True


@dataclass(frozen=True)
class Begun:
    """An output that is begun and held."""

    wish: Wish
    digest: str
    header: Header
    holding: Holding
    tell: Tell
    since: float

    @property
    def keep(self) -> Keep:
        return Keep(self.wish.path, self.digest)

    @property
    def durability(self) -> Durability:
        return _durability(self.wish.durable)

    def boxes(self, boxes: Boxes) -> Boxes:
        """These boxes, or those that it was begun with: what was found so far is of them."""
        block = self.header.stored.get("block")
        return replace(boxes, block=tuple(map(int, block))) if isinstance(block, list) else boxes

    def write(self, work: WritingPass, parts: Parts, layout: Layout, crew: Crew) -> None:
        """Have all boxes of `work` written that are not yet, into an array of `layout`."""
        path, durability = self.wish.path, _durability(self.wish.durable)
        self._describe({"array": array.metadata_of(layout)}, layout)
        with writing(path, "creating its array"):
            place = stores.open_group(path, "r+").store_path / ARRAY
            wanted = array.metadata_of(layout)
            changed = array.difference(place, wanted) if array.exists(place) else None
            if changed:
                array.restore(place, wanted, durability)
            else:
                array.make(place, wanted, durability)
        output = Output(path, layout, self.digest, durability=durability)
        look = Look.CONTENT if changed or self.wish.verify else Look.LENGTHS
        self._inspect(output, look)
        target = OutputTarget(path, layout, self.digest, self.wish.durable, uuid4().hex)
        try:
            write_boxes(work, parts, target, crew, output.pending())
        finally:
            _opened.cache_clear()

    def _describe(self, facts: Mapping[str, Any], layout: Layout) -> None:
        path = self.wish.path
        with writing(path, "describing it"):
            attributes = stores.open_group(path, "r+").attrs.asdict()
            attributes["ome"] = layout.ome(Path(redacted(path)).stem)
            attributes[PROVENANCE] = {**attributes[PROVENANCE], **facts}
            stores.store_of(path).rewrite_group(path, attributes, _durability(self.wish.durable))

    def _inspect(self, output: Output, look: Look) -> None:
        """Take the markers away from boxes that are not as they were written, so that they are done again."""
        journal = self.header.journal
        with writing(self.wish.path, "comparing its chunks with what their markers say"):
            faults = list(inspect(journal, output.chunks, list(self.header.marked()), look))
            for fault in faults:
                journal.unmark(fault.index)
                for chunk in fault.chunks:
                    output.chunks.clear(chunk)
        if faults:
            self.tell(f"{in_words(self.wish.path, faults)}: computed again")

    def finish(self, facts: Mapping[str, Any]) -> None:
        """State that all is there. Raises `OutputError` where it is not."""
        seconds = round(time.perf_counter() - self.since, 4)
        if not conclude(self.header, self.holding, {**facts, "seconds": seconds}):
            refuse_incomplete(self.header)


@contextmanager
def begun(
    wish: Wish, identity: Mapping[str, Any], facts: Mapping[str, Any], boxes: Boxes, tell: Tell
) -> Iterator[Begun | None]:
    """The output, created or resumed and held by this process; None where it is complete already.

    identity: all that decides its bytes; facts: what else its header says of it

    Raises `OutputError` where one is in the way, and `ResumeError` naming what differs from the pass that began it.
    """
    path, name = wish.path, digest(identity)
    if stores.exists(path):
        _check(wish, identity)
        if wish.overwrite:
            remove(path)
    provenance = {
        **redacted(json.loads(json.dumps(dict(facts)))),
        "identity": json.loads(json.dumps(dict(identity))),
        "block": list(boxes.block),
        "blocks": [[[0, count]] for count in boxes.counts],
        "begun": time.time(),
        "versions": {name: version_of(name) for name in ("unet-engine", "numpy", "zarr", "zarrs")}
        | {"python": platform.python_version()},
        "digest": name,
        "complete": False,
    }
    with writing(path, "creating it"):
        stores.store_of(path).create_group(path, {PROVENANCE: provenance}, _durability(wish.durable))
        if is_local(path):
            make_folder(Path(path, ARRAY), _durability(wish.durable))  # locks lie in it
    _check_same(path, identity)  # another process may have begun it at the same time
    header = Header(path, name, _durability(wish.durable))
    if header.settled():
        clear(path)
        yield None
        return
    with _nothing_left(wish), hold(path) as holding:
        if not header.begin():
            yield None
            return
        yield Begun(wish, name, header, holding, tell, time.perf_counter())


@contextmanager
def _nothing_left(wish: Wish) -> Iterator[None]:
    """Take an output away again that settings end which make no sense: its header would refuse the corrected ones."""
    try:
        yield
    except SettingsError:
        if not wish.resume:
            with suppress(OutputError):  # the error that ended the pass is the one to be told
                remove(wish.path)
        raise


def _check(wish: Wish, identity: Mapping[str, Any]) -> None:
    """Raises where what lies at the place of the output is not to be gone on with, or replaced."""
    path = wish.path
    if not (wish.resume or wish.overwrite):
        if not is_ours(path):
            raise OutputError(f"{path} exists and is not an output of unet-engine; choose another one")
        raise OutputError(f"{path} exists; use --resume to continue it, --overwrite to replace it, or another output")
    if wish.resume:
        if not is_ours(path):
            raise ResumeError(f"{path} is not an output of unet-engine that could be resumed; choose another one")
        _check_same(path, identity)


def _check_same(path: str, identity: Mapping[str, Any]) -> None:
    old, new = (read_header(path) or {}).get("identity") or {}, json.loads(json.dumps(dict(identity)))
    if differing := differences(old, new):
        raise ResumeError(
            f"{path} was begun with another {'; '.join(differing)}: repeat that command's options or use --overwrite"
        )
