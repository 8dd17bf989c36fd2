"""How good is what ``unet-engine bench`` chooses? Its search against an exhaustive sweep of the same configurations, in
the same run.

    python benchmarks/bench_search.py [--model net.onnx] [--shape Z,Y,X] [--backend openvino] [--precision fp32]
        [--batches 1,4] [--every 2] [--rounds 3] [--searches 3] [--seconds 30] [--finals 7] [--json FILE] [--quick]

The sweep measures every window between half and twice the model's own that has about its shape (each ``--every``-th of
them), with every batch, one measurement of each per round; between its rounds the search runs, with the time that
`bench` would give it. The best of many noisy medians is partly the luckiest, so the three best of the sweep and all
choices meet again, in ``--finals`` rounds of their own: ratio = voxels per second of the choice ÷ those of the best
there, medians of these rounds alone. The noise of the method: the same for the best of the first round of the sweep.
Batches that a run cannot use, above 1 on a CPU, are measured and told, but are no choice.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from unet_engine.commands.bench.command import PLANE
from unet_engine.commands.bench.meter import Meter
from unet_engine.commands.bench.offer import Wanted, groups, runnable, setup_of
from unet_engine.commands.bench.search import Space, search
from unet_engine.commands.bench.space import Configuration, Field
from unet_engine.commands.bench.sweep import BARE_SHARE
from unet_engine.commands.demo import SHAPE
from unet_engine.model.file import open_model
from unet_engine.model.shipped import shipped_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the demo models, 3D and 2D")
    parser.add_argument("--shape", help="of the volume windows are counted on; default: that of bench")
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--batches", default="1,4")
    parser.add_argument("--every", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--searches", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--finals", type=int, default=7)
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true", help="a few windows, one round, one search")
    args = parser.parse_args()
    if args.quick:
        args.every, args.rounds, args.searches, args.seconds, args.batches, args.finals = 40, 1, 1, 8, "1", 1
        args.model = args.model or str(shipped_model("cells_2d.onnx"))
    models = [args.model] if args.model else [str(shipped_model(f"cells_{n}d.onnx")) for n in (3, 2)]
    results = [_compare(model, args) for model in models]
    for found in results:
        ratios = found["ratios"]
        print(
            f"{found['model']}: {found['configurations']} configurations, best {found['best']}; chosen ÷ best "
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) in {len(ratios)} searches of "
            f"{args.seconds:g} s, {statistics.median(found['measurements']):.0f} measurements each; by one round of "
            f"the sweep {found['one_round']:.3f}; batches, bare: {found['batches']:.3f}"
        )
        print(f"  chosen: {', '.join(found['chosen'])}")
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")


def _compare(path: str, args: argparse.Namespace) -> dict[str, Any]:
    model = open_model(path)
    planes = len(model.spec.axes) == 2
    shape = tuple(map(int, args.shape.split(","))) if args.shape else _demo_shape(planes)
    where = Field(model.spec, shape)
    wanted = Wanted(("cpu",), (args.backend,), (args.precision,))
    batches = tuple(map(int, args.batches.split(",")))
    windows = dict.fromkeys([*where.ladder(), *where.finer()[:: args.every]])
    space = Space(groups(model, wanted), where.ladder(), batches, lambda _: True)
    everything = [Configuration(space.groups[0], w, b) for w in windows for b in batches]
    samples: dict[Configuration, list[float]] = {}
    chosen, measurements = [], []
    with Meter(lambda c: setup_of(model, wanted, c), least_rate=0.0) as meter:
        for turn in range(max(args.rounds, args.searches)):
            for candidate in everything if turn < args.rounds else []:
                if rate := meter(candidate):
                    samples.setdefault(candidate, []).append(rate)
            if turn < args.searches:
                choice, count = _searched(model, wanted, where, space, args.seconds)
                chosen.append(choice)
                measurements.append(count)
        worth = {c: where.rate(c.window, statistics.median(rates)) for c, rates in samples.items()}
        usable = sorted(filter(runnable, worth), key=lambda c: -worth[c])
        first = max(usable, key=lambda c: where.rate(c.window, samples[c][0]))
        again: dict[Configuration, list[float]] = {c: [] for c in dict.fromkeys([*usable[:3], first, *chosen])}
        for _ in range(args.finals):
            for candidate, rates in again.items():
                if rate := meter(candidate):
                    rates.append(rate)
    final = {c: where.rate(c.window, statistics.median(rates)) for c, rates in again.items() if rates}
    best = max(final, key=lambda c: final[c])
    return {
        "model": model.spec.name,
        "shape": list(shape),
        "configurations": len(everything),
        "best": str(best),
        "chosen": [str(c) for c in chosen],
        "ratios": [final[c] / final[best] for c in chosen],
        "one_round": final[first] / final[best],
        "batches": max(worth.values()) / worth[usable[0]],
        "finals": {str(c): v for c, v in sorted(final.items(), key=lambda item: -item[1])},
        "measurements": measurements,
        "voxels_per_second": {str(c): v for c, v in sorted(worth.items(), key=lambda item: -item[1])},
    }


def _searched(model: Any, wanted: Wanted, where: Field, space: Space, seconds: float) -> tuple[Configuration, int]:
    """What the search chooses with processes of its own, and how often it measured."""
    begun = time.perf_counter()
    with Meter(lambda c: setup_of(model, wanted, c), least_rate=0.0) as meter:
        found = search(space, where, meter, lambda: time.perf_counter() - begun > BARE_SHARE * seconds, meter.load)
    return next(filter(runnable, found.best())), sum(map(len, found.samples.values()))


def _demo_shape(planes: bool) -> tuple[int, ...]:  # noqa: FBT001
    from unet_engine.commands.bench.command import MIRRORED

    own = PLANE[1:] if planes else SHAPE
    return tuple(n * MIRRORED[len(own)] for n in own)


if __name__ == "__main__":
    main()
