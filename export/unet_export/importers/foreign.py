"""Models of frameworks that nothing here runs, known by their files, each with the way to ONNX."""

from __future__ import annotations

import zipfile
from pathlib import Path

from unet_engine.errors import ModelError
from unet_engine.units import Tell
from unet_export.importers.base import Imported, Wanted

_WAYS = {
    "Core ML": "it runs on Apple's systems alone; export the network that it was converted from",
    "TensorFlow Lite": "it becomes ONNX with: python -m tf2onnx.convert --tflite MODEL.tflite --output model.onnx",
    "Keras": "it becomes ONNX with: python -m tf2onnx.convert --keras MODEL --output model.onnx, or in Keras 3 with "
    "model.export('model.onnx', format='onnx')",
    "TensorFlow SavedModel": "it becomes ONNX with: python -m tf2onnx.convert --saved-model FOLDER --output model.onnx",
    "TensorFlow graph": "it becomes ONNX with: python -m tf2onnx.convert --graphdef MODEL.pb --inputs … --outputs … "
    "--output model.onnx",
    "TensorFlow.js": "it cannot be read back; export the network that it was converted from",
    "OpenVINO": "export the ONNX or the PyTorch network that it was made of",
    "TensorRT": "it is an engine for one GPU; export the ONNX that it was made of",
    "PaddlePaddle": "it becomes ONNX with: paddle2onnx --model_dir FOLDER --save_file model.onnx",
    "JAX or Flax": "it becomes ONNX by way of TensorFlow: jax2tf, then tf2onnx",
}
_SUFFIXES = {
    ".mlmodel": "Core ML", ".mlpackage": "Core ML", ".tflite": "TensorFlow Lite", ".h5": "Keras", ".hdf5": "Keras",
    ".keras": "Keras", ".pb": "TensorFlow graph", ".xml": "OpenVINO", ".engine": "TensorRT", ".plan": "TensorRT",
    ".pdmodel": "PaddlePaddle", ".pdiparams": "PaddlePaddle", ".msgpack": "JAX or Flax",
}  # fmt: skip
_INSIDE = {
    "saved_model.pb": "TensorFlow SavedModel", "saved_model.pbtxt": "TensorFlow SavedModel", "Manifest.json": "Core ML",
    "model.json": "TensorFlow.js", "inference.pdmodel": "PaddlePaddle", "keras_metadata.pb": "TensorFlow SavedModel",
}  # fmt: skip


class Foreign:
    name = "Core ML, TensorFlow Lite, Keras, SavedModel and such"
    extra = ""
    keeps = "nothing: each is refused with the way to ONNX, which is run as it is"
    cannot = "be read"

    def recognises(self, path: Path) -> bool:
        return _kind(path) is not None

    def content(self, path: Path) -> list[Path]:
        return []

    def read(self, path: Path, wanted: Wanted, tell: Tell) -> Imported:
        kind = str(_kind(path))
        raise ModelError(f"{path} is of {kind}, which is not read here; {_WAYS[kind]}")


def _kind(path: Path) -> str | None:
    found = _SUFFIXES.get(path.suffix.lower())
    if found or not path.exists():
        return found
    if path.is_dir():
        names = [entry.name for entry in path.iterdir()]
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [n.rpartition("/")[2] for n in archive.namelist() if n.count("/") <= 1]
    else:
        return None
    inside = next((_INSIDE[name] for name in names if name in _INSIDE), None)
    return inside or next((_SUFFIXES[s] for name in names if (s := Path(name).suffix.lower()) in _SUFFIXES), None)
