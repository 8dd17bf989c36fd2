"""What Dask workers are asked to do. Each function runs on a worker; its arguments say where to look, never hold voxels
but for halos.

A worker keeps one `Station` per run that it takes part in, with the network loaded, until the client says that the run
is over.
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from distributed import get_worker

from unet_engine import machine
from unet_engine.backends.out_of_memory import is_out_of_memory
from unet_engine.errors import ClusterError, ModelError, PlanError, UnetEngineError, first_line
from unet_engine.execution.dask import station
from unet_engine.execution.dask.sharing import Sharing
from unet_engine.execution.dask.station import HaloParcel, Station, Sums
from unet_engine.pipeline.job import Job
from unet_engine.plan.bundles import Bundle, BundleId
from unet_engine.plan.memory import NoRoom
from unet_engine.plan.plan import Index
from unet_engine.prepare.prepare import Prepared, prepare
from unet_engine.prepare.survey import check_output, survey
from unet_engine.profiling.stages import Snapshot, as_dict
from unet_engine.settings.settings import Settings
from unet_engine.version import our_version

_PROCESSOR = machine.processor()
IDLE_SECONDS = 600
"""A station of another run that was not used for so long belongs to a client that died."""


@dataclass(frozen=True)
class Ticket:
    """What every task brings along: the job, pickled once, under a name that no other run has."""

    name: str
    """Also the topic of the events by which workers tell what they have done."""
    job: bytes
    version: str
    limit: float
    """Seconds that one step of a block may take before the worker counts as hung."""
    client: tuple[str, int]
    """Host and process of the client, which must not be ended when a worker in it hangs."""

    def __dask_tokenize__(self) -> str:
        return self.name


def ticket(job: Job, name: str, limit: float) -> Ticket:
    return Ticket(name, pickle.dumps(job), our_version(), limit, (socket.gethostname(), os.getpid()))


# --- tasks ---


@dataclass(frozen=True)
class Label:
    """What is said of a bundle: its name for events, and words for errors."""

    id: BundleId
    text: str

    @classmethod
    def of(cls, bundle: Bundle) -> Label:
        return cls(bundle.id, f"{bundle} (from voxels {bundle.tasks[0].block.write})")

    def __dask_tokenize__(self) -> BundleId:
        return self.id


@dataclass(frozen=True)
class Sealed:
    """A bundle on its way to a worker. Sealed, since the scheduler would unpack every window of it, and keeps what it
    sent for a while."""

    label: Label
    content: bytes
    shares: tuple[int, int] | None
    """Of `plan.dealing` that the worker has which it goes to; None where blocks are not dealt."""
    number: int
    """In the order in which bundles are handed out."""

    @classmethod
    def of(cls, bundle: Bundle, shares: tuple[int, int] | None, number: int) -> Sealed:
        return cls(Label.of(bundle), pickle.dumps(bundle), shares, number)

    def __dask_tokenize__(self) -> BundleId:
        # keys are made of it already; else Dask would hash all of it
        return self.label.id


def predict(ticket: Ticket, sealed: Sealed) -> Sums:
    """Infer the blocks of a bundle."""
    with _at_work(ticket, sealed.label, "predicted") as here:
        bundle: Bundle = pickle.loads(sealed.content)
        return here.predict(bundle, sealed.shares, sealed.number)


@dataclass(frozen=True)
class Wanted:
    """Blocks of another bundle that wait for halos. A class of its own, since Dask looks for its keys in tuples and
    sets."""

    blocks: frozenset[Index]

    def __dask_tokenize__(self) -> list[Index]:
        return sorted(self.blocks)


def parcel(sums: Sums, wanted: Wanted) -> HaloParcel:
    """Pick out of a bundle's sums what another one needs."""
    return station.parcel(sums, wanted.blocks, get_worker().address)


def commit(ticket: Ticket, label: Label, sums: Sums, *parcels: HaloParcel) -> None:
    """Merge, finish, write and mark the blocks of a bundle."""
    with _at_work(ticket, label, "committed") as here:
        here.commit(sums, parcels)


