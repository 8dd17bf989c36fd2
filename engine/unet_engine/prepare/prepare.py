"""From a survey to a job, in five steps: open the network, choose the tiling, plan, fit the plan to memory, name the
run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING

from unet_engine import machine
from unet_engine.backends.base import NO_TRIAL, Network, Setup, Trial, hand_over
from unet_engine.backends.opening import Wanted, place_of
from unet_engine.errors import BackendError
from unet_engine.pipeline.job import Job
from unet_engine.plan.box import Box
from unet_engine.plan.bundles import bundle_length
from unet_engine.plan.dealing import dealing
from unet_engine.plan.device_memory import DeviceMemory
from unet_engine.plan.memory import READERS, ClusterShape, Sizes, fit, predict_memory, readers_that_fit
from unet_engine.plan.plan import Plan
from unet_engine.prepare import blending, coarse_choice, rewriting, streams, tiling_choice
from unet_engine.prepare.ahead import ahead_of
from unet_engine.prepare.coarse_choice import CoarseChoice
from unet_engine.prepare.decisions import Decisions, Tiling
from unet_engine.prepare.decoding import Reading, reading
from unet_engine.prepare.draft import Draft, grid, windows_per_block
from unet_engine.prepare.evidence import Outputs
from unet_engine.prepare.given import Ready
from unet_engine.prepare.inputs import unlikely
from unet_engine.prepare.keeping import in_tubes, to_keep, to_keep_of_mask, to_keep_unpacked, unpacked_often
from unet_engine.prepare.looking import Look, about_outputs, trial_of
from unet_engine.prepare.notes import fall_back
from unet_engine.prepare.order import Room, in_order
from unet_engine.prepare.outside import about_marks
from unet_engine.prepare.overlap_choice import REFERENCE, OverlapChoice, stored
from unet_engine.prepare.resampling import scaling_seen
from unet_engine.prepare.second import compared
from unet_engine.prepare.streams_choice import StreamsChoice
from unet_engine.prepare.survey import Survey
from unet_engine.prepare.tiling_choice import TilingChoice
from unet_engine.profiling.beginning import COMPILING, OPINION, PLANNING, SAMPLES, WARMING, Beginning
from unet_engine.threads.hanging import watched
from unet_engine.units import Tell, silent
from unet_engine.volumes import samples
from unet_engine.volumes.base import Volume
from unet_engine.volumes.normalize import Scaling
from unet_engine.volumes.resampled import Interpolated

if TYPE_CHECKING:
    from unet_engine.prepare.tiling_looking import Memory


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start."""

    survey: Survey
    decisions: Decisions
    job: Job
    network: Network | None
    """Loaded and warm; None where that was done on a worker of a cluster."""
    budget: int
    """Bytes of RAM the plan was fitted to."""
    seconds_per_window: float
    notes: tuple[str, ...]
    """What the user should know: the survey's notes, and those of preparing."""
    overlap: OverlapChoice | None = None
    """What ``--overlap auto`` chose, and why."""
    tiling: TilingChoice | None = None
    """What ``--tiling auto`` chose, and why."""
    coarse: CoarseChoice | None = None
    """What ``--coarse auto`` found, and on what grounds."""
    streams: StreamsChoice | None = None
    """How many windows a CPU infers at once; None where none does."""
    cluster: ClusterShape | None = None
    """The workers it is planned for; None where this process does it all."""
    samples: int = 0
    """Chunks that were fetched over a network before there was a plan, for one."""
    reading: Reading | None = None
    """Whether reading keeps up, where a GPU computes."""
    device_memory: DeviceMemory | None = None
    ready: Ready | None = None
    """The network, for the next run of this process."""
    look: Look | None = None
    """At what a network that was not loaded for this run makes of windows of its volume; None where it was."""


def prepare(
    survey: Survey,
    workers: int = 0,
    present: int = 1,
    tell: Tell = silent,
    ready: Ready | None = None,
    clock: Beginning | None = None,
) -> Prepared:
    """Load the network once and plan, for this process or for the `workers` of a cluster, of whom so many are
    `present`. `tell` hears of what takes long. `ready`: a network that is loaded already, and may be in use; taken
    where it is the one that would be opened, discarded otherwise. `clock`: is told what is done.

    Raises `ModelError`, `BackendError` or `PlanError` where that does not work."""
    machine.return_freed_blocks()
    notes, clock = list(survey.notes), clock or Beginning()
    loaded = _open(survey, notes, ready, clock)
    try:
        prepared = _prepared(loaded, notes, workers, present, tell)
        clock.done(PLANNING)
        return prepared
    except BaseException:
        if loaded.look is None:  # else it is another's
            loaded.draft.network.close()
        raise


