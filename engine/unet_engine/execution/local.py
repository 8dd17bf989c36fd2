"""This process does the run, with a thread for each device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from unet_engine import machine
from unet_engine.backends.base import Network
from unet_engine.backends.opening import place_of
from unet_engine.execution.hands import Hands, here
from unet_engine.execution.relay import Leg
from unet_engine.execution.team import Pending
from unet_engine.pipeline.columns import ALWAYS, run_columns
from unet_engine.pipeline.job import Counters
from unet_engine.pipeline.worker import Opened, Sink, Worker
from unet_engine.prepare.given import NOTHING, Given, Ready
from unet_engine.prepare.looking import Watched
from unet_engine.prepare.prepare import Prepared, prepare
from unet_engine.prepare.survey import Survey, check_output, survey
from unet_engine.profiling.beginning import SURVEY, Beginning
from unet_engine.profiling.stages import SPANS, Snapshot
from unet_engine.settings.settings import Settings
from unet_engine.threads.hanging import watched
from unet_engine.units import Tell, silent
from unet_engine.volumes.base import Volume
from unet_engine.volumes.held import MOST, PART


class LocalTeam:
    """This process, with a thread for each device."""

    dashboard: str | None = None

    def __init__(self, settings: Settings, tell: Tell = silent, given: Given = NOTHING, leg: Leg | None = None) -> None:
        """given: what is open already; leg: its part among the volumes of one command"""
        self._settings, self._tell, self._given, self._leg = settings, tell, given, leg
        self.sink: Callable[[Prepared], Sink] | None = None
        """Makes what takes the place of the output, where blocks are to be kept elsewhere."""
        self.workers: list[Worker] = []
        """One for each device, once it is prepared."""
        self._profile: dict[str, Snapshot] = {}
        self._clock = Beginning()
        self._watched: Watched | None = None
        self._volume: Volume | None = None
        self.notes: tuple[str, ...] = ()
        if (settings.gpus or 1) > 1:
            from unet_engine.cluster.connection import cuda_cluster_note

            note = cuda_cluster_note(settings)
            self.notes = (note,) if note else ()

    def prepare(self) -> Prepared:
        surveyed = survey(self._settings, replace(self._given, hold=self._room()))
        self._volume = surveyed.volume
        if self.sink is None:
            check_output(surveyed)
        self._clock.done(SURVEY)
        prepared = prepare(surveyed, tell=self._tell, ready=self._ready(surveyed), clock=self._clock)
        devices = prepared.survey.devices
        # behind a network it has kept what the survey fetched, a small one is held, and pieces are kept once
        volume = surveyed.volume
        shared = volume if self._given.volume or volume.units or volume.held_bytes or volume.pieces else None
        # the first takes over the network that planning loaded
        kept = self.sink(prepared) if self.sink else None
        opened = [Opened(shared, network=prepared.network, output=kept)]
        opened += [Opened(shared, network=self._leg.other(d) if self._leg else None, output=kept) for d in devices[1:]]
        self.workers = [
            Worker(replace(prepared.job, setup=replace(prepared.job.setup, device=device)), handed)
            for device, handed in zip(devices, opened, strict=True)
        ]
        if self._leg:
            self._leg.reads(prepared, self.workers, self._look, self._look_again)
            self._watched = self._watch(prepared)
        return prepared

    def _room(self) -> int:
        """Bytes that a small volume may take where it is held in memory."""
        room = min(MOST, (self._settings.memory or machine.available_memory() // 2) // PART)
        return min(room, self._leg.free // 2) if self._leg else room

    def _let_go(self) -> None:
        """No voxel is read any more."""
        if self._volume and self._given.volume is None:
            self._volume.hold(0)

    def _watch(self, prepared: Prepared) -> Watched | None:
        """Has windows of this volume looked at as a network infers them that another one loaded; None where there is
        nothing to look at."""
        look, network = prepared.look, prepared.network
        if look is None or network is None:
            return None

        def seen() -> None:
            for note in look.notes():
                self._tell(note)

        on_host = len(network.members) == 1 and not place_of(prepared.survey.devices[0]).takes_batches
        watched = Watched(look.among(prepared.job.plan) if on_host else set(), look, seen)
        self.workers[0].watch = watched
        return watched

    def _ready(self, surveyed: Survey) -> Ready | None:
        """The network that another volume has loaded. What would use the network or its device while another volume
        does waits until that is done."""
        if self._leg is None:
            return None
        tries = "auto" in (surveyed.settings.overlap, surveyed.settings.tiling, surveyed.settings.coarse)
        if tries or len(surveyed.devices) > 1 or place_of(surveyed.devices[0]).takes_batches:
            self._leg.alone()
        if surveyed.settings.tiling == "auto":  # which opens it for windows of another size
            self._leg.discard()
        return self._leg.ready

    def _look(self, network: Network) -> None:
        """The turn of this volume begins: where no window of its own will be seen, others are inferred for that."""
        if self._watched and not self._watched.left:
            self._look_now(network)

    def _look_again(self, network: Network) -> None:
        """It ends: what was to be seen and was skipped, or written before, is made up for."""
        if self._watched and self._watched.left:
            self._look_now(network)

    def _look_now(self, network: Network) -> None:
        assert self._watched is not None
        self._watched.left.clear()
        for note in self._watched.look.now(network):
            self._tell(note)

    def ahead(self) -> None:
        if self.sink is None and not self._settings.resume:  # of what is resumed, another block may be the first
            self.workers[0].ahead()

    def execute(self, prepared: Prepared, pending: Pending) -> None:
        for worker in self.workers:
            worker.recorder.restart()
            worker.job = replace(worker.job, begun=prepared.job.begun)
        with watched(self._settings.hang_seconds, "this run", self._moved):
            self.order(prepared, pending)()
        self._let_go()
        for worker in self.workers:
            worker.confirm()
        self._profile = {
            worker.job.setup.device: profile for worker in self.workers if (profile := worker.profile(SPANS))
        }

    def order(self, prepared: Prepared, pending: Pending) -> Callable[[], None]:
        """What predicts and commits every pending block."""
        return partial(run_columns, self.workers, pending, self._leg or ALWAYS)

    def _moved(self) -> object:
        """What changes while something is done, or another volume has the network."""
        return self.counters() if self._leg is None or self._leg.holds else object()

    def profile(self) -> dict[str, Snapshot]:
        return self._profile

    def counters(self) -> Counters:
        parts = [asdict(worker.tally.read()) for worker in self.workers]
        return Counters(**{key: sum(part[key] for part in parts) for key in parts[0]})

    def detail(self) -> str:
        return ""

    def hands(self) -> Hands:
        return here(self._settings.memory)

    def facts(self) -> dict[str, Any]:
        begun = [worker.tally.first for worker in self.workers if worker.tally.first is not None]
        ahead = [worker.tally.ahead for worker in self.workers if worker.tally.ahead is not None]
        return {
            "peak_rss_bytes": machine.peak_resident_bytes(),
            "processors": (machine.processor(),),
            "start": self._clock.facts(min(begun, default=None), min(ahead, default=None)),
        }

    def give(self) -> Network | None:
        return self.workers[0].give() if self.workers and self._leg is None else None

    def close(self) -> None:
        self._let_go()
        if self._leg:
            self._leg.end()
            return
        for worker in self.workers:
            worker.close()
