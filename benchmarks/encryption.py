"""What it costs that local workers talk over TLS: the same run with and without, in turn.

Without --model the network computes nothing, so that halos weigh as much as they can: python benchmarks/encryption.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr

import unet_engine
from unet_engine.cluster import connection

MODEL = """
[spec]
name = "halos"
axes = "zyx"
channels_in = 1
channels_out = 8
window = [32, 32, 32]
window_min = [32, 32, 32]
window_step = [0, 0, 0]
margin = [0, 0, 0]
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--size", type=int, default=192)
    options.add_argument("--model")
    given = options.parse_args()
    made = connection.own_certificates
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "halos.fake.toml").write_text(MODEL)
        shape = (given.size,) * 3
        array = zarr.create_array(str(folder / "v.zarr"), shape=shape, chunks=(64,) * 3, dtype="u1")
        array[...] = np.random.default_rng(0).integers(1, 200, shape, np.uint8)
        seconds: dict[str, list[tuple[float, float]]] = {"plain": [], "tls": []}
        sent = 0
        for i in range(given.rounds):
            for kind, taken in seconds.items():
                connection.own_certificates = made if kind == "tls" else lambda: None
                begun = time.perf_counter()
                result = unet_engine.run(
                    str(folder / "v.zarr"), model=given.model or str(folder / "halos.fake.toml"),
                    out=str(folder / f"{kind}{i}.zarr"),
                    workers=2, dashboard="none",
                )  # fmt: skip
                taken.append((result.seconds, time.perf_counter() - begun))
                sent = result.halo_bytes
    print(f"{sent / 2**20:.0f} MiB of halos")
    for k, what in enumerate(("run alone", "with start and end")):
        ratios = [p[k] / t[k] for p, t in zip(seconds["plain"], seconds["tls"], strict=True)]
        print(
            f"{what}: throughput over TLS / plain {statistics.median(ratios):.3f} ({min(ratios):.3f} to "
            f"{max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()
