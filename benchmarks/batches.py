"""Many small CT volumes in one command, against the bare network over the same windows and a loop over `run`.

    python benchmarks/batches.py --volumes 8 --least 128 --most 160 [--overlap 0.25]

Volumes are cut from ``../shared/data/ct/chest.nii.gz``, mirrored where it is too short, or made up where that is not
there. The bare network is the library's asynchronous mode in a process of its own, which infers windows for as long as
what it is compared with runs, so that both meet the same load; of it counts what its start took and what each window
did. Compared is processor time, of all threads and child processes: wall time says nothing on a machine that others
use. The loop is over the first `--sample` volumes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr

SCAN = Path(__file__).parents[2] / "shared" / "data" / "ct" / "chest.nii.gz"
COMMAND = [sys.executable, "-c", "from unet_engine.commands.cli import main; main()"]
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


class Beside:
    """The bare network, while something else runs."""

    def __init__(self, model: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", BARE, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self, windows: int) -> float:
        """End it. Returns the processor time that it would take for so many windows, its start included."""
        said = json.loads(self._process.communicate("\n")[0].splitlines()[-1])
        return float(said["start"] + windows * said["seconds"] / said["windows"])


def timed(command: list[str], said: Path) -> tuple[float, float]:
    """Processor and wall seconds of a command and its children."""
    begun = time.perf_counter()
    with said.open("w") as told:
        process = subprocess.Popen(command, stdout=told, stderr=told)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(said.read_text()[-2000:])
    return used.ru_utime + used.ru_stime, time.perf_counter() - begun


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--volumes", type=int, default=100)
    p.add_argument("--least", type=int, default=128)
    p.add_argument("--most", type=int, default=256)
    p.add_argument("--sample", type=int, default=8, help="volumes that the loop is over; 0: no loop")
    p.add_argument("--rounds", type=int, default=1)
    p.add_argument("--overlap", type=float, default=0.5)
    p.add_argument("--model", default=None, help="default: the network that comes with the engine")
    p.add_argument("--folder", default=None, help="where volumes and outputs are made; removed at the end")
    p.add_argument("--json", default=None)
    args = p.parse_args()
    from unet_engine.model.shipped import shipped_model

    model = args.model or str(shipped_model("cells_3d.onnx"))
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        facts = measured(args, model, folder)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(facts, indent=1))
    if args.json:
        Path(args.json).write_text(json.dumps(facts))


def measured(args: argparse.Namespace, model: str, folder: Path) -> dict[str, object]:
    sizes = [int(s) for s in np.random.default_rng(0).integers(args.least, args.most + 1, args.volumes)]
    paths = []
    for i, voxels in enumerate(ct_volumes(sizes)):
        paths.append(str(folder / "in" / f"ct{i:03}.zarr"))
        zarr.create_array(paths[-1], data=voxels, chunks=(64,) * 3)
    rounds: list[dict[str, float]] = []
    for n in range(args.rounds):
        rounds.append(one_round(args, model, folder, paths))
        print(f"round {n + 1}: {rounds[-1]}", file=sys.stderr)
    names = [name for name in rounds[0] if name.startswith("bare network / ")]
    return {
        "volumes": args.volumes,
        "sizes": sizes,
        "rounds": rounds,
        **{name: _spread([r[name] for r in rounds]) for name in names},
    }


def one_round(args: argparse.Namespace, model: str, folder: Path, paths: list[str]) -> dict[str, float]:
    results, told, overlap = folder / "results.jsonl", folder / "told.txt", str(args.overlap)
    results.unlink(missing_ok=True)
    asked = ["--model", model, "--overlap", overlap, "--overwrite", "--results", str(results), "-q"]
    bare = Beside(model)
    together, seconds = timed([*COMMAND, "run", "--in", *paths, *asked, "--out", f"{folder}/out/{{stem}}.zarr"], told)
    windows = [json.loads(line)["windows_inferred"] for line in results.read_text().splitlines()]
    alone = bare.seconds(sum(windows))
    found = {
        "bare network / batch": alone / together, "windows": sum(windows), "batch": together, "bare": alone,
        "seconds": seconds, "load": os.getloadavg()[0],
    }  # fmt: skip
    if args.sample:
        bare = Beside(model)
        each, _ = timed(
            [sys.executable, "-c", LOOP, model, f"{folder}/loop", overlap, *paths[: args.sample]], folder / "loop.txt"
        )
        found["bare network / loop"] = bare.seconds(sum(windows[: args.sample])) / each
        found["loop"] = each
    return {name: round(value, 3) for name, value in found.items()}


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }


if __name__ == "__main__":
    main()
