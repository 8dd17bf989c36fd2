"""The contract between the worker and a library that runs networks.

A back end has a ring of slots, each with an input the caller fills in place and an output it reads in place, so that no
window is copied or allocated. `start` returns at once; several slots are in flight while the caller cuts and adds other
windows.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine import cores
from unet_engine.errors import BackendError, ModelError, first_line
from unet_engine.model.file import ModelFile
from unet_engine.plan.device_memory import DeviceMemory
from unet_engine.plan.memory import Sizes
from unet_engine.plan.plan import Plan
from unet_engine.units import times

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Setup:
    """What a back end is opened with."""

    model: ModelFile
    window: tuple[int, ...]
    """Input size per axis of the model."""
    device: str = "cpu"
    """``cpu``, ``cuda:N``, or ``simulated`` in tests."""
    precision: str = "fp32"
    network: str | None = None
    """SHA-256 of the network attached to the model file that runs instead of its own: the one that was judged."""
    rest: str = "fp32"
    """Arithmetic of the layers that an INT8 network leaves out."""
    threads: int = 1
    """Windows inferred at the same time on a CPU. The result does not depend on the number."""
    batch: int = 1
    judged: tuple[str | None, ...] = ()
    """`network` for each member of a model of several; empty: each runs its own."""
    window_threads: int = 1
    """Threads that infer one window together. With more than one the last bits may be others, see `apart`."""
    apart: bool = False
    """Whether they are, so that the run has a name of its own."""

    @property
    def members(self) -> tuple[Setup, ...]:
        """One for each network of the model; it alone where that is one."""
        if not self.model.members:
            return (self,)
        judged = self.judged or (None,) * len(self.model.members)
        return tuple(
            replace(self, model=model, network=network, judged=())
            for model, network in zip(self.model.networks, judged, strict=True)
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.model.spec.channels_in, *self.window)

    @property
    def output_shape(self) -> tuple[int, ...]:
        spec = self.model.spec
        return (self.batch, self.model.blended, *(w - 2 * m for w, m in zip(self.window, spec.margin, strict=True)))


ONE_BY_ONE = frozenset({"windows are inferred one by one"})
"""What networks answer whose windows never share a batch: see `Network.answers`."""


@dataclass(frozen=True)
class Ahead:
    """A window of a run that is inferred before its turn."""

    cut: Callable[[Array], bool]
    """Puts it, normalised, into (channels in, *window) float32, C-contiguous, and says whether it could be read; else
    that becomes 0."""
    looked_at: bool
    """Whether its output is looked at."""


@dataclass(frozen=True)
class Trial:
    """Windows of the user's volume that a network is warmed up with, and who looks at what it makes of them."""

    cut: Callable[[tuple[int, ...]], Sequence[Array]]
    """Some normalised windows, (channels in, *window) float32, of the size it is given; there may be none."""
    look: Callable[[Array], None]
    """Takes an output, (channels out, *window - 2 * margin) of a float type, which is valid for the call alone."""
    ahead: Callable[[tuple[int, ...], int], Sequence[Ahead]] = lambda window, most: ()
    """Windows that the run infers anyway, of the size and as many as it is given at most, in the order of the run; all
    that it has, where these are fewer. Where there are none, others are cut."""


ANOTHER = "try another --backend or --device"
"""What to do where a library fails on a window that it took before."""
OTHER_WINDOW = "give another --window; `unet-engine info` says which it takes"

COPIES = 2**26
"""Bytes of answers to windows ahead that are copied, at most: where others need their slots before."""

NO_TRIAL = Trial(lambda _: (), lambda _: None)


