"""Small packages of bioimage.io, made by tests: a network, its description, test tensors computed by its own rules."""

import json
import zipfile

import numpy as np
import torch
import yaml
from torch import nn

ARCHITECTURE = """
from pathlib import Path
from torch import nn
Path({mark!r}).touch()


class Tiny(nn.Module):
    def __init__(self, channels=1, classes=2):
        super().__init__()
        self.a = nn.Conv2d(channels, 4, 3, padding=1)
        self.b = nn.Conv2d(4, classes, 3, padding=1)

    def forward(self, x):
        return self.b(self.a(x).relu())
"""


class Tiny(nn.Module):
    """Two convolutions: its receptive field has a radius of 2."""

    def __init__(self, channels=1, classes=2, dims=2):
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.a = conv(channels, 4, 3, padding=1)
        self.b = conv(4, classes, 3, padding=1)

    def forward(self, x):
        return self.b(self.a(x).relu())


def network(channels=1, classes=2, dims=2):
    torch.manual_seed(3)
    return Tiny(channels, classes, dims).eval()


def image(shape, seed=0):
    """Counts as a microscope has them, uint16."""
    rng = np.random.default_rng(seed)
    return rng.gamma(2.0, 200.0, shape).astype(np.uint16)


def result(net, x):
    """What `net` makes of `x` (n, c, *space), in PyTorch."""
    with torch.inference_mode():
        return net(torch.from_numpy(np.ascontiguousarray(x, np.float32))).numpy()


def to_onnx(net, shape, path, *, last=False):
    """The network as an ONNX file, with channels last as Keras has them where `last` says so; its sizes are free."""
    module = _Last(net) if last else net
    example = torch.zeros((shape[0], *shape[2:], shape[1]) if last else shape)
    space = range(1, example.dim() - 1) if last else range(2, example.dim())
    torch.onnx.export(
        module, (example,), str(path), input_names=["in"], output_names=["out"], dynamo=False, opset_version=17,
        dynamic_axes={"in": {a: f"n{a}" for a in space}, "out": {a: f"m{a}" for a in space}},
    )  # fmt: skip


class _Last(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def axes_v5(names, sizes, *, halo=0, like=None, channels=("a",), scale=1.0):
    """Axes of format 0.5; sizes: {axis: size or {min, step}}."""
    made = []
    for name in names:
        if name == "b":
            made.append({"type": "batch"})
        elif name == "c":
            made.append({"type": "channel", "channel_names": list(channels)})
        else:
            size = {"tensor_id": like, "axis_id": name} if like else sizes[name]
            extra = ({"halo": halo} if halo else {}) | ({"scale": scale} if scale != 1.0 else {})
            made.append({"type": "space", "id": name, "size": size, **extra})
    return made


def package(
    folder, net, given, expected, *, order="bcyx", sizes=None, before=(), behind=(), weights=None, halo=0,
    classes=("a", "b"), **more,
):  # fmt: skip
    """Write a package of format 0.5 with ONNX weights to `folder`, unless `weights` are given."""
    folder.mkdir(parents=True, exist_ok=True)
    space = [a for a in order if a in "zyx"]
    sizes = sizes or {a: {"min": 16, "step": 8} for a in space}
    if weights is None:
        channels = given.shape[order.index("c")]
        shape = (1, channels, *(given.shape[order.index(a)] for a in space))
        to_onnx(net, shape, folder / "net.onnx", last=order.endswith("c"))
        weights = {"onnx": {"source": "net.onnx", "opset_version": 17}}
    np.save(folder / "given.npy", given)
    np.save(folder / "expected.npy", expected)
    inputs = [f"i{n}" for n in range(given.shape[order.index("c")])]
    said = {
        "format_version": "0.5.4", "type": "model", "name": "Tiny cells", "license": "CC-BY-4.0", "version": "1.2",
        "authors": [{"name": "A. Author"}], "cite": [{"text": "how it was made", "doi": "10.1/x"}], "tags": ["segmentation"],
        "inputs": [{
            "id": "raw", "axes": axes_v5(order, sizes, channels=inputs), "preprocessing": list(before),
            "test_tensor": {"source": "given.npy"}, "data": {"type": str(given.dtype)},
        }],
        "outputs": [{
            "id": "cells", "axes": axes_v5(order, sizes, halo=halo, like="raw", channels=classes),
            "postprocessing": list(behind), "test_tensor": {"source": "expected.npy"},
        }],
        "weights": weights, **more,
    }  # fmt: skip
    (folder / "rdf.yaml").write_text(yaml.safe_dump(said))
    return folder


def zipped(folder, path, *, under=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, under + file.name)
    return path


def described(folder, **changed):
    """Change what the description says at its top."""
    said = yaml.safe_load((folder / "rdf.yaml").read_text())
    (folder / "rdf.yaml").write_text(yaml.safe_dump(said | changed))


def step(name, **kwargs):
    return json.loads(json.dumps({"id": name, "kwargs": kwargs}))
