"""What is open already where a run is prepared, in place of what its settings name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from unet_engine.backends.base import Network, Setup
from unet_engine.model.file import ModelFile
from unet_engine.volumes.base import Volume


@dataclass(frozen=True)
class Ready:
    """A network that an earlier run of this process has loaded, and what was measured then."""

    library: str
    wanted: Setup
    """What it was opened for."""
    per_block: int
    """Windows of a block, where several go into a batch; else 0."""
    network: Network
    seconds: float
    """Of one window."""
    base: int = 0
    """Bytes of the process with the network, before the first block."""
    budget: int = 0
    """Bytes that the process may take; 0: neither was measured yet."""
    discard: Callable[[], None] = lambda: None
    """Waits until nothing uses it, and closes it."""

    def fits(self, library: str, wanted: Setup, per_block: int, windows: int) -> bool:
        """Whether it is what such a run of so many windows would open."""
        enough = self.network.warm >= min(wanted.threads, windows)  # else its memory is not known
        return enough and (self.library, self.wanted, self.per_block) == (library, wanted, per_block)


@dataclass(frozen=True)
class Given:
    """Each None where the settings say it."""

    volume: Volume | None = None
    model: ModelFile | None = None
    """As `open_model` gives it, with the outputs and networks that the settings ask for."""
    ready: Ready | None = None
    hold: int = 0
    """Bytes that the volume may take where it is held in memory: see `Volume.hold`. One that is given is left alone."""


NOTHING = Given()
