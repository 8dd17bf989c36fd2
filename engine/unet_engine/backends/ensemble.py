"""Several networks open at once, whose answers are averaged: on the host or on one device, in one order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import numpy as np

from unet_engine.backends.base import NO_TRIAL, ONE_BY_ONE, Array, Backend, Network, Setup, Trial
from unet_engine.plan.device_memory import DeviceMemory
from unet_engine.plan.memory import Sizes
from unet_engine.plan.plan import Plan

N = TypeVar("N", bound=Network)


class Ensemble(Network):
    """Networks of one library on one device, each with slots or memory of its own. What is asked of a network is
    answered for all of them together; pipelines take the members."""

    def __init__(self, setup: Setup, networks: Sequence[Network]) -> None:
        super().__init__(setup)
        first = networks[0]
        self.name, self.version = first.name, first.version
        self.note = "; ".join(dict.fromkeys(network.note for network in networks if network.note))
        self._networks = tuple(networks)

    @property
    def members(self) -> tuple[Network, ...]:
        return self._networks

    def warm_up(self, trial: Trial = NO_TRIAL) -> float:
        """Seconds per window of one member, on the average."""
        return sum(network.warm_up(trial) for network in self._networks) / len(self._networks)

    def waiting(self) -> int:
        return sum(network.waiting() for network in self._networks)

    @property
    def warm(self) -> int:
        return self._networks[0].warm

    def identity(self) -> dict[str, Any]:
        return self._networks[0].identity()

    def answers(self) -> frozenset[str]:
        """One answer where the rows of a batch agree in every member."""
        told = [network.answers() for network in self._networks]
        if all(answer == ONE_BY_ONE for answer in told):
            return ONE_BY_ONE
        if all(len(answer) == 1 for answer in told):
            return frozenset({" ".join(next(iter(answer)) for answer in told)})
        return frozenset().union(*told)

    def fitted(self, plan: Plan, sizes: Sizes) -> Plan:
        """By the first, before which nothing was loaded: what it finds taken is what all took."""
        return self._networks[0].fitted(plan, sizes)

    def device_memory(self, plan: Plan, sizes: Sizes) -> DeviceMemory | None:
        return self._networks[0].device_memory(plan, sizes)

    def shelves(self, plan: Plan, sizes: Sizes) -> tuple[int, ...]:
        return self._networks[0].shelves(plan, sizes)

    def close(self) -> None:
        for network in reversed(self._networks):
            network.close()


class Averaged(Backend):
    """The mean of several networks for windows one by one: for looking at regions, not for a run. They stay open."""

    def __init__(self, setup: Setup, hosts: Sequence[Backend]) -> None:
        super().__init__(setup)
        self.name, self.version, self.slots = hosts[0].name, hosts[0].version, 1
        self._hosts, self._shares = tuple(hosts), setup.model.shares
        self._batch = np.zeros(setup.input_shape, np.float32)

    def input(self, slot: int) -> Array:
        return self._batch

    def start(self, slot: int) -> None:
        """It is inferred when it is asked for."""

    def result(self, slot: int) -> Array:
        total: Array = np.zeros(self.setup.output_shape, np.float32)
        for share, host in zip(self._shares, self._hosts, strict=True):
            total += np.float32(share) * host.infer(self._batch)
        return total

    def close(self) -> None:
        """They are another's."""


def opened(setup: Setup, open_one: Callable[[Setup, list[N]], N]) -> Network:
    """The network that `setup` names, or all its members, each opened beside those before it. What was opened is closed
    again where one is refused."""
    setups, networks = setup.members, list[N]()
    with ExitStack() as undo:
        for member in setups:
            networks.append(open_one(member, networks))
            undo.callback(networks[-1].close)
        undo.pop_all()
    return networks[0] if len(setups) == 1 else Ensemble(setup, networks)
