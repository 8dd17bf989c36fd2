"""The whole run: prepare, open the output, execute, state that it is complete. `run` is that by one call;
`unet_engine.arrays.calls` has the Python API."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

from unet_engine.errors import writing
from unet_engine.execution.choose import team
from unet_engine.execution.hands import Hands
from unet_engine.execution.team import Team
from unet_engine.output.completion import SUMMED, conclude, refuse_incomplete
from unet_engine.output.header import Header
from unet_engine.output.inspection import Look
from unet_engine.output.locks import Holding, clear, hold
from unet_engine.output.output import Output, remove
from unet_engine.output.refusal import nothing_left
from unet_engine.postprocess import level_pass, pyramid, working
from unet_engine.prepare import coarse_choice, streams_choice, tiling_choice
from unet_engine.prepare.overlap_choice import facts
from unet_engine.prepare.prepare import Prepared
from unet_engine.prepare.provenance import provenance
from unet_engine.prepare.survey import check_output
from unet_engine.profiling import energy, tracing
from unet_engine.redaction import redacted
from unet_engine.settings.settings import Settings
from unet_engine.stitching import operations
from unet_engine.storage import stores
from unet_engine.units import Tell, silent

Watch = Callable[[Prepared, Team], Any]
"""Shows progress: given the run and who does it, returns a context manager that is entered while it runs."""


_NOT_STORED = (
    "out", "part", "overlap_choice", "tiling_choice", "coarse_choice", "streams_choice", "complete", "already_complete",
    "profile", "objects", "levels", "start",
)  # fmt: skip
"""Fields of `Result` that the output's attributes hold elsewhere, or that say nothing about it."""


@dataclass(frozen=True)
class Result:
    """What a run did. What is planned counts this run's plan, resumed or not, of a part only its own; seconds are wall
    time without planning."""

    out: str
    digest: str
    windows_planned: int
    windows_inferred: int
    windows_skipped: int
    blocks_planned: int
    blocks_written: int
    seconds: float
    voxels: int
    voxels_per_second: float
    bytes_read: int
    bytes_written: int
    peak_rss_bytes: int
    predicted_rss_bytes: int
    backend: str
    device: str
    precision: str
    stitching: str
    blended: str = "outputs"
    """``features`` where they were, and the last layer was applied to the blended ones."""
    part: str | None = None
    workers: int = 0
    """Workers of a cluster that took part; 0 where this process did it all. Memory is then that of the one with the
    most."""
    worker_windows: tuple[int, ...] = ()
    """Windows that each of them inferred, the least first."""
    workers_lost: int = 0
    runs_repeated: int = 0
    """Groups of blocks that were inferred again, as the worker that held their sums was lost."""
    processors: tuple[str, ...] = ()
    """Kinds of processor that took part. Networks may give other last bits on another kind."""
    halo_bytes: int = 0
    """Halos sent from one worker to another."""
    overlap_choice: dict[str, Any] | None = None
    """What ``--overlap auto`` took and on what grounds: fields of
    `unet_engine.prepare.overlap_choice.OverlapChoice`."""
    coarse_choice: dict[str, Any] | None = None
    """What ``--coarse auto`` found: fields of `unet_engine.prepare.coarse_choice.CoarseChoice`, without its cells."""
    tiling_choice: dict[str, Any] | None = None
    """What ``--tiling auto`` took and on what grounds: fields of `unet_engine.prepare.tiling_choice.TilingChoice`."""
    streams_choice: dict[str, Any] | None = None
    """How many windows a CPU inferred at once, and why: fields of `unet_engine.prepare.streams_choice.StreamsChoice`;
    None where none did."""
    start: dict[str, float] | None = None
    """Seconds of each part of the way to the first window, see `unet_engine.profiling.beginning`; None where workers of
    a cluster went it."""
    joules: dict[str, float] | None = None
    """What this machine took meanwhile, by counter; None where none can be read, see `unet_engine.profiling.energy`."""
    stages: dict[str, dict[str, float]] | None = None
    """Where the time went, where that was asked for: see `unet_engine.profiling.tracing.totals`."""
    profile: tuple[str, ...] = ()
    """The files that show it."""
    notes: tuple[str, ...] = ()
    """What was found as the run began and the user should know, beside `plan_notes`."""
    plan_notes: tuple[str, ...] = ()
    """What was found before it began: what was guessed of the model, where its outputs or the voxels contradict it. The
    command line tells them as they are found; a caller from Python should look at them."""
    objects: int | None = None
    """How many there are, where they were numbered in place of labels."""
    levels: int | None = None
    """How many the output has, where it has a pyramid."""
    complete: bool = True
    """Whether the output is complete now. Where parts are still to run it is not; the last one completes it."""
    already_complete: bool = False
    """Whether it was so before this run, which then did nothing."""


