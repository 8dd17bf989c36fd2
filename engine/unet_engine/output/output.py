"""The output: an OME-Zarr 0.5 group with the result at ``0``, and beside its chunks the journal of what is committed.

A block counts as done only by its marker, a small object ``0/.journal/<digest>/<block>`` written after its data; chunks
that exist prove nothing, since empty ones are not written and a block's others may be missing. The journal goes away
once the output is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.errors import ContainsArrayError

from unet_engine.errors import OutputError, ResumeError, first_line, writing
from unet_engine.output.chunks import Chunks, LocalChunks, RemoteChunks
from unet_engine.output.header import ARRAY, PROVENANCE, Header, read_header
from unet_engine.output.journal import LocalJournal
from unet_engine.output.layout import Layout
from unet_engine.output.locks import hold
from unet_engine.plan.box import Box
from unet_engine.plan.plan import Plan
from unet_engine.profiling.recorder import PLAIN, Recorder
from unet_engine.redaction import redacted
from unet_engine.storage import stores
from unet_engine.storage.codecs import fast_codecs


class Output:
    """An opened output group. `write` and `mark` may be called from several threads, and from other processes on the
    same blocks."""

    def __init__(self, path: str, layout: Layout, digest: str, recorder: Recorder = PLAIN) -> None:
        """recorder: takes the times of writing."""
        self.path, self.layout, self.digest = path, layout, digest
        with writing(path, "opening it"), fast_codecs(path):
            self.array = stores.open_group(path, "r+")[ARRAY]
            self.header = Header(path, digest)
        journal = self.header.journal
        self.chunks: Chunks
        if isinstance(journal, LocalJournal):
            self.chunks = LocalChunks(self.array, Path(path, ARRAY), journal.stage, recorder)
        else:
            self.chunks = RemoteChunks(self.array, recorder)

    @classmethod
    def create(cls, path: str, layout: Layout, digest: str, provenance: Mapping[str, Any]) -> Output:
        """Make the group and the array, or take over what another process with the same settings made at the same time.

        Whoever stores the header first has begun the output; all others compare theirs with it, as a resume does. What
        follows from the header is the same whoever writes it. Raises `ResumeError` where the other process runs
        something else.
        """
        attributes = {
            "ome": layout.ome(Path(redacted(path)).stem),
            PROVENANCE: {**provenance, "digest": digest, "complete": False},
        }
        with writing(path, "creating it"):
            stores.store_of(path).create_group(path, attributes)
        return cls.resume(path, layout, digest, provenance)

    @staticmethod
    def _create_array(path: str, layout: Layout) -> None:
        channel = layout.channels is not None
        with suppress(ContainsArrayError):  # another process made it just now
            stores.create_array(
                f"{path.rstrip('/')}/{ARRAY}",
                shape=((layout.channels,) if channel else ()) + layout.in_stored_order(layout.shape),
                chunks=((1,) if channel else ())
                + tuple(map(min, layout.in_stored_order(layout.chunk), layout.in_stored_order(layout.shape))),
                dtype=layout.dtype,
                compressors=zarr.codecs.ZstdCodec(level=1),
                fill_value=0,
                dimension_names=(["c"] if channel else []) + list(layout.stored),
            )

    @classmethod
    def resume(cls, path: str, layout: Layout, digest: str, provenance: Mapping[str, Any]) -> Output:
        """Open the output of an earlier run. Raises `ResumeError` naming what differs if that run was another one."""
        try:
            group = stores.open_group(path, "r+")
        except FileNotFoundError as error:
            raise ResumeError(_not_ours(path)) from error
        except Exception as error:
            raise OutputError(
                f"{path} cannot be opened to resume it: {first_line(error)}; restore it, or choose another --out"
            ) from error
        header = group.attrs.get(PROVENANCE)
        if not isinstance(header, dict):
            raise ResumeError(_not_ours(path))
        differing = _differences(header.get("identity", {}), provenance["identity"])
        if differing:
            raise ResumeError(
                f"{path} was begun with another {'; '.join(differing)}: repeat that run's settings or use --overwrite"
            )
        if ARRAY not in group:
            with writing(path, "creating its array"), fast_codecs(path):
                cls._create_array(path, layout)
        return cls(path, layout, digest)

    def write(self, box: Box, values: npt.NDArray[Any]) -> None:
        """Write `values`, shape (*box.shape) or (channels, *box.shape), at `box`, relative to the output's origin.

        `box` is made of whole chunks, but where the array ends. Call after `Header.begin`, here or in the process that
        leads the run. Raises `OutputError` where the disk is full or the store refuses; what was written before stays
        valid.
        """
        layout = self.layout
        lead = 0 if layout.channels is None else 1
        order = [lead + layout.names.index(a) for a in layout.stored]
        target = (slice(None),) * lead + layout.in_stored_order(box.slices())
        with writing(self.path, f"writing voxels {box}"):
            try:
                self.chunks.write(target, values.transpose([*range(lead), *order]))
            except Exception:
                if self.header.journal.is_open:
                    raise
                self.header.check_over()  # somebody else has written this block long ago, and all others

    def mark(self, index: tuple[int, ...]) -> None:
        """Record block `index` as committed; call after its data were written."""
        self.header.mark(index)

    def pending(self, plan: Plan) -> Callable[[tuple[int, ...]], bool]:
        """Which blocks are not committed now. A snapshot, so that a block is never both written and waited for."""
        first = plan.block_range.lo
        done = np.zeros(plan.block_range.shape, bool)
        for index in self.header.journal.marked():
            done[tuple(i - l for i, l in zip(index, first, strict=True))] = True
        return lambda index: not done[tuple(i - l for i, l in zip(index, first, strict=True))]


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
    if not is_ours(path):
        raise OutputError(
            f"--overwrite: {path} is not an output of unet-engine and is left alone; choose another --out"
        )
    with hold(path):
        Header.of(path).revoke()
        with writing(path, "removing it"):
            stores.store_of(path).remove(path, ARRAY)  # chunks first, the header last


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} ({_short(old.get(key))}, now {_short(new.get(key))}{_HINTS.get(key, '')})"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


_HINTS = {"block": ", as blocks shrink where --memory is small"}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