def _prepared(loaded: _Loaded, notes: list[str], workers: int, present: int, tell: Tell) -> Prepared:
    survey = loaded.draft.survey  # of the back end that runs
    decisions, choice = _choose(survey, loaded, tell)
    tiled = _tiled(loaded, decisions, notes, tell, max(1, workers)) if survey.settings.tiling == "auto" else None
    if tiled is not None:
        setup = replace(loaded.draft.network.setup, window=tiled.window)
        tiling = Tiling(tiled.window, tiled.overlap, tiled.blend, tiled.shared)
        loaded = _reopened(loaded, streams.as_known(survey, setup, _about(survey, tiling)), tiling)
        survey = loaded.draft.survey
        decisions = replace(decisions, tiling=tiling)
    found = _coarse(loaded, decisions, notes, tell) if survey.settings.coarse else None
    if found is not None:
        survey = replace(survey, cells=found.inside)
        loaded = replace(loaded, draft=replace(loaded.draft, survey=survey))
    plan = loaded.draft.plan(decisions)
    loaded, shared = _shared(loaded, plan.call_count, decisions.tiling, notes, tell)
    draft = loaded.draft
    drafted = draft.job(decisions, plan)
    sizes = draft.sizes(drafted, machine.cpu_count())
    fitted = _fit(drafted, loaded, sizes, workers, present)
    job = replace(
        draft.job(decisions, draft.named(fitted.plan, decisions)),
        answers=draft.network.answers(),
        kept=fitted.kept,
        kept_of_mask=fitted.kept_of_mask,
        abreast=1 if workers else len(survey.devices),
        dealt=workers if dealing(fitted.plan, workers) and survey.scan.units else 0,
        shelves=fitted.sizes.shelves,
        readers=fitted.sizes.readers,
    )
    if often := unpacked_often(loaded.draft.survey.scan, fitted.plan, fitted.kept):
        notes.append(often)
    if not fitted.plan.block_count:
        notes.append(_idle(survey, fitted.plan))
    prepared = Prepared(
        survey,
        decisions,
        job,
        draft.network,
        fitted.budget,
        loaded.seconds_per_window,
        tuple(notes),
        choice,
        tiled,
        streams=shared,
        cluster=fitted.cluster,
        samples=survey.scan.fetches,
        coarse=found,
        ready=replace(loaded.ready, base=fitted.base, budget=fitted.budget),
        look=loaded.look,
    )
    memory = draft.network.device_memory(job.plan, fitted.sizes)
    if memory is None:
        return prepared
    read = _reader(job, survey.volume)
    rates = reading(job.plan, survey.volume, read, loaded.seconds_per_window, len(survey.devices))
    memory = replace(memory, kept=sum(job.shelves))
    return replace(prepared, job=replace(job, decoders=rates.threads), reading=rates, device_memory=memory)


def _reader(job: Job, volume: Volume) -> Callable[[Box], object]:
    """What the threads that read do for a box of the grid of windows."""
    if job.resamples_on_device and isinstance(volume, Interpolated):
        return lambda box: volume.scan.read(volume.there(box))
    return volume.read


# --- open ---


@dataclass(frozen=True)
class _Loaded:
    """The network, warm, and what the volume's samples say."""

    draft: Draft
    seconds_per_window: float
    before: int
    """Bytes this process had before the network was loaded."""
    ready: Ready
    look: Look | None = None


@dataclass(frozen=True)
class _Looked:
    """What is known before the network is loaded, of the back end that runs."""

    survey: Survey
    scale: Scaling
    fingerprint: str
    """Of the volume."""
    trial: Trial
    seen: Outputs
    """Takes up what the network makes of the windows of the trial."""
    tiling: Tiling


