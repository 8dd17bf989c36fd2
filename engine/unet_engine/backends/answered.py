"""Answers that a network gave while it was warmed up, or while regions were computed for a proof, to windows that the
run infers anyway: they are not inferred again. Windows are compared bit by bit, as nothing else tells what they were
made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from unet_engine.backends.base import COPIES, Array, hash_of

if TYPE_CHECKING:
    from unet_engine.backends.base import Backend


class Answered:
    """The slots of one network as a pipeline fills them in turn, with what is known already. Nothing else may start
    any of them meanwhile."""

    def __init__(self, network: Backend) -> None:
        self._network = network
        self._left: dict[int, bytes] = dict(network.take_answered())
        """Per slot the window to which its result is the answer."""
        self._copies: dict[bytes, Array] = dict(network.take_known())
        self._given: dict[int, Array] = {}

    def knows(self, slot: int) -> bool:
        """Whether the batch that was put into `slot` has an answer, which `result` then gives. If not, the slot is
        about to be started."""
        self._given.pop(slot, None)
        if not (self._left or self._copies):
            return False
        asked = hash_of(self._network.input(slot))
        if self._left.get(slot) == asked:
            del self._left[slot]
            return True
        found = self._copy(asked)
        if found is None:
            self._keep(slot)
            return False
        self._given[slot] = found
        return True

    def result(self, slot: int) -> Array:
        return self._given[slot] if slot in self._given else self._network.result(slot)

    def _copy(self, asked: bytes) -> Array | None:
        """Of the answer to a window that has another slot, or had it; None where there is none."""
        elsewhere = next((slot for slot, window in self._left.items() if window == asked), None)
        if elsewhere is None:
            return self._copies.pop(asked, None)
        del self._left[elsewhere]
        return np.array(self._network.result(elsewhere))

    def _keep(self, slot: int) -> None:
        """What lies in `slot` is overwritten: keep it, if there is room."""
        window = self._left.pop(slot, None)
        if window is None:
            return
        answer = self._network.result(slot)
        if sum(kept.nbytes for kept in self._copies.values()) + answer.nbytes <= COPIES:
            self._copies[window] = np.array(answer)
