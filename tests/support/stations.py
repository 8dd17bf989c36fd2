"""One station at work, as a Dask worker would have it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from unet_engine.execution.dask import station
from unet_engine.execution.dask.station import Station
from unet_engine.plan.bundles import runs


def work(job, length, *, hung=None, limit=60, calls=4):
    """All runs of a job through one station from several threads, as a Dask worker would; returns what the station counted."""
    here = Station(job, "here", limit, hung or pytest.fail)
    try:
        with ThreadPoolExecutor(calls) as pool:
            everything = list(runs(job.plan, lambda _: True, length))
            sums = {run.id: pool.submit(here.predict, run) for run in everything}
            pieces = {run.id: [] for run in everything}
            for run in everything:
                for target, blocks in run.targets:
                    pieces[target].append(station.piece(sums[run.id].result(), blocks, "elsewhere"))
            for done in [pool.submit(here.commit, sums[run.id].result(), pieces[run.id]) for run in everything]:
                done.result()
        return here.worker.tally.read()
    finally:
        here.close()
