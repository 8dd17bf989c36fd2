"""What people see of a profile: totals per kind of thread, a trace for Perfetto or chrome://tracing, stacked bars.

Format of the trace: the JSON object of Chrome's Trace Event Format, with complete events (``ph`` X, times in
microseconds) and metadata events (``ph`` M) that name processes and threads. A process is a worker (or a device of this
process), a track a thread.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unet_engine.errors import OutputError, SettingsError
from unet_engine.paths import is_local
from unet_engine.profiling.stages import NAMES, OF_A_GROUP, OTHER, Snapshot, TrackFacts
from unet_engine.settings.files import AUTO_PROFILE

LEFT_OUT = "left out of the trace"
"""Name of the time in which spans were not kept, see `unet_engine.profiling.stages`."""
STREAMS = ("stream in", "stream compute", "stream out", "stream up", "stream down")
ROLES = ("device", *STREAMS, "read", "write", "tasks")


def role(track: TrackFacts) -> str:
    """What a thread does: it feeds a device, reads or writes; in a cluster, the ``tasks`` of a worker read, wait and
    write. A GPU's streams are roles of their own."""
    if track.name in STREAMS:
        return track.name
    if track.home == OTHER:
        return "device"
    return next((name for name in ("read", "write") if track.name.startswith(name)), "tasks")


def totals(processes: Mapping[str, Snapshot]) -> dict[str, dict[str, float]]:
    """Per kind of thread the seconds of each stage, all threads of all processes together, and their number as
    ``threads``.

    The seconds of a kind add up to its threads' wall time.
    """
    found: dict[str, dict[str, float]] = {}
    for snapshot in processes.values():
        for track in snapshot.tracks:
            row = found.setdefault(role(track), {"threads": 0})
            row["threads"] += 1
            for stage, seconds in snapshot.seconds(track).items():
                row[NAMES[stage]] = row.get(NAMES[stage], 0.0) + seconds
    return {
        kind: {name: round(found[kind][name], 6) for name in ("threads", *NAMES) if name in found[kind]}
        for kind in sorted(found, key=ROLES.index)
    }