def _looked(survey: Survey, notes: list[str], ready: Ready | None, clock: Beginning) -> _Looked:
    """Reads the samples, has another library's answer compared, and decides how the graph is rewritten by that."""
    # the samples are read before memory is measured: what reading takes once, threads and caches, belongs to the base
    fingerprint = samples.fingerprint(survey.scan)
    scale = scaling_seen(survey.scan, survey.grids, survey.model.spec)
    about_marks(survey.settings, survey.scan, notes)
    _about_inputs(survey, scale, notes)
    seen = Outputs()
    trial = trial_of(survey, scale, seen)
    clock.done(SAMPLES)
    windows = partial(trial.cut, survey.window)
    survey = compared(survey, windows, notes)
    survey = rewriting.decided(survey, windows)
    survey = blending.decided(survey, windows, notes)
    clock.done(OPINION)
    tiling = _tiling(survey, survey.window)
    trial = replace(trial, look=blending.through(survey.model.ahead, trial.look))
    if _is_settled(survey):
        trial = replace(trial, ahead=ahead_of(survey, scale, tiling))
    elif ready is None:
        windows()  # read before memory is measured
    return _Looked(survey, scale, fingerprint, trial, seen, tiling)


def _setup(looked: _Looked, ready: Ready | None) -> Setup:
    """How the network is opened: as one is already, where that does."""
    survey, settings, choice = looked.survey, looked.survey.settings, looked.survey.choice
    setup = Setup(
        survey.model, survey.window, survey.devices[0], choice.precision, choice.network, choice.rest,
        place_of(survey.devices[0]).threads(settings.threads, settings.window_threads or 1), judged=choice.judged,
        window_threads=settings.window_threads or 1,
    )  # fmt: skip
    if settings.tiling != "auto":  # which looks with a thread for each window, as if nothing were known
        setup = streams.as_known(survey, setup, _about(survey, looked.tiling))
    return streams.as_open(survey, setup, ready.wanted) if ready is not None else setup


def _open(survey: Survey, notes: list[str], ready: Ready | None, clock: Beginning) -> _Loaded:
    settings, place = survey.settings, place_of(survey.devices[0])
    streams.check(survey)
    looked = _looked(survey, notes, ready, clock)
    survey, tiling = looked.survey, looked.tiling
    setup = _setup(looked, ready)
    per_block = windows_per_block(survey, tiling)
    wanted = setup, per_block if place.takes_batches else 0
    if ready is not None:
        if ready.fits(survey.backend, *wanted, _about(survey, tiling)):
            draft = Draft(survey, ready.network, looked.scale, looked.fingerprint)
            return _Loaded(draft, ready.seconds, ready.base, ready, Look(survey, looked.trial, looked.seen))
        ready.discard()
    before = machine.resident_bytes()
    smaller = None if settings.window else notes.append
    asked = Wanted(per_block, settings.batch, smaller, looked.trial, partial(clock.done, COMPILING))
    with watched(settings.hang_seconds, f"{survey.model.path}: opening the network and its first windows"):
        network, seconds = place.open_fitting(survey.backend, setup, asked)
    clock.done(WARMING)
    if network.note:
        notes.append(network.note)
    try:
        about_outputs(survey, looked.seen, notes)
    except BackendError:
        network.close()
        raise
    opened = Ready(survey.backend, *wanted, network, seconds)
    return _Loaded(Draft(survey, network, looked.scale, looked.fingerprint), seconds, before, opened)


def _is_settled(survey: Survey) -> bool:
    """Whether the windows of the run are known before anything is tried: others are no use to it."""
    settings = survey.settings
    return "auto" not in (settings.overlap, settings.tiling, settings.coarse) and survey.model.format != "fake"


def _about(survey: Survey, tiling: Tiling) -> int:
    """Windows of the whole volume."""
    return prod(axis.count for axis in grid(survey, tiling))


def _about_inputs(survey: Survey, scale: Scaling, notes: list[str]) -> None:
    """Say where the network is fed what it cannot have been trained on. The identity network takes any values, and one
    that takes whole numbers takes grey levels."""
    if survey.model.format == "fake" or survey.model.takes_integers:
        return
    said = survey.settings.normalize is not None
    doubt = unlikely(survey.model, samples.measured(survey.scan), scale, said=said)
    if doubt:
        fall_back(survey.settings, notes, doubt)


# --- choose ---


def _tiling(survey: Survey, window: tuple[int, ...]) -> Tiling:
    """What the settings ask for; where they leave the overlap open, the reference that others are compared with."""
    settings = survey.settings
    if survey.shared is not None:
        return Tiling(window, None, settings.blend, survey.shared)
    if settings.overlap == "auto":
        return Tiling(window, REFERENCE.overlap, REFERENCE.blend)
    return Tiling(window, settings.overlap, settings.blend)


