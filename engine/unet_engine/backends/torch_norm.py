"""InstanceNorm of networks that PyTorch runs on a GPU, by our own kernels (`cpp_ext/instance_norm.hpp`). PyTorch's puts
channels first for it and back again, which took three quarters of MLPerf's 3D U-Net on an H200; ours reads them where they
are, has the LeakyReLU or ReLU after it in the same pass, and writes its part of a concatenation where that is wanted. What else
is concatenated, a transposed convolution as a rule, is put there by a kernel of ours: PyTorch copies into a slice of
channels at a sixth of what memory gives.

The network is recorded as a graph of PyTorch's own operators, whatever file it came from, and rewritten there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.shape_prop import ShapeProp

from unet_engine.errors import first_line

VERSION = 1
"""Names a run; goes up whenever its bytes would change."""
MOST_APART = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Relative error, in the root mean square, up to which the rewritten network is taken for the same one. A wrong rewrite
is off by far more, rounding by far less."""
_aten = torch.ops.aten
_SLOPES: dict[Any, Callable[..., float]] = {
    _aten.leaky_relu.default: lambda slope=0.01: float(slope),
    _aten.leaky_relu_.default: lambda slope=0.01: float(slope),
    _aten.relu.default: lambda: 0.0,
    _aten.relu_.default: lambda: 0.0,
}


