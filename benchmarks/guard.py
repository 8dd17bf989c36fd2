"""Whether the engine has become slower: a small set of ratios, each taken within one round, against those stored
earlier.

    python benchmarks/guard.py [--baseline FILE] [--record] [--quick]

Stitching against NumPy, and the whole of a run (without its start) against the bare network, in 3D and 2D. Every round
measures both sides of every ratio, so that a busy neighbour slows both. The noise of a ratio is the spread of its
rounds. It fails where the upper quartile of the rounds is below the lower quartile of the baseline's, and is so again
when measured a second time; then the exit code is 1. On a machine whose baseline is not stored, ratios must reach
`FLOOR`. ``--record`` adds what was measured to this machine's baseline: best more than once, at different hours. Under
two minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import unet_engine
from unet_engine import machine
from unet_engine.api import run_volume
from unet_engine.execution.choose import team
from unet_engine.model.file import open_model
from unet_engine.settings.settings import Settings
from unet_engine.stitching import operations, reference

BASELINE = Path(__file__).parent / "results" / "guard.json"
MODELS = Path(unet_engine.__file__).parent / "models"
ROUNDS, CALLS = 7, 25
LEAST_NOISE = {"add": 0.15, "gather": 0.15, "labels": 0.15, "3D": 0.03, "2D": 0.03}
"""Part of a ratio that is always allowed for: so much the same code moves from hour to hour. What neighbours do to
caches and memory tells on stitching, which is less than a hundredth of a run."""
SESSIONS = 5
"""Recordings whose rounds are kept, so that a baseline has the noise between hours in it."""
FLOOR = {"add": 1.5, "gather": 4.0, "labels": 3.0, "3D": 0.8, "2D": 0.6}
"""What every machine should reach. Efficiency is without the start of the process, on volumes of seconds."""


@dataclass(frozen=True)
class Pair:
    """Two ways to do the same: the ratio is seconds of the second over seconds of the first, so more is better."""

    name: str
    ours: Callable[[], float]
    theirs: Callable[[], float]
    """Each does the work once and returns the seconds it took."""
    times: int = 1
    """How often both take turns in a round; their medians are compared."""

    def ratio(self) -> float:
        turns = [(self.ours(), self.theirs()) for _ in range(self.times)]
        ours, theirs = (statistics.median(seconds) for seconds in zip(*turns, strict=True))
        return theirs / ours


@dataclass(frozen=True)
class Ratio:
    """Quartiles of the rounds."""

    low: float
    median: float
    high: float
    rounds: tuple[float, ...]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, default=BASELINE)
    parser.add_argument("--record", action="store_true", help="add the rounds to this machine's baseline")
    parser.add_argument("--quick", action="store_true", help="one small volume and fewer rounds: does it run at all")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        pairs = _pairs(Path(folder), quick=args.quick)
        rounds = 3 if args.quick else ROUNDS
        found = measure(pairs, rounds)
        stored = json.loads(args.baseline.read_text()) if args.baseline.exists() else {}
        known = stored.get(_machine())
        if args.record:
            stored[_machine()] = {
                name: vars(_merged(ratio, (known or {}).get(name), rounds)) for name, ratio in found.items()
            }
            args.baseline.write_text(json.dumps(stored, indent=1) + "\n")
            known = None
        fallen = [pair for pair in pairs if not holds(pair.name, found[pair.name], known)]
        if fallen:
            again = measure(fallen, rounds)
            fallen = [pair for pair in fallen if not holds(pair.name, again[pair.name], known)]
            found |= again
    _print(found, known, {pair.name for pair in fallen})
    return 1 if fallen and not args.record else 0


def measure(pairs: list[Pair], rounds: int) -> dict[str, Ratio]:
    """The ratios, every pair once in each round; one round more goes first and is thrown away."""
    taken: dict[str, list[float]] = {pair.name: [] for pair in pairs}
    for number in range(rounds + 1):
        for pair in pairs:
            ratio = pair.ratio()
            if number:
                taken[pair.name].append(ratio)
    return {name: _quartered(values) for name, values in taken.items()}


def _quartered(rounds: list[float]) -> Ratio:
    return Ratio(*statistics.quantiles(rounds, n=4, method="inclusive"), tuple(rounds))


def _merged(ratio: Ratio, before: dict[str, Any] | None, rounds: int) -> Ratio:
    """The rounds of this recording and of the last ones before it."""
    return _quartered([*(before["rounds"] if before else ()), *ratio.rounds][-SESSIONS * rounds :])


def least(name: str, known: dict[str, Any] | None) -> float:
    """What the upper quartile of a ratio must reach."""
    return (1 - LEAST_NOISE[name]) * known[name]["low"] if known and name in known else FLOOR[name]


def holds(name: str, ratio: Ratio, known: dict[str, Any] | None) -> bool:
    return ratio.high >= least(name, known)


# --- what is compared ---


def _pairs(root: Path, *, quick: bool) -> list[Pair]:
    pairs = _stitching(32 if quick else 64)
    runs = {"3D": ("cells_3d.onnx", (128, 160, 160)), "2D": ("cells_2d.onnx", (12, 512, 512))}
    if quick:
        runs = {"3D": ("cells_3d.onnx", (64, 96, 96))}
    for name, (model, shape) in runs.items():
        run = _Run(str(MODELS / model), _volume(root / f"{name}.zarr", shape), str(root / f"{name}-out.zarr"))
        pairs.append(Pair(name, run.engine, run.bare))
    return pairs


def _timed(work: Callable[[], object]) -> Callable[[], float]:
    def measured() -> float:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    return measured


def _stitching(side: int) -> list[Pair]:
    """The functions a window passes, native against NumPy, on one thread."""
    rng = np.random.default_rng(0)
    window = (side,) * 3
    sums = rng.normal(size=(2, *(n + n // 2 for n in window))).astype(np.float32)
    inner = sums[(slice(None), *(slice(0, n) for n in window))]
    part = rng.normal(size=(2, *window)).astype(np.float32)
    weights = tuple((rng.random(n) * 1e-3).astype(np.float32) for n in window)
    raw = rng.integers(0, 60000, (1, *window)).astype(np.uint16)
    index = tuple(np.arange(n) for n in window)
    place = ((0,) * 3, (0,) * 3, window)
    cut, labels = np.zeros((1, *window), np.float32), np.zeros(window, np.uint8)
    scale, shift = np.full(1, 1e-3), np.full(1, 500.0)
    return [
        Pair(
            "add",
            _timed(lambda: operations.add(inner, part, weights, *place)),
            _timed(lambda: reference.add(inner, part, weights, *place)),
            CALLS,
        ),
        Pair(
            "gather",
            _timed(lambda: operations.gather(cut, raw, index, scale, shift, 0)),
            _timed(lambda: reference.gather(cut, raw, index, scale, shift, 0)),
            CALLS,
        ),
        Pair(
            "labels",
            _timed(lambda: operations.labels(part, labels, "softmax")),
            _timed(lambda: reference.labels(part, labels, above=None)),
            CALLS,
        ),
    ]


def _volume(path: Path, shape: tuple[int, ...]) -> str:
    import zarr

    noise = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    zarr.create_array(str(path), data=noise, chunks=tuple(min(64, n) for n in shape), dimension_names=list("zyx"))
    return str(path)


class _Run:
    """A run of the engine over a volume, and the bare network on as many windows."""

    def __init__(self, model: str, volume: str, out: str) -> None:
        self.model, self.volume, self.out = model, volume, out
        self._windows = 0

    def engine(self) -> float:
        """Seconds of the run without planning and loading."""
        settings = Settings.of(
            input=self.volume, model=self.model, out=self.out, overwrite=True, precision="fp32", device="cpu"
        )
        with team(settings) as crew:
            result = run_volume(crew, crew.prepare())
        self._windows = result.windows_inferred
        return result.seconds

    def bare(self) -> float:
        """OpenVINO's own queue of asynchronous requests: nothing is cut, added or written."""
        import openvino as ov

        spec, cores = open_model(self.model).spec, machine.cpu_count()
        core = ov.Core()
        network = core.read_model(self.model)
        network.reshape([1, spec.channels_in, *spec.window])
        config = {"NUM_STREAMS": str(cores), "INFERENCE_NUM_THREADS": str(cores), "INFERENCE_PRECISION_HINT": "f32"}
        queue = ov.AsyncInferQueue(core.compile_model(network, "CPU", config), cores + 2)
        window = np.random.default_rng(0).random((1, spec.channels_in, *spec.window), dtype=np.float32)
        for _ in range(cores + 2):
            queue.start_async({0: window})
        queue.wait_all()
        begun = time.perf_counter()
        for _ in range(self._windows):
            queue.start_async({0: window}, share_inputs=True)
        queue.wait_all()
        return time.perf_counter() - begun


