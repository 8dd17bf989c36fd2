"""Run a 2D or 3D U-Net over a volume far larger than memory, Zarr to Zarr.

import unet_engine
result = unet_engine.run("scan.zarr", model="membrane.onnx", out="labels.zarr")
labels = unet_engine.predict(array, "membrane.onnx")
plan = unet_engine.make_plan("scan.zarr", model="membrane.onnx")
model = unet_engine.open_model("membrane.onnx")
unet_engine.convert("labels.zarr", "labels.nii.gz")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unet_engine.api import Result
    from unet_engine.arrays.calls import make_plan, open_volume, predict, run
    from unet_engine.errors import UnetEngineError, UnetEngineWarning
    from unet_engine.model.file import ModelFile, open_model
    from unet_engine.model.spec import ModelSpec
    from unet_engine.plan.plan import Plan
    from unet_engine.postprocess.convert import convert

__all__ = [
    "ModelFile", "ModelSpec", "Plan", "Result", "UnetEngineError", "UnetEngineWarning", "convert", "make_plan",
    "open_model", "open_volume", "predict", "run",
]  # fmt: skip

_HOMES = {
    "ModelFile": "model.file", "open_model": "model.file", "ModelSpec": "model.spec", "Plan": "plan.plan",
    "Result": "api", "UnetEngineError": "errors", "UnetEngineWarning": "errors", "make_plan": "arrays.calls",
    "open_volume": "arrays.calls", "predict": "arrays.calls", "run": "arrays.calls",
    "convert": "postprocess.convert",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load on first use, so that ``import unet_engine`` stays fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'unet_engine' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"unet_engine.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
