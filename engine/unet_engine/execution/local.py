"""This process does the run, with a thread for each device."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from unet_engine import machine
from unet_engine.cluster import connection
from unet_engine.execution.team import Pending
from unet_engine.pipeline.columns import run_local
from unet_engine.pipeline.job import Counters
from unet_engine.pipeline.worker import Worker
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
        found = survey(self._settings)
        check_output(found)
        prepared = prepare(found, tell=self._tell)
        self._workers = [
            Worker(replace(prepared.job, setup=replace(prepared.job.setup, device=device)))
            for device in prepared.found.devices
        ]
        # the first takes over the network that planning loaded
        self._workers[0].__dict__["backend"] = prepared.backend
        return prepared

    def execute(self, prepared: Prepared, pending: Pending) -> None:
        for worker in self._workers:
            if worker.stages:
                worker.stages.restart()
        run_local(self._workers, pending)
        self._profile = {
            worker.job.setup.device: worker.stages.snapshot(SPANS) for worker in self._workers if worker.stages
        }

    def profile(self) -> dict[str, Snapshot]:
        return self._profile

    def counters(self) -> Counters:
        parts = [asdict(worker.tally.read()) for worker in self._workers]
        return Counters(**{key: sum(part[key] for part in parts) for key in parts[0]})

    def detail(self) -> str:
        return ""

    def facts(self) -> dict[str, Any]:
        return {"peak_rss_bytes": machine.peak_resident_bytes(), "processors": (machine.processor(),)}

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
