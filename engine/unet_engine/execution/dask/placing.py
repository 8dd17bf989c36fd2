"""Which worker is given a bundle: the one whose share it is of, or one that has nothing to do.

Each worker has a seat, which has a share of `plan.dealing`; who comes in place of one that was lost takes its seat. The
shares of seats that nobody has are those of the nearest that somebody has."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from unet_engine.plan.bundles import Bundle, BundleId
from unet_engine.plan.dealing import AT_ONCE
from unet_engine.plan.memory import BUNDLES_IN_FLIGHT


@dataclass(frozen=True)
class Place:
    """Where a bundle goes."""

    worker: str | None
    """Address; None: Dask says."""
    shares: tuple[int, int] | None = None
    """Those that this worker has, from the first to before the second; None: nothing is dealt."""


ANYWHERE = Place(None)


class Placing:
    """Deals bundles to so many workers, of which some may be missing, and others there beside. `predicted` may be called
    from another thread than the rest."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._seats: list[str | None] = []
        self._inferring: dict[BundleId, str] = {}
        self._lock = threading.Lock()

    def look(self, present: Iterable[str]) -> None:
        """These workers are there."""
        there = set(present)
        self._seats = [seat if seat in there else None for seat in self._seats]
        for address in sorted(there - set(self._seats)):
            if None in self._seats:
                self._seats[self._seats.index(None)] = address
            else:
                self._seats.append(address)

    def place(self, bundle: Bundle, *, is_late: bool) -> Place | None:
        """Where a bundle goes; None: nobody has room for it yet. is_late: whether it is one of the last, of which nobody
        is to have more than others."""
        taken = [n for n, seat in enumerate(self._seats) if seat]
        if not taken:
            return ANYWHERE
        with self._lock:
            busy = Counter(self._inferring.values())
        counts = {n: busy[self._seats[n] or ""] for n in taken}
        own = self._nearest(bundle.share or 0, taken)
        if counts[own] < (AT_ONCE if is_late else BUNDLES_IN_FLIGHT):
            return self._at(own, taken)
        idle = min(taken, key=lambda n: (counts[n], abs(n - own)))
        return None if counts[idle] else self._at(idle, taken)

    @staticmethod
    def _nearest(share: int, taken: list[int]) -> int:
        return min(taken, key=lambda n: abs(n - share))

    def _at(self, seat: int, taken: list[int]) -> Place:
        own = [share for share in range(self._workers) if self._nearest(share, taken) == seat]
        return Place(self._seats[seat], (own[0], own[-1] + 1) if own else (0, self._workers))

    def given(self, bundle: BundleId, place: Place) -> None:
        if place.worker:
            with self._lock:
                self._inferring[bundle] = place.worker

    def predicted(self, bundle: BundleId) -> None:
        """It is inferred, by whomever."""
        with self._lock:
            self._inferring.pop(bundle, None)
