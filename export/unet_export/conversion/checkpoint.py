"""From what people keep after training to a network in inference mode: factory with state dict, `.pt2`, TorchScript.

A checkpoint is opened with ``weights_only``: no code in it runs. The factory is the user's own code and does; so does
what is in a `.pt2` or TorchScript, which therefore have to be trusted.
"""

from __future__ import annotations

import importlib
import json
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unet_engine.errors import ModelError, SettingsError, first_line
from unet_engine.model import trust as trusting
from unet_engine.model.file import hash_of

Kind = Literal["module", "program", "torchscript"]
_HOLDERS = ("state_dict", "model_state_dict", "network_weights", "model", "net")
"""Keys under which training frameworks keep the weights: Lightning, plain PyTorch, nnU-Net, MONAI's examples."""
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""What wrappers (data parallel, compiled, Lightning modules) put before every name."""


@dataclass(frozen=True)
class Checkpoint:
    """A network that can be called with float32 (n, c, [z,] y, x), and how it came."""

    network: Any
    """A module; for `.pt2` that of the exported program."""
    kind: Kind
    program: Any = None
    """The exported program of a `.pt2`, whose free sizes are those of the file."""


def open_checkpoint(
    path: str | Path, factory: str | None = None, arguments: str = "{}", *, trust: bool = False
) -> Checkpoint:
    """Open `path` as what it is. `factory` (``package.module:function``) builds the network that a state dict fills; it
    is called with the JSON object `arguments` as keywords. `trust`: the user trusts a file that runs code.

    Raises `ModelError` for a file that is missing, corrupt, not trusted or does not fit the network, `SettingsError` for
    the factory.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path} does not exist; give a state dict, a .pt2, a TorchScript or an .onnx")
    entries = _entries(path)
    if any(name.split("/", 1)[-1].startswith("code/") for name in entries) and not factory:
        _check_trust(path, "torchscript", given=trust)
        return Checkpoint(_guarded(path, lambda: torch.jit.load(str(path), map_location="cpu").eval()), "torchscript")
    if path.suffix == ".pt2":
        _check_trust(path, "pt2", given=trust)
        program = _guarded(path, lambda: torch.export.load(path))
        return Checkpoint(program.module(), "program", program)
    if not factory:
        raise SettingsError(
            f"{path} holds weights but no network; name what builds it: --factory package.module:function"
        )
    network = built(factory, arguments)
    fill(network, _weights(path), path)
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


def _weights(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint by name, found wherever the training framework keeps them."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(
            f"{path} cannot be read as plain weights: {first_line(error)}; save net.state_dict() alone"
        ) from error
    for key in _HOLDERS:
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
    found = {k: v for k, v in held.items() if isinstance(v, Tensor)} if isinstance(held, Mapping) else {}
    if not found:
        raise ModelError(f"{path} holds no weights by name; save net.state_dict()")
    return found


def fill(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put `weights` into `network`, every one of them. Prefixes that all names share are dropped where they do not fit.

    Raises `ModelError` naming what is missing, left over or of another shape.
    """
    wanted = network.state_dict()
    weights = _without_prefixes(weights, set(wanted))
    missing = [k for k in wanted if k not in weights]
    if missing:
        raise ModelError(f"{path} lacks {_some(missing)} of the network; check --factory and --arguments")
    left_over = [k for k in weights if k not in wanted]
    if left_over:
        raise ModelError(f"{path} holds {_some(left_over)} that the network lacks; check --factory and --arguments")
    for name, value in wanted.items():
        if weights[name].shape != value.shape:
            raise ModelError(
                f"{path}: {name} is {tuple(weights[name].shape)}, the network has {tuple(value.shape)}; "
                "check --arguments"
            )
    network.load_state_dict(dict(weights))


def _without_prefixes(weights: Mapping[str, Tensor], wanted: set[str]) -> Mapping[str, Tensor]:
    while not wanted & weights.keys():
        prefix = next((p for p in _PREFIXES if all(k.startswith(p) for k in weights)), None)
        if prefix is None:
            return weights
        weights = {k.removeprefix(prefix): v for k, v in weights.items()}
    return weights


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
