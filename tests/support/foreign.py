"""Small ONNX graphs as others make them, and what ONNX Runtime says of them over whole images."""

import numpy as np
import pytest
import zarr

import unet_engine

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

FLOAT = TensorProto.FLOAT


def node(kind, given, out, **attributes):
    return helper.make_node(kind, given.split(), out.split(), **attributes)


def tensor(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def graph(path, nodes, given, outputs, weights, opset=17, ir=9):
    """Write a graph with one input `given` and `outputs`, as `tensor` makes them."""
    made = helper.make_graph(
        nodes, "g", [given], outputs, [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()]
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    onnx.save(model, path)
    return str(path)


def mixing(out, given=1, n=2, seed=0, kind=np.float32, at=0.0):
    """Weights "w" and "b" of a convolution of single voxels, whose channels cross where voxels are near `at`."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((out, given)).astype(np.float32)
    b = (rng.standard_normal(out) - w.sum(1) * at).astype(np.float32)
    return {"w": w.reshape(out, given, *(1,) * n).astype(kind), "b": b.astype(kind)}


def whole(path, image, head=0):
    """What ONNX Runtime makes of an image (channels, *space) in one piece: the graph's sizes are set to the image's,
    and its batch to 1. (channels, *space)."""
    import onnxruntime

    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    del model.graph.value_info[:]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: image[None]})[head][0]


def stored(folder, voxels):
    path = str(folder / f"{len(list(folder.iterdir()))}.zarr")
    zarr.save_array(path, voxels)
    return path


def run(folder, model, voxels, **options):
    """Labels, or what `output` asks for, of voxels over which the engine moves windows."""
    out = str(folder / f"{len(list(folder.iterdir()))}-out.zarr")
    unet_engine.run(stored(folder, voxels), model=model, out=out, **options)
    return zarr.open_array(out + "/0", mode="r")[...]
