"""Where the time of a device's streams goes, from events put between the work on them. Nothing is waited for that is
not waited for anyway.

    stream   begin |--- gather ---| lap |--- network ---| lap |--- add ---| lap        an event each
    host                                                                 waits for the block: now the events are read

What no lap ends is `waiting`. An event is put on a stream in a microsecond or two and read after the host has waited
for the block. Events are used again.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from unet_engine.devices.base import Device
from unet_engine.profiling.stages import Stages

ANCHOR_SECONDS = 30.0
"""Times are counted from an event that is no older: a device gives them in float32, which is 2 µs then."""


class Marks:
    """Events between the work of one block. Those of a run that is not profiled: does nothing."""

    def begin(self, stream: str) -> None:
        """What is put on the stream next begins here, and not before: call after the stream was told what to wait
        for."""

    def lap(self, stream: str, stage: int) -> None:
        """What was put on the stream since the last mark is of this stage."""

    def read(self) -> None:
        """Count it. The host has waited for all of it."""


NO_MARKS = Marks()


class Timeline:
    """The streams of one pipeline as tracks of a profile, each named ``stream …``."""

    def __init__(self, device: Device, stages: Stages, streams: Mapping[str, Any]) -> None:
        self._device, self.streams = device, streams
        self._tracks = {name: stages.track_of(f"stream {name}") for name in streams}
        self._lock = threading.Lock()
        self._free: deque[Any] = deque()
        self._anchor = self.event()
        device.record(self._anchor, next(iter(streams.values())))
        device.synchronize(self._anchor)
        self._anchored = stages.clock()

    def marks(self) -> Marks:
        return _Recorded(self)

    def event(self) -> Any:
        try:
            return self._free.popleft()
        except IndexError:
            return self._device.timed_event()

    def record(self, stream: str) -> Any:
        event = self.event()
        self._device.record(event, self.streams[stream])
        return event

    def group(self, stream: str) -> int:
        """A new group of spans. Numbers follow the order in which groups are queued, which is that of their times."""
        with self._lock:
            track = self._tracks[stream]
            track.group += 1
            return track.group

    def count(self, stream: str, group: int, marks: list[tuple[Any, int | None]]) -> None:
        """Events of a stream in their order, each with the stage it ends; None for one that only begins."""
        with self._lock:
            first = marks[0][0]
            since = self._device.elapsed(self._anchor, first)
            begun, spans = self._anchored + round(since * 1e9), []
            at = begun
            for (before, _), (event, stage) in pairwise(marks):
                ended = at + round(self._device.elapsed(before, event) * 1e9)
                if stage is not None:
                    spans.append((stage, at, ended))
                at = ended
            self._tracks[stream].place(spans, group)
            used = [event for event, _ in marks]
            if since > ANCHOR_SECONDS:
                used[0], self._anchor, self._anchored = self._anchor, first, begun
            self._free.extend(used)


class _Recorded(Marks):
    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._marks: defaultdict[str, list[tuple[Any, int | None]]] = defaultdict(list)
        self._groups: dict[str, int] = {}

    def begin(self, stream: str) -> None:
        if stream not in self._groups:
            self._groups[stream] = self._timeline.group(stream)
        self._marks[stream].append((self._timeline.record(stream), None))

    def lap(self, stream: str, stage: int) -> None:
        self._marks[stream].append((self._timeline.record(stream), stage))

    def read(self) -> None:
        for stream, marks in self._marks.items():
            self._timeline.count(stream, self._groups[stream], marks)
        self._marks.clear()
