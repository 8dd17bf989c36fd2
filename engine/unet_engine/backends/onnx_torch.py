"""An ONNX graph as a PyTorch module, operator by operator: for GPUs that no TensorRT here is made for. Imported only
where PyTorch is.

Only what U-Nets are made of is known. Anything else, and any attribute that PyTorch has no like of, is refused by
`objection`, so that another library takes the file: nothing is approximated. Convolutions between QuantizeLinear and
DequantizeLinear, as we write them, are computed in INT8 (`int8_convolution.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from unet_engine.backends import int8_convolution
from unet_engine.errors import ModelError
from unet_engine.model.onnx_layers import INT8
from unet_engine.model.onnx_shapes import flat, images_of, is_own, is_trained, opset_of

Attributes = dict[str, Any]
_Step = tuple[Callable[..., Any], Attributes, list[str], list[str]]
"""What computes it, its attributes, and the names of the tensors that it takes and gives."""
OLDEST_OPSET = 13
"""Before it, Softmax and others meant something else."""


class Imported(torch.nn.Module):  # type: ignore[misc]  # the type checker skips torch
    """Computes what the graph says. Takes its one input; gives its output, or those by name where there are several."""

    def __init__(self, graph: Any) -> None:
        """graph: an ``onnx.ModelProto`` with its weights in it. Raises `ModelError` where `objection` has one."""
        from onnx import numpy_helper

        super().__init__()
        if said := objection(graph):
            raise ModelError(f"PyTorch does not run the ONNX graph: {said}; use another --backend")
        inner = graph.graph
        self._numbers: dict[str, Any] = {}
        """What stays on the host, where it is read without waiting for a device: shapes, factors, single numbers."""
        factors = {name for node in inner.node if node.op_type == "Resize" for name in node.input[1:]}
        self._weights: dict[str, str] = {}
        for tensor in inner.initializer:
            self._keep(tensor.name, np.array(numpy_helper.to_array(tensor)), factors)
        self._input = images_of(inner)[0].name
        self._outputs = [value.name for value in inner.output]
        self._steps: list[_Step] = []
        quantised, passed = _quantised(inner)
        for node in inner.node:
            if node.op_type == "Constant":
                self._keep(node.output[0], _constant(_attributes(node)), factors)
                continue
            if node.output[0] in passed:
                continue
            if layer := quantised.get(node.output[0]):
                self._steps.append(self._int8(node, layer))
                continue
            self._steps.append((OPERATORS[node.op_type], _attributes(node), list(node.input), list(node.output)))
        self._free = self._last_uses()

    def _keep(self, name: str, values: Any, factors: set[str]) -> None:
        tensor = torch.from_numpy(np.ascontiguousarray(values)).reshape(values.shape)
        if not tensor.dtype.is_floating_point or not tensor.dim() or name in factors:
            self._numbers[name] = tensor
            return
        self._weights[name] = f"weight_{len(self._weights)}"
        self.register_parameter(self._weights[name], torch.nn.Parameter(tensor, requires_grad=False))

    def _int8(self, node: Any, layer: _Quantised) -> _Step:
        """The step of such a convolution. Its weights are buffers, which go where the module goes."""
        held = f"{node.output[0]}{INT8}", f"{node.output[0]}/scale"
        for name, values in zip(
            held, (layer.weight.transpose(0, 2, 3, 4, 1), layer.scale_in * layer.scales), strict=True
        ):
            self._weights[name] = f"weight_{len(self._weights)}"
            self.register_buffer(self._weights[name], torch.from_numpy(np.ascontiguousarray(values)))
        given = _attributes(node) | {"scale_in": float(layer.scale_in)}
        return _int8_conv, given, [layer.x, *held, *node.input[2:]], list(node.output)

    def _last_uses(self) -> list[list[str]]:
        """Per step the tensors that nobody reads after it."""
        last = {name: n for n, (_, _, given, made) in enumerate(self._steps) for name in (*given, *made)}
        free: list[list[str]] = [[] for _ in self._steps]
        for name, n in last.items():
            if name not in self._outputs and name not in self._weights and name not in self._numbers:
                free[n].append(name)
        return free

    def forward(self, x: torch.Tensor) -> Any:
        values: dict[str, Any] = {**self._numbers, self._input: x}
        values |= {name: getattr(self, held) for name, held in self._weights.items()}
        for (work, attributes, given, made), free in zip(self._steps, self._free, strict=True):
            found = work(attributes, *(values[name] if name else None for name in given))
            for name, value in zip(made, found if isinstance(found, (tuple, list)) else (found,), strict=False):
                values[name] = value
            for name in free:
                values.pop(name, None)
        outputs = {name: values[name] for name in self._outputs}
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs


def imported(network: Path | bytes) -> Imported:
    """The module of a graph, given as its file or its bytes. Raises `ModelError` where PyTorch does not run it."""
    return Imported(_read(network))


def objection_to(network: Path | bytes) -> str:
    """Why PyTorch does not run the graph, in words; empty where it does."""
    return objection(_read(network, weights=False))


def _read(network: Path | bytes, *, weights: bool = True) -> Any:
    import onnx

    graph = onnx.load_from_string(network) if isinstance(network, bytes) else onnx.load(network, None, weights)
    return flat(graph)


def objection(graph: Any) -> str:
    """Why the graph cannot be run here, in words; empty where it can."""
    if opset_of(graph) < OLDEST_OPSET:
        return f"its operators are of opset {opset_of(graph)}, before {OLDEST_OPSET}"
    if len(images_of(graph.graph)) != 1:
        return "it has several inputs"
    constants = _constants(graph.graph)
    passed = _quantised(graph.graph, weights=False)[1]
    for node in graph.graph.node:
        if node.output[0] in passed:
            continue
        if not (is_own(node) and (node.op_type in OPERATORS or node.op_type == "Constant")):
            return f"it has the operator {node.op_type}"
        if node.op_type != "Split" and any(node.output[1:]):
            return f"its {node.op_type} has several outputs"
        if said := _unlike(node, _attributes(node), constants):
            return f"its {node.op_type} has {said}"
    return ""


@dataclass(frozen=True)
class _Quantised:
    """A convolution in INT8: the tensor it reads before that is quantised, and its weights and scales."""

    x: str
    weight: Any
    """(channels out, channels in, 3, 3, 3) int8."""
    scales: Any
    """(channels out,) float32."""
    scale_in: Any
    """A float32."""


def _quantised(graph: Any, *, weights: bool = True) -> tuple[dict[str, _Quantised], frozenset[str]]:
    """Convolutions of which both inputs come from DequantizeLinear as we write them, signed and around 0, by what they
    give; and what the nodes give that are then no longer needed. weights: whether the values are to be had."""
    from onnx import numpy_helper

    tensors = {t.name: t for t in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    found, used = dict[str, _Quantised](), Counter[str]()
    for node in graph.node:
        if (parts := _levels_of(node, makers, tensors)) is None:
            continue
        level, back, kernel = parts
        used.update((back.output[0], kernel.output[0]))
        names = kernel.input[0], kernel.input[1], level.input[1]
        values = [np.array(numpy_helper.to_array(tensors[name])) for name in names] if weights else [None] * 3
        found[node.output[0]] = _Quantised(level.input[0], *values)
    over = {name for name, count in used.items() if readers[name] == count}
    inner = Counter(makers[name].input[0] for name in over)
    return found, frozenset(over | {name for name, count in inner.items() if name in makers and readers[name] == count})


def _levels_of(node: Any, makers: dict[str, Any], tensors: dict[str, Any]) -> tuple[Any, Any, Any] | None:
    """Of a convolution that can be computed in INT8 the nodes that make levels of what it reads, that turn them back,
    and that turn its weights back. makers: nodes by what they give; tensors: the graph's own."""
    if node.op_type != "Conv":
        return None
    back, kernel = (makers.get(name) for name in node.input[:2])
    level = back and makers.get(back.input[0])
    if back is None or level is None or kernel is None or kernel.input[0] not in tensors:
        return None
    kinds = level.op_type, back.op_type, kernel.op_type
    if kinds != ("QuantizeLinear", "DequantizeLinear", "DequantizeLinear"):
        return None
    if (
        list(level.input[1:]) != list(back.input[1:])
        or not _around_zero(level, tensors)
        or not _around_zero(kernel, tensors)
    ):
        return None
    plain = not tensors[level.input[1]].dims and _attributes(kernel).get("axis") == 0
    taken = plain and int8_convolution.takes(tuple(tensors[kernel.input[0]].dims), _attributes(node))
    return (level, back, kernel) if taken else None


