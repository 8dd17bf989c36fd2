"""How fast halos go from one worker process of this machine to another: TCP against UCX, where that is installed. Needs
no GPU.

    python benchmarks/protocols.py [--megabytes 100] [--rounds 5] [--json FILE]

Two processes each, as ``run --workers 2 --protocol P`` starts them. What is sent is a `HaloParcel` with one halo, as a
run sends it. The two protocols take turns, round by round; printed are the median rate of each, least and most, and the
median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.cluster.connection import connect
from unet_engine.execution.dask.station import HaloParcel
from unet_engine.pipeline.job import Halo
from unet_engine.plan.box import Box
from unet_engine.settings.settings import Settings


def made(count: int) -> HaloParcel:
    halo = Halo((0, 0, 0), Box((0, 0, 0), (1, 1, count)), np.ones((1, 1, 1, count), np.float32))
    return HaloParcel("elsewhere", (((0, 0, 1), halo),))


def arrived(parcel: HaloParcel) -> float:
    return float(parcel.halos[0][1].values.flat[0])


def sent(client: Any, megabytes: int) -> float:
    """GB/s of one parcel from the first worker to the second."""
    first, second = client.scheduler_info(n_workers=-1)["workers"]
    count = megabytes * 10**6 // 4
    parcel = client.submit(made, count, workers=[first], pure=False)
    client.submit(arrived, parcel, workers=[first], pure=False).result()  # it is there
    begun = time.perf_counter()
    client.submit(arrived, parcel, workers=[second], pure=False).result()
    return megabytes / 1e3 / (time.perf_counter() - begun)


def measure(megabytes: int, rounds: int) -> dict[str, list[float]]:
    """GB/s of every round by protocol; only ``tcp`` where distributed-ucxx is missing."""
    protocols = ["tcp", *(["ucx"] if find_spec("distributed_ucxx") else [])]
    rates: dict[str, list[float]] = {protocol: [] for protocol in protocols}
    with ExitStack() as stack:
        senders = {}
        for protocol in protocols:
            settings = Settings.of(input="nothing", workers=2, protocol=protocol, dashboard="none")
            client = stack.enter_context(connect(settings, None, 60)).client
            client.wait_for_workers(2)
            senders[protocol] = partial(sent, client, megabytes)
            senders[protocol]()  # connections are made with the first
        for _ in range(rounds):
            for protocol, send in senders.items():
                rates[protocol].append(send())
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    args = parser.parse_args()
    rates = measure(args.megabytes, args.rounds)
    for protocol, found in rates.items():
        print(
            f"{protocol}: {statistics.median(found):.2f} GB/s ({min(found):.2f} to {max(found):.2f}), {len(found)} "
            "rounds"
        )
    if "ucx" in rates:
        ratios = [u / t for t, u in zip(rates["tcp"], rates["ucx"], strict=True)]
        print(f"ucx / tcp: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    else:
        print("ucx: not measured, distributed-ucxx is not installed")
    if args.json:
        Path(args.json).write_text(json.dumps(rates) + "\n")


if __name__ == "__main__":
    main()