def table(stages: Mapping[str, Mapping[str, float]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """`totals` as a heading and rows of text: stages down, kinds of thread across, in seconds and in parts of the
    kind's wall time."""
    walls = {kind: sum(v for name, v in row.items() if name != "threads") for kind, row in stages.items()}
    heading = (
        "stage",
        *(f"{kind} ({row['threads']:.0f}{_unit(kind, row['threads'])})" for kind, row in stages.items()),
    )

    def cell(kind: str, name: str) -> str:
        seconds = stages[kind].get(name)
        return "" if seconds is None else f"{seconds:.3f} s {seconds / max(1e-9, walls[kind]):6.1%}"

    rows = [
        (name, *(cell(kind, name) for kind in stages)) for name in NAMES if any(name in row for row in stages.values())
    ]
    return heading, [*rows, ("wall time", *(f"{walls[kind]:.3f} s 100.0%" for kind in stages))]


def _unit(kind: str, count: float) -> str:
    return "" if kind in STREAMS else f" thread{'s' * (count > 1)}"


def bars(stages: Mapping[str, Mapping[str, float]]) -> str:
    """`totals` as an SVG: a stacked bar per kind of thread."""
    from unet_engine.profiling import charts

    rows = {kind: {name: v for name, v in row.items() if name != "threads"} for kind, row in stages.items()}
    return charts.stacked(rows, NAMES, "s")


# --- trace ---


def trace(processes: Mapping[str, Snapshot]) -> dict[str, Any]:
    """A trace as a JSON object; the first process began at time 0. On every track the outermost events follow one
    another without a gap."""
    return {"traceEvents": list(events(processes)), **_AROUND, "otherData": {"totals": totals(processes)}}


_AROUND = {"displayTimeUnit": "ms"}


def events(processes: Mapping[str, Snapshot]) -> Iterator[dict[str, Any]]:
    """The events of `trace`, one after the other: all of a large trace at once would be hundreds of megabytes."""
    zero = min((snapshot.begun for snapshot in processes.values()), default=0)
    for pid, (name, snapshot) in enumerate(processes.items(), 1):
        yield _named("process_name", name, pid, 0)
        for tid, track in enumerate(snapshot.tracks, 1):
            yield _named("thread_name", f"{role(track)}: {track.name}", pid, tid)
            for label, begun, ended in _filled(snapshot, track):
                yield {
                    "ph": "X", "name": label, "cat": role(track), "ts": (begun - zero) / 1e3,
                    "dur": (ended - begun) / 1e3,
                    "pid": pid, "tid": tid,
                }  # fmt: skip


def _named(kind: str, name: str, pid: int, tid: int) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "ts": 0, "dur": 0, "pid": pid, "tid": tid, "args": {"name": name}}


def _filled(snapshot: Snapshot, track: TrackFacts) -> Iterator[tuple[str, int, int]]:
    """Name, begin and end of every span, outer before inner, and of the gaps between outermost ones."""
    spans = sorted(track.spans, key=lambda span: (span[1], -span[2]))
    kept: defaultdict[int, int] = defaultdict(int)
    for span in spans:
        kept[span[3]] += 1
    at, before = snapshot.begun, 0
    for stage, begun, ended, group in spans:
        if begun >= at:
            if begun > at:
                whole = group - before <= 1 and kept[before] < OF_A_GROUP
                yield (NAMES[track.home] if whole else LEFT_OUT), at, begun
            at, before = ended, group
        yield NAMES[stage], begun, min(ended, at)
    if snapshot.ended > at:
        yield (NAMES[track.home] if track.stride == 1 and kept[before] < OF_A_GROUP else LEFT_OUT), at, snapshot.ended


# --- files ---


@dataclass(frozen=True)
class Place:
    """Where the files of a profile go."""

    trace: Path
    bars: Path

    @classmethod
    def of(cls, asked: str, out: str) -> Place:
        """The place that ``--profile`` names, for a run to `out`. Made, and tried, here. Raises `SettingsError` or
        `OutputError`."""
        if not is_local(asked):
            raise SettingsError(f"--profile {asked}: a profile is written to a local disk; give a folder or NAME.json")
        if asked == AUTO_PROFILE:
            root = out.rstrip("/").removesuffix(".zarr") + "-profile"
            asked = root if is_local(root) else root.rpartition("/")[2]
        path = Path(asked)
        if path.suffix and path.suffix != ".json" and not path.is_dir():
            raise SettingsError(f"--profile {asked}: the trace is JSON; give a folder or NAME.json")
        if path.suffix == ".json" and not path.is_dir():
            place = cls(path, path.with_suffix(".svg"))
        else:
            place = cls(path / "trace.json", path / "stages.svg")
        try:
            place.trace.parent.mkdir(parents=True, exist_ok=True)
            was_there = place.trace.exists()
            place.trace.open("a").close()
            if not was_there:
                place.trace.unlink()
        except OSError as error:
            raise OutputError(
                f"--profile {asked} cannot be written: {error.strerror}; choose another folder or NAME.json"
            ) from error
        return place

    def write(self, processes: Mapping[str, Snapshot]) -> tuple[str, ...]:
        """Write both files and return their paths. Raises `OutputError`."""
        try:
            with self.trace.open("w", encoding="utf-8") as file:
                file.write('{"traceEvents":[')
                for i, event in enumerate(events(processes)):
                    file.write(("," if i else "") + "\n" + json.dumps(event, separators=(",", ":")))
                rest = {**_AROUND, "otherData": {"totals": totals(processes)}}
                file.write("\n]," + json.dumps(rest, separators=(",", ":"))[1:] + "\n")
            self.bars.write_text(bars(totals(processes)), encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"{self.trace.parent} cannot be written: {error.strerror}; the output itself is safe: choose another --profile next time"
            ) from error
        return str(self.trace), str(self.bars)
