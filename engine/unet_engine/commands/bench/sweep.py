"""One model on one volume: find the fastest configurations bare, run the best of them from end to end, compare."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unet_engine import machine
from unet_engine.commands.bench.meter import Meter
from unet_engine.commands.bench.offer import Wanted, allowed, choice_of, runnable, setup_of, space_of
from unet_engine.commands.bench.search import Ranking, search
from unet_engine.commands.bench.space import Configuration, Field, Window, region
from unet_engine.commands.bench.whole import Whole, run_whole
from unet_engine.errors import PlanError
from unet_engine.model.file import ModelFile
from unet_engine.plan.box import Box
from unet_engine.units import Tell, times
from unet_engine.volumes.base import Volume
from unet_engine.volumes.resampled import Interpolated
from unet_engine.volumes.turned import as_stored, turn_of

FINALISTS = 2
REPEATS = 3
"""Runs from end to end of each finalist, if time allows."""
BARE_SHARE = 0.45
"""Part of a model's time that goes into the search."""
START = 2.0
"""Seconds that a process takes before its first window, as far as they must be planned for."""
FEWEST = 6
"""Windows that a run must have for its figures to mean anything."""
FEW = 16
"""Windows that a run from end to end should have at least: with fewer, its first and last ones weigh too much."""


@dataclass(frozen=True)
class Subject:
    """A model and a volume to sweep."""

    name: str
    model: ModelFile
    volume: Volume
    """As windows see it."""
    options: tuple[str, ...]
    """What ``run`` needs beside the input and what is swept: the model, and what the user gave."""
    shown: str
    """The volume as the proposed command names it."""
    share: float = 1.0
    """Of the time."""

    @property
    def scan(self) -> Volume:
        """On its own grid, as it is stored."""
        return as_stored(self.volume.scan if isinstance(self.volume, Interpolated) else self.volume)

    def stored_box(self, box: Box) -> Box:
        """What of the scan as it is stored `box` of the grid of windows, at its origin, comes to."""
        seen = self.volume
        if isinstance(seen, Interpolated):
            ends = zip(seen.grid, box.hi, strict=True)
            hi = (a.source if h >= a.target else max(1, round(a.position(h) - a.ratio / 2 + 0.5)) for a, h in ends)
            box, seen = Box(box.lo, tuple(min(h, a.source) for h, a in zip(hi, seen.grid, strict=True))), seen.scan
        turn = turn_of(seen)
        return turn.stored_box(box) if turn else box


@dataclass(frozen=True)
class EndToEnd:
    """One configuration as a run, several times."""

    runs: tuple[Whole, ...]
    bare: tuple[float, ...]
    """Windows per second of the bare network around each run: the mean of just before and just after."""

    @property
    def efficiencies(self) -> tuple[float, ...]:
        """Bare time of the windows that were inferred ÷ time of the run, per run."""
        return tuple(
            whole.facts["windows_inferred"] / rate / whole.facts["seconds"]
            for whole, rate in zip(self.runs, self.bare, strict=True)
        )


@dataclass
class Row:
    """What is known of one configuration."""

    configuration: Configuration
    proved: bool
    """Whether a run takes it: fp32, or what the accuracy gate has passed."""
    note: str = ""
    samples: tuple[float, ...] = ()
    """Windows per second, bare."""
    peak_rss_bytes: int | None = None
    """Of the process that held the bare network."""
    end_to_end: EndToEnd | None = None

    @property
    def bare(self) -> float | None:
        return statistics.median(self.samples) if self.samples else None

    @property
    def efficiency(self) -> float | None:
        return statistics.median(self.end_to_end.efficiencies) if self.end_to_end else None


@dataclass
class Outcome:
    """The sweep of one model on one volume."""

    name: str
    model: ModelFile
    volume: str
    """As the proposed command names it."""
    options: tuple[str, ...]
    """Of that command, beside the input and what was swept."""
    field: Field
    rows: list[Row]
    best: Row | None
    region: str
    """The part of the volume that was run from end to end."""
    seconds: float = 0.0
    notes: list[str] = dataclasses.field(default_factory=list)

    def worth(self, row: Row) -> float | None:
        """Voxels of the whole volume per second, bare."""
        return None if row.bare is None else self.field.rate(row.configuration.window, row.bare)


def sweep(subject: Subject, wanted: Wanted, seconds: float, tell: Tell) -> Outcome:
    """Search for at most `seconds`, and compare what was found."""
    name, model, volume = subject.name, subject.model, subject.volume
    begun = time.perf_counter()
    where = Field.of(model, volume.shape, wanted.overlap, wanted.tta, subject.scan.shape)
    space = space_of(model, where, wanted)
    for_a_run = max(1.0, (1 - BARE_SHARE) * seconds / 2 - START)  # of what is slow, two runs will do
    with Meter(lambda c: setup_of(model, wanted, c), least_rate=FEWEST / for_a_run, own=space.windows[0]) as meter:
        tell(
            f"{name}: {len(space.groups)} ways to compute, {len(space.windows)} windows, batches "
            f"{', '.join(map(str, space.batches))}"
        )
        found = search(space, where, meter, lambda: time.perf_counter() - begun > BARE_SHARE * seconds, meter.load)
        rows = [_row(model, c, found, meter) for c in (*found.best(), *meter.failed)]
        outcome = Outcome(
            name,
            model,
            subject.shown,
            subject.options,
            where,
            rows,
            None,
            str(subject.stored_box(region(where, space.windows[0], 1))),
        )
        if not found.samples:
            why = "; ".join(dict.fromkeys(meter.failed.values()))
            raise PlanError(
                f"nothing of {model.path.name} could be measured: {why}; try other --windows or more --seconds"
            )
        finalists = [row for row in rows if row.proved and row.samples][:FINALISTS]
        meter.close(but=[row.configuration for row in finalists])
        if finalists:
            left = seconds - (time.perf_counter() - begun)
            _run_finalists(outcome, finalists, meter, left, subject, tell)
    outcome.best = max((r for r in rows if r.end_to_end), key=lambda r: score(outcome, r), default=None)
    outcome.notes = [*_untried(space.windows, rows), *_notes(outcome)]
    outcome.seconds = time.perf_counter() - begun
    return outcome