def _choose(survey: Survey, loaded: _Loaded, tell: Tell) -> tuple[Decisions, OverlapChoice | None]:
    """The decisions; and what ``--overlap auto`` took: what the output was begun with, else what a search finds."""
    draft = loaded.draft
    tiling = _tiling(survey, draft.network.setup.window)
    decisions = Decisions.of(survey.settings, survey.model.spec, survey.roi, tiling, survey.back, survey.asked)
    if survey.settings.overlap != "auto":
        return decisions, None
    choice = stored(survey)
    if choice is None:
        from unet_engine.prepare.overlap import search

        choice = search(draft, decisions, tell)
    chosen = replace(tiling, overlap=choice.chosen.overlap, blend=choice.chosen.blend)
    return replace(decisions, tiling=chosen), choice


def _tiled(loaded: _Loaded, decisions: Decisions, notes: list[str], tell: Tell, workers: int) -> TilingChoice:
    """What ``--tiling auto`` takes: what the output was begun with, else what was known or is found out. Another part
    may begin the output meanwhile: then its choice counts."""
    draft = loaded.draft
    found = tiling_choice.stored(draft.survey)
    if found is None:
        from unet_engine.prepare import tiling

        found = tiling.search(draft, decisions, _memory(loaded, workers), tell)
        found = tiling_choice.stored(draft.survey) or found
    if found.kept and found.settled:
        notes.append(f"--tiling auto: {found.line}")
    elif found.kept:
        fall_back(draft.survey.settings, notes, f"--tiling auto: {found.line}")
    return found


def _coarse(loaded: _Loaded, decisions: Decisions, notes: list[str], tell: Tell) -> CoarseChoice:
    """What ``--coarse auto`` finds: what the output was begun with, else what is found out now."""
    draft = loaded.draft
    found = coarse_choice.stored(draft.survey)
    if found is None:
        from unet_engine.prepare import coarse

        found = coarse.search(draft, decisions, tell)
        found = coarse_choice.stored(draft.survey) or found
    if found.kept:
        fall_back(draft.survey.settings, notes, f"--coarse auto: {found.line}")
    return found


