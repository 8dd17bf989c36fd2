"""Opening a network for a run where its windows are cut and added: on the host, or on the device that computes.

A place (`place_of`) answers what depends on that, so that nobody else asks which kind a device is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from unet_engine import machine
from unet_engine.backends.base import NO_TRIAL, Backend, Network, Setup, Trial
from unet_engine.backends.device import DeviceBackend
from unet_engine.backends.ensemble import Averaged, opened
from unet_engine.backends.host_ring import HostRing
from unet_engine.backends.libraries import open_backend, open_on_device
from unet_engine.backends.out_of_memory import is_out_of_memory
from unet_engine.devices.opening import SIMULATED, is_gpu, is_pipelined, missing, unreachable
from unet_engine.errors import BackendError, PlanError, first_line
from unet_engine.model.onnx_network import largest_batch
from unet_engine.plan.device_memory import default_batch
from unet_engine.units import Tell, times


@dataclass(frozen=True)
class Wanted:
    """What a network is opened for."""

    windows: int
    """Windows in a block of the plan, which batches divide."""
    most: int | None = None
    """Windows in a batch, at most; None: as many as are worth it."""
    tell: Tell | None = None
    """Told where a smaller window is taken for want of memory; None where the user chose the window, which then
    stays."""
    trial: Trial = NO_TRIAL
    """What it is warmed up with."""
    opened: Callable[[], object] = lambda: None
    """Called when it is loaded, and not yet warm."""


class Place(Protocol):
    """Where windows are cut, inferred and added."""

    @property
    def takes_batches(self) -> bool:
        """Whether several windows are inferred at once."""

    @property
    def note(self) -> str:
        """What the user should know of it; may be empty."""

    def threads(self, asked: int | None, each: int = 1) -> int:
        """Windows that are started at the same time, where the user asked for so many, with so many threads each."""

    def open(self, library: str, setup: Setup) -> Network:
        """The network as `setup` says. Raises `BackendError` or `ModelError` where the library refuses it."""

    def open_fitting(self, library: str, setup: Setup, wanted: Wanted) -> tuple[Network, float]:
        """The network with the largest batch there is memory for, warm, and its seconds per window.

        Raises `PlanError` with the figures where not even one window fits.
        """


@dataclass(frozen=True)
class OnHost:
    """Windows lie in the memory of the host, whatever computes the network."""

    device: str
    takes_batches: bool = False

    @property
    def note(self) -> str:
        lacking = missing() if is_gpu(self.device) else ""
        return f"windows are cut and stitched on the CPU: {lacking}" if lacking else ""

    def threads(self, asked: int | None, each: int = 1) -> int:
        return 1 if is_gpu(self.device) else asked or max(1, machine.cpu_count() // each)

    def open(self, library: str, setup: Setup) -> Network:
        return opened(setup, lambda member, _: open_backend(library, member))

    def open_fitting(self, library: str, setup: Setup, wanted: Wanted) -> tuple[Network, float]:
        network = self.open(library, setup)
        wanted.opened()
        return network, network.warm_up(wanted.trial)


@dataclass(frozen=True)
class OnDevice:
    """Windows never leave the device between the raw voxels and the finished ones."""

    device: str
    takes_batches: bool = True
    note: str = ""

    def threads(self, asked: int | None, each: int = 1) -> int:
        return 1

    def open(self, library: str, setup: Setup) -> Network:
        def beside(member: Setup, others: list[DeviceBackend]) -> DeviceBackend:
            return open_on_device(library, member, others[0] if others else None)

        return opened(setup, beside)

    def open_fitting(self, library: str, setup: Setup, wanted: Wanted) -> tuple[Network, float]:
        limits = [most for model in setup.model.networks if (most := largest_batch(model))]
        wanted = replace(wanted, most=min(limits, default=wanted.most))
        setup = replace(setup, batch=default_batch(setup.window, wanted.windows, wanted.most))
        while True:
            network: Network | None = None
            try:
                network = self.open(library, setup)
                wanted.opened()
                return network, network.warm_up(wanted.trial)
            except Exception as error:
                if network:
                    network.close()
                if not is_out_of_memory(error):
                    raise
                setup = _smaller(setup, wanted, first_line(error))


def _smaller(setup: Setup, wanted: Wanted, said: str) -> Setup:
    """Half the batch; of one window, the next smaller window where the user did not choose it. Raises `PlanError`."""
    if setup.batch > 1:
        return replace(setup, batch=-(-setup.batch // 2))
    window = setup.model.spec.smaller_window(setup.window) if wanted.tell else None
    if wanted.tell is None or window is None:
        raise PlanError(
            f"one window of {times(setup.window)} does not fit the memory of {setup.device} ({said}); use a smaller "
            "--window, another --precision, or another --device"
        )
    wanted.tell(
        f"windows of {times(setup.window)} do not fit the memory of {setup.device}: running with {times(window)}"
    )
    return replace(setup, window=window, batch=default_batch(window, wanted.windows, wanted.most))


def place_of(device: str) -> Place:
    """The place that runs go through on the device called ``cpu``, ``cuda:N`` or ``simulated``.

    Raises `BackendError` where a GPU cannot be used here at all.
    """
    if device != SIMULATED and is_gpu(device) and (lacking := unreachable()):
        raise BackendError(f"{device}: {lacking}, or use --device cpu")
    return OnDevice(device) if is_pipelined(device) else OnHost(device)


@contextmanager
def as_host(network: Network) -> Iterator[Backend]:
    """The network with slots on the host, whichever place it was opened for: for single windows, asked one by one. It
    stays open."""
    if len(network.members) > 1:
        with ExitStack() as stack:
            yield Averaged(network.setup, [stack.enter_context(as_host(member)) for member in network.members])
        return
    if isinstance(network, DeviceBackend):
        ring = HostRing(network, slots=1)  # each slot takes memory of the device
        try:
            yield ring
        finally:
            ring.leave()
        return
    assert isinstance(network, Backend)
    network.take_answered()
    yield network


def open_network(library: str, setup: Setup) -> Network:
    """The network on the device that `setup` names."""
    return place_of(setup.device).open(library, setup)
