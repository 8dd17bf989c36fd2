"""Weights that an ONNX file keeps in other files: where they lie, and that they are the model's own.

A model comes from anywhere, and names these files itself. Only files in its own folder are read: anything else on the
machine would end up in what the network computes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from unet_engine.errors import ModelError
from unet_engine.paths import check_file


def weights_outside(model: Any, path: Path) -> list[Path]:
    """The files beside `path` that tensors of `model`, an ONNX ``ModelProto``, lie in.

    Raises `ModelError` for one that is not in the model's folder, whatever links lead to it, is missing or no regular
    file, or is shorter than a tensor in it says.
    """
    ends: dict[str, int] = {}
    for tensor in _tensors(model):
        said = {entry.key: entry.value for entry in tensor.external_data}
        if said:
            name, takes = said.get("location", ""), _bytes_of(tensor)
            length = _number(said, "length", path) if said.get("length") else takes
            if length < takes:
                raise ModelError(
                    f"{path} says that {tensor.name} lies in {length} bytes of {name!r}, and it takes {takes}; export it "
                    "again"
                )
            ends[name] = max(ends.get(name, 0), _number(said, "offset", path) + length)
    return [_checked(path, name, end) for name, end in sorted(ends.items())]


def _checked(path: Path, name: str, end: int) -> Path:
    file, folder = path.parent / name, os.path.realpath(path.parent)
    if not name or Path(name).is_absolute() or not Path(os.path.realpath(file)).is_relative_to(folder):
        raise ModelError(
            f"{path} keeps weights in {name!r}, outside of its own folder, which are not read; "
            "put them beside it, or export it with its weights inside"
        )
    try:
        size = check_file(file).st_size
    except OSError as error:
        raise ModelError(
            f"{path} keeps weights in {name!r}, which cannot be read: {error.strerror}; put that file beside it"
        ) from error
    if size < end:
        raise ModelError(
            f"{path} keeps weights in {name!r} up to byte {end}, and the file ends at {size}; copy it again"
        )
    return file


def _bytes_of(tensor: Any) -> int:
    """What the tensor takes; of types that are packed, or not known, nothing is told."""
    import onnx

    try:
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, TypeError, ValueError):
        return 0
    packed = any(part in onnx.TensorProto.DataType.Name(tensor.data_type) for part in ("INT4", "INT2", "FLOAT4"))
    return 0 if packed or kind.kind == "O" else prod(tensor.dims) * int(kind.itemsize)


def _number(said: dict[str, str], key: str, path: Path) -> int:
    text = said.get(key) or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelError(f"{path} says {key} = {text[:40]!r} of weights outside of it; export it again")
    return int(text)


def _tensors(model: Any) -> Iterator[Any]:
    """Every tensor of the file, those in functions, and in graphs inside of nodes, too."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _of_node(node)
    for training in model.training_info:
        yield from _of_graph(training.initialization)
        yield from _of_graph(training.algorithm)


def _of_graph(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _of_node(node)


def _of_node(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        if attribute.HasField("g"):
            yield from _of_graph(attribute.g)
        for graph in attribute.graphs:
            yield from _of_graph(graph)
