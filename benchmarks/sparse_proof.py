"""How often `--coarse auto` proves what is wrong: made volumes of which a little more is missed than is to be proved.

    python benchmarks/sparse_proof.py [--volumes 1000] [--target 0.005] [--regions 1331] [--json FILE]

Each volume is regions of 216 cells, of which about one in nine has foreground, in clumps: cells inside are full, those at
borders hold less. Cells are missed in a random order until the foreground in them is more than ``--target`` of all, and
then everything is done as by a run, from drawing regions to the second look. At most 5 % may be taken for proved where
cells are missed one by one; what comes of misses that hang together stands beside it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unet_engine.prepare import coarse_sample
from unet_engine.prepare.missed import Region
from unet_engine.units import silent

Cells = npt.NDArray[np.int64]
FULL = 512
"""Voxels of a cell."""
SURE = 300
"""Score of what is not missed."""


class Made(coarse_sample.Sample):
    """Regions whose cells are known."""

    def __init__(self, regions: list[Region]) -> None:
        super().__init__(None, None, regions, None, (), 0, np.zeros(1, np.uint16))  # type: ignore[arg-type]

    def take(self, count: int) -> None:
        self.found += self.boxes[len(self.found) : len(self.found) + count]  # type: ignore[arg-type]


def foreground(rng: np.random.Generator, regions: int) -> list[Cells]:
    """Voxels of the cells with foreground of each region."""
    counts = np.where(rng.random(regions) < 1 / 9, rng.integers(1, 217, regions), 0)
    cells = rng.integers(1, FULL, counts.sum())
    cells[rng.random(len(cells)) < 0.7] = FULL
    return np.split(cells, np.cumsum(counts)[:-1])


def one_by_one(rng: np.random.Generator, cells: Cells) -> Cells:
    return rng.permutation(len(cells))


def by_foreground(rng: np.random.Generator, cells: Cells) -> Cells:
    """Each as likely as it is full."""
    return np.argsort(rng.exponential(size=len(cells)) / cells)


def full_ones(rng: np.random.Generator, cells: Cells) -> Cells:
    """Those that are full before all others."""
    return np.argsort(rng.random(len(cells)) - (cells == FULL))


def together(count: int) -> Callable[[np.random.Generator, Cells], Cells]:
    """So many neighbours at once."""

    def order(rng: np.random.Generator, cells: Cells) -> Cells:
        group = np.arange(len(cells)) // count
        return np.argsort(rng.permutation(group[-1] + 1)[group], kind="stable")

    return order


KINDS: dict[str, Callable[[np.random.Generator, Cells], Cells]] = {
    "one by one": one_by_one,
    "as likely as they are full": by_foreground,
    "full ones alone": full_ones,
    "4 neighbours at once": together(4),
    "27 neighbours at once": together(27),
}


def volume(rng: np.random.Generator, regions: int, target: float, kind: str) -> list[Region]:
    """Its regions, in an order as drawn."""
    there = foreground(rng, regions)
    cells = np.concatenate(there)
    order = KINDS[kind](rng, cells)
    missed = order[: int(np.searchsorted(np.cumsum(cells[order]), target * cells.sum(), "right")) + 1]
    scores = np.full(len(cells), SURE, np.int64)
    scores[missed] = 0
    ends = np.cumsum([len(c) for c in there])[:-1]
    found = [Region(v, s) for v, s in zip(there, np.split(scores, ends), strict=True)]
    return [found[i] for i in rng.permutation(regions)]


def wrong(rng: np.random.Generator, regions: int, target: float, kind: str) -> tuple[bool, int]:
    """Whether a rate above the target is taken for proved, and by how many regions."""
    sample = Made(volume(rng, regions, target, kind))
    rated = coarse_sample.proved(sample, target, 12.0, 1.0, silent)[1]
    return rated.bound <= target, len(sample.found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=1000)
    parser.add_argument("--target", type=float, default=0.005)
    parser.add_argument("--regions", type=int, default=1331)
    parser.add_argument("--json")
    args = parser.parse_args()
    rows = {}
    print("| cells are missed | taken for proved | regions, median |\n|---|---|---|")
    for kind in KINDS:
        rng = np.random.default_rng(0)
        found = [wrong(rng, args.regions, args.target, kind) for _ in range(args.volumes)]
        rows[kind] = {
            "wrong": float(np.mean([w for w, _ in found])),
            "regions": float(np.median([n for _, n in found])),
        }
        print(f"| {kind} | {rows[kind]['wrong']:.1%} | {rows[kind]['regions']:.0f} |", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps({**vars(args), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
