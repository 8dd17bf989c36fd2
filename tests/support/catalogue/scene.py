"""Where faults happen: a small volume, the identity network, a small ONNX network, and outputs that were begun or
done."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from support.volumes import fake_model, make_volume

OUTPUTS = ("half.zarr", "done.zarr", "parts.zarr")
PLAIN = ("scan.zarr", "id.fake.toml", "net.onnx")


def build(base: Path) -> None:
    """Make everything once, in `base`."""
    import unet_engine
    from unet_engine.backends.fake import FakeBackend
    from unet_engine.errors import BackendError

    array = np.random.default_rng(0).integers(1, 200, (20, 22, 40), np.uint8)
    scan = make_volume(base / "scan.zarr", array)
    net = fake_model(base)
    _onnx(base / "net.onnx")
    unet_engine.run(scan, model=net, out=str(base / "done.zarr"))
    unet_engine.run(scan, model=net, out=str(base / "parts.zarr"), part="1/3")
    calls, start = [], FakeBackend.start

    def failing(self: FakeBackend, slot: int) -> None:
        calls.append(slot)
        if len(calls) > 150:
            raise BackendError("enough")
        start(self, slot)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeBackend, "start", failing)
        with pytest.raises(BackendError, match="enough"):
            unet_engine.run(scan, model=net, out=str(base / "half.zarr"))
    assert list(base.glob("half.zarr/0/.journal/*/[0-9]*"))


def copy(base: Path, here: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (base / name).is_dir():
            shutil.copytree(base / name, here / name)
        else:
            shutil.copy(base / name, here / name)


def _onnx(path: Path) -> None:
    """One convolution to two classes, without a spec, for windows of 16."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(1).normal(size=(2, 1, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 6)], "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 16, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 16, 16, 16])],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
