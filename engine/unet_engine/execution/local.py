"""This process does the run, with a thread for each device."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from unet_engine import machine
from unet_engine.cluster import connection
from unet_engine.execution.hands import Hands, here
from unet_engine.execution.team import Pending
from unet_engine.hanging import watched
from unet_engine.pipeline.columns import run_columns
from unet_engine.pipeline.job import Counters
from unet_engine.pipeline.worker import Opened, Worker
from unet_engine.prepare.prepare import Prepared, prepare
from unet_engine.prepare.survey import check_output, survey
from unet_engine.profiling.stages import SPANS, Snapshot
from unet_engine.settings import Settings
from unet_engine.units import Tell, silent


class LocalTeam:
    """This process, with a thread for each device."""

    dashboard: str | None = None

    def __init__(self, settings: Settings, tell: Tell = silent) -> None:
        self._settings, self._tell = settings, tell
        self._workers: list[Worker] = []
        self._profile: dict[str, Snapshot] = {}
        note = connection.cuda_cluster_note(settings)
        self.notes: tuple[str, ...] = (note,) if note else ()

    def prepare(self) -> Prepared:
        surveyed = survey(self._settings)
        check_output(surveyed)
        prepared = prepare(surveyed, tell=self._tell)
        # the first takes over the network that planning loaded
        opened = [Opened(network=prepared.network), *(Opened() for _ in prepared.survey.devices[1:])]
        self._workers = [
            Worker(replace(prepared.job, setup=replace(prepared.job.setup, device=device)), handed)
            for device, handed in zip(prepared.survey.devices, opened, strict=True)
        ]
        return prepared

    def execute(self, prepared: Prepared, pending: Pending) -> None:
        for worker in self._workers:
            worker.recorder.restart()
            worker.job = replace(worker.job, begun=prepared.job.begun)
        with watched(self._settings.hang_seconds, "this run", self.counters):
            run_columns(self._workers, pending)
        for worker in self._workers:
            worker.confirm()
        self._profile = {
            worker.job.setup.device: profile for worker in self._workers if (profile := worker.profile(SPANS))
        }

    def profile(self) -> dict[str, Snapshot]:
        return self._profile

    def counters(self) -> Counters:
        parts = [asdict(worker.tally.read()) for worker in self._workers]
        return Counters(**{key: sum(part[key] for part in parts) for key in parts[0]})

    def detail(self) -> str:
        return ""

    def hands(self) -> Hands:
        return here(self._settings.memory)

    def facts(self) -> dict[str, Any]:
        return {"peak_rss_bytes": machine.peak_resident_bytes(), "processors": (machine.processor(),)}

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
