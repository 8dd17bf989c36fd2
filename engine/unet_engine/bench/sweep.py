"""One model on one volume: find the fastest configurations bare, run the best of them from end to end, compare."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from unet_engine import machine
from unet_engine.backends import BACKENDS, Setup, choose_backend
from unet_engine.bench.meter import Meter
from unet_engine.bench.search import Found, Space, search
from unet_engine.bench.space import Candidate, Field, Group, Window, region
from unet_engine.bench.whole import Whole, run_whole
from unet_engine.box import Box
from unet_engine.errors import BackendError, PlanError, SettingsError
from unet_engine.model_file import ModelFile
from unet_engine.precision import Choice, choose
from unet_engine.settings import Settings
from unet_engine.volume import Volume

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
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

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What the user leaves of the sweep. Empty: all there is."""

    devices: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    windows: tuple[Window, ...] = ()
    batches: tuple[int, ...] = ()
    overlap: float = 0.5
    threads: int | None = None


@dataclass(frozen=True)
class Subject:
    """A model and a volume to sweep."""

    name: str
    model: ModelFile
    volume: Volume
    options: tuple[str, ...]
    """What ``run`` needs beside what is swept: the input, the model, and what the user gave."""
    shown: str
    """The volume as the proposed command names it."""
    share: float = 1.0
    """Of the time."""


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

    candidate: Candidate
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
    field: Field
    rows: list[Row]
    best: Row | None
    region: str
    """The part of the volume that was run from end to end."""
    seconds: float = 0.0
    notes: list[str] = dataclasses.field(default_factory=list)

    def worth(self, row: Row) -> float | None:
        """Voxels of the whole volume per second, bare."""
        return None if row.bare is None else self.field.rate(row.candidate.window, row.bare)


# --- what there is to try ---


def devices(wanted: Wanted) -> tuple[str, ...]:
    """The devices of this machine, or those asked for. Raises `BackendError` where one is missing."""
    there = ("cpu", *(f"cuda:{i}" for i in range(machine.gpu_count())))
    for device in wanted.devices:
        if device not in there:
            raise BackendError(f"--devices {device}: this machine has {', '.join(there)}; name some of them")
    return wanted.devices or there


def groups(model: ModelFile, wanted: Wanted) -> tuple[Group, ...]:
    """Every way to compute the model here: what is installed, runs the format and knows the precision, as far as can be told unloaded."""
    for name in wanted.backends:
        if name not in BACKENDS:
            raise BackendError(f"there is no back end {name!r}; use one of {', '.join(BACKENDS)}")
    for name in wanted.precisions:
        if name not in PRECISIONS:
            raise SettingsError(f"--precision {name!r} is none; use some of {', '.join(PRECISIONS)}")
    found = []
    for device in devices(wanted):
        for backend in wanted.backends or BACKENDS:
            if model.format not in BACKENDS[backend]:
                continue
            try:
                choose_backend(model, device.partition(":")[0], backend)
            except BackendError:
                if wanted.backends:
                    raise
                continue
            found += [
                Group(device, backend, p)
                for p in wanted.precisions or PRECISIONS
                if p in _known(backend, device) and (p != "int8" or _attached(model, backend))
            ]
    if not found:
        raise SettingsError(
            f"nothing is left to sweep for {model.path.name} ({model.format}) on {', '.join(devices(wanted))}; "
            "leave out --devices, --backend or --precision"
        )
    return tuple(found)


def _known(backend: str, device: str) -> tuple[str, ...]:
    """Precisions that a back end computes in on this device without being told a network for it."""
    if backend == "openvino":
        from unet_engine.backends.openvino import precisions

        return precisions(device)
    if backend == "pytorch":
        return ("fp32", "bf16", "fp16") if device.startswith("cuda") else ("fp32", "bf16")
    return PRECISIONS if backend == "tensorrt" else ("fp32",)


def _attached(model: ModelFile, backend: str) -> bool:
    return any(v.backend == backend and v.precision == "int8" and v.network for v in model.verdicts)


