"""Many small CT-like volumes in one command, against the bare network over the same windows and a loop over `run`.

    python benchmarks/batches.py --volumes 8 --least 128 --most 160

Each is a process of its own, start included. The bare network is the library's best asynchronous mode on as many
windows as the batch infers, with the model loaded once; what its process takes to start counts as well. Rounds
alternate.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr

COMMAND = [sys.executable, "-c", "from unet_engine.commands.cli import main; main()"]
BARE = """
import sys
import numpy as np
from unet_engine.backends.libraries import choose_backend
from unet_engine.backends.base import Setup
from unet_engine.backends.opening import open_network
from unet_engine import machine
from unet_engine.model.file import open_model
model, windows = open_model(sys.argv[1]), int(sys.argv[2])
setup = Setup(model, model.spec.window, threads=machine.cpu_count())
network = open_network(choose_backend(model, "cpu"), setup)
for slot in range(network.slots):
    network.input(slot)[...] = np.random.default_rng(slot).normal(size=network.input(slot).shape)
for i in range(windows):
    if i >= network.slots:
        network.result(i % network.slots)
    network.start(i % network.slots)
for i in range(max(0, windows - network.slots), windows):
    network.result(i % network.slots)
network.close()
"""
LOOP = """
import sys
import unet_engine
for path in sys.argv[3:]:
    unet_engine.run(path, sys.argv[1], f"{sys.argv[2]}/{path.rpartition('/')[2]}", overwrite=True)
"""


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


def timed(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begun


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--volumes", type=int, default=100)
    p.add_argument("--least", type=int, default=128)
    p.add_argument("--most", type=int, default=256)
    p.add_argument("--rounds", type=int, default=3)
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
    for i, size in enumerate(sizes):
        paths.append(str(folder / "in" / f"ct{i:03}.zarr"))
        zarr.create_array(paths[-1], data=ct_like(i, size), chunks=(64,) * 3)
    batch = [*COMMAND, "run", "--in", *paths, "--model", model, "--out", f"{folder}/out/{{stem}}.zarr", "--overwrite"]
    results = folder / "results.jsonl"
    rounds: list[dict[str, float]] = []
    for n in range(args.rounds):
        results.unlink(missing_ok=True)
        together = timed([*batch, "--results", str(results)])
        windows = sum(json.loads(line)["windows_inferred"] for line in results.read_text().splitlines())
        bare = timed([sys.executable, "-c", BARE, model, str(windows)])
        loop = timed([sys.executable, "-c", LOOP, model, f"{folder}/loop", *paths])
        rounds.append({"batch": bare / together, "loop": bare / loop, "windows": windows})
        print(f"round {n + 1}: {rounds[-1]}", file=sys.stderr)
    return {
        "volumes": args.volumes,
        "sizes": sizes,
        "windows": rounds[0]["windows"],
        **{f"bare network / {key}": _spread([r[key] for r in rounds]) for key in ("batch", "loop")},
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }


if __name__ == "__main__":
    main()