def run(input: str, **options: Any) -> Result:
    """Run a U-Net over a Zarr volume. Options are the fields of `unet_engine.settings.settings.Settings`.

    The output is an OME-Zarr 0.5 group at ``out`` with the result at ``0``. Raises subclasses of
    `unet_engine.errors.UnetEngineError`.
    """
    with team(Settings.of(input=input, **options)) as crew:
        return run_volume(crew, crew.prepare())


def run_volume(crew: Team, prepared: Prepared, watch: Watch | None = None, tell: Tell = silent) -> Result:
    """Execute what `crew` has prepared. Raises what its parts raise; blocks that were committed stay so. `tell` hears
    at once what becomes the result's notes."""
    survey = prepared.survey
    settings = survey.settings
    # before any work: a place that cannot be written is said now, not after hours
    profile = tracing.Place.of(settings.profile, prepared.survey.named) if settings.profile else None
    begun = time.perf_counter()
    notes: list[str] = []

    def note(texts: Iterable[str]) -> None:
        for text in texts:
            notes.append(text)
            tell(text)

    meter = energy.Meter()

    def result() -> Result:
        found = _result(prepared, crew, time.perf_counter() - begun)
        return replace(found, notes=tuple(notes), joules=meter.joules or None)

    if _is_made(prepared):
        note([f"{survey.named} is already complete"])
        return _with_pyramid(prepared, crew, replace(result(), already_complete=True), lambda text: note([text]))
    done = None
    crew.ahead()
    there = stores.exists(prepared.job.out)
    with _begun(prepared, there=there):
        output = _open_output(prepared, there=there)
        note(output.notes)
        if output.header.settled():
            clear(prepared.job.out)
            done = replace(result(), already_complete=not survey.objects and survey.named == survey.out)
        else:
            with hold(prepared.job.out, _part(prepared)) as holding:
                if output.header.begin():  # else the last part completed it just now
                    prepared = _since(prepared, output.header)
                    note(output.inspect(prepared.job.plan, Look.CONTENT if settings.verify else Look.LENGTHS))
                    watched = watch(prepared, crew) if watch else nullcontext()
                    with meter, _noted(prepared, output.header, result), watched:
                        crew.execute(prepared, output.pending())
                    note(output.doubtful())
                    done = _conclude(prepared, output.header, holding, result())
    done = done or result()
    if done.complete:
        if prepared.survey.objects:
            from unet_engine.execution import objects

            found = objects.number(prepared, crew.hands(), lambda text: note([text]))
            done = replace(done, objects=found["objects"])
        done = _with_pyramid(prepared, crew, done, lambda text: note([text]))
        if working.is_file(survey.named):
            tell(f"{survey.named} is made of what was written")
        note(_handed_over(prepared, crew))
        _release(prepared)
    return replace(done, notes=tuple(notes), profile=profile.write(crew.profile()) if profile else done.profile)


def _with_pyramid(prepared: Prepared, crew: Team, done: Result, tell: Tell) -> Result:
    """The same, once the group that was written has its pyramid, where one is wanted."""
    survey = prepared.survey
    if not survey.settings.pyramid:
        return done
    wanted = pyramid.Wanted(survey.named, survey.settings.levels, overwrite=True, durable=survey.settings.durable)
    hands = crew.hands()
    found = pyramid.pyramid(wanted, hands.crew, memory=_least(prepared, hands), tell=tell)
    return replace(done, levels=found["levels"], already_complete=done.already_complete and not found["boxes_written"])


def _is_made(prepared: Prepared) -> bool:
    """Whether this run's file is there already, where it ends in one. Raises `ResumeError` where it is another
    run's."""
    survey = prepared.survey
    if survey.named == survey.out or not survey.settings.resume:
        return False
    if working.is_handed_over(survey.named):
        return working.settled(survey.named, prepared.job.plan.digest)
    from unet_engine.execution import objects

    return objects.are_there(survey.named, prepared.job.plan.digest)


def _handed_over(prepared: Prepared, crew: Team) -> list[str]:
    """The file is made of what was written, or labels are put into their image, where the run ends so."""
    survey = prepared.survey
    if not working.is_handed_over(survey.named):
        return []
    replaces = survey.settings.overwrite or survey.settings.resume  # what is there, this run was begun to replace
    hands = crew.hands()
    return working.hand_over(
        survey.named,
        overwrite=replaces,
        run=prepared.job.plan.digest,
        durability=prepared.job.durability,
        crew=hands.crew,
        memory=_least(prepared, hands),
    )


