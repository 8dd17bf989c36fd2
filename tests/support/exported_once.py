"""PyTorch's exporter takes seconds: the same network with the same weights goes through it once per process, and what
it finds out anew for every network, though it is the same for all, is found out once."""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest

_KNOWN: dict[str, bytes] = {}
"""ONNX by what it was made of."""


@pytest.fixture(autouse=True)
def _operators_once() -> None:
    """As soon as something has been exported: half a second for each export after the first, a third of a small
    network's. For its list of operators the exporter parses the source of 500 functions; to see which PyTorch has, it
    looks each of them up, 56 times."""
    registry = sys.modules.get("torch.onnx._internal.exporter._registration")
    operators = sys.modules.get("torch._export.utils")
    if registry is not None and not hasattr(registry.ONNXRegistry, "_made_by_tests"):
        registry.ONNXRegistry._made_by_tests = {}
        registry.ONNXRegistry.from_torchlib = _registry_once(registry.ONNXRegistry)
    if operators is not None and not hasattr(operators, "_materialized_by_tests"):
        operators._materialized_by_tests = []
        operators._materialize_cpp_cia_ops = _materialized_once(operators)


def _registry_once(registry: Any) -> Any:
    """Its operators of each opset, made once. Whoever gets them may add to them."""
    make, known = registry.from_torchlib, registry._made_by_tests

    def once(opset_version: int | None = None) -> Any:
        if opset_version not in known:
            known[opset_version] = make() if opset_version is None else make(opset_version)
        new = registry()
        new._opset_version = known[opset_version].opset_version
        new.functions = {name: list(forms) for name, forms in known[opset_version].functions.items()}
        return new

    return staticmethod(once)


def _materialized_once(operators: Any) -> Callable[[], None]:
    """Done again only where there are other operators than there were: some packages add theirs."""
    make, known = operators._materialize_cpp_cia_ops, operators._materialized_by_tests

    def once() -> None:
        import torch

        there = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        if known != [there]:
            make()
            known[:] = [there]

    return once


class _Pickler(pickle.Pickler):
    """PyTorch puts a number of its own into each tensor that it pickles: here they are their values alone."""

    def reducer_override(self, item: Any) -> Any:
        if not hasattr(item, "untyped_storage"):
            return NotImplemented
        values = item.detach().contiguous().numpy().tobytes()
        return tuple, ((str(item.dtype), tuple(item.shape), values),)


def _digest(item: Any) -> str:
    written = io.BytesIO()
    _Pickler(written).dump(item)
    return hashlib.sha256(written.getvalue()).hexdigest()


@pytest.fixture
def exported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what happens around an export. What it makes is compared with the network each time all the same."""
    onnx = pytest.importorskip("onnx")
    writing = pytest.importorskip("unet_export.conversion.writing")
    export = writing.from_module

    def once(network: Any, spec: Any, *rows: Any) -> Any:
        try:
            key = _digest((network, spec.model_dump(), rows))
        except Exception:  # what is made within a function has no name to be known by
            return export(network, spec, *rows)
        if key not in _KNOWN:
            _KNOWN[key] = export(network, spec, *rows).SerializeToString()
        return onnx.load_from_string(_KNOWN[key])

    monkeypatch.setattr(writing, "from_module", once)
