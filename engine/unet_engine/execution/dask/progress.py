"""What is known of a run across workers while it runs: told by their events, shown as progress, summed up in the
output."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from typing import Any

from unet_engine.pipeline.job import Counters, Tally
from unet_engine.profiling.stages import Snapshot, from_dict
from unet_engine.threads.beside import beside
from unet_engine.units import size

LOOK_EVERY = 1.0
"""Seconds between looks at which workers are there."""
FEW = 8
"""So many workers are shown one by one."""
_FIELDS = tuple(f.name for f in fields(Counters))


@dataclass
class Share:
    """One worker's part."""

    inferred: int = 0
    begun: float = 0.0
    last: float = 0.0

    @property
    def rate(self) -> float:
        """Windows per second since it began."""
        return self.inferred / max(1e-9, self.last - self.begun)


class Progress:
    """Counters of all workers. `event` may be called from another thread than the rest."""

    def __init__(self) -> None:
        self.worker_count = 0
        self.peak_rss_bytes = 0
        """Of the worker process that took most."""
        self.processors: set[str] = set()
        """Kinds of processor among the workers. With more than one, results may differ in their last bits from run to
        run."""
        self.lost = 0
        """Workers that were there and are gone."""
        self.hung = 0
        """Workers that ended themselves because a step took too long."""
        self.stuck: str | None = None
        """What hangs in a worker that cannot be ended, as it is a thread of this process."""
        self._profile: dict[str, Snapshot] = {}
        """By worker, where its time went as far as it has told."""
        self._tally = Tally()
        self._shares: dict[str, Share] = {}
        self.present: set[str] = set()
        """Addresses of the workers that are there."""
        self._submitted = self._predicted = 0
        self._lock = threading.Lock()

    def counters(self) -> Counters:
        return self._tally.read()

    def submitted(self) -> None:
        """A bundle is on its way."""
        self._submitted += 1

    @property
    def repeated(self) -> int:
        """Bundles predicted more than once, as the worker that held their sums was lost. While the run lasts, at least
        so many."""
        return max(0, self._predicted - self._submitted)

    def event(self, facts: dict[str, Any]) -> None:
        """Something a worker tells (see `unet_engine.execution.dask.tasks`)."""
        if "hung" in facts:
            self.hung += facts["ended"]
            self.stuck = self.stuck if facts["ended"] else facts["hung"]
            return
        self._tally.add(**{name: facts[name] for name in _FIELDS})
        if "stages" in facts:
            self.profiled({facts["worker"]: from_dict(facts["stages"])})
        now = time.monotonic()
        with self._lock:
            share = self._shares.setdefault(facts["worker"], Share(begun=now - facts["seconds"]))
            share.inferred += facts["inferred"]
            share.last = now
            self.processors.add(facts["processor"])
            self.peak_rss_bytes = max(self.peak_rss_bytes, facts["peak_rss_bytes"])
            self._predicted += facts["stage"] == "predicted"

    def profiled(self, found: Mapping[str, Snapshot | None]) -> None:
        """Where the time of these workers went. Of several snapshots of one worker the latest holds, as each has all
        before it."""
        with self._lock:
            for worker, snapshot in found.items():
                if snapshot and (worker not in self._profile or snapshot.ended >= self._profile[worker].ended):
                    self._profile[worker] = snapshot

    def profile(self) -> dict[str, Snapshot]:
        """By worker. Of one that was lost: what it had told."""
        with self._lock:
            return dict(self._profile)

    # --- workers ---

    @contextmanager
    def watching(self, look: Callable[[], set[str]]) -> Iterator[None]:
        """Keep an eye on which workers there are."""
        self._seen(look())

        def watch(over: threading.Event) -> None:
            while not over.wait(LOOK_EVERY):
                with suppress(Exception):  # the scheduler is busy or gone; whoever waits for results will tell
                    self._seen(look())

        with beside(watch, "workers"):
            yield

    def _seen(self, present: set[str]) -> None:
        with self._lock:
            self.lost += len(self.present - present)
            self.present = present
            self.worker_count = len(present)

    def rates(self) -> dict[str, float]:
        """Windows per second of each worker that is there."""
        with self._lock:
            return {address: share.rate for address, share in self._shares.items() if address in self.present}

    def detail(self) -> str:
        """One line for people."""
        rates = sorted(self.rates().values())
        shown = f"{self.worker_count} workers"
        if rates:
            each = ", ".join(f"{rate:.3g}" for rate in rates)
            shown += f" at {each if len(rates) <= FEW else f'{rates[0]:.3g} to {rates[-1]:.3g}'} windows/s"
        shown += f", {size(self.counters().halo_bytes)} of halos sent"
        if len(self.processors) > 1:
            shown += f", {len(self.processors)} kinds of processor (results may differ in the last bits)"
        if self.lost or self.repeated:
            hung = f" ({self.hung} hung)" if self.hung else ""
            shown += f", {self.lost} workers lost{hung}, {self.repeated} repeated"
        return shown

    def facts(self) -> dict[str, Any]:
        """What the summary of a run says of its workers."""
        with self._lock:
            return {
                "workers": len(self._shares),
                "workers_lost": self.lost,
                "runs_repeated": self.repeated,
                "peak_rss_bytes": self.peak_rss_bytes,
                "processors": tuple(sorted(self.processors)),
                "worker_windows": tuple(sorted(share.inferred for share in self._shares.values())),
            }
