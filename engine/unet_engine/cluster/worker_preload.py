"""Loaded by Dask into the worker processes that we start (``--preload unet_engine.cluster.worker_preload``)."""

from __future__ import annotations

import os
from typing import Any

from unet_engine import cores
from unet_engine.cluster.affinity import stay_near
from unet_engine.redaction import guard_streams

GPUS = "UNET_ENGINE_GPUS_PER_JOB"
"""Environment variable of a batch job: among how many worker processes its GPUs are dealt."""

BESIDE = "UNET_ENGINE_WORKERS_BESIDE"
"""The same of a worker process that this machine's others are started with: how many there are, dealt to its NUMA
nodes."""


def dask_setup(worker: Any) -> None:
    """Close the worker's web pages, which nobody needs and no token guards, and give it its GPU and the cores next to
    that, or those of a NUMA node."""
    guard_streams()
    worker.http_server.stop()
    if count := int(os.environ.get(BESIDE, "0")):
        cores.stay_on(cores.node_of(int(worker.name), count))
    if count := int(os.environ.get(GPUS, "0")):
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_of(str(worker.name), count, os.environ.get("CUDA_VISIBLE_DEVICES"))
        stay_near(os.environ["CUDA_VISIBLE_DEVICES"])


def gpu_of(name: str, count: int, visible: str | None) -> str:
    """The one GPU for the worker called `name`: of the `count` workers of a job, Dask calls them ``name-0``, ``name-1``
    …"""
    number = int(name.rpartition("-")[2]) if count > 1 else 0
    mine = visible.split(",") if visible else [str(i) for i in range(count)]
    return mine[number % len(mine)].strip()
