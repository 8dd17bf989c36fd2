"""The same network with the same weights goes through PyTorch's exporter once per process, which takes seconds."""

from __future__ import annotations

import hashlib
import io
import pickle
from typing import Any

import pytest

_KNOWN: dict[str, bytes] = {}
"""ONNX by what it was made of."""


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
