"""Many small CT volumes in one command, against the bare network over the same windows and a loop over `run`.

    python benchmarks/batches.py --json batches.json                   100 cubes of 128 to 256 voxels, loop over 8 of them
    python benchmarks/batches.py --volumes 8 --most 160 --busy         and when the device does nothing

Volumes are cut from ``../shared/data/ct/chest.nii.gz``, mirrored where it is too short, or made up where that is not
there. The network is a U-Net of three levels, `--features` to four times as many channels (8 to 32: 60 ms a window of
64³ on one thread), of arbitrary weights; `--model` takes another. The bare network is the library's asynchronous mode
in a process of its own, which infers windows for as long as what it is compared with runs, so that both meet the same
load; of it counts what its start took and what each window did. Compared is processor time, of all threads and child
processes: wall time says nothing on a machine that others use. The loop is over the first `--sample` volumes.

It may be ended before (Ctrl-C, `--minutes`): what the volumes that are done took is told then, and what was done of the
next one counts against the batch. `--busy` runs a batch with a network that takes time and no processor, and tells for
which part of it, first window to last, that works, and the longest that it does not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import busy
import numpy as np
import psutil
import zarr
from command_line import COMMAND

SCAN = Path(__file__).parents[2] / "shared" / "data" / "ct" / "chest.nii.gz"
BARE = """
import json, select, sys, time
import numpy as np
from unet_engine.backends.libraries import choose_backend
from unet_engine.backends.base import Setup
from unet_engine.backends.opening import open_network
from unet_engine import machine
from unet_engine.model.file import open_model
model = open_model(sys.argv[1])
setup = Setup(model, model.spec.window, threads=machine.cpu_count())
network = open_network(choose_backend(model, "cpu"), setup)
for slot in range(network.slots):
    network.input(slot)[...] = np.random.default_rng(slot).normal(size=network.input(slot).shape)
begun, windows, slots = time.process_time(), 0, network.slots
while not select.select([sys.stdin], [], [], 0)[0] or windows < 2 * slots:
    if windows >= slots:
        network.result(windows % slots)
    network.start(windows % slots)
    windows += 1
for i in range(windows - slots, windows):
    network.result(i % slots)
print(json.dumps({"windows": windows, "start": begun, "seconds": time.process_time() - begun}))
network.close()
"""
LOOP = """
import sys
import unet_engine
for path in sys.argv[4:]:
    out = f"{sys.argv[2]}/{path.rpartition('/')[2]}"
    unet_engine.run(path, model=sys.argv[1], out=out, overlap=float(sys.argv[3]), overwrite=True)
"""


def ct_volumes(sizes: list[int]) -> list[np.ndarray]:
    """Cubes of a chest CT in Hounsfield units; made up where there is none."""
    if not SCAN.exists():
        print(f"{SCAN} is not there: volumes are made up", file=sys.stderr)
        return [ct_like(i, size) for i, size in enumerate(sizes)]
    import nibabel  # type: ignore[import-untyped]

    scan = np.asarray(nibabel.load(SCAN).dataobj, np.int16).T
    rng = np.random.default_rng(0)
    found = []
    for size in sizes:
        at = [int(rng.integers(0, max(1, n - size + 1))) for n in scan.shape]
        cut = scan[tuple(slice(a, a + size) for a in at)]
        found.append(np.pad(cut, [(0, size - n) for n in cut.shape], mode="symmetric"))
    return found


def ct_like(seed: int, size: int) -> np.ndarray:
    """A body of soft tissue in air with organs and bones, in Hounsfield units: smooth where CT is, noisy all over."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, size, dtype=np.float32)] * 3, indexing="ij", sparse=True)
    voxels = np.full((size,) * 3, -1000, np.float32)
    voxels[:, ((axes[1] ** 2 + axes[2] ** 2) < 0.8)[0]] = 40
    for _ in range(12):
        middle, radius = rng.uniform(-0.6, 0.6, 3), rng.uniform(0.08, 0.25)
        distance = sum((axis - m) ** 2 for axis, m in zip(axes, middle, strict=True))
        voxels[distance < radius**2] = rng.choice([-800, 60, 120, 700])
    return (voxels + rng.normal(0, 15, voxels.shape)).astype(np.int16)


TAKES_TIME = """latency_ms = 60
[spec]
name = "id"
axes = "zyx"
channels_in = 1
channels_out = 2
activation = "none"
window = [64, 64, 64]
window_min = [8, 8, 8]
window_step = [8, 8, 8]
margin = [0, 0, 0]
"""
THREADS = 2


