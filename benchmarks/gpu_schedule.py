"""What share of a run on a GPU is the network, by the clocks of `gpu_clocks.py`: on the planner's own blocks, with
bandwidths and costs that are given. A model, no measurement.

    python benchmarks/gpu_schedule.py

``before`` is what the pipeline was: all halos through the host, up and down on one stream, and pinned memory locked where
blocks are queued.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from gpu_clocks import Costs, Shares, Way, shares_of
from gpu_counts import CLASSES, plan_of

from unet_engine.plan.memory import READERS
from unet_engine.plan.sizing import default_block, default_chunk

H200 = Costs()

BEFORE = Way(own_streams=False, locked_ahead=False, kept=False)
THROUGH_HOST, AFTER = Way(kept=False), Way()
STEADY_BEFORE = Way(own_streams=False, locked_before=True, kept=False)
STEADY_THROUGH_HOST, STEADY = Way(locked_before=True, kept=False), Way(locked_before=True)
WAYS = (BEFORE, THROUGH_HOST, AFTER, STEADY_BEFORE, STEADY_THROUGH_HOST, STEADY)


def share(classes: int, way: Way, costs: Costs = H200, block: tuple[int, ...] | None = None) -> float:
    return shares(classes, way, costs, block).whole


def shares(classes: int, way: Way, costs: Costs = H200, block: tuple[int, ...] | None = None) -> Shares:
    """Of a run. block: windows of a block; the planner's own where none is given."""
    plan = plan_of(classes)
    if block is not None:
        plan = replace(plan, block=block, chunk=default_chunk(plan.axes, block))
    return shares_of(plan, classes, way, costs)


def table(costs: Costs = H200) -> str:
    lines = [
        "| classes | whole run, before | halos through the host | whole run | once all is locked, before | "
        "halos through the host | once all is locked |",
        "|" + "---|" * (1 + len(WAYS)),
    ]
    for classes in CLASSES:
        cells = [f"{share(classes, way, costs):.2f}" for way in WAYS]
        lines.append(f"| {classes} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


BLOCKS, ROOMS = ((1, 1, 1), (1, 1, 2), (1, 2, 2), (2, 2, 2)), (141, 48, 24)
"""Windows of a block; GB of device memory."""


def block_table(costs: Costs = H200) -> str:
    """Of 104 classes, for blocks of more windows than the planner's own single one."""
    lines = [
        "| windows a block | " + " | ".join(f"{room} GB: whole run, once all is locked" for room in ROOMS) + " |",
        "|" + "---|" * (1 + len(ROOMS)),
    ]
    for block in BLOCKS:
        cells = [
            ", ".join(f"{share(104, way, replace(costs, room=room * 10**9), block):.2f}" for way in (AFTER, STEADY))
            for room in ROOMS
        ]
        lines.append(f"| {prod(block)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


MEASURED = {3: 216.0, 16: 209.0, 104: 187.0}
"""Windows per second of the bare network on an H200, by classes."""
READING = Costs(decode=0.7e9, decode_all=16 * 0.86e9)
"""As one reading thread seems to have been on that machine: 2.9 GB in 3.6 s beside a network, and runs of many classes that
waited for nothing else. 16 cores, and what one decodes (`gpu_counts.py --decode`)."""


def reading_table(costs: Costs = READING) -> str:
    """With one reading thread and the blocks that were measured, with a GPU's blocks, and with several blocks read at
    once."""
    lines = [
        f"| classes | measured | one block read at a time, a CPU's blocks | a GPU's blocks | {READERS} blocks at a time |",
        "|---|---|---|---|---|",
    ]
    for classes, rate in MEASURED.items():
        cost, one = replace(costs, windows_per_second=rate), replace(AFTER, readers=1)
        found = (
            shares(classes, one, cost, default_block(plan_of(classes).axes, classes)), shares(classes, one, cost),
            shares(classes, AFTER, cost),
        )  # fmt: skip
        cells = [f"{one.whole:.2f}, {one.middle:.2f}" for one in found]
        lines.append(f"| {classes} | {SEEN[classes]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


SEEN = {3: "0.83, 0.80 to 0.91", 16: "0.47, 0.48", 104: "0.26, 0.27"}
"""Whole run and middle of it, as measured on the H200 with blocks of a CPU and one reading thread."""


if __name__ == "__main__":
    print(table())
    print(reading_table())
    print(block_table())
