"""Measuring how many windows are best inferred at once on this CPU, and with how many threads each.

A thread for each window and core is the default: then no number of threads can change a byte. Other shares of the same
cores are timed beside it, in turn, in the precision and windows of the run. Several threads for one window count only
where they give the bytes of one: a window of noise has so many values that another order of additions shows. Where
threads of one core are counted as cores, one thread for each whole core is tried, too.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from unet_engine import cores, machine
from unet_engine.backends import engine_cache
from unet_engine.backends.base import Array, Backend, Network, Setup
from unet_engine.backends.libraries import record
from unet_engine.backends.opening import as_host, open_network
from unet_engine.backends.out_of_memory import is_out_of_memory
from unet_engine.devices.opening import is_gpu
from unet_engine.errors import BackendError
from unet_engine.prepare.streams_choice import StreamsChoice, Timed, fastest, known, made_of, remember, told
from unet_engine.prepare.survey import Survey
from unet_engine.units import Tell

BUDGET = 0.03
"""Part of the run that measuring may take."""
MOST_SECONDS = 60.0
"""And no longer than this."""
ROUNDS = 3
"""How often each is timed beside the default, after one round to warm up."""
REOPENING = 1.0
"""Seconds that the network is not opened once more for: loading it and its first windows take about as long."""
SEED = 0


@dataclass(frozen=True)
class Run:
    """What is to be inferred."""

    survey: Survey
    network: Network
    """Warm, as the settings and what is known say."""
    windows: int
    seconds: float
    """Of one window, all cores at work."""
    room: float
    """How many times the memory of the network is free."""

    @property
    def setup(self) -> Setup:
        return self.network.setup


def chosen(run: Run, tell: Tell) -> StreamsChoice | None:
    """What this run takes; None where no CPU infers it. `tell` hears that it is measured."""
    survey, setup = run.survey, run.setup
    if is_gpu(setup.device):
        return None
    default = usual()
    if reason := _settled(survey, default):
        return _choice(setup, reason)
    timed = known(setup, survey.backend)
    if timed is not None:
        best = _worth(run, timed, default)
        return _choice(_shared(setup, best), f"measured before: {told(timed)}", timed)
    begun = time.perf_counter()
    shares = candidates(default.threads, survey.backend)
    if reason := _too_dear(run, default):
        return _choice(setup, f"{reason}, so a thread for each window and core")
    tell(f"timing {' and '.join(map(str, shares))} beside {default}")
    found = _measured(run, default, shares)
    seconds = time.perf_counter() - begun
    if found:
        remember(setup, survey.backend, found)
    best = _worth(run, found, default)
    said = told(found) or "there was no time to measure anything else"
    return _choice(_shared(setup, best), f"just measured: {said}", found, seconds)


def _worth(run: Run, timed: Sequence[Timed], default: Timed) -> Timed:
    """The fastest for this run; as the network is open where that spares too little."""
    there = (run.setup.threads, run.setup.window_threads)
    opened = next((t for t in (default, *timed) if (t.threads, t.window_threads) == there), default)
    best = fastest(timed, default, run.windows)
    spared = (opened.lasts(run.windows) or 0.0) - (best.lasts(run.windows) or 0.0)
    return best if spared * run.seconds > REOPENING else opened


def _settled(survey: Survey, default: Timed) -> str:
    """Why there is nothing to choose; empty where there is."""
    settings = survey.settings
    if settings.threads or settings.window_threads:
        return "as it was asked for"
    if len(survey.devices) > 1 or survey.model.members:
        return "several networks are not measured"
    if survey.model.format == "fake":
        return "no network computes"
    if not candidates(default.threads, survey.backend):
        return f"{survey.backend} has no other choice on so many"
    return ""


def _too_dear(run: Run, default: Timed) -> str:
    """Why nothing is measured; empty where it is."""
    whole, least = run.windows * run.seconds, _costs(default.threads, run.seconds)
    if least > _allowed(whole):
        return f"measuring would take {least / whole:.0%} of so short a run" if whole else "there is nothing to infer"
    if run.room < 1:
        return "there is no memory to have the network open twice"
    return ""


def _allowed(whole: float) -> float:
    return min(MOST_SECONDS, BUDGET * whole)


def _costs(count: int, seconds: float) -> float:
    """Seconds to time one share beside the default, and to compare their bytes."""
    return (2 * (1 + ROUNDS) * count + 2) * seconds


def usual() -> Timed:
    """A thread for each window and core."""
    count = machine.cpu_count()
    return Timed(threads=count, window_threads=1, same=True, relative=1.0, worst=1.0)


def candidates(count: int, library: str) -> list[Timed]:
    """Other shares of so many cores, those most like the default first. No window is shared by two NUMA nodes, and all
    nodes have as many."""
    joins, whole, nodes = record(library).joins_threads, cores.whole(), cores.nodes()
    most = min([count, *(len(node) for node in nodes)])
    found = [(whole, 1)] if whole < count else []
    each = 2
    while joins and each <= most:
        found += [(there // each, each) for there in dict.fromkeys((count, whole)) if there // each]
        each *= 2
    return [Timed(threads=n, window_threads=t, same=False) for n, t in dict.fromkeys(found)]


def _measured(run: Run, default: Timed, shares: list[Timed]) -> list[Timed]:
    """What there is time for. Once several threads give other bytes, more of them are not tried."""
    setup, library = run.setup, run.survey.backend
    end = time.perf_counter() + _allowed(run.windows * run.seconds)
    found: list[Timed] = []
    with as_host(run.network) as own:
        content = noise(setup)
        expected = own.infer(content).tobytes()
        for share in shares:
            if any(not f.same and f.window_threads <= share.window_threads for f in found):
                continue
            if time.perf_counter() + _costs(default.threads, run.seconds) > end:
                break
            try:
                other = open_network(library, _shared(setup, share))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                continue
            try:
                with as_host(other) as host:
                    same = host.infer(content).tobytes() == expected
                    found.append(_timed(own, host, share, content) if same else share)
            finally:
                other.close()
    return found


def _timed(own: Backend, other: Backend, share: Timed, content: Array) -> Timed:
    """Both in turn, with as many windows each: a multiple of what either has at once."""
    count = max(own.setup.threads, other.setup.threads)
    ratios = []
    for host in (own, other):
        for slot in range(host.slots):
            host.input(slot)[...] = content
    for _ in range(1 + ROUNDS):
        usual = _seconds(own, count)
        ratios.append(_seconds(other, count) / usual)
    ratios = ratios[1:]
    return share.model_copy(update={"same": True, "relative": statistics.median(ratios), "worst": max(ratios)})


def _seconds(host: Backend, count: int) -> float:
    """Wall time of a window, with all streams at work until the end."""
    at_once = min(host.slots, host.setup.threads)
    count = -(-count // at_once) * at_once
    begun = time.perf_counter()
    under_way: deque[int] = deque()
    for number in range(count):
        if len(under_way) == at_once:
            host.result(under_way.popleft())
        slot = number % at_once
        host.start(slot)
        under_way.append(slot)
    while under_way:
        host.result(under_way.popleft())
    return (time.perf_counter() - begun) / count


def noise(setup: Setup) -> Array:
    """A batch that every order of additions makes something else of."""
    return np.random.default_rng(SEED).standard_normal(setup.input_shape, np.float32)


def as_known(survey: Survey, setup: Setup, windows: int) -> Setup:
    """The setup as it is known to be fastest for so many windows, so that the network is not opened twice; else with a
    thread for each window and core."""
    default = usual()
    if is_gpu(setup.device) or _settled(survey, default):
        return setup
    timed = known(setup, survey.backend) or ()
    return _shared(setup, fastest(timed, default, windows))


def as_open(survey: Survey, setup: Setup, opened: Setup) -> Setup:
    """`opened`, where it is the same but for threads that nobody asked for: a network is not opened again for that."""
    alike = replace(setup, threads=opened.threads, window_threads=opened.window_threads) == opened
    return opened if alike and not is_gpu(setup.device) and not _settled(survey, usual()) else setup


def as_it_is(network: Network) -> StreamsChoice | None:
    """Of a network that other volumes use, too."""
    setup = network.setup
    return None if is_gpu(setup.device) else _choice(setup, "as the volume before has it")


def check(survey: Survey) -> None:
    """Raises `BackendError` where several threads for a window are asked for and are not to be had."""
    each = survey.settings.window_threads or 1
    if each == 1:
        return
    if is_gpu(survey.devices[0]):
        raise BackendError(f"--window-threads {each} is for the CPU, and {survey.devices[0]} infers; leave it out")
    if not record(survey.backend).joins_threads:
        raise BackendError(
            f"--window-threads {each}: {survey.backend} infers each window with one thread here; leave it out, or use "
            "--backend openvino"
        )


def apart(survey: Survey, network: Network) -> bool:
    """Whether windows get other bytes than of one thread each, where the user asked for several. What was found is
    remembered."""
    setup = network.setup
    if setup.window_threads == 1:
        return False
    key = {"model": setup.model.sha256, "made": made_of(setup), "window": list(setup.window),
           "members": [m.network for m in setup.members], "threads": setup.window_threads, "library": network.version,
           "machine": machine.processor(), "version": 1}  # fmt: skip
    with suppress(BackendError):
        if (said := engine_cache.load("streams-bytes", key)) is not None:
            return said == b"other"
    with as_host(network) as host:
        found = host.infer(noise(setup))
    plain = open_network(survey.backend, replace(setup, threads=1, window_threads=1))
    try:
        with as_host(plain) as host:
            other = host.infer(noise(setup)).tobytes() != found.tobytes()
    finally:
        plain.close()
    with suppress(BackendError):
        engine_cache.store("streams-bytes", key, b"other" if other else b"same")
    return other


def _shared(setup: Setup, share: Timed) -> Setup:
    return replace(setup, threads=share.threads, window_threads=share.window_threads)


def _choice(
    setup: Setup, reason: str, timed: tuple[Timed, ...] | list[Timed] = (), seconds: float = 0.0
) -> StreamsChoice:
    return StreamsChoice(
        threads=setup.threads,
        window_threads=setup.window_threads,
        cores=machine.cpu_count(),
        nodes=len(cores.nodes()),
        reason=reason,
        timed=tuple(timed),
        seconds=round(seconds, 3),
    )
