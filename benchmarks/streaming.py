"""A U-Net along its first axis with state: the result of one window over the whole volume, where nothing is computed
twice but a few planes at seams, in memory that does not grow with that axis. Against windows that are cropped.

    python benchmarks/streaming.py --model net.onnx [--image volume.tif] --box 512,256,256 [--planes 64]
        [--form cut|joined|every] [--windows 160,160,160:64,64,64] [--precision fp32] [--threads 1] [--check]

Networks without norms (folded), of 3³ convolutions, poolings, transposed convolutions without overlap, and
concatenations. The box divides by what the network pools by. Where neighbours in slabs meet, blocks of convolutions
begin two planes earlier (``cut``: each block a graph of its own between ring buffers; ``joined``: all one graph, state
through its inputs and outputs); with ``every`` no convolution computes a plane twice. Times are of the processor, the
network alone, without compiling, each in turn. ``--check`` compares with the whole box in one window.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import time
from typing import Any

import numpy as np
import openvino as ov
from streaming_graphs import Stream
from streaming_plan import kept_of, network, work

from unet_engine.machine import peak_resident_bytes


def main() -> None:
    args = _arguments()
    net, box = network(args.model), tuple(map(int, args.box.split(",")))
    step = max(net.scale.values())
    if any(n % step for n in (*box, args.planes)):
        raise SystemExit(f"--box and --planes: multiples of {step}, by which the network pools")
    kept = kept_of(net, every_from=0 if args.form == "every" else 99)
    how = {"INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(args.precision, args.precision), "NUM_STREAMS": "1",
           "INFERENCE_NUM_THREADS": str(args.threads), "ENABLE_CPU_PINNING": False}  # fmt: skip
    image = _image(args, (*box, net.channels[net.source]))
    stream = Stream(net, box, args.planes, kept, kept if args.form == "cut" else set(), how)
    begun = time.process_time()
    stream.compile()
    rings = sum(ring.bytes for ring in stream.rings.values()) / 2**20
    print(f"{len(stream.made)} graphs compiled in {time.process_time() - begun:.1f} s; rings of {rings:.0f} MiB; "
          f"work {work(net, stream.steps, box):.3f}")  # fmt: skip
    exact = np.concatenate([part.copy() for _, part in stream.run(image)])
    print(f"peak memory {peak_resident_bytes() / 2**20:.0f} MiB, the result whole in memory included")
    if args.check:
        whole = _Windows(args.model, box, how).run(image, [(0, 0, 0)], [(0, 0, 0)])
        apart, most = np.abs(whole - exact).max(), np.abs(whole).max()
        print(f"differs from one window by {apart:.2g} of {most:.3g}")
        if not apart <= 1e-5 * most:
            raise SystemExit("the streaming form is not the network")
    runs: dict[str, Any] = {"stream": lambda: [None for _ in stream.run(image)]}
    for tiling in args.windows:
        window, shared = (tuple(map(int, part.split(","))) for part in tiling.split(":"))
        places = _places(box, window, shared, step)
        windows = _Windows(args.model, window, how)
        margins = [tuple(s // 2 if p else 0 for p, s in zip(place, shared, strict=True)) for place in places]
        same = (windows.run(image, places, margins).argmax(-1) == exact.argmax(-1)).mean()
        spent = len(places) * math.prod(window) / math.prod(box)
        print(f"{tiling}: {len(places)} windows, work {spent:.3f}, labels agree {same:.5f}")
        runs[tiling] = lambda w=windows, p=places, m=margins: w.run(image, p, m)
    for number, (name, run) in itertools.product(range(args.rounds), runs.items()):
        begun = time.process_time()
        run()
        took = time.process_time() - begun
        print(f"round {number + 1}: {name}: {took:.2f} s, {math.prod(box) / took / 1e6:.2f} Mvoxel/s, "
              f"load {os.getloadavg()[0]:.1f}", flush=True)  # fmt: skip


class _Windows:
    """Windows of one size, cropped."""

    def __init__(self, model: str, window: tuple[int, ...], how: dict[str, Any]) -> None:
        read = ov.Core().read_model(model)
        read.reshape([1, read.input(0).partial_shape[1].get_length(), *window])
        self._window = window
        self._request = ov.Core().compile_model(read, "CPU", how).create_infer_request()

    def run(self, image: Any, places: list[tuple[int, ...]], margins: list[tuple[int, ...]]) -> Any:
        """image: (z, y, x, channels). What each window has beyond its lower margin replaces what came before."""
        channels = self._request.get_output_tensor(0).shape[1]
        out = np.empty((*image.shape[:3], channels), np.float32)
        given = self._request.get_input_tensor(0).data
        for place, margin in zip(places, margins, strict=True):
            part = tuple(slice(p, p + w) for p, w in zip(place, self._window, strict=True))
            given[0] = image[part].transpose(3, 0, 1, 2)
            self._request.infer()
            kept = tuple(slice(p + m, p + w) for p, m, w in zip(place, margin, self._window, strict=True))
            made = self._request.get_output_tensor(0).data[0].transpose(1, 2, 3, 0)
            out[kept] = made[tuple(slice(m, None) for m in margin)]
        return out


def _places(box: tuple[int, ...], window: tuple[int, ...], shared: tuple[int, ...], step: int) -> list[tuple[int, ...]]:
    """Windows spread evenly, on multiples of `step`."""
    axes = []
    for n, w, s in zip(box, window, shared, strict=True):
        count = 1 + -(-(n - w) // (w - s)) if n > w else 1
        axes.append([(n - w) * i // max(1, count - 1) // step * step for i in range(count)])
    return list(itertools.product(*axes))


def _image(args: argparse.Namespace, shape: tuple[int, ...]) -> Any:
    if not args.image:
        return np.random.default_rng(0).normal(size=shape).astype(np.float32)
    from unet_engine.model.file import open_model
    from unet_engine.plan.box import Box
    from unet_engine.volumes import samples
    from unet_engine.volumes.formats import open_volume

    volume = open_volume(args.image)
    scale = samples.scaling_of(volume, open_model(args.model).spec.normalization)
    read = np.asarray(volume.read(Box.of_shape(shape[:3]))).astype(np.float32)
    return np.stack([scale.normalised(part, c) for c, part in enumerate(read)], -1).astype(np.float32)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--image")
    parser.add_argument("--box", default="256,128,128")
    parser.add_argument("--planes", type=int, default=64)
    parser.add_argument("--form", choices=["cut", "joined", "every"], default="cut")
    parser.add_argument("--windows", nargs="*", default=["128,128,128:32,32,32"])
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--check", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