def _around_zero(node: Any, tensors: dict[str, Any]) -> bool:
    """Whether its scale is in the graph, and its zero point, which is 0 in INT8."""
    from onnx import TensorProto, numpy_helper

    if len(node.input) < 3 or any(name not in tensors for name in node.input[1:]):
        return False
    zero = tensors[node.input[2]]
    return zero.data_type == TensorProto.INT8 and not zero.external_data and not numpy_helper.to_array(zero).any()


def _constants(graph: Any) -> dict[str, list[float]]:
    """The values of small constants, as far as they are in the file."""
    from onnx import numpy_helper

    small = [t for t in graph.initializer if t.dims and max(t.dims) <= 16 and len(t.dims) == 1 and not t.external_data]
    found = {t.name: numpy_helper.to_array(t).tolist() for t in small}
    for node in graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = np.atleast_1d(_constant(_attributes(node))).tolist()
    return found


def _unlike(node: Any, a: Attributes, constants: dict[str, list[float]]) -> str:
    """What of a node PyTorch has nothing like, in words."""
    operator, given = node.op_type, [constants.get(name) for name in node.input]
    if a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return f"auto_pad {a['auto_pad']}"
    if operator in ("ConvTranspose", "MaxPool", "AveragePool") and not _even(a.get("pads", ())):
        return "padding that differs at its ends"
    unlike = {
        "ConvTranspose": "output_shape" in a,
        "AveragePool": bool(a.get("ceil_mode")) or any(d != 1 for d in a.get("dilations", ())),
        "MaxPool": bool(a.get("storage_order")) or (bool(a.get("ceil_mode")) and any(a.get("pads", ()))),
        "BatchNormalization": is_trained(node),
        "Pad": a.get("mode", "constant") not in ("constant", "reflect", "edge"),
        "Slice": len(given) > 4 and bool(node.input[4]) and min(given[4] or [-1]) < 1,
        "ReduceMean": bool(a.get("noop_with_empty_axes")),
        "ReduceSum": bool(a.get("noop_with_empty_axes")),
    }
    if unlike.get(operator):
        return "an attribute that PyTorch has no like of"
    return _unlike_resize(a, given[2] if len(given) > 2 else None) if operator == "Resize" else ""


