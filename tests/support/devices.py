"""Planned runs on the simulated device, and the worker after them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from support.outputs import begin_output
from support.stations import run_by_a_station
from support.volumes import fake_model, make_volume, result_of
from unet_engine.pipeline.columns import run_columns
from unet_engine.pipeline.worker import Opened, Worker
from unet_engine.prepare.prepare import prepare
from unet_engine.prepare.survey import survey
from unet_engine.settings.settings import Settings


def prepared(folder: Path, array: np.ndarray, **options: Any) -> Any:
    """A planned run on the simulated device, and that device."""
    spec = {"window": (8, 8, 8), "channels_out": 2, "activation": "softmax", **options.pop("spec", {})}
    model = fake_model(folder, name="net", **options.pop("behaviour", {}), **spec)
    path = folder / "v.zarr"
    volume = str(path) if path.exists() else make_volume(path, array)
    return prepare(
        survey(Settings.of(input=volume, model=model, device="simulated", out=str(folder / "o.zarr"), **options))
    )


def worked(found: Any, folder: Path, pending: Any = lambda index: True) -> Worker:
    """The worker, after it ran its part of a planned run."""
    if not (folder / "o.zarr").exists():
        begin_output(found)
    worker = Worker(found.job, Opened(network=found.network))  # as a team hands it over
    device = found.network.device
    assert worker.pipeline is not None
    device.seal()
    run_columns([worker], pending)
    return worker


def alone_and_by_a_station(folder: Path, planned: Callable[[Path], Any]) -> list[np.ndarray]:
    """What a run on the simulated device gives, done by this process and by a station of a cluster."""
    results = []
    for name, done in (("alone", worked), ("station", lambda found, _: run_by_a_station(found))):
        place = folder / name
        place.mkdir()
        found = planned(place)
        done(found, place)
        results.append(result_of(found.job.out))
    return results
