"""The crew of a pass that is a command of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from unet_engine.cluster import connection
from unet_engine.execution.choose import share_of_memory
from unet_engine.execution.dask.hands import on_dask
from unet_engine.execution.dask.team import HANG_SECONDS
from unet_engine.execution.hands import Hands, here
from unet_engine.settings.settings import Settings
from unet_engine.units import Tell, silent


@contextmanager
def crew(settings: Settings, tell: Tell = silent) -> Iterator[Hands]:
    """The crew that the settings ask for, sent home at the end. Raises `ClusterError` where a cluster is not to be
    had."""
    if not connection.wants_cluster(settings):
        yield here(settings.memory)
        return
    share = share_of_memory(settings)
    with connection.connect(settings, share, settings.hang_seconds or HANG_SECONDS) as cluster:
        connection.wait_for_workers(cluster, tell)
        connection.check_versions(cluster.client)
        yield on_dask(cluster, share)
