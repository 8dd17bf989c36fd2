"""The output: an OME-Zarr 0.5 group with the result at ``0``, and beside its chunks the journal of what is committed.

A block counts as done only by its marker, a small object ``0/.journal/<digest>/<block>`` written after its data; chunks
that exist prove nothing, since empty ones are not written and a block's others may be missing. The journal goes away
once the output is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt

from unet_engine.errors import OutputError, ResumeError, first_line, writing
from unet_engine.output import array
from unet_engine.output.chunks import Chunk, chunks_of
from unet_engine.output.groups import Groups
from unet_engine.output.header import ARRAY, PROVENANCE, Header, read_header
from unet_engine.output.inspection import Fault, Look, in_words, inspect
from unet_engine.output.layout import Layout
from unet_engine.output.locks import hold
from unet_engine.output.stored import Stored
from unet_engine.paths import is_local
from unet_engine.plan.box import Box
from unet_engine.plan.plan import Index, Plan
from unet_engine.profiling.recorder import PLAIN, Recorder
from unet_engine.redaction import redacted
from unet_engine.storage import stores
from unet_engine.storage.codecs import fast_codecs
from unet_engine.storage.durability import ON_DISK, Durability


class Output:
    """An opened output group. `write` and `mark` may be called from several threads, and from other processes on the
    same blocks."""

    def __init__(
        self,
        path: str,
        layout: Layout,
        digest: str,
        recorder: Recorder = PLAIN,
        durability: Durability = ON_DISK,
    ) -> None:
        """recorder: takes the times of writing; durability: whether a local disk is waited for"""
        self.path, self.layout, self.digest = path, layout, digest
        self.notes: tuple[str, ...] = ()
        """What the user should know of what was found."""
        self._doubted: set[Index] = set()
        self._look = Look.LENGTHS
        """The least that committed blocks are looked at."""
        with writing(path, "opening it"), fast_codecs(path):
            self.array = stores.open_group(path, "r+")[ARRAY]
            self.header = Header(path, digest, durability)
        self.chunks = chunks_of(self.array, self.header.journal, recorder, durability)
        # what is not waited for is marked at once; elsewhere the next block is written meanwhile
        self._groups = Groups(self._mark) if durability.waits or not is_local(path) else None

    @classmethod
    def create(
        cls,
        path: str,
        layout: Layout,
        digest: str,
        provenance: Mapping[str, Any],
        durability: Durability = ON_DISK,
    ) -> Output:
        """Make the group and the array, or take over what another process with the same settings made at the same time.

        Whoever stores the header first has begun the output; all others compare theirs with it, as a resume does. What
        follows from the header is the same whoever writes it. Raises `ResumeError` where the other process runs
        something else.
        """
        attributes = {
            "ome": layout.ome(Path(redacted(path)).stem),
            PROVENANCE: {**provenance, "array": array.metadata_of(layout), "digest": digest, "complete": False},
        }
        with writing(path, "creating it"):
            stores.store_of(path).create_group(path, attributes, durability)
        return cls.resume(path, layout, digest, provenance, durability)

    @classmethod
    def resume(
        cls,
        path: str,
        layout: Layout,
        digest: str,
        provenance: Mapping[str, Any],
        durability: Durability = ON_DISK,
    ) -> Output:
        """Open the output of an earlier run. Raises `ResumeError` naming what differs if that run was another one.

        Metadata of its array that are not those of the plan are restored. Chunks may then have been written by others,
        so that all are compared with their checksums.
        """
        try:
            group = stores.open_group(path, "r+")
        except FileNotFoundError as error:
            raise ResumeError(_not_ours(path)) from error
        except Exception as error:
            raise OutputError(
                f"{path} cannot be opened to resume it: {first_line(error)}; restore it, or choose another --out"
            ) from error
        header = group.attrs.get(PROVENANCE)
        if not isinstance(header, dict) or not isinstance(header.get("identity"), dict):
            raise ResumeError(_not_ours(path))
        differing = differences(header["identity"], provenance["identity"])
        if differing:
            raise ResumeError(
                f"{path} was begun with another {'; '.join(differing)}: repeat that run's settings or use --overwrite"
            )
        place, wanted = group.store_path / ARRAY, array.metadata_of(layout)
        changed = None
        with writing(path, "creating its array"):
            if not array.exists(place):
                array.make(place, wanted, durability)
            elif changed := array.difference(place, wanted):
                array.restore(place, wanted, durability)
        found = cls(path, layout, digest, durability=durability)
        if changed:
            found.notes = (f"the metadata of the array in {path} {changed}: they were restored",)
            found._look = Look.CONTENT
        return found

    def inspect(self, plan: Plan, look: Look) -> list[str]:
        """Take the markers away from those blocks of the plan's share that are not as they were written, so that they
        are done again. Returns what people are told of it. Call while holding the output, after `Header.begin`."""
        look, journal = (self._look if look is Look.LENGTHS else look), self.header.journal
        mine = [i for i in self.header.marked() if any(_holds(box, i) for box in plan.share)]
        faults: list[Fault] = []
        with writing(self.path, "comparing its chunks with what their markers say"):
            marked = set(mine)
            for index, what in journal.doubts():
                if not any(_holds(box, index) for box in plan.share):
                    continue
                if index in marked:
                    faults.append(Fault(index, f"{what} was changed while it was computed"))
                    mine.remove(index)
                    journal.unmark(index)
                journal.trust(index)
            for fault in inspect(journal, self.chunks, mine, look, lambda i: self._span(plan, i)):
                faults.append(fault)
                journal.unmark(fault.index)
                for chunk in fault.chunks:
                    self.chunks.clear(chunk)
        notes = [
            f"{self.path} has a marker of a block that it does not have, {'.'.join(map(str, index))}: ignored"
            for index in self.header.strange()[:1]
        ]
        if faults:
            notes.append(f"{in_words(self.path, faults)}: computed again")
        return notes

    def _span(self, plan: Plan, index: Index) -> tuple[Chunk, tuple[int, ...]]:
        """Where the chunks of a block lie."""
        return self.chunks.span(self.layout.target(plan.write_box(index).relative_to(plan.roi.lo)))

    def write(self, box: Box, values: npt.NDArray[Any]) -> Stored | None:
        """Write `values`, shape (*box.shape) or (channels, *box.shape), at `box`, relative to the output's origin.

        `box` is made of whole chunks, but where the array ends. Call after `Header.begin`, here or in the process that
        leads the run. Returns what is stored there now; None where another process had completed the output already.
        Raises `OutputError` where the disk is full or the store refuses; what was written before stays valid.
        """
        with writing(self.path, f"writing voxels {box}"):
            try:
                return self.chunks.write(self.layout.target(box), self.layout.as_stored(values))
            except Exception:
                if self.header.journal.is_open:
                    raise
                self.header.check_over()  # somebody else has written this block long ago, and all others
                return None

    def mark(self, index: Index, stored: Stored | None = None) -> None:
        """Record block `index` as committed, with what `write` returned; call after its data were written. Where the
        disk is waited for, or a store for its answer, that is done soon, for several blocks together: see `settle`."""
        if self._groups is None or stored is None:
            self.header.mark(index, stored)
        else:
            self._groups.add(index, stored)

    def _mark(self, group: Sequence[tuple[Index, Stored]]) -> None:
        with writing(self.path, "having the disk keep it"):
            try:
                self.chunks.keep(stored for _, stored in group)
            except FileNotFoundError:
                self.header.check_over()
                return
        self.header.mark_all(group)

    def doubt(self, blocks: Sequence[Index], what: str) -> None:
        """Record of `blocks` that they hang on data that were changed since the run began. They are written all the
        same; a resume does them again."""
        new = [index for index in blocks if index not in self._doubted]
        if new:
            with writing(self.path, "noting that the input was changed"):
                try:
                    self.header.journal.doubt(new, what)
                except FileNotFoundError:
                    self.header.check_over()
            self._doubted.update(new)

    def doubtful(self) -> list[str]:
        """What people are told of blocks that `doubt` was called for, in whatever run or part of this output."""
        doubts = self.header.journal.doubts()
        if not doubts:
            return []
        return [
            f"{len(doubts):,} block{'s' * (len(doubts) > 1)} of {self.path} {'hang' if len(doubts) > 1 else 'hangs'} "
            f"on data that were changed after the run began, the first is {doubts[0][0]}: {doubts[0][1]}; what was "
            "read before and after may be mixed there: run again with --overwrite once nothing writes to it"
        ]

    def settle(self) -> None:
        """Wait until every block is marked that `mark` was called for. Raises what marking raised."""
        if self._groups is not None:
            self._groups.settle()

    def pending(self) -> Callable[[Index], bool]:
        """Which blocks are not committed now. A snapshot, so that a block is never both written and waited for."""
        self.settle()
        done = set(
            self.header.marked()
        )  # a place for each block there is would not fit where a part is one of a million
        return lambda index: index not in done


def _holds(box: Box, index: Index) -> bool:
    return all(l <= i < h for l, i, h in zip(box.lo, index, box.hi, strict=True))


def _not_ours(path: str) -> str:
    return f"{path} is not an output of unet-engine that could be resumed; choose another --out"


def is_ours(path: str) -> bool:
    """Whether the group at `path` carries our header."""
    return read_header(path) is not None


def remove(path: str) -> None:
    """Delete an earlier output. Raises `OutputError` where `path` is anything but one, so that no other data is ever
    lost.

    A kill on the way leaves an output that can be removed again or resumed, as nothing in it counts as done any more.
    """
    with _revoked(path), writing(path, "removing it"):
        stores.store_of(path).remove(path, ARRAY)  # chunks first, the header last


def empty(url: str) -> None:
    """Delete what lies in an earlier output in a store, but for its header, which says from now on that it is not
    complete. Raises as `remove` does."""
    with _revoked(url), writing(url, "removing what was there"):
        stores.empty(url, ARRAY)


@contextmanager
def _revoked(path: str) -> Iterator[None]:
    if not is_ours(path):
        raise OutputError(
            f"--overwrite: {path} is not an output of unet-engine and is left alone; choose another --out"
        )
    with hold(path):
        Header.of(path).revoke()
        yield


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What people are told of how two identities differ."""
    return [
        f"{key} ({_short(old.get(key))}, now {_short(new.get(key))}{_HINTS.get(key, '')})"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


_HINTS = {"block": ", as blocks shrink where --memory is small"}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
