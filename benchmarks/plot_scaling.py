"""Plots of `scaling.py` for docs/scaling.md: overhead and cores against workers, memory over a whole run.

python benchmarks/plot_scaling.py benchmarks/results/scaling.json benchmarks/results/scaling_whole.json
docs/images/scaling.png
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot


def main(points_file: str, whole_file: str, picture: str) -> None:
    points = json.loads(Path(points_file).read_text())
    counts = sorted({p["workers"] for p in points})
    by_count = {n: [p for p in points if p["workers"] == n] for n in counts}
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(14, 4))
    _speedup(left, counts, by_count)
    _overhead(middle, counts, by_count)
    _memory(right, json.loads(Path(whole_file).read_text()))
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


def _speedup(axes, counts, by_count) -> None:
    rate = {n: statistics.median(p["windows_per_second"] for p in by_count[n]) for n in counts}
    one = 1 / 0.0023
    axes.loglog(counts, [n * one for n in counts], "--", color="grey", label="ideal: workers / 2.3 ms")
    axes.loglog(counts, [rate[n] for n in counts], "o-", label="measured")
    axes.set(xlabel="workers", ylabel="windows/s", title="throughput")
    axes.set_xticks(counts, map(str, counts))
    axes.legend()


def _overhead(axes, counts, by_count) -> None:
    for n in counts:
        axes.plot([n] * len(by_count[n]), [100 * p["overhead"] for p in by_count[n]], "o", color="tab:blue")
    axes.plot(counts, [100 * statistics.median(p["overhead"] for p in by_count[n]) for n in counts], color="tab:blue")
    axes.axhline(3, color="tab:red", ls=":", label="3 %")
    axes.set(xscale="log", xlabel="workers", ylabel="wall over ideal time, minus 1, in %", title="overhead")
    axes.set_xticks(counts, map(str, counts))
    axes.legend()


def _memory(axes, whole) -> None:
    for point, style in zip(whole, ("-", "--", ":"), strict=False):
        done = [100 * row["windows"] / point["windows"] for row in point["rows"]]
        for name, colour in (("scheduler", "tab:blue"), ("client", "tab:orange")):
            mebibytes = [row[f"{name}_bytes"] / 2**20 for row in point["rows"]]
            axes.plot(done, mebibytes, style, color=colour, label=f"{name}, {point['workers']} workers")
    axes.set(xlabel="% of 103,823 blocks", ylabel="resident MiB", title="memory over a whole run", ylim=(0, None))
    axes.legend()


if __name__ == "__main__":
    main(*sys.argv[1:])
