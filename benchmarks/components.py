"""Connected components, Zarr to Zarr: as the engine does it, cc3d on the whole volume, and dask-image.

    python benchmarks/components.py [--sizes 192,384] [--rounds 5] [--memory 512MiB] [--folder DIR] [--json FILE]

Labels of one class (smoothed noise above its median, in chunks of 64 voxels a side), as all three can number. Each way
is a process of its own, so that its peak memory is its own; the ways take turns, round after round. Told are the ratios
to the engine within a round (medians, least and most) of wall time and of the time that cores worked, peak memory, and
whether the numbers of objects agree. `engine` keeps within --memory in one process; `durable` waits for the disk, as it
does unless it is told not to; the others do not. `holes` is with --fill-holes, which the others cannot.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr

from unet_engine.machine import peak_resident_bytes

CHUNK = 64
WAYS = ("engine", "durable", "holes", "cc3d", "dask-image")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="192,384")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", default="512MiB")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--folder")
    parser.add_argument("--json")
    parser.add_argument("--child", nargs=3, metavar=("WAY", "IN", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(*args.child, args.memory)))
        return
    found = []
    print("| size | way | wall / engine | cores / engine | peak memory, MiB | objects |")
    print("|---|---|---|---|---|---|")
    for size in map(int, args.sizes.split(",")):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            labels = make(Path(folder, "labels.zarr"), size)
            rounds = [one_round(labels, args.ways.split(","), args.memory, turn) for turn in range(args.rounds)]
        for way in rounds[0]:
            found.append({"size": size, "way": way, **told(rounds, way)})
            row = found[-1]
            print(
                f"| {size}³ | {way} | {row['wall']} | {row['cores']} | {row['peak']} | {row['objects']} |", flush=True
            )
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1))


def make(path: Path, size: int) -> Path:
    """Smoothed noise above its median, made slab by slab."""
    from scipy import ndimage

    array = zarr.create_array(path, shape=(size,) * 3, chunks=(CHUNK,) * 3, dtype="u1")
    rng = np.random.default_rng(size)
    for lo in range(0, size, CHUNK):
        noise = ndimage.gaussian_filter(rng.random((min(CHUNK, size - lo), size, size), np.float32), 2)
        array[lo : lo + CHUNK] = noise > 0.51
    return path


def one_round(labels: Path, ways: list[str], memory: str, turn: int) -> dict[str, dict[str, float]]:
    """Every way once, in an order that changes from round to round."""
    found = {}
    for way in [*ways[turn % len(ways) :], *ways[: turn % len(ways)]]:
        with tempfile.TemporaryDirectory(dir=labels.parent) as folder:
            command = [sys.executable, __file__, "--memory", memory, "--child", way, str(labels), f"{folder}/out.zarr"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found[way] = json.loads(done.stdout.splitlines()[-1])
        elif turn == 0:
            print(f"{way} did not run: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
    return {way: found[way] for way in ways if way in found}


def told(rounds: list[dict[str, dict[str, float]]], way: str) -> dict[str, str]:
    def ratio(name: str) -> str:
        values = sorted(one[way][name] / one["engine"][name] for one in rounds)
        return f"{statistics.median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})"

    peaks = [one[way]["peak"] / 2**20 for one in rounds]
    return {
        "wall": ratio("wall"),
        "cores": ratio("cores"),
        "peak": f"{max(peaks):.0f}",
        "objects": f"{rounds[0][way]['objects']:,.0f}",
    }


def child(way: str, labels: str, out: str, memory: str) -> dict[str, float]:
    """Number the objects of `labels`, and tell what that took, without starting Python and importing libraries."""
    loaded(way)
    cores = os.times()
    begun = time.perf_counter()
    if way == "cc3d":
        objects = whole(labels, out)
    elif way == "dask-image":
        objects = dask_image(labels, out)
    else:
        objects = engine(labels, out, memory, way)
    wall, after = time.perf_counter() - begun, os.times()
    return {
        "wall": wall,
        "cores": after.user + after.system - cores.user - cores.system,
        "peak": peak_resident_bytes(),
        "objects": objects,
    }


def loaded(way: str) -> None:
    """Import what `way` needs."""
    import cc3d  # noqa: F401
    import zarrs  # noqa: F401

    if way == "dask-image":
        import dask.array  # noqa: F401
        import dask_image.ndmeasure  # noqa: F401
    elif way != "cc3d":
        import scipy.sparse.csgraph  # noqa: F401

        import unet_engine.execution.passes
        import unet_engine.postprocess.components  # noqa: F401


def engine(labels: str, out: str, memory: str, way: str) -> int:
    from unet_engine.execution.passes import crew
    from unet_engine.postprocess.components import components, rules_of
    from unet_engine.postprocess.source import Source
    from unet_engine.postprocess.target import Wish
    from unet_engine.settings.settings import Settings

    with crew(Settings.of(input=labels, memory=memory)) as hands:
        rules = rules_of(3, None, fill_holes=way == "holes")
        wish = Wish(out, durable=way == "durable")
        return int(components(Source.of(labels), rules, wish, hands.crew, memory=hands.memory)["objects"])


def whole(labels: str, out: str) -> int:
    import cc3d

    # the codecs of the engine
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    found, count = cc3d.connected_components(zarr.open_array(labels, mode="r")[...], connectivity=6, return_N=True)
    written = zarr.create_array(
        out, shape=found.shape, chunks=(CHUNK,) * 3, dtype=found.dtype, compressors=zarr.codecs.ZstdCodec(level=1)
    )
    written[...] = found
    return int(count)


def dask_image(labels: str, out: str) -> int:
    import dask.array
    from dask_image.ndmeasure import label

    found, count = label(dask.array.from_zarr(labels).rechunk((4 * CHUNK,) * 3))
    dask.array.to_zarr(found.rechunk((CHUNK,) * 3), out)
    return int(count.compute())


if __name__ == "__main__":
    main()