def _unlike_resize(a: Attributes, scales: list[float] | None) -> str:
    """scales: where they are known."""
    mode, where = a.get("mode", "nearest"), a.get("coordinate_transformation_mode", "half_pixel")
    if a.get("antialias") or a.get("exclude_outside") or a.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "antialiasing, or keeps an aspect ratio"
    if "axes" in a or (scales and scales[:2] != [1, 1]):
        return "axes that are no axes of space"
    if mode == "linear" and where in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return ""
    whole = bool(scales) and all(s >= 1 and s == int(s) for s in scales or ())
    rounds = a.get("nearest_mode", "round_prefer_floor")
    if mode == "nearest" and where == "asymmetric" and rounds == "floor" and (whole or not scales):
        return ""  # as PyTorch writes it
    if (
        mode == "nearest"
        and whole
        and rounds.startswith("round_prefer")
        and where in ("half_pixel", "pytorch_half_pixel")
    ):
        return ""  # of whole factors it is the same
    return f"the mode {mode} with {where}"


def _even(pads: Sequence[int]) -> bool:
    half = len(pads) // 2
    return list(pads[:half]) == list(pads[half:])


def _attributes(node: Any) -> Attributes:
    from onnx import helper

    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def _constant(a: Attributes) -> Any:
    from onnx import numpy_helper

    if "value" in a:
        return np.array(numpy_helper.to_array(a["value"]))
    name, value = next(iter(a.items()))
    return np.array(value, np.float32 if "float" in name else np.int64)


# --- operators: (attributes, inputs) to output ---


def _whole(values: Any) -> list[int]:
    return [int(v) for v in (values.tolist() if isinstance(values, torch.Tensor) else values)]


def _padded(x: torch.Tensor, pads: Sequence[int], mode: str = "constant", value: float = 0.0) -> torch.Tensor:
    """pads: at the beginnings of the last axes, then at their ends."""
    half = len(pads) // 2
    ends = [n for a in reversed(range(half)) for n in (pads[a], pads[half + a])]
    while len(ends) > 2 and ends[-2:] == [0, 0]:  # reflection takes the axes that it changes alone
        ends = ends[:-2]
    return F.pad(x, ends, mode=mode, value=value) if mode == "constant" else F.pad(x, ends, mode=mode)


