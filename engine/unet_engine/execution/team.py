"""The protocol of who does a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from unet_engine.backends.base import Network
from unet_engine.execution.hands import Hands
from unet_engine.pipeline.job import Counters
from unet_engine.plan.plan import Index
from unet_engine.prepare.prepare import Prepared
from unet_engine.profiling.stages import Snapshot

Pending = Callable[[Index], bool]
"""Whether a block is still to be committed."""


class Team(Protocol):
    """Plans a run where it will be done, does it, and tells how far it is."""

    @property
    def dashboard(self) -> str | None: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def prepare(self) -> Prepared:
        """Everything up to the first block. Raises before the network is loaded where the output may not be written."""

    def ahead(self) -> None:
        """The output is about to be opened, and then blocks are read: what can be fetched for that meanwhile, is."""

    def execute(self, prepared: Prepared, pending: Pending) -> None:
        """Predict and commit every pending block, and look once more whether what was read is still there. The first
        error ends it; what is committed stays."""

    def counters(self) -> Counters: ...

    def detail(self) -> str:
        """More about the progress, for people; may be empty."""

    def profile(self) -> dict[str, Snapshot]:
        """Where the time of each worker went; empty where the run is not profiled."""

    def hands(self) -> Hands:
        """The same, for passes over what was written."""

    def facts(self) -> dict[str, Any]:
        """What the summary of the run says about who did it: fields of `unet_engine.api.Result`."""

    def give(self) -> Network | None:
        """The network of the run, which is over: who takes it closes it. None where it is on other machines, or another
        volume's next."""

    def close(self) -> None:
        """Give back what is open for this run alone."""