def choice_of(model: ModelFile, candidate: Candidate) -> Choice:
    """How the candidate is computed. `Choice.proved` says whether a run may, or it is fp32; the gate itself is only asked, never passed by."""
    group = candidate.group
    try:
        return choose(model, group.backend, group.device, group.precision, candidate.window)
    except BackendError as refused:
        judged = [v for v in model.verdicts if v.backend == group.backend and v.precision == group.precision]
        network, rest = (judged[-1].network, judged[-1].rest) if judged else (None, "fp32")
        return Choice(group.precision, network, rest, str(refused))


def allowed(model: ModelFile, candidate: Candidate) -> bool:
    """Whether `run` takes it as proved."""
    return candidate.batch in RUNNABLE_BATCHES and (
        candidate.group.precision == "fp32" or choice_of(model, candidate).proved is not None
    )


RUNNABLE_BATCHES: Sequence[int] = range(1, 1025) if "batch" in Settings.model_fields else (1,)
"""Batches that a run can be told to use."""


def setup_of(model: ModelFile, wanted: Wanted, candidate: Candidate) -> Setup:
    choice = choice_of(model, candidate)
    threads = 1 if candidate.group.device.startswith("cuda") else wanted.threads or machine.cpu_count()
    return Setup(
        model,
        candidate.window,
        candidate.group.device,
        choice.precision,
        choice.network,
        choice.rest,
        threads,
        candidate.batch,
    )


def space_of(model: ModelFile, where: Field, wanted: Wanted) -> Space:
    """Raises `SettingsError`, `ModelError` or `BackendError` where nothing is left to try."""
    for window in wanted.windows:
        model.spec.check_window(window)
    proved = [v.window for v in model.verdicts if v.passed]
    windows = wanted.windows or tuple(dict.fromkeys([*where.ladder(), *filter(where.fits, proved)]))
    # batches help where a window alone leaves a device idle; more would only take memory on a CPU
    batches = wanted.batches or ((1, 4) if all(g.device == "cpu" for g in groups(model, wanted)) else (1, 4, 16))
    return Space(groups(model, wanted), windows, batches, lambda c: allowed(model, c), refine=not wanted.windows)


# --- the sweep ---


def sweep(subject: Subject, wanted: Wanted, seconds: float, tell: Tell) -> Outcome:
    """Search for at most `seconds`, and compare what was found."""
    name, model, volume = subject.name, subject.model, subject.volume
    begun = time.perf_counter()
    where = Field(model.spec, volume.shape, wanted.overlap)
    space = space_of(model, where, wanted)
    for_a_run = max(0.5, (1 - BARE_SHARE) * seconds / REPEATS - START)
    with Meter(lambda c: setup_of(model, wanted, c), least_rate=FEWEST / for_a_run) as meter:
        tell(
            f"{name}: {len(space.groups)} ways to compute, {len(space.windows)} windows, batches {', '.join(map(str, space.batches))}"
        )
        found = search(space, where, meter, lambda: time.perf_counter() - begun > BARE_SHARE * seconds, meter.load)
        rows = [_row(model, c, found, meter) for c in (*found.best(), *meter.failed)]
        outcome = Outcome(name, model, subject.shown, where, rows, None, str(region(where, space.windows[0], 1)))
        if not found.samples:
            why = "; ".join(dict.fromkeys(meter.failed.values()))
            raise PlanError(
                f"nothing of {model.path.name} could be measured: {why}; try other --windows or more --seconds"
            )
        finalists = [row for row in rows if row.proved and row.samples][:FINALISTS]
        meter.close(but=[row.candidate for row in finalists])
        if finalists:
            left = seconds - (time.perf_counter() - begun)
            _run_finalists(outcome, finalists, meter, left, subject.options, tell)
    outcome.best = max((r for r in rows if r.end_to_end), key=lambda r: score(outcome, r), default=None)
    outcome.notes = list(_notes(outcome))
    outcome.seconds = time.perf_counter() - begun
    return outcome


def score(outcome: Outcome, row: Row) -> float:
    """Voxels of the whole volume per second from end to end: those of the bare network, times the efficiency that was measured."""
    return (outcome.worth(row) or 0.0) * (row.efficiency or 0.0)


