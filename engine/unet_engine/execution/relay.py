"""What the volumes of one command share: the network that was loaded for the first, and the turn to use it.

    volume n     survey, plan, first blocks read | infers ................ | last blocks written
    volume n + 1                                   survey, plan, first blocks read | infers ......

Two volumes are under way at most, and both hold blocks only where their plans fit the memory together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import TypeVar

from unet_engine.backends.base import Network
from unet_engine.pipeline.worker import Worker
from unet_engine.prepare.given import Ready
from unet_engine.prepare.prepare import Prepared

T = TypeVar("T")


class Stopped(BaseException):
    """Raised in the threads of volumes that are to end; what is committed stays."""


class Relay:
    """Hands the network from volume to volume."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.legs: list[Leg] = []
        self.ready: Ready | None = None
        self.others: dict[str, Network] = {}
        """Networks of further devices."""
        self.stopped = False
        self.loads = 0
        """How often a network was loaded for a volume."""

    def leg(self) -> Leg:
        """The part of the next volume. Call once the one before has had its turn, see `let_on`."""
        leg = Leg(self)
        with self.changed:
            self.legs.append(leg)
        return leg

    def let_on(self) -> None:
        """Wait until the next volume may begin: there is at most one under way, which has the network or had it."""
        self.wait(lambda: not self.legs or (len(self.legs) == 1 and self.legs[0].begun))

    def wait(self, until: Callable[[], bool]) -> None:
        """Raises `Stopped` where all is to end."""
        with self.changed:
            while not (self.stopped or until()):
                self.changed.wait(0.5)  # a signal is seen between two waits
            if self.stopped:
                raise Stopped

    def stop(self) -> None:
        """End all volumes as soon as they ask for their next block."""
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def close(self) -> None:
        """Call when no volume is under way."""
        for network in (*([self.ready.network] if self.ready else []), *self.others.values()):
            network.close()
        self.ready, self.others = None, {}


class Leg:
    """One volume's part: a `Turn`, see `unet_engine.pipeline.columns`."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self.begun = self.holds = False
        """Whether it has the network, or had it; whether it has it."""
        self._own: Ready | None = None
        self.needs = 0
        """Bytes of its plan, beside those of the process and the network."""
        self._workers: Sequence[Worker] = ()
        self._look: Callable[[Network], None] = lambda _: None
        self._leave: Callable[[Network], None] = lambda _: None

    def alone(self) -> None:
        """Wait until no other volume is under way."""
        self._relay.wait(lambda: self._relay.legs == [self])

    @property
    def ready(self) -> Ready | None:
        """The network that is loaded."""
        found = self._relay.ready
        return replace(found, discard=self.discard) if found else None

    @property
    def free(self) -> int:
        """Bytes that are left beside the network and the volumes that are under way, as far as that is known."""
        ready = self._relay.ready
        if ready is None or not ready.budget:
            return 2**62
        return max(0, ready.budget - ready.base - sum(leg.needs for leg in self._relay.legs))

    def discard(self) -> None:
        """Close the network that is loaded, once no other volume is under way."""
        self.alone()
        self._relay.close()

    def other(self, device: str) -> Network | None:
        """The network that is loaded on a device beside the first."""
        return self._relay.others.get(device)

    def reads(
        self,
        prepared: Prepared,
        workers: Sequence[Worker],
        look: Callable[[Network], None],
        leave: Callable[[Network], None],
    ) -> None:
        """It was prepared, and its network is the one that the next may have. `look` is given the network once it is
        this volume's, `leave` before it is so no more."""
        self._own, self._workers, self._look, self._leave = prepared.ready, workers, look, leave
        assert self._own is not None
        self.needs = prepared.job.plan.memory.total - self._own.base
        if prepared.survey.objects:  # finding them takes all the memory that there is
            self.needs = self._own.budget
        with self._relay.changed:
            if prepared.look is None:  # it was loaded for this volume
                self._relay.ready, self._relay.loads = self._own, self._relay.loads + 1

    # --- the turn ---

    def awaited(self, work: Iterator[T]) -> Iterator[T]:
        """`work`, once the network is this volume's. Its first item is taken before, where there is memory for it."""
        if not self.holds:
            self._relay.wait(lambda: self._relay.legs == [self] or self._fits())
            first = list(islice(work, 1))
            self._take()
            work = chain(first, work)
        return self._heeding(work)

    def _fits(self) -> bool:
        assert self._own is not None
        return self._own.base + sum(leg.needs for leg in self._relay.legs) <= self._own.budget

    def _heeding(self, work: Iterator[T]) -> Iterator[T]:
        for item in work:
            if self._relay.stopped:
                raise Stopped
            yield item

    def _take(self) -> None:
        relay, worker = self._relay, self._workers[0]
        relay.wait(lambda: not any(leg.holds for leg in relay.legs))
        with relay.changed:
            self.begun = self.holds = True
            relay.changed.notify_all()
        if relay.ready is None and self._own is not None:  # it failed under the volume before
            worker.renew()
            relay.ready, relay.loads = replace(self._own, network=worker.network), relay.loads + 1
        self._look(worker.network)

    def over(self) -> None:
        """The network is free for the next."""
        if self.holds:
            self._leave(self._workers[0].network)
        with self._relay.changed:
            self.holds = False
            self._relay.changed.notify_all()

    def end(self) -> None:
        """The volume is done or has failed. Where that was while it had the network, windows may still be in it: it is
        loaded again."""
        relay = self._relay
        if self not in relay.legs:
            return
        networks = {w.job.setup.device: network for w in self._workers if (network := w.give())}
        with relay.changed:
            if self.holds:
                for network in networks.values():
                    network.close()
                relay.ready, relay.others = None, {}
            else:
                relay.others |= dict(list(networks.items())[1:])
            self.holds = False
            relay.legs.remove(self)
            relay.changed.notify_all()