class Network(ABC):
    """A network that is loaded, as planning sees it. Where its windows are cut and added is the pipeline's business
    alone."""

    name: str
    version: str
    """Name and version of the library: part of what names a run, as another version may give other bytes."""
    note: str = ""
    """What the user should know of how it runs."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    @property
    def members(self) -> tuple[Network, ...]:
        """The networks whose answers are averaged, in their order; it alone where it is one."""
        return (self,)

    @abstractmethod
    def warm_up(self, trial: Trial = NO_TRIAL) -> float:
        """Take the memory that inference takes, and tell the seconds per window."""

    @property
    def warm(self) -> int:
        """Windows at once that memory was taken for."""
        return self.setup.threads

    def identity(self) -> dict[str, Any]:
        """What of the setup, beside window and precision, may change the bytes and so names the run."""
        return {}

    def answers(self) -> frozenset[str]:
        """Hashes of what the rows of a batch answer to one window: two sizes of batch that tell the same may stand for
        one another."""
        return ONE_BY_ONE

    def fitted(self, plan: Plan, sizes: Sizes) -> Plan:
        """The plan with blocks that fit the memory of the network's device. Raises `PlanError` where none do."""
        return plan

    def device_memory(self, plan: Plan, sizes: Sizes) -> DeviceMemory | None:
        """Predicted peak of the device's memory; None where the windows lie in the memory of the host."""
        return None

    def shelves(self, plan: Plan, sizes: Sizes) -> tuple[int, ...]:
        """Bytes of the device's memory for halos that stay there, see `unet_engine.plan.kept_halos`."""
        return ()

    def waiting(self) -> int:
        """Bytes of the host's memory, beyond what was taken, for answers of warming up until their turn comes."""
        return 0

    @abstractmethod
    def close(self) -> None:
        """Give back memory and threads. The network is not used afterwards, and nothing of it may be under way."""