def _row(model: ModelFile, candidate: Candidate, found: Found, meter: Meter) -> Row:
    choice = choice_of(model, candidate)
    proved = allowed(model, candidate)
    note = meter.failed.get(candidate, "")
    if not note and not proved:
        note = "run has no batches" if candidate.batch not in RUNNABLE_BATCHES else f"not proved: {choice.why}"
    return Row(candidate, proved, note, tuple(found.samples.get(candidate, ())), meter.peaks.get(candidate))


def _run_finalists(
    outcome: Outcome, finalists: Sequence[Row], meter: Meter, seconds: float, run_options: Sequence[str], tell: Tell
) -> None:
    """Runs of each in turn, a measurement of its bare network before and after every one, as long as there is time."""
    chosen, box = _affordable(outcome, finalists, seconds)
    outcome.region = str(box)
    runs: dict[Candidate, list[Whole]] = {row.candidate: [] for row in chosen}
    around: dict[Candidate, list[float]] = {row.candidate: [] for row in chosen}
    begun, longest = time.perf_counter(), 0.0
    for repeat in range(REPEATS):
        for row in chosen:
            c = row.candidate
            if (repeat or row is not chosen[0]) and time.perf_counter() - begun + longest > seconds:
                continue
            tell(f"{outcome.name}: run {repeat + 1} of {c}")
            before, start = meter(c), time.perf_counter()
            whole = run_whole([*run_options, *options_of(c), "--roi", str(box)])
            longest = max(longest, time.perf_counter() - start)
            rates = [rate for rate in (before, meter(c)) if rate]
            runs[c].append(whole)
            around[c].append(statistics.mean(rates) if rates else row.bare or 0.0)
    for row in chosen:
        if runs[row.candidate]:
            row.end_to_end = EndToEnd(tuple(runs[row.candidate]), tuple(around[row.candidate]))


def _affordable(outcome: Outcome, finalists: Sequence[Row], seconds: float) -> tuple[Sequence[Row], Box]:
    """How many finalists, and how much of the volume, so that all repeats fit the time: fewer finalists rather than runs of few windows."""
    for count in range(len(finalists), 0, -1):
        chosen = finalists[:count]
        each = max(0.5, seconds / (REPEATS * count) - START)
        slowest = min(chosen, key=lambda row: row.bare or 0.0)
        windows = max(FEWEST, int(each * (slowest.bare or 1.0)))
        if windows >= FEW or count == 1:
            break
    return chosen, region(outcome.field, slowest.candidate.window, windows)


def options_of(candidate: Candidate) -> list[str]:
    """The options of ``run`` that give this configuration."""
    group = candidate.group
    options = [
        "--backend",
        group.backend,
        "--precision",
        group.precision,
        "--window",
        ",".join(map(str, candidate.window)),
    ]
    if group.device != "cpu" or machine.gpu_count():
        options += ["--device", group.device]
    return options + (["--batch", str(candidate.batch)] if candidate.batch > 1 else [])


def _notes(outcome: Outcome) -> Iterator[str]:
    if outcome.best is None:
        yield "nothing that was measured is proved, so nothing is proposed; see unet-engine quantize"
        return
    faster = [r for r in outcome.rows if not r.proved and r.samples and r.candidate.batch in RUNNABLE_BATCHES]
    top = max(faster, key=lambda r: outcome.worth(r) or 0.0, default=None)
    best = outcome.worth(outcome.best) or 1.0
    if top and (ratio := (outcome.worth(top) or 0.0) / best) > 1.05:
        yield (
            f"{top.candidate.group.precision} on {top.candidate.group.backend} is {ratio:.2f} times as fast bare, but not proved; "
            f"prove it on your own volume: unet-engine quantize {outcome.model.path} --calibrate SCAN.zarr "
            f"--precision {top.candidate.group.precision}"
        )
    run = outcome.best.end_to_end
    windows = run.runs[0].facts["windows_inferred"] if run else 0
    yield (
        f"end to end was run on {outcome.region} ({windows:,} windows) and is given for all {prod(outcome.field.shape):,} voxels: "
        "rate of the bare network times efficiency"
    )