class Beside:
    """The bare network, while something else runs."""

    def __init__(self, model: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", BARE, model],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def seconds(self, windows: int) -> float:
        """End it. Returns the processor time that it would take for so many windows, its start included."""
        said = json.loads(self._process.communicate("\n")[0].splitlines()[-1])
        return float(said["start"] + windows * said["seconds"] / said["windows"])


def network(path: Path, features: int) -> str:
    """A U-Net of three levels for one channel and two classes, in Hounsfield units."""
    import torch
    from torch import nn

    from unet_engine.model.normalization import Normalization
    from unet_engine.model.spec import ModelSpec
    from unet_export.conversion.onnx_export import export_onnx

    def step(before: int, behind: int) -> nn.Module:
        return nn.Sequential(nn.Conv3d(before, behind, 3, padding=1), nn.BatchNorm3d(behind), nn.ReLU())

    class Light(nn.Module):  # type: ignore[misc]
        def __init__(self, n: int) -> None:
            super().__init__()
            self.first, self.second = step(1, n), nn.Sequential(step(n, 2 * n), step(2 * n, 2 * n))
            self.third = nn.Sequential(step(2 * n, 4 * n), step(4 * n, 4 * n))
            self.up, self.join = nn.ConvTranspose3d(4 * n, 2 * n, 2, 2), step(4 * n, 2 * n)
            self.last_up, self.last = nn.ConvTranspose3d(2 * n, n, 2, 2), step(2 * n, n)
            self.pool, self.out = nn.MaxPool3d(2), nn.Conv3d(n, 2, 1)

        def forward(self, x: Any) -> Any:
            a = self.first(x)
            b = self.second(self.pool(a))
            c = self.join(torch.cat([self.up(self.third(self.pool(b))), b], 1))
            return self.out(self.last(torch.cat([self.last_up(c), a], 1)))

    torch.manual_seed(0)
    spec = ModelSpec(
        name="light", axes="zyx", channels_in=1, channels_out=2, activation="softmax", window=(64,) * 3,
        window_min=(8,) * 3, window_step=(4,) * 3, margin=(0,) * 3, normalization=Normalization.parse("fixed:mean=-300,std=500"),
    )  # fmt: skip
    export_onnx(Light(features).eval(), spec, path)
    return str(path)


class Timed:
    """A command, and the processor and wall seconds of it and its children: until its end, or until the last volume
    that it says it has done."""

    def __init__(self, command: list[str], said: Path, results: Path | None = None) -> None:
        self._begun, self._said, self._results = time.perf_counter(), said, results
        with said.open("w") as told:
            self._process = subprocess.Popen(command, stdout=told, stderr=told, start_new_session=True)
        self.processor = self.wall = 0.0
        self.volumes = 0

    def run(self, until: float = float("inf")) -> bool:
        """Wait for its end, but until `until` (by `time.perf_counter`) or Ctrl-C at most. Whether it came to it."""
        with suppress(KeyboardInterrupt):
            while time.perf_counter() < until:
                over, status, used = os.wait4(self._process.pid, os.WNOHANG)
                if over:
                    if status:
                        raise SystemExit(self._said.read_text()[-2000:])
                    self.processor, self.wall = used.ru_utime + used.ru_stime, time.perf_counter() - self._begun
                    return True
                self._look()
                time.sleep(0.1)
        os.kill(self._process.pid, signal.SIGINT)
        os.wait4(self._process.pid, 0)
        return False

    def _look(self) -> None:
        count = self._results.read_bytes().count(b"\n") if self._results and self._results.exists() else 0
        if count > self.volumes:
            used = psutil.Process(self._process.pid).cpu_times()
            self.processor, self.wall = sum(used[:4]), time.perf_counter() - self._begun
            self.volumes = count


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--volumes", type=int, default=100)
    p.add_argument("--least", type=int, default=128)
    p.add_argument("--most", type=int, default=256)
    p.add_argument("--sample", type=int, default=8, help="volumes that the loop is over; 0: no loop")
    p.add_argument("--rounds", type=int, default=1)
    p.add_argument("--overlap", type=float, default=0.25)
    p.add_argument("--features", type=int, default=8, help="channels of the network's first level")
    p.add_argument("--model", default=None, help="another network")
    p.add_argument("--minutes", type=float, default=None, help="for which the batch runs at most")
    p.add_argument("--busy", action="store_true", help="when the device does nothing, in place of the comparison")
    p.add_argument("--folder", default=None, help="where volumes and outputs are made; removed at the end")
    p.add_argument("--json", default=None)
    args = p.parse_args()
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        facts = idle(args, folder) if args.busy else measured(args, folder)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(facts, indent=1))


