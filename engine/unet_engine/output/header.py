"""What an output says about itself: the header in its group (identity, provenance, complete or not) and the journal of
what is done.

Nothing here knows voxels or needs the plan: `unet-engine finish` works on this alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, pairwise
from math import isnan, prod
from pathlib import Path
from typing import Any

from zarr.storage import StorePath

from unet_engine.errors import OutputError, first_line, of_store, writing
from unet_engine.output.journal import Journal, LocalJournal, RemoteJournal
from unet_engine.output.stored import Stored
from unet_engine.paths import is_local
from unet_engine.plan.plan import Index
from unet_engine.storage import stores
from unet_engine.storage.durability import ON_DISK, Durability

PROVENANCE = "unet_engine"
ARRAY = "0"


class Numbers:
    """Ascending numbers, made of spans [lo, hi): how many there are, and which, without a list of them."""

    def __init__(self, spans: Sequence[Sequence[int]]) -> None:
        self._ranges = [range(lo, hi) for lo, hi in spans]
        self._starts = [lo for lo, _ in spans]

    def __len__(self) -> int:
        return sum(map(len, self._ranges))

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._starts, number)
        return at > 0 and number in self._ranges[at - 1]

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self._ranges)


def _in_order(axes: Sequence[Numbers]) -> Iterator[Index]:
    if not axes:
        yield ()
        return
    for number in axes[0]:
        for others in _in_order(axes[1:]):
            yield number, *others


class Header:
    """Header and journal of the output at `path`, of the run that `digest` names."""

    def __init__(self, path: str, digest: str, durability: Durability = ON_DISK) -> None:
        self.path, self.digest, self.durability = path, digest, durability
        self.journal: Journal
        if is_local(path):
            self.journal = LocalJournal(Path(path, ARRAY), digest, durability)
        else:
            self.journal = RemoteJournal(StorePath(stores.store_of(path).location(path), ARRAY), digest)

    @classmethod
    def of(cls, path: str) -> Header:
        """The header of whatever run the output at `path` belongs to. Raises `OutputError` where it is no output of
        ours."""
        header = read_header(path)
        if header is None:
            raise OutputError(f"{path} is not an output of unet-engine; give the --out of the run")
        return cls(path, str(header.get("digest")))

    @property
    def stored(self) -> dict[str, Any]:
        """As it is now: another process may have written it. Empty where it is gone; `OutputError` where it cannot be
        read."""
        try:
            found = stores.open_group(self.path, "r").attrs.get(PROVENANCE)
        except FileNotFoundError:
            return {}
        except Exception as error:
            raise OutputError(
                f"{self.path} cannot be read: {first_line(error)}; check the path, and run again with --resume"
            ) from error
        return dict(found or {})

    @property
    def complete(self) -> bool:
        return bool(self.stored.get("complete"))

    def settled(self) -> bool:
        """Whether the output is complete. Removes the journal that a run killed right after it completed the output
        left."""
        if not self.complete:
            return False
        with writing(self.path, "removing its journal"):
            self.journal.remove()
        return True

    def begin(self) -> bool:
        """Whether there may be anything left to do; if so, blocks can be marked from now on. Call while holding the
        output."""
        stored = self._check_ours()
        if stored.get("complete"):
            return not self.settled()
        self.blocks = self._blocks_in(stored)  # better now than in the end
        with writing(self.path, "opening its journal"):
            self.journal.open()
        return True

    def mark(self, index: Index, stored: Stored | None = None) -> None:
        """Record block `index` as committed, with what is known of its chunks; call after its data were written."""
        self.mark_all([(index, stored)])

    def mark_all(self, marked: Sequence[tuple[Index, Stored | None]]) -> None:
        """The same for several blocks, all of which are written."""
        with writing(self.path, f"marking block {marked[0][0]}"):
            try:
                self.journal.mark(marked)
            except FileNotFoundError:
                self.check_over()

    def check_over(self) -> None:
        """Return where the journal is gone because all is done; raise `OutputError` where the output was removed or
        replaced."""
        if not self._check_ours().get("complete"):
            raise OutputError(
                f"{self.path} lost its record of finished blocks while this run was writing it; run again with --resume"
            )

    def _check_ours(self) -> dict[str, Any]:
        """What is `stored`. Raises `OutputError` where that is another run's."""
        stored = self.stored
        if stored.get("digest") != self.digest:
            raise OutputError(f"{self.path} was removed or replaced while this run was writing it; start it again")
        return stored

    def marked(self) -> Iterator[Index]:
        """The blocks that are committed, in no order."""
        known = self.blocks
        return (index for index in self.journal.marked() if _within(index, known))

    def strange(self) -> list[Index]:
        """What there are markers of and is no block of this output."""
        known = self.blocks
        return sorted(index for index in self.journal.marked() if not _within(index, known))

    @property
    def all_marked(self) -> bool:
        return sum(1 for _ in self.marked()) == self.block_count

    def missing(self) -> tuple[int, Index | None]:
        """How many blocks are not committed, and the first of them in index order. No list of all blocks is made: there
        may be more than fit into memory."""
        marked = set(self.marked())
        count = self.block_count - len(marked)
        return count, next(index for index in _in_order(self.blocks) if index not in marked) if count else None

    @cached_property
    def blocks(self) -> list[Numbers]:
        """Per axis the indices of the blocks that write something, which follow from the identity, so that they are
        read once. Raises `OutputError` for an output of a version that
        did not say."""
        return self._blocks_in(self.stored)

    def _blocks_in(self, stored: Mapping[str, Any]) -> list[Numbers]:
        spans = stored.get("blocks")
        if spans is None:
            raise OutputError(f"{self.path} was begun by an older version and cannot be resumed; use --overwrite")
        if not _are_spans(spans):
            raise OutputError(
                f"{self.path}: what unet-engine keeps in its attributes is damaged, it names blocks that cannot be; use --overwrite"
            )
        return [Numbers(axis) for axis in spans]

    @property
    def block_count(self) -> int:
        return prod(map(len, self.blocks))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """State that every block is there, and how it was made. The journal has served and is removed, with all that
        kills left in it."""
        self._check_ours()  # a remote store cannot keep two runs from beginning one output
        with writing(self.path, "completing it"):
            self._rewrite(complete=True, summary=dict(summary))
        with writing(self.path, "removing its journal"):
            self.journal.remove()
            for place in _leftovers(self.path):
                place.unlink(missing_ok=True)

    def revoke(self) -> None:
        """State that the output is not complete, whatever it said, and forget all markers: what is removed must not
        look done halfway."""
        with writing(self.path, "removing it"):
            self._rewrite(complete=False)
            self.journal.remove()

    def _rewrite(self, **changed: Any) -> None:
        attributes = stores.open_group(self.path, "r+").attrs.asdict()
        attributes[PROVENANCE] = {**attributes[PROVENANCE], **changed}
        stores.store_of(self.path).rewrite_group(self.path, attributes, self.durability)


