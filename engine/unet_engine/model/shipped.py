"""The networks that come with the engine."""

from __future__ import annotations

from pathlib import Path

from unet_engine.errors import UnetEngineError


def shipped_model(name: str) -> Path:
    """Path of the network called `name`, e.g. ``cells_3d.onnx``. Raises `UnetEngineError` where the installation lacks
    it."""
    path = Path(__file__).parents[1] / "models" / name
    if not path.is_file():
        raise UnetEngineError(f"{path} is missing from the installation; reinstall unet-engine")
    return path
