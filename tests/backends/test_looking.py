"""Windows of a trial that a network which is loaded already is asked for."""

from types import SimpleNamespace

import numpy as np

from unet_engine.backends import answered
from unet_engine.backends.answered import Answered
from unet_engine.backends.base import Ahead, Backend, Trial, hash_of


class Doubling(Backend):
    """Remembers the most that was under way at once."""

    slots = 3

    def __init__(self):
        self.setup = SimpleNamespace(window=(2, 2))
        self._inputs = [np.zeros((1, 1, 2, 2), np.float32) for _ in range(self.slots)]
        self._outputs = [np.zeros((1, 1, 2, 2), np.float32) for _ in range(self.slots)]
        self._under_way, self.most = set(), 0

    def input(self, slot):
        assert slot not in self._under_way
        return self._inputs[slot]

    def start(self, slot):
        np.multiply(self._inputs[slot], 2, out=self._outputs[slot])
        self._under_way.add(slot)
        self.most = max(self.most, len(self._under_way))

    def result(self, slot):
        self._under_way.discard(slot)
        return self._outputs[slot]

    def close(self):
        assert not self._under_way


def test_windows_are_looked_at_in_order_and_in_all_slots_at_once():
    network, seen = Doubling(), []
    network.answered = {0: b"of warming up"}
    windows = [np.full((1, 2, 2), n, np.float32) for n in range(5)]
    network.look_at(Trial(lambda window: windows, lambda output: seen.append(float(output.max()))))
    assert seen == [0, 2, 4, 6, 8]
    assert network.most == 3
    assert not network.answered, "slots have other answers now"
    network.close()


def test_windows_of_the_run_are_inferred_once_in_any_order_and_slot():
    """Those that lie in their slot when their turn comes, those of other slots, and those whose slot others need."""
    of_run = [np.full((1, 2, 2), n, np.float32) for n in range(9)]

    def warmed(*windows):
        network, seen = Doubling(), []
        network.setup.threads, network.setup.batch = 2, 1
        ahead = [Ahead(lambda out, n=n: (np.copyto(out, of_run[n]), True)[1], n == windows[-1]) for n in windows]
        network.warm_up(
            Trial(lambda window: (), lambda output: seen.append(float(output.max())), lambda w, most: ahead)
        )
        assert seen == [2 * windows[-1]]
        assert network.warm == len(windows)
        return network

    for windows in [(0, 1), (1, 0), (0,), (2, 5), (8, 3)]:
        network = warmed(*windows)
        known, started, answers = Answered(network), [], []
        for number, window in enumerate(of_run):
            slot = number % network.slots
            network.input(slot)[...] = window
            if not known.knows(slot):
                network.start(slot)
                started.append(number)
            answers.append(float(known.result(slot).max()))
        assert answers == [2.0 * n for n in range(9)]
        assert started == [n for n in range(9) if n not in windows]


def test_what_other_slots_need_is_kept_only_where_there_is_room(monkeypatch):
    monkeypatch.setattr(answered, "COPIES", 0)
    network = Doubling()
    network.input(0)[...] = 5
    network.start(0)
    network.result(0)
    network.answered = {0: hash_of(network.input(0))}
    known = Answered(network)
    for number in range(7):
        slot = number % network.slots
        network.input(slot)[...] = number
        assert not known.knows(slot)
        network.start(slot)
        assert known.result(slot).max() == 2 * number