class Backend(Network):
    """Takes windows from the host, in slots. Not thread-safe: one caller fills, starts and reads the slots."""

    slots: int
    """How many batches may be started before the first result is read."""
    answered: Mapping[int, bytes] = MappingProxyType({})
    """Per slot the hash of the window to which its result is still the answer, as nothing was started since: those of
    warming up. Whoever starts anything takes them away, see `take_answered`."""
    warmed: float = 0.0
    """When these went into the network, by `time.perf_counter`."""
    known: Mapping[bytes, Array] = MappingProxyType({})
    """Answers to other windows of the run by their hash, (1, channels out, *window), for the first who runs it."""
    _warm: int = 0

    @abstractmethod
    def input(self, slot: int) -> Array:
        """Where to put the batch of `slot`: (batch, channels in, *window) float32, C-contiguous. Not while it is in
        flight."""

    @abstractmethod
    def start(self, slot: int) -> None:
        """Begin to infer what lies in ``input(slot)``."""

    @abstractmethod
    def result(self, slot: int) -> Array:
        """Wait for `slot`: (batch, channels out, *window - 2 * margin) float32, float16 or bfloat16, valid until its
        next `start`.

        Raises `BackendError` with the library's own message where inference failed.
        """

    def touch(self, slot: int) -> None:
        """Make the memory that `slot` needs beyond that of the threads be there. A batch does; a back end may know
        something shorter."""
        self.start(slot)
        self.result(slot)

    @property
    def warm(self) -> int:
        return self._warm

    def waiting(self) -> int:
        each = 4 * prod(self.setup.output_shape)
        return min(COPIES // each, len(self.answered)) * each

    def take_answered(self) -> Mapping[int, bytes]:
        """What is `answered`, which it is not any more."""
        taken, self.answered = self.answered, {}
        return taken

    def take_known(self) -> Mapping[bytes, Array]:
        """What is `known`, which is no longer kept."""
        taken, self.known = self.known, {}
        return taken

    def warm_up(self, trial: Trial = NO_TRIAL) -> float:
        """A batch on every thread, all at once, and the other slots touched, so that all memory is taken: with hundreds
        of classes the outputs of slots that were never used would be missing from what is measured. Windows that the
        run infers anyway stay answered; where it has fewer than there are threads, no others are inferred."""
        most = min(self.slots, self.setup.threads)
        ahead = trial.ahead(self.setup.window, most) if self.setup.batch == 1 else ()
        cut = () if ahead else trial.cut(self.setup.window)
        busy = range(len(ahead) or most)
        looked_at = list(busy[: len(cut)])
        for slot in range(self.slots):
            self.input(slot)[...] = cut[slot % len(cut)] if cut else 0
        for slot, window in enumerate(ahead):
            if window.cut(self.input(slot)[0]) and window.looked_at:
                looked_at.append(slot)
        begun = self.warmed = time.perf_counter()
        for slot in busy:
            self.start(slot)
        for slot in busy:
            self.result(slot)
        seconds = (time.perf_counter() - begun) / (len(busy) * self.setup.batch)
        for slot in looked_at:
            trial.look(self.result(slot)[0])
        for slot in range(len(busy), self.slots):
            self.touch(slot)
        self.answered, self._warm = {slot: hash_of(self.input(slot)) for slot in range(len(ahead))}, len(busy)
        return seconds

    def infer(self, batch: Array) -> Array:
        """One batch in, one out, copied: for warming up, probing and tests."""
        self.take_answered()
        self.input(0)[...] = batch
        self.start(0)
        return np.array(self.result(0))

    def look_at(self, trial: Trial) -> None:
        """Have the trial's windows looked at, in all slots at once: one after the other would leave threads idle."""
        self.take_answered()
        windows = list(trial.cut(self.setup.window))
        while windows:
            together, windows = windows[: self.slots], windows[self.slots :]
            for slot, window in enumerate(together):
                self.input(slot)[...] = window
                self.start(slot)
            for slot in range(len(together)):
                trial.look(self.result(slot)[0])

    def _refuse_precision(self, *supported: str) -> None:
        if self.setup.precision not in supported:
            raise BackendError(
                f"{self.name} on {self.setup.device} does not run {self.setup.precision} here; use --precision "
                f"{' or '.join(supported)}"
            )

    def _check_output(self, shape: tuple[int, ...]) -> None:
        check_output(self.setup, shape)


def hand_over(old: Network, new: Network) -> None:
    """Let a network that takes the place of another one have what that one knows, where it would give the same."""
    one_by_one = old.setup.window_threads == new.setup.window_threads and old.setup.batch == new.setup.batch
    if isinstance(old, Backend) and isinstance(new, Backend) and old is not new and one_by_one:
        new.known = old.take_known()


def slots_for(threads: int) -> int:
    """Slots for so many windows at once. Windows are added in their order, however long each takes: with two to spare
    64 threads would wait for the slowest a tenth of the time, where windows differ by a tenth in theirs
    (`benchmarks/many_cores.py`)."""
    return threads + max(2, -(-threads // 4))


def hash_of(batch: Array) -> bytes:
    """Tells inputs apart, bit by bit."""
    return hashlib.blake2b(batch.reshape(-1).data).digest()


def check_output(setup: Setup, shape: tuple[int, ...]) -> None:
    """Raises `ModelError` where the network's output is not what its spec says."""
    if shape != setup.output_shape:
        raise ModelError(
            f"{setup.model.path}: the network gives {times(shape)} for windows of {times(setup.window)}, and "
            f"{times(setup.output_shape)} were said of it (channels first); correct channels_out or margin where they are said"
        )


class ThreadedBackend(Backend):
    """For libraries that only infer synchronously: `threads` calls run at once, each on a thread of its own, which stays
    on one NUMA node where there are several: what it computes in then lies there."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.slots = slots_for(setup.threads)
        self._inputs = [np.zeros(setup.input_shape, np.float32) for _ in range(self.slots)]
        self._futures: list[Future[Array] | None] = [None] * self.slots
        self._pool = ThreadPoolExecutor(setup.threads, thread_name_prefix="infer", initializer=self._begin_thread)
        self._begun = itertools.count()

    def _begin_thread(self) -> None:
        if len(cores.nodes()) > 1:
            cores.keep_thread_on(cores.node_of(next(self._begun) % self.setup.threads, self.setup.threads))
        self._thread_setup()

    def _thread_setup(self) -> None:
        """Runs once on every inference thread."""

    @abstractmethod
    def _run(self, slot: int) -> Array:
        """Infer a slot and return its output; called on an inference thread."""

    def input(self, slot: int) -> Array:
        return self._inputs[slot]

    def start(self, slot: int) -> None:
        self._futures[slot] = self._pool.submit(self._run, slot)

    def result(self, slot: int) -> Array:
        future = self._futures[slot]
        if future is None:
            raise BackendError(f"slot {slot} was not started")
        try:
            return future.result()
        except (BackendError, ModelError):
            raise
        except Exception as error:
            raise BackendError(f"{self.name} failed on a window: {first_line(error)}; {ANOTHER}") from error

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
