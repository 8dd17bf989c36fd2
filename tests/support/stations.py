"""One station at work, as a Dask worker would have it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from support.outputs import begin_output
from unet_engine.execution.dask import station
from unet_engine.execution.dask.station import Station
from unet_engine.plan.bundles import bundles


def run_by_a_station(prepared):
    """A planned run, begun and done by `work`."""
    begin_output(prepared)
    prepared.network.close()  # a station loads its own
    return work(prepared.job, 2)


def work(job, length, *, hung=None, limit=60, calls=4):
    """All bundles of a job through one station from several threads, as a Dask worker would: what it counted."""
    here = Station(job, "here", limit, hung or pytest.fail)
    try:
        with ThreadPoolExecutor(calls) as pool:
            everything = list(bundles(job.plan, lambda _: True, length))
            sums = {bundle.id: pool.submit(here.predict, bundle) for bundle in everything}
            parcels = {bundle.id: [] for bundle in everything}
            for bundle in everything:
                for target, blocks in bundle.targets:
                    parcels[target].append(station.parcel(sums[bundle.id].result(), blocks, "elsewhere"))
            for done in [
                pool.submit(here.commit, sums[bundle.id].result(), parcels[bundle.id]) for bundle in everything
            ]:
                done.result()
        return here.worker.tally.read()
    finally:
        here.close()