def _conv(a: Attributes, x: Any, weight: Any, bias: Any = None) -> Any:
    axes = weight.dim() - 2
    pads = list(a.get("pads", (0,) * 2 * axes))
    if not _even(pads):
        x, pads = _padded(x, pads), [0] * 2 * axes
    work = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    ones = (1,) * axes
    return work(x, weight, bias, a.get("strides", ones), pads[:axes], a.get("dilations", ones), a.get("group", 1))


def _int8_conv(a: Attributes, x: Any, weight: Any, scale: Any, bias: Any = None) -> Any:
    stride = int(a.get("strides", (1,))[0])
    return torch.ops.unet_engine.int8_convolution(x, weight, a["scale_in"], scale, bias, stride)


def _conv_transpose(a: Attributes, x: Any, weight: Any, bias: Any = None) -> Any:
    axes = weight.dim() - 2
    ones, zeros = (1,) * axes, (0,) * axes
    work = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    return work(
        x, weight, bias, a.get("strides", ones), tuple(a.get("pads", zeros))[:axes], a.get("output_padding", zeros),
        a.get("group", 1), a.get("dilations", ones),
    )  # fmt: skip


def _max_pool(a: Attributes, x: Any) -> Any:
    axes = len(a["kernel_shape"])
    work = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[axes - 1]
    ones, pads = (1,) * axes, tuple(a.get("pads", (0,) * axes))[:axes]
    return work(
        x, a["kernel_shape"], a.get("strides", ones), pads, a.get("dilations", ones), bool(a.get("ceil_mode", 0))
    )


def _average_pool(a: Attributes, x: Any) -> Any:
    axes = len(a["kernel_shape"])
    work = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[axes - 1]
    strides, pads = a.get("strides", (1,) * axes), tuple(a.get("pads", (0,) * axes))[:axes]
    return work(x, a["kernel_shape"], strides, pads, bool(a.get("ceil_mode", 0)), bool(a.get("count_include_pad", 0)))


def _group_norm(a: Attributes, x: Any, scale: Any, bias: Any) -> Any:
    groups = a["num_groups"]
    if scale.numel() != x.shape[1]:  # before opset 21 there is one of each per group
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    return F.group_norm(x, groups, scale, bias, a.get("epsilon", 1e-5))


def _prelu(a: Attributes, x: Any, slope: Any) -> Any:
    return torch.where(x < 0, x * slope, x)


def _pad(a: Attributes, x: Any, pads: Any, value: Any = None, axes: Any = None) -> Any:
    given, count = _whole(pads), x.dim()
    if axes is not None:
        ends = [0] * 2 * count
        for i, axis in enumerate(_whole(axes)):
            ends[axis % count], ends[count + axis % count] = given[i], given[len(given) // 2 + i]
        given = ends
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}[a.get("mode", "constant")]
    return _padded(x, given, mode, 0.0 if value is None else float(value))


def _resize(a: Attributes, x: Any, region: Any = None, scales: Any = None, sizes: Any = None) -> Any:
    mode, where = a.get("mode", "nearest"), a.get("coordinate_transformation_mode", "half_pixel")
    if sizes is not None and sizes.numel():
        target, factors = _whole(sizes), None
    else:
        factors = [float(s) for s in scales.tolist()]
        target = [int(n * s) for n, s in zip(x.shape, factors, strict=True)]
    if mode == "nearest":
        return F.interpolate(x, size=target[2:], mode="nearest")
    name = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.dim()]
    corners = where == "align_corners"
    if corners or factors is None:
        return F.interpolate(x, size=target[2:], mode=name, align_corners=corners)
    return F.interpolate(x, scale_factor=factors[2:], mode=name, align_corners=False, recompute_scale_factor=False)


def _softmax(a: Attributes, x: Any) -> Any:
    return F.softmax(x, a.get("axis", -1))