def _memory(loaded: _Loaded, workers: int) -> Memory:
    """What windows may take: half of what the run may use, as the rest is for blocks."""
    from unet_engine.prepare.tiling_looking import Memory

    survey, setup = loaded.draft.survey, loaded.draft.network.setup
    resident = machine.resident_bytes()
    budget = survey.settings.memory or resident + machine.available_memory() // 2
    least = 4 * (survey.model.spec.channels_in + survey.model.blended)
    per_voxel = (resident - loaded.before) / (setup.threads * prod(setup.window))
    return Memory(max(1, budget - loaded.before) // 2, max(least, per_voxel), workers)


def _shared(
    loaded: _Loaded, windows: int, tiling: Tiling, notes: list[str], tell: Tell
) -> tuple[_Loaded, StreamsChoice | None]:
    """The same with the network opened for as many windows at once, and with as many threads for each, as a run of so
    many windows takes. A network that other volumes use, too, stays as it is."""
    survey, network = loaded.draft.survey, loaded.draft.network
    if loaded.look is not None:
        return loaded, streams.as_it_is(network)
    resident = machine.resident_bytes()
    budget = survey.settings.memory or resident + machine.available_memory() // 2
    room = (budget - resident) / max(1, 2 * (resident - loaded.before))
    choice = streams.chosen(streams.Run(survey, network, windows, loaded.seconds_per_window, room), tell)
    if choice is not None:
        shared = replace(network.setup, threads=choice.threads, window_threads=choice.window_threads)
        loaded = _reopened(loaded, shared, tiling)
        hand_over(network, loaded.draft.network)
    setup = loaded.draft.network.setup
    if survey.settings.window_threads and streams.apart(survey, loaded.draft.network):
        loaded.draft.network.setup = replace(setup, apart=True)
        notes.append(
            f"--window-threads {setup.window_threads}: windows get other last bits than of one thread each, so the run "
            "has a name of its own"
        )
    return loaded, choice


def _reopened(loaded: _Loaded, setup: Setup, tiling: Tiling) -> _Loaded:
    """The same with the network opened otherwise, for windows of another size or with other threads, to run in that
    tiling."""
    draft, survey = loaded.draft, loaded.draft.survey
    old, window = draft.network, setup.window
    if setup == old.setup:
        return loaded
    old.close()
    trial = replace(NO_TRIAL, ahead=ahead_of(survey, draft.scale, tiling, looked_at=False))
    wanted = Wanted(windows_per_block(survey, _tiling(survey, window)), survey.settings.batch, trial=trial)
    with watched(survey.settings.hang_seconds, f"{survey.model.path}: opening the network and its first windows"):
        network, seconds = place_of(survey.devices[0]).open_fitting(survey.backend, replace(setup, batch=1), wanted)
    per_block = wanted.windows if place_of(survey.devices[0]).takes_batches else 0
    ready = Ready(survey.backend, setup, per_block, network, seconds)
    return _Loaded(
        replace(draft, survey=replace(survey, window=window), network=network), seconds, loaded.before, ready
    )


# --- fit ---


@dataclass(frozen=True)
class _Fitted:
    plan: Plan
    sizes: Sizes
    base: int
    """Without what is held or kept of the volume."""
    budget: int
    cluster: ClusterShape | None
    kept: int
    kept_of_mask: int


def _fit(job: Job, loaded: _Loaded, sizes: Sizes, workers: int, present: int) -> _Fitted:
    """The plan with blocks that fit the device's memory and columns that fit this process's, or each worker's."""
    survey, network = loaded.draft.survey, loaded.draft.network
    if survey.scan.pieces:  # what is kept of samples is not to be counted twice
        survey.scan.keep(0, None)
    if survey.mask:
        survey.mask.keep(0)
    if survey.scan.pieces or survey.mask:
        machine.return_freed_blocks()
    # what trying overlaps left behind is this process's too
    resident = machine.resident_bytes() + network.waiting()
    plan = network.fitted(job.plan, sizes)
    # workers of a cluster send halos to one another through the host
    bare, on_host = sizes, bool(workers) or job.finishes_on_host
    sizes = bare if on_host else replace(bare, shelves=network.shelves(plan, bare))
    budget = survey.settings.memory or resident + machine.available_memory() // 2
    devices = len(survey.devices)
    held = survey.scan.held_bytes  # its samples were read, so that it is there
    base = resident - held + (devices - 1) * max(0, resident - loaded.before)
    if loaded.ready.budget:  # measured before another run was under way, whose blocks are none of this one's
        base, budget = loaded.ready.base, loaded.ready.budget
    cluster, kept = None, to_keep(survey.scan, plan, budget - base, workers)
    kept_of_mask = to_keep_of_mask(survey.mask, budget - base - kept)
    alone, base = base, base + held + kept + kept_of_mask
    if workers:
        wanted = ClusterShape(workers, present, bundle_length(plan, loaded.seconds_per_window, workers))
        cluster = _cluster(plan, sizes, base, budget, wanted)
    fitted = fit(plan, sizes, base, budget, devices, cluster)
    if not workers and devices == 1:
        fitted = in_tubes(survey.scan, fitted, sizes, base, budget, kept)
        room = Room(bare, base, budget, loaded.seconds_per_window, None if on_host else network.shelves)
        fitted = in_order(survey.scan, plan, fitted, room)
        sizes = room.sizes(fitted) if fitted.stream else sizes
    if unpacked := to_keep_unpacked(survey.scan, fitted, budget - fitted.memory.total):
        kept, base = unpacked, base + unpacked
        fitted = replace(fitted, memory=replace(fitted.memory, base=fitted.memory.base + unpacked))
    if not workers and survey.scan.units is None and network.device_memory(plan, sizes) is not None:
        # of a store over a network, a block's chunks are asked for at once, and kept in the order of blocks
        most = max(1, min(READERS, machine.cpu_count(), fitted.block_count))
        sizes = replace(sizes, readers=readers_that_fit(fitted, sizes, base, budget, devices, most))
        fitted = replace(fitted, memory=predict_memory(fitted, sizes, base, devices))
    return _Fitted(fitted, sizes, alone, budget, cluster, kept, kept_of_mask)


def _cluster(plan: Plan, sizes: Sizes, base: int, budget: int, wanted: ClusterShape) -> ClusterShape:
    """Bundles as long as they should be, but no longer than fits without more columns: one too many costs more than
    short bundles."""
    for length in range(wanted.bundle_length, 1, -1):
        cluster = replace(wanted, bundle_length=length)
        if predict_memory(plan, sizes, base, 1, cluster).total <= budget:
            return cluster
    return replace(wanted, bundle_length=1)


def _idle(survey: Survey, plan: Plan) -> str:
    """Tells the user of a part that there is nothing for it to do."""
    blocks = prod(map(len, plan.writing))
    return (
        f"part {survey.settings.part} has nothing to do: there are only {blocks} blocks, so use no more parts than that"
    )