def score(outcome: Outcome, row: Row) -> float:
    """Voxels of the whole volume per second from end to end: those of the bare network, times the efficiency that was
    measured."""
    return (outcome.worth(row) or 0.0) * (row.efficiency or 0.0)


def _row(model: ModelFile, configuration: Configuration, found: Ranking, meter: Meter) -> Row:
    choice = choice_of(model, configuration)
    proved = allowed(model, configuration)
    note = meter.failed.get(configuration, "")
    if not note and not proved:
        note = "run has no batches on a CPU" if not runnable(configuration) else f"not proved: {choice.why}"
    return Row(configuration, proved, note, tuple(found.samples.get(configuration, ())), meter.peaks.get(configuration))


def _run_finalists(
    outcome: Outcome, finalists: Sequence[Row], meter: Meter, seconds: float, subject: Subject, tell: Tell
) -> None:
    """Runs of each in turn, a measurement of its bare network before and after every one, as long as there is time."""
    chosen, seen = _affordable(outcome, finalists, seconds)
    box = subject.stored_box(seen)
    outcome.region = str(box)
    runs: dict[Configuration, list[Whole]] = {row.configuration: [] for row in chosen}
    around: dict[Configuration, list[float]] = {row.configuration: [] for row in chosen}
    begun, longest = time.perf_counter(), 0.0
    for repeat in range(REPEATS):
        for row in chosen:
            c = row.configuration
            if (repeat or row is not chosen[0]) and time.perf_counter() - begun + longest > seconds:
                continue
            tell(f"{outcome.name}: run {repeat + 1} of {c}")
            before, start = meter(c), time.perf_counter()
            whole = run_whole(["--in", subject.volume.path, *subject.options, *options_of(c), "--roi", str(box)])
            longest = max(longest, time.perf_counter() - start)
            rates = [rate for rate in (before, meter(c)) if rate]
            runs[c].append(whole)
            around[c].append(statistics.mean(rates) if rates else row.bare or 0.0)
    for row in chosen:
        if runs[row.configuration]:
            row.end_to_end = EndToEnd(tuple(runs[row.configuration]), tuple(around[row.configuration]))


def _affordable(outcome: Outcome, finalists: Sequence[Row], seconds: float) -> tuple[Sequence[Row], Box]:
    """How many finalists, and how much of the volume, so that all repeats fit the time: fewer finalists rather than
    runs of few windows."""
    for count in range(len(finalists), 0, -1):
        chosen = finalists[:count]
        each = max(0.5, seconds / (REPEATS * count) - START)
        slowest = min(chosen, key=lambda row: row.bare or 0.0)
        windows = max(FEWEST, int(each * (slowest.bare or 1.0)))
        if windows >= FEW or count == 1:
            break
    return chosen, region(outcome.field, slowest.configuration.window, windows // outcome.field.calls)


def options_of(configuration: Configuration) -> list[str]:
    """The options of ``run`` that give this configuration."""
    group = configuration.group
    options = [
        "--backend",
        group.backend,
        "--precision",
        group.precision,
        "--window",
        ",".join(map(str, configuration.window)),
    ]
    if group.device != "cpu" or machine.gpu_count():
        options += ["--device", group.device]
    return options + (["--batch", str(configuration.batch)] if group.device != "cpu" else [])


def _untried(windows: Sequence[Window], rows: Sequence[Row]) -> Iterator[str]:
    """A line on those of `windows` that no row has."""
    left = sorted(set(windows) - {row.configuration.window for row in rows})
    if left:
        yield f"time was up before windows of {', '.join(map(times, left))} were tried: more --seconds, or fewer --windows"


def _notes(outcome: Outcome) -> Iterator[str]:
    if outcome.best is None:
        yield "nothing that was measured is proved, so nothing is proposed; see unet-engine quantize"
        return
    faster = [r for r in outcome.rows if not r.proved and r.samples and runnable(r.configuration)]
    top = max(faster, key=lambda r: outcome.worth(r) or 0.0, default=None)
    best = outcome.worth(outcome.best) or 1.0
    if top and (ratio := (outcome.worth(top) or 0.0) / best) > 1.05:
        yield (
            f"{top.configuration.group.precision} on {top.configuration.group.backend} is {ratio:.2f} times as fast "
            f"bare, but not proved; prove it on your own volume: unet-engine quantize {outcome.model.path} "
            f"--calibrate SCAN.zarr --precision {top.configuration.group.precision}"
        )
    run = outcome.best.end_to_end
    windows = run.runs[0].facts["windows_inferred"] if run else 0
    yield (
        f"end to end was run on {outcome.region} ({windows:,} windows) and is given for all "
        f"{outcome.field.voxels:,} voxels: "
        "rate of the bare network times efficiency"
    )
