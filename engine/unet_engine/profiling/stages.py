"""Where the time of a run goes: spans by stage and thread, in bounded memory. Pure bookkeeping, no I/O, no voxels.

    thread "lane"    |gather|copy|add|gather|copy| network ......... |add|gather|...     what no span covers is `other`
    thread "read"    |read|decode|other|     waiting      |read|decode|...               and here `waiting`

A thread is one `Track`. Its spans nest, and a stage is given only the time that no inner span has (self time). So at
any moment a track is in exactly one stage, and the stages of a track add up to its wall time. Totals are exact and as
small as the list of stages. Spans are kept for a trace in a buffer that never holds more than `SPANS`: when it is full,
every other group of spans (a block) is forgotten and from then on only every second, fourth, ... group is kept, so what
is kept is spread over the whole run.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from unet_engine.profiling.recorder import SAMPLED, Recorder

T = TypeVar("T")

(
    READ,
    DECODE,
    READ_DECODE,
    GATHER,
    COPY,
    NETWORK,
    ADD,
    MERGE,
    ACTIVATION,
    COPY_BACK,
    ENCODE,
    WRITE,
    ENCODE_WRITE,
    WAITING,
    OTHER,
) = range(15)
NAMES = (
    "read", "decode", "read and decode", "normalise and gather", "copy to device", "network", "halo add", "merge",
    "activation",
    "copy from device", "encode", "write", "encode and write", "waiting", "other",
)  # fmt: skip
"""Stages in the order of a voxel's path. The two double ones are what a library does in one call; see
`Snapshot.seconds`."""
PAIRS = ((READ_DECODE, READ, DECODE), (ENCODE_WRITE, ENCODE, WRITE))
"""Stages that come as one, and the two that they are made of."""
SPANS = 2**15
"""Spans a track keeps for the trace: 1 MiB."""
OF_A_GROUP = SPANS // 2
"""Spans that are kept of one group, the first ones."""
_WIDTH = 4
"""Numbers per span: stage, begin, end, group."""


class Track:
    """One thread. Written by that thread alone; others may take snapshots of it at any time."""

    __slots__ = ("_left", "group", "home", "inside", "ns", "spans", "stride")

    def __init__(self) -> None:
        self.ns = [0] * len(NAMES)
        """Self time of each stage in nanoseconds."""
        self.home = WAITING
        """The stage of what no span covers."""
        self.inside = 0
        """Time of the spans that ended inside the one that is open."""
        self.group = 0
        self.spans = array("q")
        self.stride = 1
        """Every so many-th group is kept."""
        self._left = OF_A_GROUP
        """Spans of this group that may still be kept."""

    def add(self, stage: int, begun: int, ended: int, inner: int = 0) -> None:
        """A span that ended now, with `inner` nanoseconds of it in other stages."""
        span = ended - begun
        self.ns[stage] += span - inner
        self.inside += span
        if self._left and self.group % self.stride == 0:
            self._left -= 1
            self.spans.extend((stage, begun, ended, self.group))
            if len(self.spans) >= _WIDTH * SPANS:
                self._thin()

    def place(self, spans: Iterable[tuple[int, int, int]], group: int) -> None:
        """Spans (stage, begin, end) of a `group` that are over for a while, as those of a device's stream. They do not
        nest."""
        left = OF_A_GROUP
        for stage, begun, ended in spans:
            self.ns[stage] += ended - begun
            if left and group % self.stride == 0:
                left -= 1
                self.spans.extend((stage, begun, ended, group))
        if len(self.spans) >= _WIDTH * SPANS:
            self._thin()

    def next_group(self) -> None:
        self.group += 1
        self._left = OF_A_GROUP

    def _thin(self) -> None:
        while len(self.spans) > _WIDTH * SPANS // 2:
            self.stride *= 2
            self.spans = _every(self.stride, self.spans)


def _every(stride: int, spans: array[int]) -> array[int]:
    """The spans of every so many-th group."""
    rows = zip(*[iter(spans)] * _WIDTH, strict=True)
    return array("q", (x for row in rows if row[3] % stride == 0 for x in row))


@dataclass(frozen=True)
class TrackFacts:
    """What a track did, as values that travel: nanoseconds of the clock of `Snapshot`."""

    name: str
    home: int
    ns: tuple[int, ...]
    spans: tuple[tuple[int, int, int, int], ...] = ()
    """Stage, begin, end, group; in the order in which they ended."""
    stride: int = 1
    """Every so many-th group is kept."""


@dataclass(frozen=True)
class Snapshot:
    """One process, or one device of it. Times are nanoseconds since 1970, so that those of several machines fit as
    their clocks do."""

    begun: int
    ended: int
    tracks: tuple[TrackFacts, ...]

    def seconds(self, track: TrackFacts) -> dict[int, float]:
        """Per stage the self time, with what no span covers in the track's home: they add up to ``ended - begun``.

        Where a library reads and decodes (encodes and writes) in one call, every `recorder.SAMPLED`-th call is taken
        apart, on whatever track, and the others are divided as those were. The double stage remains where none could be
        taken apart.
        """
        ns = [float(n) for n in track.ns]
        for both, first, second in PAIRS:
            apart = [sum(t.ns[stage] for t in self.tracks) for stage in (first, second)]
            if sum(apart):
                for stage, part in zip((first, second), apart, strict=True):
                    ns[stage] += ns[both] * part / sum(apart)
                ns[both] = 0.0
        ns[track.home] += max(0.0, self.ended - self.begun - sum(ns))
        return {stage: n / 1e9 for stage, n in enumerate(ns) if n}


class _Span:
    """The time between entering and leaving, on one track."""

    __slots__ = ("_begun", "_outer", "_stage", "_track")

    def __init__(self, track: Track, stage: int) -> None:
        self._track, self._stage = track, stage
        self._begun = self._outer = 0

    def __enter__(self) -> None:
        track = self._track
        self._outer, track.inside = track.inside, 0
        self._begun = time.perf_counter_ns()

    def __exit__(self, *_: object) -> None:
        ended, track = time.perf_counter_ns(), self._track
        inner, track.inside = track.inside, self._outer
        track.add(self._stage, self._begun, ended, inner)


class Stages(Recorder):
    """The tracks of one worker. A track is made when its thread first does something; threads of one name, one after
    another, share it."""

    recording = True

    def __init__(self) -> None:
        self._tracks: dict[str, Track] = {}
        self._calls: dict[str, count[int]] = {}
        """Per kind, the calls that were counted by `takes_apart`."""
        self._here = threading.local()
        self._begun = time.perf_counter_ns()
        self._epoch = time.time_ns() - self._begun

    def track(self) -> Track:
        """That of the calling thread."""
        try:
            found: Track = self._here.track
        except AttributeError:
            found = self._here.track = self._tracks.setdefault(threading.current_thread().name, Track())
        return found

    def track_of(self, name: str) -> Track:
        """One that is no thread's: whoever adds to it sees to it that nobody else does."""
        return self._tracks.setdefault(name, Track())

    @staticmethod
    def clock() -> int:
        """Now, as spans count it."""
        return time.perf_counter_ns()

    def restart(self) -> None:
        """Count from now on. Call while nothing is under way."""
        for track in self._tracks.values():
            track.__init__()  # type: ignore[misc]  # threads keep hold of theirs
        self._begun = time.perf_counter_ns()

    def fed(self, blocks: Iterable[T]) -> Iterator[T]:
        """The same `blocks`, taken by a thread that feeds a device: when it is in no span it is busy, too. Each is a
        group of spans."""
        track = self.track()
        track.home = OTHER
        for block in blocks:
            track.next_group()
            yield block

    def span(self, stage: int) -> AbstractContextManager[None]:
        return _Span(self.track(), stage)

    def block(self, stage: int) -> AbstractContextManager[None]:
        track = self.track()
        track.next_group()
        return _Span(track, stage)

    def add(self, stage: int, begun: int, ended: int) -> None:
        self.track().add(stage, begun, ended)

    def takes_apart(self, kind: str) -> bool:
        return next(self._calls.setdefault(kind, count())) % SAMPLED == 0

    def snapshot(self, spans: int = 0) -> Snapshot:
        """What was done so far, with at most so many `spans` of each track for a trace."""
        tracks = tuple(self._facts(name, track, spans) for name, track in list(self._tracks.items()))
        return Snapshot(self._epoch + self._begun, self._epoch + time.perf_counter_ns(), tracks)

    def _facts(self, name: str, track: Track, limit: int) -> TrackFacts:
        kept, stride = track.spans[:] if limit else array("q"), track.stride
        while len(kept) > _WIDTH * limit and stride <= track.group:
            stride *= 2
            kept = _every(stride, kept)
        rows = zip(*[iter(kept[: _WIDTH * limit])] * _WIDTH, strict=True)
        absolute = tuple(
            (stage, begun + self._epoch, ended + self._epoch, group) for stage, begun, ended, group in rows
        )
        return TrackFacts(name, track.home, tuple(track.ns), absolute, stride)


def as_dict(snapshot: Snapshot) -> dict[str, Any]:
    """As plain values, for events of a cluster."""
    tracks = [{"name": t.name, "home": t.home, "ns": list(t.ns)} for t in snapshot.tracks]
    return {"begun": snapshot.begun, "ended": snapshot.ended, "tracks": tracks}


def from_dict(values: dict[str, Any]) -> Snapshot:
    """What `as_dict` made."""
    tracks = tuple(TrackFacts(t["name"], t["home"], tuple(t["ns"])) for t in values["tracks"])
    return Snapshot(values["begun"], values["ended"], tracks)