def _slice(a: Attributes, x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    where = _whole(axes) if axes is not None else list(range(len(starts)))
    by = _whole(steps) if steps is not None else [1] * len(where)
    index = [slice(None)] * x.dim()
    for axis, start, end, step in zip(where, _whole(starts), _whole(ends), by, strict=True):
        index[axis % x.dim()] = slice(start, end, step)
    return x[tuple(index)]


def _split(a: Attributes, x: Any, parts: Any = None) -> Any:
    axis = a.get("axis", 0)
    count = a.get("num_outputs")
    size: Any = _whole(parts) if parts is not None else -(-x.shape[axis] // count)
    return torch.split(x, size, axis)


def _reshape(a: Attributes, x: Any, shape: Any) -> Any:
    wanted = [x.shape[i] if n == 0 and not a.get("allowzero") else n for i, n in enumerate(_whole(shape))]
    return x.reshape(wanted)


def _squeeze(a: Attributes, x: Any, axes: Any = None) -> Any:
    return x.squeeze() if axes is None else x.squeeze(tuple(_whole(axes)))


def _unsqueeze(a: Attributes, x: Any, axes: Any) -> Any:
    count = x.dim() + axes.numel()
    for axis in sorted(n % count for n in _whole(axes)):
        x = x.unsqueeze(axis)
    return x


def _gather(a: Attributes, x: Any, index: Any) -> Any:
    axis = a.get("axis", 0)
    index = index.to(x.device)
    index = torch.where(index < 0, index + x.shape[axis], index)
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    return x.index_select(axis, index.reshape(-1)).reshape(shape)


def _cast(a: Attributes, x: Any) -> Any:
    from onnx import helper

    return x.to(getattr(torch, np.dtype(helper.tensor_dtype_to_np_dtype(a["to"])).name))


def _reduced(work: Callable[..., Any]) -> Callable[..., Any]:
    def reduce(a: Attributes, x: Any, axes: Any = None) -> Any:
        where = a.get("axes") if axes is None else _whole(axes)
        return work(x, tuple(where or range(x.dim())), keepdim=bool(a.get("keepdims", 1)))

    return reduce


def _clip(a: Attributes, x: Any, least: Any = None, most: Any = None) -> Any:
    return x.clamp(*(None if v is None else float(v) for v in (least, most)))


def _depth_to_space(a: Attributes, x: Any) -> Any:
    n, c, h, w = x.shape
    b = a["blocksize"]
    if a.get("mode", "DCR") == "CRD":
        return x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // b**2, h * b, w * b)
    return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


def _two(work: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda a, x, y: work(x, y)


def _one(work: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda a, x, *_: work(x)


def _divided(x: Any, y: Any) -> Any:
    return x / y if x.dtype.is_floating_point else torch.div(x, y, rounding_mode="trunc")


OPERATORS: dict[str, Callable[..., Any]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _one(lambda x: x.mean(tuple(range(2, x.dim())), keepdim=True)),
    "InstanceNormalization": lambda a, x, w, b: F.instance_norm(x, weight=w, bias=b, eps=a.get("epsilon", 1e-5)),
    "BatchNormalization": lambda a, x, w, b, mean, variance: F.batch_norm(
        x, mean, variance, w, b, eps=a.get("epsilon", 1e-5)
    ),
    "GroupNormalization": _group_norm,
    "Relu": _one(F.relu),
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "PRelu": _prelu,
    "Elu": lambda a, x: F.elu(x, a.get("alpha", 1.0)),
    "HardSigmoid": lambda a, x: (a.get("alpha", 0.2) * x + a.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": _one(F.hardswish),
    "Sigmoid": _one(torch.sigmoid),
    "Softplus": _one(F.softplus),
    "Softmax": _softmax,
    "Tanh": _one(torch.tanh),
    "Erf": _one(torch.erf),
    "Exp": _one(torch.exp),
    "Sqrt": _one(torch.sqrt),
    "Neg": _one(torch.neg),
    "Abs": _one(torch.abs),
    "Reciprocal": _one(torch.reciprocal),
    "Clip": _clip,
    "Add": _two(lambda x, y: x + y),
    "Sub": _two(lambda x, y: x - y),
    "Mul": _two(lambda x, y: x * y),
    "Div": _two(_divided),
    "Pow": _two(torch.pow),
    "MatMul": _two(torch.matmul),
    "Concat": lambda a, *x: torch.cat(x, a["axis"]),
    "Identity": _one(lambda x: x),
    "Dropout": _one(lambda x: x),
    "Cast": _cast,
    "Pad": _pad,
    "Resize": _resize,
    "Transpose": lambda a, x: x.permute(a.get("perm", tuple(reversed(range(x.dim()))))),
    "Reshape": _reshape,
    "Flatten": lambda a, x: x.flatten(a.get("axis", 1)) if a.get("axis", 1) == 1 else x.reshape(
        int(np.prod(x.shape[: a["axis"]])), -1
    ),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Shape": lambda a, x: torch.tensor(list(x.shape)[a.get("start", 0) : a.get("end")]),
    "ReduceMean": _reduced(torch.mean),
    "ReduceSum": _reduced(torch.sum),
    "DepthToSpace": _depth_to_space,
}  # fmt: skip
