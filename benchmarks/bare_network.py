"""The network alone, without the engine: thread layouts, where its time goes by kind of layer, and MONAI's batch sizes.

    python benchmarks/bare_network.py [--precision fp32] [--seconds 8] [--rounds 2] [--monai]

The network is that of ``end_to_end.py``. The peak beside it is the best of a matrix product and a convolution, measured
here too (see `unet_engine.commands.bench.peak`). The layouts are tried in turn, round after round, so that drift of the
machine shows.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import openvino as ov
from inputs import CASES, model_of, network

from unet_engine.commands.bench.peak import product_rate
from unet_engine.model.file import open_model

WINDOW = CASES["3D"].window
LAYOUTS = {
    "2 streams of 1 thread": (1, 2, "YES"),
    "2 streams, not pinned": (1, 2, "NO"),
    "batches of 2": (2, 2, "YES"),
    "batches of 4": (4, 2, "YES"),
    "1 stream of 2 threads": (1, 1, "YES"),
}
"""Batch, streams, pinning."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--monai", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = model_of(CASES["3D"], 16, Path(folder))
        for _ in range(args.rounds):
            peak = product_rate("cpu", args.precision, 2) or 0.0
            print(
                {
                    name: round(1000 * _seconds(path, args.precision, *how, args.seconds), 1)
                    for name, how in LAYOUTS.items()
                },
                f"ms a window of {open_model(path).spec.flops or 0:,} operations; peak {peak / 1e9:.0f} GFLOP/s",
                flush=True,
            )
        print({kind: round(ms, 1) for kind, ms in _by_layer(path, args.precision).items()}, "ms on one thread")
    if args.monai:
        for batch in (1, 2, 4, 8):
            print(f"MONAI, batch {batch}: {_monai(batch):.1f} s for 160³ of noise")


def _compiled(path: Path, precision: str, batch: int, **config: str) -> ov.CompiledModel:
    core = ov.Core()
    model = core.read_model(path)
    model.reshape([batch, 1, *WINDOW])
    return core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision.replace("fp32", "f32"), **config})


def _seconds(path: Path, precision: str, batch: int, streams: int, pinning: str, seconds: float) -> float:
    config = {"NUM_STREAMS": str(streams), "INFERENCE_NUM_THREADS": "2", "ENABLE_CPU_PINNING": pinning}
    queue = ov.AsyncInferQueue(_compiled(path, precision, batch, **config), streams + 2)
    windows = np.random.default_rng(0).random((batch, 1, *WINDOW), dtype=np.float32)
    for _ in range(streams + 2):
        queue.start_async({0: windows})
    queue.wait_all()
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        queue.start_async({0: windows}, share_inputs=True)
        done += 1
    queue.wait_all()
    return (time.perf_counter() - begun) / (done * batch)


def _by_layer(path: Path, precision: str) -> Counter[str]:
    config = {"NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "1", "PERF_COUNT": "YES"}
    request = _compiled(path, precision, 1, **config).create_infer_request()
    for _ in range(3):
        request.infer({0: np.random.default_rng(0).random((1, 1, *WINDOW), dtype=np.float32)})
    spent: Counter[str] = Counter()
    for layer in request.profiling_info:
        spent[layer.node_type] += 1000 * layer.real_time.total_seconds()
    return Counter({kind: ms for kind, ms in spent.items() if ms > 0})


def _monai(batch: int) -> float:
    import torch
    from monai.inferers import sliding_window_inference

    torch.set_num_threads(2)
    module, image = network(CASES["3D"]), torch.rand(1, 1, 160, 160, 160)
    with torch.no_grad():
        module(torch.zeros(batch, 1, *WINDOW))
        begun = time.perf_counter()
        sliding_window_inference(image, WINDOW, batch, module, overlap=0.5, mode="gaussian").argmax(1)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
