"""PyTorch's exporters behind three functions: module, exported program and TorchScript to an ONNX graph.

Input and output are called "input" and "output", the batch size is free, and what the exporter notes about source files
is dropped.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._sympy.functions import Mod, PythonMod

from unet_engine.errors import ModelError, first_line
from unet_engine.model.spec import ModelSpec

OPSET = 20
"""The newest ONNX operator set that ONNX Runtime, OpenVINO and TensorRT 10 and 11 all parse."""
LARGEST = 1024
"""Upper bound that `torch.export` is told for a dynamic size, in lattice steps."""


def from_module(network: Any, spec: ModelSpec, rows: int | None = None) -> Any:
    """ONNX graph of a module; spatial sizes are free on the lattice of `spec`, or fixed where its steps are 0. `rows`:
    the one batch that the network takes; None: it takes any.

    Raises `ModelError` naming the operator that ONNX lacks, or the reason why sizes cannot be free.
    """
    example = torch.zeros((rows or 2, spec.channels_in, *example_sizes(spec)))
    shapes = dynamic_shapes(spec)
    if rows:
        del shapes[0][0]
    with _silent(), _explained(spec.name), _Traced():
        program = torch.onnx.export(
            network,
            (example,),
            input_names=["input"],
            output_names=["output"],
            opset_version=OPSET,
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        return forget_source(_proto(program))


class _Traced(TorchFunctionMode):  # type: ignore[misc]  # the type checker skips torch
    """Has ``x.data``, which tensors that are traced lose their way by, read as ``x.detach()``; MONAI's ResNet has it.
    And refuses what tracing does not end with, before it begins."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function == _DATA:
            return args[0].detach()
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and any(_counts_own_windows(size) for size in result.shape):
            raise _NotFollowed(
                "it pads its features to multiples of windows of its own and attends within these, whose number cannot be "
                "left open"
            )
        return result


class _NotFollowed(BaseException):
    """No `Exception`: after one the exporter tries its other ways of tracing, and prints what they come across."""


def _counts_own_windows(size: Any) -> bool:
    """Whether `size` is a number of windows that padded axes were cut into, several of them at once: SwinUNETR's. How
    these divide is asked again in every layer, and never ends where sizes are free."""
    if not isinstance(size, torch.SymInt):
        return False
    remainders = size.node.expr.atoms(Mod, PythonMod)
    return len({symbol for remainder in remainders for symbol in remainder.free_symbols}) > 1


_DATA = torch.Tensor.data.__get__


def from_program(program: Any, name: str) -> Any:
    """ONNX graph of a `torch.export` program, with the sizes free that are free in it."""
    with _silent(), _explained(name):
        exported = torch.onnx.export(
            program,
            input_names=["input"],
            output_names=["output"],
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        return forget_source(_proto(exported))


def from_script(script: Any, spec: ModelSpec, rows: int | None = None) -> Any:
    """ONNX graph of a TorchScript module. PyTorch's older exporter reads these; sizes with a step in `spec` are
    free. `rows` as of `from_module`."""
    import onnx

    free = {a + 2: f"n{axis}" for a, (axis, step) in enumerate(zip(spec.axes, spec.window_step, strict=True)) if step}
    batch = {} if rows else {0: "batch"}
    example = torch.zeros((rows or 2, spec.channels_in, *example_sizes(spec)))
    buffer = io.BytesIO()
    with _silent(), _explained(spec.name):
        torch.onnx.export(
            script,
            (example,),
            buffer,
            input_names=["input"],
            output_names=["output"],
            opset_version=OPSET,
            dynamic_axes={"input": {**batch, **free}, "output": batch},
            dynamo=False,
        )
    return forget_source(onnx.load_from_string(buffer.getvalue()))


def _proto(program: Any) -> Any:
    assert program is not None  # dynamo=True always returns a program
    return program.model_proto


def dynamic_shapes(spec: ModelSpec) -> tuple[dict[int, Any]]:
    """Per axis of the input: size = window_min + k·window_step for k ≥ 0.

    `torch.export` knows only sizes a·n + b of a free n, and takes n = 0 and 1 for constants, so n counts from
    the multiples of the step that fit below `window_min`.
    """
    shapes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=4096)}
    for a, (axis, least, step) in enumerate(zip(spec.axes, spec.window_min, spec.window_step, strict=True)):
        if step == 0:
            continue
        steps, rest = divmod(least, step)
        # One letter more than the axis, because "x" and "y" may be names that sympy has already.
        n = torch.export.Dim(f"n{axis}", min=steps, max=LARGEST)
        size: Any = n if step == 1 else step * n
        shapes[a + 2] = size + rest if rest else size
    return (shapes,)


def example_sizes(spec: ModelSpec) -> tuple[int, ...]:
    """A small window that is not the smallest, with different sizes per axis, so that nothing is taken for constant."""
    sizes = zip(spec.window_min, spec.window_step, strict=True)
    return tuple(least + step * (1 + a) for a, (least, step) in enumerate(sizes))


def forget_source(proto: Any) -> Any:
    """Drop what the exporter notes about source files: it names the author's folders and makes bytes differ."""
    del proto.metadata_props[:]
    for holder in (proto.graph, *proto.functions):
        del holder.metadata_props[:]
        for node in holder.node:
            del node.metadata_props[:]
            node.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    return proto


# --- what the exporters say ---

_OPERATOR = re.compile(
    r"op='([\w.:]+)'|exporting the operator '([\w.:]+)'|Unsupported: ONNX export of operator ([\w.:]+)"
)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns the exporters' pages of advice into one line."""
    try:
        yield
    except ModelError:
        raise
    except _NotFollowed as error:
        raise ModelError(f"{name} cannot be exported: {error}; try --sizes static") from None
    except Exception as error:
        text = "\n".join(str(e) for e in _chain(error))
        found = _OPERATOR.search(text)
        if found:
            operator = next(g for g in found.groups() if g)
            raise ModelError(
                f"{name} uses the operator {operator}, which has no form in ONNX opset {OPSET}; replace it in the "
                "network"
            ) from error
        raise ModelError(f"{name} cannot be exported: {_reason(error)}; try --sizes static") from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _reason(error: BaseException) -> str:
    """The innermost cause says what is wrong; the outer ones say in which step."""
    return first_line(list(_chain(error))[-1])


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    logger = logging.getLogger("torch.onnx")
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    levels = logger.level, registration.level
    logger.setLevel(logging.ERROR)
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(levels[0])
        registration.setLevel(levels[1])
