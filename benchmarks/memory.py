"""Peak memory against the volume, and against what the plan predicted.

    python benchmarks/memory.py [--overlap 0.5] [--workers N] [--json FILE] [--quick]
    python benchmarks/memory.py --classes 2 16 104 512 [--rounds 3] [--json FILE]

A volume of 256×512×512, one of 64 times the voxels (the same chunks again, as hard links) grown on every axis, and one
of 64 times the voxels grown on its longest axis alone. The network is the fake back end (identity, two classes out,
windows of 64³), so that hours become minutes; everything around it is real. The larger volumes run with ``--memory``
set to the peak of the small one, and with the default. With ``--workers`` the run is spread over processes by Dask;
peak and prediction are then those of the worker that took most.

With ``--classes`` it is by their number instead: a small network of two convolutions and a last layer, run by OpenVINO
in windows of 64³ over 128×160×160, its features blended and its outputs (``--blend-at``), labels written.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from command_line import json_of

CHUNK = (64, 128, 128)
MODEL = """[spec]
name = "fake"
axes = "zyx"
channels_in = 1
channels_out = 2
window = [64, 64, 64]
window_min = [64, 64, 64]
window_step = [0, 0, 0]
margin = [0, 0, 0]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true", help="an eighth of the small volume, grown eightfold only")
    parser.add_argument("--classes", type=int, nargs="+", help="by the number of classes instead")
    parser.add_argument("--rounds", type=int, default=1, help="of --classes")
    parser.add_argument("--grow", help="e.g. 4,4,4: grow by this alone")
    args = parser.parse_args()
    if args.classes:
        _by_classes(args)
        return
    small = (128, 256, 256) if args.quick else (256, 512, 512)
    grown = [(2, 2, 2)] if args.quick else [(4, 4, 4), (1, 1, 64)]
    if args.grow:
        grown = [tuple(map(int, args.grow.split(",")))]
    with tempfile.TemporaryDirectory(dir=".") as folder:
        root = Path(folder)
        (root / "net.fake.toml").write_text(MODEL)
        base = _base_volume(root, small)
        rows = [_run(root, base, (1, 1, 1), args, None)]
        for times in grown:
            volume = _grown(root, base, times)
            rows += [_run(root, volume, times, args, limit) for limit in (rows[0]["peak"], None)]
            shutil.rmtree(volume)
    _print(rows)
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")


def _by_classes(args: argparse.Namespace) -> None:
    rows = []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        root = Path(folder)
        base = _base_volume(root, (128, 160, 160))
        for classes in args.classes:
            model = _network(root / f"net{classes}.onnx", classes)
            for at in ("features", "outputs"):
                found = [
                    json_of(
                        "run", "--in", base, "--model", model, "--out", root / "o.zarr", "--overwrite", "--blend-at", at
                    )
                    for _ in range(args.rounds)
                ]
                shares = sorted(f["peak_rss_bytes"] / f["predicted_rss_bytes"] for f in found)
                row = {"classes": classes, "at": at, "shares": shares, "predicted": found[-1]["predicted_rss_bytes"]}
                rows.append(row | {"peak": statistics.median(f["peak_rss_bytes"] for f in found)})
                print(rows[-1], file=sys.stderr, flush=True)
    print("| classes | blended | peak MiB | predicted MiB | peak ÷ predicted |\n|---|---|---|---|---|")
    for row in rows:
        shares = row["shares"]
        print(
            f"| {row['classes']} | {row['at']} | {row['peak'] / 2**20:.0f} | {row['predicted'] / 2**20:.0f} | "
            f"{statistics.median(shares):.2f} ({shares[0]:.2f} to {shares[-1]:.2f}) |"
        )
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")


def _network(path: Path, classes: int) -> Path:
    """Two convolutions of eight features, and a last layer of one voxel."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from unet_engine.model.spec import ModelSpec

    rng = np.random.default_rng(0)
    shapes = {"a": (8, 1, 3, 3, 3), "b": (8, 8, 3, 3, 3), "c": (classes, 8, 1, 1, 1)}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), name) for name, s in shapes.items()]
    nodes = []
    for name, given, made in (("a", "x", "p"), ("b", "q", "r"), ("c", "s", "y")):
        pads = {"pads": [1] * 6} if name != "c" else {}
        nodes.append(helper.make_node("Conv", [given, name], [made], **pads))
        if name != "c":
            nodes.append(helper.make_node("Relu", [made], [{"p": "q", "r": "s"}[made]]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, "z", "y", "x"])
        for name, channels in (("x", 1), ("y", classes))
    ]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    window = (64, 64, 64)
    spec = ModelSpec(
        name="small", axes="zyx", channels_in=1, channels_out=classes, window=window, window_min=(8, 8, 8),
        window_step=(8, 8, 8), margin=(0, 0, 0),
    )  # fmt: skip
    entry = model.metadata_props.add()
    entry.key, entry.value = "unet_engine.spec", spec.model_dump_json()
    onnx.save(model, str(path))
    return path


def _base_volume(root: Path, shape: tuple[int, ...]) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    zarr.create_array(str(root / "v111.zarr"), data=noise, chunks=CHUNK)
    return root / "v111.zarr"


def _grown(root: Path, base: Path, times: tuple[int, ...]) -> Path:
    """The base volume repeated along its axes, its chunk files linked rather than copied."""
    source = zarr.open_array(str(base), mode="r")
    counts = [n // c for n, c in zip(source.shape, CHUNK, strict=True)]
    path = root / f"v{'x'.join(map(str, times))}.zarr"
    zarr.create_array(
        str(path), shape=[n * t for n, t in zip(source.shape, times, strict=True)], chunks=CHUNK, dtype="uint8"
    )
    for place in np.ndindex(*(n * t for n, t in zip(counts, times, strict=True))):
        link = path / "c" / "/".join(map(str, place))
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(base / "c" / "/".join(str(i % n) for i, n in zip(place, counts, strict=True)), link)
    return path


def _run(
    root: Path, volume: Path, times: tuple[int, ...], given: argparse.Namespace, memory: int | None
) -> dict[str, Any]:
    command: list[object] = ["--in", volume, "--model", root / "net.fake.toml", "--out", root / "out.zarr"]
    command += ["--overlap", given.overlap, "--overwrite"]
    command += ["--memory", memory * max(1, given.workers)] if memory else []
    command += ["--workers", given.workers] if given.workers else []
    result = json_of("run", *command)
    row = {
        "times": list(times), "voxels": result["voxels"], "memory_limit": memory, "peak": result["peak_rss_bytes"],
        "predicted": result["predicted_rss_bytes"], "windows": result["windows_planned"], "seconds": result["seconds"],
    }  # fmt: skip
    print(row, file=sys.stderr, flush=True)
    return row


def _print(rows: list[dict[str, Any]]) -> None:
    first = rows[0]["peak"]
    print(
        "| voxels | --memory | peak MiB | of the small one | predicted MiB | peak ÷ predicted | windows "
        "|\n|---|---|---|---|---|---|---|"
    )
    for row in rows:
        limit = f"{row['memory_limit'] / 2**20:.0f} MiB" if row["memory_limit"] else "default"
        print(
            f"| {'×'.join(map(str, row['times']))} = {row['voxels'] / 1e6:.0f} M | {limit} | "
            f"{row['peak'] / 2**20:.0f} | {row['peak'] / first:.2f} | {row['predicted'] / 2**20:.0f} | "
            f"{row['peak'] / row['predicted']:.2f} | {row['windows']:,} |"
        )


if __name__ == "__main__":
    main()
