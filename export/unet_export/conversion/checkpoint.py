"""From what people keep after training to a network in inference mode: factory with state dict, `.pt2`, TorchScript.

A checkpoint is opened with ``weights_only``: no code in it runs. The factory is the user's own code and does; so does
what is in a `.pt2` or TorchScript, which therefore have to be trusted.
"""

from __future__ import annotations

import importlib
import json
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from unet_engine.errors import ModelError, SettingsError, first_line
from unet_engine.model import trust as trusting
from unet_engine.model.file import hash_of
from unet_engine.units import Tell
from unet_export.conversion.weights import fill, read_weights, summary

Kind = Literal["module", "program", "torchscript"]
_ELSEWHERE = {
    (".h5", ".hdf5", ".keras", ".pb", ".tflite"):
        "is of Keras or TensorFlow; turn it into ONNX with tf2onnx, and export that",
    (".npz", ".npy"): "is of NumPy; fill the network with its arrays and save net.state_dict() with torch.save",
    (".xml",): "is of OpenVINO; export the ONNX or the PyTorch network that it was made of",
    (".engine", ".plan", ".trt"): "is an engine of TensorRT, for one GPU; export the ONNX that it was made of",
}  # fmt: skip
"""What is no PyTorch file by its suffix, and what to do with it."""


@dataclass(frozen=True)
class Checkpoint:
    """A network that can be called with float32 (n, c, [z,] y, x), and how it came."""

    network: Any
    """A module; for `.pt2` that of the exported program."""
    kind: Kind
    program: Any = None
    """The exported program of a `.pt2`, whose free sizes are those of the file."""


def open_checkpoint(
    path: str | Path,
    factory: str | None = None,
    arguments: str = "{}",
    weights: str | None = None,
    tell: Tell = print,
    *,
    trust: bool = False,
) -> Checkpoint:
    """Open `path` as what it is. `factory` (``package.module:function``) builds the network that a state dict fills; it
    is called with the JSON object `arguments` as keywords. `weights` names those that are meant of several. `trust`:
    the user trusts a file that runs code.

    Raises `ModelError` for a file that is missing, corrupt, not trusted or does not fit the network, `SettingsError`
    for the factory."""
    path = Path(path)
    what = "give a state dict, a .pt2, a TorchScript or an .onnx"
    for suffixes, advice in _ELSEWHERE.items():
        if path.suffix.lower() in suffixes and path.exists():
            raise ModelError(f"{path} {advice}")
    if path.is_dir():
        raise ModelError(f"{path} is a folder; {what}; a SavedModel of TensorFlow becomes ONNX with tf2onnx")
    if not path.is_file():
        raise ModelError(f"{path} does not exist; {what}")
    entries = _entries(path)
    if any(name.split("/", 1)[-1].startswith("code/") for name in entries) and not factory:
        _check_trust(path, "torchscript", given=trust)
        return Checkpoint(
            _guarded(path, lambda: torch.jit.load(str(path), map_location="cpu").float().eval()), "torchscript"
        )
    if path.suffix == ".pt2":
        _check_trust(path, "pt2", given=trust)
        program = _guarded(path, lambda: torch.export.load(path))
        return Checkpoint(program.module(), "program", program)
    held = read_weights(path)
    if not factory:
        raise SettingsError(
            f"{path} holds weights ({summary(held)}) but no network; name what builds it: --factory "
            "package.module:function"
        )
    network = built(factory, arguments)
    fill(network, held, weights, tell)
    return Checkpoint(network.float().cpu().eval(), "module")


def _check_trust(path: Path, kind: str, *, given: bool) -> None:
    sha256 = hash_of(path)
    if given:
        trusting.trust(path, sha256)
    trusting.check(path, kind, sha256)


def _entries(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except zipfile.BadZipFile:
        return []  # checkpoints of old PyTorch versions are no archives


def _guarded(path: Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # PyTorch raises what its parsers raise
        raise ModelError(f"{path} cannot be loaded by PyTorch: {first_line(error)}; save it again") from error


def built(factory: str, arguments: str = "{}") -> nn.Module:
    """The network that ``package.module:function`` returns for the JSON object `arguments`. Raises `SettingsError`."""
    module_name, _, name = factory.partition(":")
    if not module_name or not name:
        raise SettingsError(f"--factory {factory!r} is not package.module:function; write it like mynets.unet:build")
    try:
        keywords = json.loads(arguments)
    except json.JSONDecodeError as error:
        raise SettingsError(f"--arguments is not valid JSON: {error}; write it like '{{\"base\": 16}}'") from error
    if not isinstance(keywords, dict):
        raise SettingsError(f"--arguments {arguments} is no JSON object; write it like '{{\"base\": 16}}'")
    if "" not in sys.path:
        sys.path.insert(0, "")  # a module in the current folder, as python -m finds it
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise SettingsError(
            f"--factory {factory}: {first_line(error)}; install the package or run where it lies"
        ) from error
    try:
        network = function(**keywords)
    except Exception as error:
        raise SettingsError(
            f"--factory {factory} failed: {first_line(error)}; check --arguments {arguments}"
        ) from error
    if not isinstance(network, nn.Module):
        raise SettingsError(f"--factory {factory} returned a {type(network).__name__}, no torch.nn.Module; correct it")
    return network
