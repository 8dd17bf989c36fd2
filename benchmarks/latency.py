"""Behind a store that takes its time to answer: for which part of a run does the network work?

    python benchmarks/latency.py [--milliseconds 50] [--size 256] [--write] [--model net.onnx]

A server of the S3 protocol and a proxy that holds each answer back, both of the tests (`tests/support`, moto), in a
process of their own. The same volume is run from a local disk and from there, in turns, each time in a new process.
Without `--model` the network is one that takes `--window-ms` a window and no processor, so that a busy machine changes
little: then what is told is the part of the run's wall time, planning apart, that its windows take; the same from the
first window to the last, which is what a long run comes to; and so how long a run must be for 95 %, as what comes before
and behind does not grow with it. With a model it is told against the run from the local disk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import busy
import numpy as np
import zarr

NETWORK = """latency_ms = {latency}
[spec]
name = "id"
axes = "zyx"
channels_in = 1
channels_out = 1
activation = "none"
window = [64, 64, 64]
window_min = [8, 8, 8]
window_step = [8, 8, 8]
margin = [0, 0, 0]
"""
SERVER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from support.fault_proxy import FaultProxy
from support.s3 import server
with server() as (host, port, client):
    proxy = FaultProxy(host, port, latency=float(sys.argv[2]))
    print(f"READY {proxy.url} http://{host}:{port}", flush=True)
    for _ in sys.stdin:
        print(len(proxy.gets("/c/")), flush=True)
"""
THREADS = 2


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--milliseconds", type=float, default=50.0, help="for which each answer is held back")
    p.add_argument("--window-ms", type=float, default=100.0, help="what a window takes")
    p.add_argument("--size", type=int, default=256, help="voxels along each axis")
    p.add_argument("--chunk", type=int, default=64)
    p.add_argument("--shard", type=int, default=None)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--model", default=None)
    p.add_argument("--write", action="store_true", help="write there as well, rather than to the local disk")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measured(args, Path(folder)), indent=1))


def measured(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    voxels = np.random.default_rng(0).integers(0, 200, (args.size,) * 3, dtype=np.uint8)
    shards = (args.shard,) * 3 if args.shard else None
    zarr.create_array(folder / "scan.zarr", data=voxels, chunks=(args.chunk,) * 3, shards=shards)
    model = args.model or str(folder / "id.fake.toml")
    if args.model is None:
        Path(model).write_text(NETWORK.format(latency=args.window_ms))
    tests = str(Path(__file__).parents[1] / "tests")
    serving = subprocess.Popen(
        [sys.executable, "-c", SERVER, tests, str(args.milliseconds / 1000)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert serving.stdin
    assert serving.stdout
    try:
        line = next(line for line in serving.stdout if line.startswith("READY"))
        slow, direct = line.split()[1:]
        environment = {name: text for name, text in os.environ.items() if not name.startswith(("AWS_", "FSSPEC_"))}
        environment |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        _upload(folder / "scan.zarr", environment | {"AWS_ENDPOINT_URL": direct})
        environment["AWS_ENDPOINT_URL"] = slow
        rounds = []
        for n in range(args.rounds):
            here = _run(str(folder / "scan.zarr"), f"{folder}/here{n}.zarr", model, environment)
            out = f"s3://lab/out{n}.zarr" if args.write else f"{folder}/there{n}.zarr"
            there = _run("s3://lab/scan.zarr", out, model, environment)
            rounds.append({
                **{f"{name} {what}": v for name, facts in (("local", here), ("store", there))
                   for what, v in _shares(facts, args).items()},
                "local / store": round(here["seconds"] / there["seconds"], 3), "windows": there["windows_inferred"],
                "blocks": there["blocks_planned"], "seconds": there["seconds"], "load": os.getloadavg()[0],
            })  # fmt: skip
            print(rounds[-1], file=sys.stderr)
        serving.stdin.write("\n")
        serving.stdin.flush()
        chunks = int(next(serving.stdout))
    finally:
        serving.stdin.close()
        serving.terminate()
    names = [name for name in rounds[0] if name not in ("windows", "blocks", "seconds", "load")]
    spread = {name: _spread([r[name] for r in rounds]) for name in names}
    return {**vars(args), **spread, "chunks fetched": chunks / args.rounds, "load": [r["load"] for r in rounds]}


def _run(volume: str, out: str, model: str, environment: dict[str, str]) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile() as spans:
        place = Path(spans.name)
        command = [*busy.watched(place), "run", "--in", volume, "--out", out, "--model", model, "--output", "logits",
                   "--json", "--normalize", "none", "--threads", str(THREADS)]  # fmt: skip
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if said.returncode:
            raise SystemExit(said.stderr)
        facts: dict[str, Any] = json.loads(said.stdout)
        return {**facts, "busy": busy.told(place, THREADS) if model.endswith(".fake.toml") else None}


def _shares(facts: dict[str, Any], args: argparse.Namespace) -> dict[str, float]:
    """Of the seconds of a run, what its windows take where nothing else does; the same from its first window to its
    last; and the seconds after which what comes before and behind is less than a twentieth of it all."""
    if facts["busy"] is None:
        return {}
    windows, middle = facts["windows_inferred"] * args.window_ms / 1000 / THREADS, facts["busy"]
    around = facts["seconds"] - middle["seconds"]
    wanted = around / (1 - 0.95 / middle["works"]) if middle["works"] > 0.95 else float("nan")
    return {
        "share": round(windows / facts["seconds"], 3), "middle": round(middle["works"], 3),
        "around": round(around, 2), "longest pause": round(middle["longest pause"], 2),
        "seconds for 0.95": round(wanted, 1),
    }  # fmt: skip


def _upload(folder: Path, environment: dict[str, str]) -> None:
    import boto3  # type: ignore[import-untyped]

    client = boto3.client(
        "s3", endpoint_url=environment["AWS_ENDPOINT_URL"], aws_access_key_id="test", aws_secret_access_key="test",
        region_name="us-east-1",
    )  # fmt: skip
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        client.put_object(Bucket="lab", Key=f"{folder.name}/{file.relative_to(folder)}", Body=file.read_bytes())


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


if __name__ == "__main__":
    main()
