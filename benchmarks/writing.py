"""Writing a block of chunks: as the engine does, beside the same codecs in place, and zarr's own codecs through its
store.

    python benchmarks/writing.py [--size 318] [--rounds 8] [--folder DIR]

Voxels of synthetic tissue: labels (uint8) and smooth probabilities with noise (two classes, float32). The ways take
turns, round after round; a round writes a fresh array of chunks of 64 voxels a side.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr

from unet_engine.output.layout import Layout
from unet_engine.output.output import Output
from unet_engine.plan.box import Box
from unet_export.train.tissue import make_tissue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=318)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--folder", default=None)
    args = parser.parse_args()
    print("| voxels | way | MB/s, median (least to most) | CPU ms | stored MB | same bytes |")
    print("|---|---|---|---|---|---|")
    for kind, values in _voxels(args.size).items():
        stored: dict[str, dict[str, bytes]] = {}
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
        for _ in range(args.rounds):
            for name, way in WAYS.items():
                with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                    output = _output(Path(folder, "o.zarr"), values)
                    begun, cpu = time.perf_counter(), time.process_time()
                    way(output, values)
                    seconds[name].append((time.perf_counter() - begun, time.process_time() - cpu))
                    stored[name] = _chunks(Path(output.path))
        for name, times in seconds.items():
            rates = sorted(values.nbytes / 1e6 / wall for wall, _ in times)
            same = stored[name] == stored[next(iter(WAYS))]
            print(
                f"| {kind} | {name} | {statistics.median(rates):.0f} ({rates[0]:.0f} to {rates[-1]:.0f}) "
                f"| {1000 * statistics.median(cpu for _, cpu in times):.0f} "
                f"| {sum(map(len, stored[name].values())) / 1e6:.1f} | {'yes' if same else 'no'} |"
            )


def _voxels(n: int) -> dict[str, np.ndarray]:
    labels = make_tissue((n, n, n), 7)[1].astype(np.uint8)
    noise = np.random.default_rng(0).standard_normal((2, *labels.shape), dtype=np.float32)
    shares = np.stack([labels == 0, labels == 2]).astype(np.float32)
    logits = 5 * (shares + np.roll(shares, 1, 1) + np.roll(shares, 1, 2) + np.roll(shares, 1, 3)) / 4 + 0.05 * noise
    return {"labels, uint8": labels, "probabilities, float32": np.exp(logits) / np.exp(logits).sum(0)}


def _output(path: Path, values: np.ndarray) -> Output:
    channels = None if values.ndim == 3 else len(values)
    layout = Layout(
        "zyx", "zyx", values.shape[-3:], (64,) * 3, channels, str(values.dtype), (1.0,) * 3, (0.0,) * 3, None, ()
    )
    output = Output.create(str(path), layout, "d", {"identity": {}, "blocks": [[[0, 1]]] * 3})
    output.header.begin()
    return output


def _as_the_engine(output: Output, values: np.ndarray) -> None:
    output.write(Box.of_shape(values.shape[-3:]), values)


def _in_place(output: Output, values: np.ndarray) -> None:
    output.array[...] = values


def _zarrs_own(output: Output, values: np.ndarray) -> None:
    zarr.open_array(output.array.store_path, mode="r+")[...] = values


def _chunks(out: Path) -> dict[str, bytes]:
    root = out / "0" / "c"
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


WAYS: dict[str, Callable[[Output, np.ndarray], None]] = {
    "native codecs, in place": _in_place,
    "the engine: native codecs, each chunk renamed to its place": _as_the_engine,
    "zarr's own codecs and store": _zarrs_own,
}

if __name__ == "__main__":
    main()
