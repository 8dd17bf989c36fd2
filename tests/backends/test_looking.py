"""Windows of a trial that a network which is loaded already is asked for."""

from types import SimpleNamespace

import numpy as np

from unet_engine.backends.base import Backend, Trial


class Doubling(Backend):
    """Remembers the most that was under way at once."""

    slots = 3

    def __init__(self):
        self.setup = SimpleNamespace(window=(2, 2))
        self._inputs = [np.zeros((1, 1, 2, 2), np.float32) for _ in range(self.slots)]
        self._under_way, self.most = set(), 0

    def input(self, slot):
        assert slot not in self._under_way
        return self._inputs[slot]

    def start(self, slot):
        self._under_way.add(slot)
        self.most = max(self.most, len(self._under_way))

    def result(self, slot):
        self._under_way.discard(slot)
        return 2 * self._inputs[slot]

    def close(self):
        assert not self._under_way


def test_windows_are_looked_at_in_order_and_in_all_slots_at_once():
    network, seen = Doubling(), []
    network.answered = b"of warming up"
    windows = [np.full((1, 2, 2), n, np.float32) for n in range(5)]
    network.look_at(Trial(lambda window: windows, lambda output: seen.append(float(output.max()))))
    assert seen == [0, 2, 4, 6, 8]
    assert network.most == 3
    assert network.answered is None, "slot 0 has another answer now"
    network.close()