def _within(index: Index, known: Sequence[Numbers]) -> bool:
    return len(index) == len(known) and all(j in axis for j, axis in zip(index, known, strict=True))


def read_header(path: str) -> dict[str, Any] | None:
    """Our header of the group at `path`; None where there is no such group, or nothing of ours in it."""
    try:
        header = stores.open_group(path, "r").attrs.get(PROVENANCE)
    except Exception as error:
        if lost := of_store(error):
            raise OutputError(f"{path} cannot be read: {lost.of(path)}; {lost.advice}") from error
        return None  # whatever it is, we did not write it
    return dict(header) if isinstance(header, dict) else None


def spans(indices: Sequence[int]) -> list[list[int]]:
    """Ascending indices as half-open spans, as the header has them."""
    starts = [j for j, before in zip(indices, [None, *indices], strict=False) if before is None or j != before + 1]
    stops = [j + 1 for j, after in zip(indices, [*indices[1:], None], strict=True) if after != j + 1]
    return [list(pair) for pair in zip(starts, stops, strict=True)]


def written_outside(header: Mapping[str, Any], *, labels: bool) -> tuple[float, ...]:
    """What a run wrote where nothing was measured, where that is no label or number like others."""
    written = {float(value) for value in dict(header.get("outside") or {}).get("written") or ()}
    if len(written) != 1 or header.get("output") == "objects":  # these are 0 there
        return ()
    value = written.pop()
    return (
        (value,)
        if isnan(value) or (labels and value >= len(header.get("classes") or ()) + int(header.get("labels") or 0) > 0)
        else ()
    )


MOST_BLOCKS = 2**24
"""Along an axis."""


def _are_spans(found: Any) -> bool:
    """Whether these are ascending half-open spans for two or three axes, as `spans` makes them."""
    if not isinstance(found, list) or len(found) not in (2, 3):
        return False
    for axis in found:
        if not isinstance(axis, list) or not axis or not all(isinstance(s, list) and len(s) == 2 for s in axis):
            return False
        ends = [end for span in axis for end in span]
        if not all(type(end) is int for end in ends) or ends[0] < 0 or ends[-1] - ends[0] > MOST_BLOCKS:
            return False
        if any(a >= b for a, b in pairwise(ends)):
            return False
    return True


def _leftovers(path: str) -> Iterator[Path]:
    """Temporary files of a run killed while it wrote metadata. No folder of chunks is looked into."""
    if is_local(path):
        yield from Path(path).glob("*.partial")
        yield from Path(path, ARRAY).glob("*.partial")
        yield from Path(path, ARRAY).glob(".lock.*")