def volumes(args: argparse.Namespace, folder: Path) -> tuple[list[int], list[str]]:
    """Sizes and paths."""
    sizes = [int(s) for s in np.random.default_rng(0).integers(args.least, args.most + 1, args.volumes)]
    paths = [str(folder / "in" / f"ct{i:03}.zarr") for i in range(len(sizes))]
    for path, voxels in zip(paths, ct_volumes(sizes), strict=True):
        zarr.create_array(path, data=voxels, chunks=(64,) * 3)
    return sizes, paths


def idle(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    sizes, paths = volumes(args, folder)
    model, spans = folder / "id.fake.toml", folder / "spans.json"
    model.write_text(TAKES_TIME)
    asked = ["--model", str(model), "--overlap", str(args.overlap), "--threads", str(THREADS), "--output", "logits"]
    asked += ["--normalize", "none", "--out", f"{folder}/out/{{stem}}.zarr", "-q"]
    Timed([*busy.watched(spans), "run", "--in", *paths, *asked], folder / "told.txt").run()
    facts = {"sizes": sizes, **busy.told(spans, THREADS), "load": os.getloadavg()[0]}
    return _kept(args, {name: round(v, 4) if isinstance(v, float) else v for name, v in facts.items()})


def measured(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model = args.model or network(folder / "light.onnx", args.features)
    sizes, paths = volumes(args, folder)
    rounds: list[dict[str, float]] = []
    facts: dict[str, Any] = {"volumes": args.volumes, "sizes": sizes, "overlap": args.overlap, "rounds": rounds}
    for n in range(args.rounds):
        rounds.append({})
        whole = batch(args, model, folder, paths, rounds[-1])
        _kept(args, facts)
        if args.sample:
            loop(args, model, folder, paths, rounds[-1])
            _kept(args, facts)
        print(f"round {n + 1}: {rounds[-1]}", file=sys.stderr)
        if not whole:
            break
    for name in ("bare network / batch", "bare network / loop"):
        if found := [r[name] for r in rounds if name in r]:
            facts[name] = _spread(found)
    return _kept(args, facts)


def _kept(args: argparse.Namespace, facts: dict[str, Any]) -> dict[str, Any]:
    """`facts`, which are in the file now."""
    if args.json:
        Path(args.json).write_text(json.dumps(facts))
    return facts


def batch(args: argparse.Namespace, model: str, folder: Path, paths: list[str], found: dict[str, float]) -> bool:
    """Whether it came to its end."""
    results = folder / "results.jsonl"
    results.unlink(missing_ok=True)
    asked = ["--model", model, "--overlap", str(args.overlap), "--overwrite", "--results", str(results), "-q"]
    bare = Beside(model)
    command = [*COMMAND, "run", "--in", *paths, *asked, "--out", f"{folder}/out/{{stem}}.zarr"]
    run = Timed(command, folder / "told.txt", results)
    whole = run.run(time.perf_counter() + 60 * args.minutes if args.minutes else float("inf"))
    done = len(paths) if whole else run.volumes
    if not done:
        raise SystemExit("ended before a volume was done")
    lines = results.read_text().splitlines()[:done]
    windows = sum(json.loads(line)["windows_inferred"] for line in lines)
    alone = bare.seconds(windows)
    figures = {
        "bare network / batch": alone / run.processor, "volumes": done, "windows": windows, "batch": run.processor,
        "bare": alone, "beside the network, per volume": (run.processor - alone) / done, "seconds": run.wall,
        "load": os.getloadavg()[0],
    }  # fmt: skip
    found.update({name: round(value, 3) for name, value in figures.items()})
    print(found, file=sys.stderr)
    return whole


def loop(args: argparse.Namespace, model: str, folder: Path, paths: list[str], found: dict[str, float]) -> None:
    sample, lines = paths[: args.sample], (folder / "results.jsonl").read_text().splitlines()
    windows = [json.loads(line).get("windows_inferred", 0) for line in lines[: args.sample]]
    if len(windows) < len(sample) or not all(windows):
        return
    bare = Beside(model)
    command = [sys.executable, "-c", LOOP, model, f"{folder}/loop", str(args.overlap), *sample]
    run = Timed(command, folder / "loop.txt")
    if run.run():
        found["bare network / loop"] = round(bare.seconds(sum(windows)) / run.processor, 3)
        found["loop"] = round(run.processor, 3)


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }


if __name__ == "__main__":
    main()
