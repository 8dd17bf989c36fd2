"""The end of a run: is every block there, who says so, and what is known of the parts that did it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import zarr

from unet_engine.errors import OutputError, first_line
from unet_engine.output import array
from unet_engine.output.chunks import chunks_of
from unet_engine.output.header import ARRAY, Header
from unet_engine.output.inspection import Fault, Look, in_words, inspect
from unet_engine.output.locks import PATIENCE, Holding, clear, hold
from unet_engine.paths import plain
from unet_engine.settings.text import parse_part
from unet_engine.storage import stores
from unet_engine.units import span

SUMMED = ("windows_planned", "windows_inferred", "windows_skipped", "blocks_planned", "blocks_written", "seconds")
"""Figures of parts that add up to those of the output."""


def conclude(
    header: Header, holding: Holding, facts: Mapping[str, Any] | None = None, look: Look = Look.LENGTHS
) -> bool:
    """Complete the output if all blocks are there and nobody else is at it; whether it is complete now. Raises
    `OutputError` where a block is not as it was written.

    facts: what a run of all parts says of itself, None for the end of a part

    Several parts may end together, and exactly one must complete the output. Each has marked its blocks, then (1) gives
    up its share, (2) looks for all markers, and if they are there (3) asks for the whole.
    - At least one does: of all parts, take that which gives up its share last. All others have marked all they will, so
      it sees all markers and asks. Nobody holds a share any more, so it is refused only where another one holds the
      whole, who saw all markers, too.
    - Only one does: who holds the whole reads the header again, which says so where another one was here before.
    Looking before (1) would not do: one part could look too early, and its share be in the way of the one that sees all
    markers. Where there are no locks, whoever looks last sees all; two may complete the output, with the same words, as
    notes go after the header.
    """
    holding.leave()
    if not header.all_marked or not holding.is_alone():
        return header.complete  # markers are also missing where another one has just completed it
    summary = summarize(header, facts)
    if not header.complete:
        refuse_changed(header, look)
        header.finish(summary)
    return True


def refuse_changed(header: Header, look: Look) -> None:
    """Raises `OutputError` where committed blocks are not as they were written, or the array's metadata are not."""
    try:
        found = stores.open_group(header.path, "r+").store_path / ARRAY
        stored = header.stored
        wanted = stored.get("array")  # outputs of older versions do not say
        differing = array.difference(found, wanted) if isinstance(wanted, dict) else None
        faults: list[Fault] = []
        if differing is None and not stored.get("complete"):
            chunks = chunks_of(zarr.open_array(found, mode="r+"), header.journal)
            faults = list(inspect(header.journal, chunks, header.marked(), look))
    except Exception as error:
        if header.complete:  # see below
            return
        raise OutputError(
            f"{header.path} cannot be compared with its record of finished blocks: {first_line(error)}; run the same command with "
            "--resume"
        ) from error
    if differing:
        raise OutputError(
            f"{header.path}: the metadata of its array {differing}; "
            "run the same command with --resume, which restores them"
        )
    # where nothing locks, another part may have completed it meanwhile, which takes the markers away
    if faults and not header.complete:
        raise OutputError(
            f"{in_words(header.path, faults)}; run the same command with --resume, which computes it again"
        )


def summarize(header: Header, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What is known of how the output was made: `facts` of a whole run, else the sums over the parts; and the parts."""
    parts = header.journal.notes()
    sums = {key: round(sum(part.get(key, 0) for part in parts), 4) for key in SUMMED} if parts else {}
    return {**(facts or sums), "blocks": header.block_count, **({"parts": parts} if parts else {})}


def finish(path: str, verify: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002  # as on the command line
    """Complete the output at `path` if all its blocks are there; returns its summary with ``out``.

    verify: compare the contents of chunks with their checksums, too

    Raises `OutputError` where it is none of ours, where blocks are missing or not as they were written (how many, the
    first of them, and what to run), or where it is being written.
    """
    path = plain(path)
    if not stores.exists(path):
        raise OutputError(f"{path} does not exist; give the --out of the run")
    header = Header.of(path)
    if not header.complete:
        refuse_incomplete(header)
        with hold(path, patience=PATIENCE) as holding:
            if not conclude(header, holding, look=Look.CONTENT if verify else Look.LENGTHS):
                refuse_incomplete(header)
    else:
        refuse_changed(header, Look.LENGTHS)
        clear(path)
    return {"out": path, "complete": True, **header.stored.get("summary", {})}


def refuse_incomplete(header: Header) -> None:
    """Raises `OutputError` where blocks are missing: how many, the first of them, and what to run."""
    count, first = header.missing()
    if count and not header.complete:
        raise OutputError(
            f"{header.path} lacks {count:,} of {header.block_count:,} blocks, the first is {first}; {_advice(header)}"
        )


def _advice(header: Header) -> str:
    notes = [(parse_part(note["part"]), note) for note in header.journal.notes()]
    finished = {part for part, note in notes if note["finished"]}
    numbers = sorted({n for (_, n), _ in notes})
    unfinished = (f"{i}/{n}" for n in numbers for i in range(1, n + 1) if (i, n) not in finished)
    left = list(islice(unfinished, _NAMED))  # parts may be a million
    if not left:
        return "run the same command again with --resume"
    beyond = sum(numbers) - len(finished) - len(left)
    more = f" and {beyond:,} more" if beyond else ""
    return f"these parts have not finished: {', '.join(left)}{more}; run them again, e.g. with --part {left[0]}"


_NAMED = 8
"""Parts that a message names."""


def line(facts: Mapping[str, Any]) -> str:
    """What `finish` returns, as people read it."""
    parts = f" by {len(facts['parts'])} parts" if facts.get("parts") else ""
    work = ""
    if "windows_inferred" in facts:
        work = f", {facts['windows_inferred']:,} windows inferred in {span(facts['seconds'])}"
    elif "objects" in facts:
        work = f", {facts['objects']:,} objects numbered in {span(facts['seconds'])}"
    return f"{facts['out']}: complete, {facts.get('blocks', 0):,} blocks{parts}{work}"
