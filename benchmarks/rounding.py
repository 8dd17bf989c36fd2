"""What rounding to BF16 costs a network, one thing at a time: the image, weights, biases, activations; then OpenVINO
itself.

    python benchmarks/rounding.py --model net.onnx --image image.tif [--windows 4] [--seed 0]

The ONNX runs in fp32 in ONNX Runtime with the named tensors rounded to the nearest BF16, on random windows of the
image, normalised as the model's spec says. Printed is the least Dice coefficient of any class against the network as it
is. For 3D networks of one channel.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from unet_engine.backends.base import Setup
from unet_engine.backends.libraries import open_backend
from unet_engine.model.file import ModelFile, open_model
from unet_engine.volumes.normalize import scaling
from unet_export.quantize.gate import session
from unet_export.quantize.metrics import Comparison, to_bf16

CONVOLUTIONS = ("Conv", "ConvTranspose")
FIRST = 2
"""Convolutions that count as the first ones: those at full resolution, next to the image."""


def main() -> None:
    args = _arguments()
    model = open_model(args.model)
    proto = onnx.load(args.model)
    windows = _windows(model, args)
    plain = [session(proto.SerializeToString())(w) for w in windows]

    def told(name: str, infer: Callable[[Any], Any]) -> None:
        found = Comparison(model.spec.class_names, model.spec.activation)
        for window, expected in zip(windows, plain, strict=True):
            found.add(window[0], expected[0], infer(window)[0])
        print(f"| {name} | {found.figures.worst_dice:.5f} |", flush=True)

    print("| rounded to BF16 | least Dice against fp32 |\n|---|---|")
    whole, everything = (
        session(proto.SerializeToString()),
        _rounded(proto, weights=None, inputs=(1, 2), activations=True),
    )
    told("the image", lambda window: whole(to_bf16(window)))
    told("weights", _rounded(proto, weights=None))
    told(f"weights of the first {FIRST} convolutions", _rounded(proto, weights=FIRST))
    told("weights and biases", _rounded(proto, weights=None, inputs=(1, 2)))
    told("activations", _rounded(proto, weights=0, activations=True))
    told("all of these", lambda window: everything(to_bf16(window)))
    for precision in ("fp32", "bf16"):
        told(
            f"OpenVINO in {precision}",
            open_backend("openvino", Setup(model, windows[0].shape[2:], precision=precision)).infer,
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--image", required=True, type=Path, help="TIFF, (z, y, x)")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _windows(model: ModelFile, args: argparse.Namespace) -> list[Any]:
    """Random windows (1, 1, *window) float32, normalised."""
    import tifffile

    image = tifffile.imread(args.image)
    scale = scaling(model.spec.normalization, [image])
    rng, windows = np.random.default_rng(args.seed), []
    for _ in range(args.windows):
        at = tuple(
            slice(o := int(rng.integers(0, n - w + 1)), o + w)
            for n, w in zip(image.shape, model.spec.window, strict=True)
        )
        values = (image[at].astype(np.float32) - np.float32(scale.shift[0])) * np.float32(scale.scale[0])
        windows.append(values[None, None])
    return windows


def _rounded(
    proto: Any, *, weights: int | None, inputs: tuple[int, ...] = (1,), activations: bool = False
) -> Callable[[Any], Any]:
    """The network with `inputs` (1 weights, 2 biases) of its first `weights` convolutions rounded, None: of all; and
    what flows between layers, where `activations` says so."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    graph = changed.graph
    convolutions = [n for n in graph.node if n.op_type in CONVOLUTIONS][:weights]
    names = {n.input[i] for n in convolutions for i in inputs if i < len(n.input)}
    for tensor in graph.initializer:
        if tensor.name in names:
            tensor.CopyFrom(numpy_helper.from_array(to_bf16(numpy_helper.to_array(tensor)), tensor.name))
    if activations:
        _round_between(graph)
    return session(changed.SerializeToString())


def _round_between(graph: Any) -> None:
    """Cast what every layer gives to BF16 and back, but what goes into an activation function: libraries fuse these."""
    readers = {name: n.op_type for n in graph.node for name in n.input}
    renamed: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        nodes.append(node)
        out = node.output[0]
        if out in readers and readers[out] not in ("Relu", "LeakyRelu"):
            nodes.append(helper.make_node("Cast", [out], [f"{out}_bf16"], to=TensorProto.BFLOAT16))
            nodes.append(helper.make_node("Cast", [f"{out}_bf16"], [f"{out}_back"], to=TensorProto.FLOAT))
            renamed[out] = f"{out}_back"
    del graph.node[:]
    graph.node.extend(nodes)


if __name__ == "__main__":
    main()
