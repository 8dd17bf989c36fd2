"""Small ONNX graphs of others: no spec inside, any nodes."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def node(kind, given, made, **attributes):
    """One node; names of tensors in a string."""
    return helper.make_node(kind, given.split(" "), made.split(), **attributes)


def graph(path, nodes, *, shape, opset=19, spec=None, **constants):
    """A graph from ``x``, float32 of `shape` (None or 0: any size), to ``y``; `constants` by name. Returns the path."""
    sizes = [n or f"n{i}" for i, n in enumerate(shape)]
    held = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    made = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"o{i}" for i in range(len(shape))])], held,
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    if spec is not None:
        entry = model.metadata_props.add()
        entry.key, entry.value = "unet_engine.spec", spec.model_dump_json()
    onnx.save(model, path)
    return str(path)


def convolution(axes=2, channels_in=1, channels_out=1, seed=0):
    """Weights of a 1-voxel convolution."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((channels_out, channels_in, *(1,) * axes)).astype(np.float32)
