"""What a worker asks of the place where windows are cut, inferred, added and finished. The host's and the GPU's are
siblings behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from unet_engine.backends.base import Array
from unet_engine.pipeline.job import Halo, Raw
from unet_engine.plan.box import Box
from unet_engine.plan.plan import Index, Task

Work = Iterable[tuple[Task, Raw | None] | None]
"""Tasks with the voxels of ``task.read``, or None where nothing is stored there. A None among them means that none is
to be had right now: all that is under way is then waited for and yielded."""

BLOCKS_IN_FLIGHT = 1
"""Blocks whose last windows may still be in the network of a GPU while the next block is begun; more would only cost
memory. On the host it is what the plan says, see `unet_engine.plan.memory.under_way`."""

Core = Any
"""A block's own sums in the box `Block.core`, wherever the pipeline keeps them; an array (channels out, *core.shape)
float32 on the host."""


class Predicted(Protocol):
    """The sums of one block."""

    @property
    def task(self) -> Task: ...

    def inside(self, box: Box) -> Core:
        """The sums in the core `box`, where they lie; `Pipeline.finish` uses them up."""

    def halos(self) -> Iterator[tuple[Index, Halo]]:
        """The block each halo goes to, and the halo: on the host, perhaps as a view of the sums."""

    def detached(self) -> Predicted:
        """The same with nothing left on a device."""


class Pipeline(Protocol):
    """`predict` runs on one thread; `pin` and `finish` may run on others."""

    def pin(self, raw: Raw) -> Raw:
        """The same voxels where windows are best cut from; called by whoever reads, off the predicting thread."""

    def predict(self, work: Work) -> Iterator[Predicted]:
        """Infer the windows of each task and add them up; yields the blocks in the order they came.

        Raises `BackendError` naming the block where the network or its device fails.
        """

    def finish(self, task: Task, core: Core, halos: Sequence[Halo]) -> tuple[Array, bool]:
        """Add `halos` from the highest lower block down (one order, the same bytes) and reduce: the voxels to be
        written, and whether all sums were finite."""

    def close(self) -> None:
        """Wait for what is under way and give back all memory. The network stays open."""
