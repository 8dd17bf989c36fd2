"""Kills over everything that writes an output: plain runs, parts, workers, a cluster's scheduler, --overwrite, resumes.

    python benchmarks/kill_storm.py --kills 1000 --seed 1

Each round begins an output in one of these ways, kills it at random moments, again and again as it is resumed, and then
lets it end. The output must have the bytes of an undisturbed run, every chunk must decode whenever a kill left it, and
nothing may be left beside the chunks. Prints a line per round and a JSON summary; ends with 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import zarr
from command_line import COMMAND

SHAPE = (27, 30, 37)
MODEL = """latency_ms = 12
[spec]
name = "id"
axes = "zyx"
channels_in = 1
channels_out = 1
activation = "none"
window = [8, 8, 8]
window_min = [4, 4, 4]
window_step = [4, 4, 4]
margin = [0, 0, 0]
"""
PARTS = 3
EXPECTED = {"zarr.json", "0/zarr.json"}
"""What an output holds beside its chunks."""


@dataclass
class Scene:
    """A volume, a network that takes its time, the chunks of an undisturbed run, and the cluster that is up."""

    folder: Path
    moments: random.Random
    whole: dict[str, bytes] = field(default_factory=dict)
    kills: int = 0
    resumed: int = 0
    wrong: list[str] = field(default_factory=list)
    cluster: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def command(self, out: Path, *flags: str, overlap: str = "0.5") -> list[str]:
        volume, model = str(self.folder / "scan.zarr"), str(self.folder / "id.fake.toml")
        given = ["run", "--in", volume, "--model", model, "--out", str(out), "--output", "logits", "--overlap", overlap]
        return [*COMMAND, *given, *flags]

    def build(self) -> None:
        array = zarr.create_array(self.folder / "scan.zarr", shape=SHAPE, chunks=(8, 8, 8), dtype="u1")
        array[...] = np.random.default_rng(2).integers(0, 255, SHAPE, np.uint8)
        (self.folder / "id.fake.toml").write_text(MODEL)
        whole = self.folder / "whole.zarr"
        subprocess.run(self.command(whole), check=True, capture_output=True)
        self.whole = chunks(whole)


def chunks(out: Path) -> dict[str, bytes]:
    root = out / "0" / "c"
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


# --- ways to write an output: what is started again and again until it ends ---


def plain(scene: Scene, out: Path) -> list[str]:
    return scene.command(out, "--resume")


def workers(scene: Scene, out: Path) -> list[str]:
    return scene.command(out, "--resume", "--workers", "2")


def part(scene: Scene, out: Path) -> list[str]:
    return scene.command(out, "--part", f"{scene.moments.randint(1, PARTS)}/{PARTS}")


def overwrite(scene: Scene, out: Path) -> list[str]:
    """Replaces what is there, at first the output of another run."""
    return scene.command(out, "--overwrite")


def scheduler(scene: Scene, out: Path) -> list[str]:
    """On a cluster whose processes are killed as well."""
    file = scene.folder / "scheduler.json"
    scene.cluster = [p for p in scene.cluster if p.poll() is None]
    if len(scene.cluster) < 3:
        close(scene)
        file.unlink(missing_ok=True)
        dask = [sys.executable, "-m", "dask"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": scene.folder}
        local = ["--scheduler-file", str(file), "--no-dashboard"]
        scheduler = [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", *local]
        scene.cluster.append(subprocess.Popen(scheduler, **quiet))  # type: ignore[call-overload]
        end = time.monotonic() + 60
        while not file.exists() and time.monotonic() < end:
            time.sleep(0.05)
        for _ in range(2):
            worker = [*dask, "worker", *local, "--host", "127.0.0.1", "--nthreads", "2", "--no-nanny"]
            scene.cluster.append(subprocess.Popen(worker, **quiet))  # type: ignore[call-overload]
    return scene.command(out, "--resume", "--scheduler", str(file))


WAYS: dict[str, Callable[[Scene, Path], list[str]]] = {
    "run": plain,
    "parts": part,
    "workers": workers,
    "scheduler": scheduler,
    "overwrite": overwrite,
}


def close(scene: Scene) -> None:
    for process in scene.cluster:
        process.kill()
        process.wait()
    scene.cluster = []


# --- kills ---


def killed(scene: Scene, command: list[str]) -> bool:
    """Start, wait a moment, kill it or something it leans on. Whether it was still running."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd=scene.folder
    )
    # most runs take about a second to start: moments are spread over that and over the work behind it
    time.sleep(scene.moments.choice([0.3, 1.0, 2.0]) * (0.2 + scene.moments.random()) * max(1.0, load() / 2))
    if process.poll() is not None:
        return False
    if scene.cluster and scene.moments.random() < 0.5:
        scene.moments.choice(scene.cluster).kill()  # the scheduler, or a worker: the run must cope or say so
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def load() -> float:
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def torn(out: Path, whole: dict[str, bytes]) -> list[str]:
    """Chunks that are there and are not those of the undisturbed run: one only changes from absent to complete."""
    return [name for name, content in chunks(out).items() if whole.get(name) != content]


def storm_round(scene: Scene, number: int, way: str, left: int) -> int:
    """One output from its beginning to its end, with up to `left` kills; how many there were."""
    out = scene.folder / f"{number}.zarr"
    begin = WAYS[way]
    if way == "overwrite":
        subprocess.run(scene.command(out, overlap="0.25"), check=True, capture_output=True)
    kills = 0
    for _ in range(min(left, scene.moments.randint(2, 6))):
        if not killed(scene, begin(scene, out)):
            break
        kills += 1
        if way != "overwrite" and (bad := torn(out, scene.whole)):
            scene.wrong.append(f"{way} {number}: torn after kill {kills}: {bad[:3]}")
    close(scene)
    last = scene.command(out, "--overwrite" if way == "overwrite" else "--resume")
    done = subprocess.run(last, capture_output=True, text=True, check=False)
    if done.returncode:
        scene.wrong.append(f"{way} {number}: ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    elif (found := chunks(out)) != scene.whole:
        different = sum(found.get(name) != scene.whole.get(name) for name in {*found, *scene.whole})
        scene.wrong.append(f"{way} {number}: {different} chunks differ")
    files = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file() and "c" not in p.relative_to(out).parts}
    if files != EXPECTED and not done.returncode:
        scene.wrong.append(f"{way} {number}: left over: {sorted(files - EXPECTED)[:5]}")
    return kills


def storm(folder: Path, kills: int, seed: int, ways: list[str]) -> dict[str, object]:
    """So many kills; what they came to."""
    scene = Scene(folder, random.Random(seed))
    scene.build()
    counted: Counter[str] = Counter()
    number, begun = 0, time.monotonic()
    try:
        while sum(counted.values()) < kills:
            way = ways[number % len(ways)]
            counted[way] += storm_round(scene, number, way, kills - sum(counted.values()))
            print(f"{sum(counted.values())} kills, {number + 1} outputs, {len(scene.wrong)} wrong", file=sys.stderr)
            number += 1
    finally:
        close(scene)
    return {
        "kills": sum(counted.values()), "by_way": dict(counted), "outputs": number, "seed": seed, "wrong": scene.wrong,
        "seconds": round(time.monotonic() - begun, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ways", default=",".join(WAYS), help="of: " + ", ".join(WAYS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="unet-engine-storm-") as folder:
        found = storm(Path(folder), given.kills, given.seed, given.ways.split(","))
    print(json.dumps(found))
    sys.exit(bool(found["wrong"]))


if __name__ == "__main__":
    main()