@torch.library.custom_op("unet_engine::instance_norm", mutates_args=())  # type: ignore[untyped-decorator, unused-ignore]
def _marker(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """Stands for an InstanceNorm while a network is recorded: it is seen as one."""
    return normalised(x, weight, bias, eps)


@dataclass(frozen=True)
class Rewritten:
    """network: takes and gives what the original does; None: left as it is. why: what was in the way of a network with
    InstanceNorm; empty where nothing was, or there is none."""

    network: Any = None
    why: str = ""


def rewritten(network: Any, example: torch.Tensor) -> Rewritten:
    """`network` with our own InstanceNorm. example: a batch, of the device, shape, type and memory order that it will
    get; the context (autocast, inference) as well."""
    seen = 0

    def norm(x: torch.Tensor, weight: Any, bias: Any, *others: Any) -> Any:
        nonlocal seen
        mean, variance, of_input, _, eps, _ = others
        if not of_input or mean is not None or variance is not None or x.dim() not in (4, 5):
            return NotImplemented
        seen += 1
        return torch.ops.unet_engine.instance_norm(x, weight, bias, eps)

    try:
        example = torch.randn(example.shape, device=example.device, generator=_generator(example)).to(example.dtype)
        example = example.contiguous(memory_format=_order(example))
        kernels_of(example)
        graph = make_fx(_callable(network), decomposition_table={_aten.instance_norm.default: norm})(example)
        if not seen:
            return Rewritten()
        ShapeProp(graph).propagate(example)
        _convert_once(graph)
        _fuse(graph)
        apart = _apart(graph(example), network(example))
    except Exception as error:
        return Rewritten(why=f"its InstanceNorm is PyTorch's: {first_line(error)}" if seen else "")
    if not apart <= MOST_APART[example.dtype]:
        return Rewritten(why=f"its InstanceNorm is PyTorch's: with ours the output was {apart:.1g} apart")
    return Rewritten(graph)


def _callable(network: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that calls `network`: of a module itself, parameters would be looked for by the names of its own."""

    def called(x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = network(x)
        return found

    return called


def _generator(example: torch.Tensor) -> torch.Generator:
    return torch.Generator(example.device).manual_seed(0)


def _order(x: torch.Tensor) -> torch.memory_format:
    return torch.channels_last_3d if x.dim() == 5 else torch.channels_last


def _apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    scale = theirs.float().square().mean().sqrt()
    return float((ours.float() - theirs.float()).square().mean().sqrt() / scale.clamp_min(1e-30))


# --- the graph ---


def _convert_once(graph: torch.fx.GraphModule) -> None:
    """Have what autocast makes of a parameter, batch by batch, made now."""
    for number, node in enumerate(graph.graph.nodes):
        if node.target is not _aten._to_copy.default or node.args[0].op != "get_attr":
            continue
        name = f"_converted{number}"
        graph.register_buffer(name, node.target(getattr(graph, node.args[0].target), **node.kwargs))
        with graph.graph.inserting_before(node):
            kept = graph.graph.get_attr(name)
        kept.meta = node.meta
        node.replace_all_uses_with(kept)


def _fuse(graph: torch.fx.GraphModule) -> None:
    for node in [n for n in graph.graph.nodes if n.target is torch.ops.unet_engine.instance_norm.default]:
        (x, weight, bias, eps), slope, replaced = node.args, 1.0, node
        user = next(iter(node.users), None)
        if len(node.users) == 1 and user is not None and user.target in _SLOPES and not user.kwargs:
            slope, replaced = _SLOPES[user.target](*user.args[1:]), user
        with graph.graph.inserting_before(node):
            ours = graph.graph.call_function(normalised, (x, weight, bias, eps, slope))
        ours.meta = replaced.meta
        replaced.replace_all_uses_with(ours)
    graph.graph.eliminate_dead_code()
    for node in list(graph.graph.nodes):
        if node.target is _aten.cat.default:
            _join(graph.graph, node)
    graph.graph.lint()
    graph.recompile()


def _join(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """Have the normalised parts of a concatenation written into it by what normalises them."""
    parts, axis = node.args[0], node.args[1] if len(node.args) > 1 else 0
    if axis not in (1, 1 - len(_shape(node))) or len({p.meta["tensor_meta"].dtype for p in parts}) > 1:
        return
    ours = [p for p in parts if p.target is normalised and len(p.args) == 5]
    if not ours or len(set(parts)) < len(parts):
        return
    first = min(ours, key=list(graph.nodes).index)
    with graph.inserting_before(first):
        joined = graph.call_function(_room, (first.args[0], _shape(node)[1]))
    at = 0
    for part in parts:
        channels = _shape(part)[1]
        if part in ours:
            part.args = (*part.args, joined, at)
        else:
            with graph.inserting_before(node):
                graph.call_function(put, (joined, at, part))
        at += channels
    node.replace_all_uses_with(joined)
    graph.erase_node(node)


def _shape(node: torch.fx.Node) -> Any:
    return node.meta["tensor_meta"].shape


def _room(like: torch.Tensor, channels: int) -> torch.Tensor:
    """Of a batch with so many channels, channels last."""
    shape = (like.shape[0], channels, *like.shape[2:])
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=_order(like))


def put(joined: torch.Tensor, at: int, part: torch.Tensor) -> None:
    """Copy a batch (N, C, *W) to the channels of `joined`, which lie last, from `at` on."""
    part, kernels = part.contiguous(memory_format=_order(joined)), kernels_of(joined)
    into = joined[:, at : at + part.shape[1]]
    kernels.put(_array(kernels, part), _array(kernels, into), stream=_stream(joined))


# --- the kernels ---


def kernels_of(x: torch.Tensor) -> Any:
    """Those of the device that `x` is on. Raises `ImportError` where they were not built."""
    if x.device.type == "cuda":
        from unet_engine.devices import _halo_cuda

        return _halo_cuda
    from unet_engine.devices import _halo_loop

    return _halo_loop


def normalised(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, slope: float = 1.0,
    joined: torch.Tensor | None = None, at: int = 0,
) -> torch.Tensor:  # fmt: skip
    """Each channel of each window of x (N, C, *W), channels last, normalised; what is below 0 times `slope`. joined: a
    larger batch that gets the same in its channels from `at` on."""
    x = x.contiguous(memory_format=_order(x))
    out, kernels = torch.empty_like(x), kernels_of(x)
    count, channels = x.shape[:2]
    room = kernels.instance_norm_scratch(count, channels, prod(x.shape[2:]))
    scratch = torch.empty(room, dtype=torch.uint8, device=x.device)
    into = [out] if joined is None else [out, joined[:, at : at + channels]]
    given = [None if v is None else v.detach().float().contiguous() for v in (weight, bias)]
    kernels.instance_norm(
        _array(kernels, x), [_array(kernels, o) for o in into], _array(kernels, scratch), eps=eps, slope=slope,
        weight=given[0] if given[0] is None else _array(kernels, given[0]),
        bias=given[1] if given[1] is None else _array(kernels, given[1]), stream=_stream(x),
    )  # fmt: skip
    return out


def _stream(x: torch.Tensor) -> int:
    return torch.cuda.current_stream(x.device).cuda_stream if x.device.type == "cuda" else 0


def _array(kernels: Any, tensor: torch.Tensor) -> Any:
    kind = str(tensor.dtype).removeprefix("torch.")
    return kernels.array(
        tensor.data_ptr(), tuple(tensor.shape), kind, tuple(tensor.stride()), device=tensor.device.index or 0
    )