@contextmanager
def _at_work(ticket: Ticket, label: Label, stage: str) -> Iterator[Station]:
    """The station, and an event with what it did. Errors that are not ours get the bundle's and the worker's name."""
    begun = time.perf_counter()
    worker = get_worker()
    try:
        here = _station(ticket, worker)
        yield here
    except UnetEngineError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise PlanError(
                f"out of memory in {label.text} on {host()} ({first_line(error)}); use fewer --workers, a smaller "
                "--memory per worker, or a smaller --window"
            ) from error
        raise UnetEngineError(
            f"unexpected {type(error).__name__} in {label.text} on {host()}: {error}; this is a bug in unet-engine or "
            "in a library it uses: run that part again with --roi and without a cluster to see more"
        ) from error
    facts = {
        "run": label.id,
        "stage": stage,
        "worker": worker.address,
        "seconds": time.perf_counter() - begun,
        "peak_rss_bytes": machine.peak_resident_bytes(),
        "processor": _PROCESSOR,
        **asdict(here.worker.tally.take()),
    }
    if profile := here.worker.profile():
        facts["stages"] = as_dict(profile)
    worker.log_event(ticket.name, facts)


# --- stations ---

_stations: dict[tuple[str, str], Station] = {}
"""By address of the Dask worker, of which there may be several in one process, and by run."""
_opening = threading.Lock()


def _station(ticket: Ticket, worker: Any) -> Station:
    with _opening:
        key = (worker.address, ticket.name)
        if key not in _stations:
            _close([k for k, s in _stations.items() if time.monotonic() - s.used > IDLE_SECONDS])
            _stations[key] = _opened(ticket, worker)
        return _stations[key]


def _opened(ticket: Ticket, worker: Any) -> Station:
    if ticket.version != our_version():
        raise ClusterError(
            f"unet-engine is {our_version()} on {host()} and {ticket.version} where the run was started; install the "
            "same version on both"
        )
    machine.return_freed_blocks()
    job: Job = pickle.loads(ticket.job)
    if job.model.format != "fake" and job.model.again(job.setup.window).sha256 != job.model.sha256:
        raise ModelError(f"{job.model.path} on {host()} is another model than the run was planned with; copy it there")
    same_process = ticket.client == (socket.gethostname(), os.getpid())

    def hung(what: str) -> None:
        logging.getLogger("distributed.worker").error("%s on %s: %s", ticket.name, host(), what)
        worker.log_event(ticket.name, {"hung": f"{what} on {host()}", "ended": not same_process})
        if not same_process:
            time.sleep(1)  # for the event to leave
            os._exit(HUNG)  # no other way out of a thread that hangs; Dask takes the work elsewhere

    return Station(job, worker.address, ticket.limit, hung)


HUNG = 70
"""Exit status of a worker that ended itself because a step took too long."""


def _close(keys: list[tuple[str, str]]) -> None:
    """Close stations out of the caller's way: one may still be in the middle of a block."""
    for key in keys:
        threading.Thread(target=_stations.pop(key).close, daemon=True).start()


def close(name: str, dask_worker: Any) -> None:
    """Give back what a run holds in this worker. To be called through `Client.run`, which names the worker."""
    with _opening:
        _close([key for key in _stations if key == (dask_worker.address, name)])


def confirm(name: str, dask_worker: Any) -> None:
    """Raises `InputError` where what this worker has read for a run is not there any more. To be called through
    `Client.run`."""
    if here := _stations.get((dask_worker.address, name)):
        here.worker.confirm()


def profile(name: str, spans: int, dask_worker: Any) -> Snapshot | None:
    """Where the time of this worker went in a run, with `spans` of each thread for a trace. To be called through
    `Client.run`."""
    here = _stations.get((dask_worker.address, name))
    return here.worker.profile(spans) if here else None


# --- planning ---


def plan_here(settings: Settings, workers: int, present: int, sharing: Sharing | None = None) -> Prepared:
    """Survey and plan on a worker, whose device, libraries and memory count, not the client's. The network is closed
    again. sharing: of a local cluster.

    Raises what `survey`, `check_output` and `prepare` raise.
    """
    worker = get_worker()
    own = _own(settings, worker) | ({"memory": sharing.allowed()} if sharing else {})
    surveyed = survey(settings.model_copy(update=own))
    check_output(surveyed)
    try:
        prepared = prepare(replace(surveyed, devices=surveyed.devices[:1]), workers, present)
    except NoRoom as error:
        raise (sharing.refusal(error) if sharing else error) from error
    if prepared.network:
        prepared.network.close()
    return replace(prepared, network=None, ready=None)


def _own(settings: Settings, worker: Any) -> dict[str, Any]:
    """What the settings leave open and this worker decides: a GPU of its own, threads, memory."""
    return {
        "gpus": None,
        "device": "cuda:0" if settings.gpus else settings.device,
        "threads": settings.threads
        or max(1, min(machine.cpu_count(), worker.state.nthreads) // (settings.window_threads or 1)),
        "memory": settings.memory or worker.memory_manager.memory_limit,
    }


def host() -> str:
    """This machine and process, for messages."""
    return f"{platform.node()} (process {os.getpid()})"