def _least(prepared: Prepared, hands: Hands) -> int:
    """Bytes for one box of a level: after hours of inference nothing is refused for want of some megabytes."""
    return max(prod(prepared.job.layout.chunk) * level_pass.MOST_BYTES, hands.memory)


def _release(prepared: Prepared) -> None:
    """What was made to read volume and mask from may go."""
    prepared.survey.volume.release()
    if prepared.survey.mask:
        prepared.survey.mask.volume.release()


def _begun(prepared: Prepared, *, there: bool) -> AbstractContextManager[None]:
    """Inside, the output is begun or resumed. One that this run begins alone goes again where it is refused."""
    job = prepared.job
    if _part(prepared) or (there and not prepared.survey.settings.overwrite):
        return nullcontext()
    return nothing_left(job.out, job.plan.digest)


def _since(prepared: Prepared, header: Header) -> Prepared:
    """The same, where a run is resumed with the time when it first began to read. Parts may each read a copy of their
    own, made when they begin."""
    first = header.stored.get("begun")
    if _part(prepared) or not isinstance(first, float):
        return prepared
    return replace(prepared, job=replace(prepared.job, begun=min(first, prepared.job.begun)))


def _part(prepared: Prepared) -> tuple[int, int] | None:
    """Part (i, n), or None for a run of all parts. ``--part 1/1`` is a part: it may be repeated, and resumes."""
    return prepared.job.plan.part if prepared.survey.settings.part else None


@contextmanager
def _noted(prepared: Prepared, header: Header, result: Callable[[], Result]) -> Iterator[None]:
    """Leave a note of a part in the journal: that it was begun, and in the end what it did, added to what earlier
    attempts did."""
    part = _part(prepared)
    if part is None:
        yield
        return
    with writing(header.path, "noting the part"):
        before = header.journal.noted(part)
        if before is None:
            header.journal.note(part, before := {"host": platform.node(), "finished": False})
    yield
    done = asdict(result())
    if before["finished"] and not done["blocks_written"]:
        return
    facts = {key: done[key] + (before.get(key, 0) if key in _ADDED else 0) for key in SUMMED}
    with writing(header.path, "noting the part"):
        header.journal.note(part, {**facts, "host": platform.node(), "finished": True})


_ADDED = ("windows_inferred", "windows_skipped", "blocks_written", "seconds")
"""Figures of a part that grow with every attempt."""


def _conclude(prepared: Prepared, header: Header, holding: Holding, result: Result) -> Result:
    """Complete the output where that is this run's to do. A part leaves it to the last one."""
    if _part(prepared):
        return replace(result, complete=conclude(header, holding))
    if not conclude(
        header,
        holding,
        redacted({k: v for k, v in asdict(result).items() if k not in _NOT_STORED}),
    ):
        refuse_incomplete(header)
    return result


def _open_output(prepared: Prepared, *, there: bool) -> Output:
    job, settings = prepared.job, prepared.survey.settings
    header = provenance(prepared)
    if there or prepared.survey.named != job.out:
        check_output(prepared.survey)
    if there:
        if settings.resume:
            return Output.resume(job.out, job.layout, job.plan.digest, header, job.durability)
        remove(job.out)
    return Output.create(job.out, job.layout, job.plan.digest, header, job.durability)


def _result(prepared: Prepared, crew: Team, seconds: float) -> Result:
    job, counters = prepared.job, crew.counters()
    voxels = counters.voxels_written
    return Result(
        out=prepared.survey.named,
        digest=job.plan.digest,
        windows_planned=job.plan.call_count,
        windows_inferred=counters.inferred,
        windows_skipped=counters.skipped,
        blocks_planned=job.plan.block_count,
        blocks_written=counters.blocks,
        seconds=round(seconds, 4),
        voxels=voxels,
        voxels_per_second=round(voxels / seconds, 1),
        bytes_read=counters.bytes_read,
        bytes_written=counters.bytes_written,
        predicted_rss_bytes=job.plan.memory.total,
        backend=job.backend,
        device=",".join(prepared.survey.devices),
        precision=job.setup.precision,
        stitching=operations.IMPLEMENTATION,
        blended="features" if job.model.gives_features else "outputs",
        part=prepared.survey.settings.part,
        overlap_choice=facts(prepared.overlap),
        tiling_choice=tiling_choice.facts(prepared.tiling),
        streams_choice=streams_choice.facts(prepared.streams),
        coarse_choice=coarse_choice.told(prepared.coarse),
        halo_bytes=counters.halo_bytes,
        stages=tracing.totals(crew.profile()) or None,
        plan_notes=(*crew.notes, *prepared.notes),
        **crew.facts(),
    )