# --- what is told ---


def _machine() -> str:
    """What a baseline belongs to: ratios are compared within one kind of machine."""
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    processor = names[0] if names else platform.processor()
    return f"{processor}, {len(os.sched_getaffinity(0))} cores, {operations.IMPLEMENTATION}"


def _print(found: dict[str, Ratio], known: dict[str, Any] | None, fallen: set[str]) -> None:
    print(_machine() + ("" if known else ": no baseline is stored for it, ratios must reach a floor; see --record"))
    print("| ratio | now, quartiles | before, quartiles | must reach | |\n|---|---|---|---|---|")
    shown = {"add": "`operations.add`, times NumPy", "gather": "`operations.gather`, times NumPy",
        "labels": "`operations.labels`, times NumPy",
             "3D": "run ÷ bare network, 3D", "2D": "run ÷ bare network, 2D"}  # fmt: skip
    for name, ratio in found.items():
        before = Ratio(**known[name]) if known and name in known else None
        verdict = "FELL" if name in fallen else "holds"
        print(
            f"| {shown[name]} | {_quartiles(ratio)} | {_quartiles(before) if before else ''} | "
            f"{least(name, known):.3f} | {verdict} |"
        )
    if fallen:
        print(f"slower than before: {', '.join(shown[name] for name in found if name in fallen)}", file=sys.stderr)


def _quartiles(ratio: Ratio) -> str:
    return f"{ratio.low:.3f}, {ratio.median:.3f}, {ratio.high:.3f}"


if __name__ == "__main__":
    sys.exit(main())
