"""Checkpoints and hub folders whose network is one of segmentation-models-pytorch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet_engine.errors import ModelError, first_line
from unet_engine.model.credit import Credit
from unet_engine.paths import check_file
from unet_engine.units import Tell
from unet_engine.version import version_of
from unet_export.conversion import sharded
from unet_export.importers.base import Imported, Member, Wanted
from unet_export.importers.checkpoints import hyperparameters
from unet_export.importers.checkpoints.measured import as_weights_say, window_of
from unet_export.importers.checkpoints.normalising import take_scaling, tell_scaling
from unet_export.importers.checkpoints.smp import HOW, Named, built, name_of, parsed
from unet_export.importers.files import MOST_TEXT, Files

_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pt", "model.bin")
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_OWN = ("encoder_name", "encoder_weights")
_SUFFIXES = (".ckpt", ".pth", ".pt", ".bin", ".safetensors", ".tar")


class SmpFolder:
    name = "segmentation-models-pytorch"
    extra = "smp"
    keeps = (
        "a folder as save_pretrained writes it: config.json with model.safetensors or pytorch_model.bin; the network by its "
        "name, licence of its card; window sizes proved"
    )
    cannot = "how images were normalised (say --normalize); encoders that are fetched from elsewhere"

    def recognises(self, path: Path) -> bool:
        if not path.is_dir() or not (path / "config.json").is_file():
            return False
        try:
            check_file(path / "config.json", MOST_TEXT)
            said = json.loads((path / "config.json").read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return any((path / name).is_file() for name in (*_WEIGHTS, *_INDICES))
        return isinstance(said, Mapping) and (name_of(said.get("_model_class")) is not None or "encoder_name" in said)

    def content(self, path: Path) -> list[Path]:
        files = [path / name for name in ("config.json", "README.md", *_WEIGHTS) if (path / name).is_file()]
        return files + [part for name in _INDICES if (path / name).is_file() for part in _with_parts(path / name)]

    def read(self, path: Path, wanted: Wanted, tell: Tell) -> Imported:
        with Files(path) as files:
            said = files.mapping("config.json")
            named = parsed(wanted.smp) if wanted.smp else _of_config(path, said)
            weights = next((name for name in (*_WEIGHTS, *_INDICES) if files.has(name)), None)
            if weights is None:
                raise ModelError(f"{path} lacks model.safetensors, which holds the weights; get the folder again")
            card = files.text("README.md") if files.has("README.md") else ""
            credit = Credit(source=f"segmentation-models-pytorch: {named}", licence=_licence(card))
            return _imported(str(path), named, files.local(weights), {}, credit, wanted, tell)


class Checkpoint:
    name = "checkpoint"
    extra = "smp"
    keeps = (
        "a .ckpt, .pth, .pt or .safetensors whose hyperparameters name a network of segmentation-models-pytorch (Lightning, "
        "torchgeo, terratorch's SMP models), or with --smp Unet,resnet34,classes=5; weights under any key and prefix, "
        "averages with --weights"
    )
    cannot = (
        "networks of one's own: unet-engine export WEIGHTS --factory package.module:function; objects in it are not run"
    )

    def recognises(self, path: Path) -> bool:
        return path.is_file() and (path.name.lower().endswith(_SUFFIXES) or sharded.is_index(path))

    def content(self, path: Path) -> list[Path]:
        return _with_parts(path) if sharded.is_index(path) else [path]

    def read(self, path: Path, wanted: Wanted, tell: Tell) -> Imported:
        said = _said(path)
        named = parsed(wanted.smp) if wanted.smp else hyperparameters.named_in(said)
        if named is None:
            raise ModelError(
                f"{path} holds weights, and does not say of which network{_told(said)}; name it, {HOW}, or use unet-engine "
                "export with --factory"
            )
        if not wanted.smp:
            tell(f"note: its hyperparameters name the network {named}; --smp says otherwise")
        credit = Credit(source=f"checkpoint {path.name}: {named}")
        return _imported(str(path), named, path, hyperparameters.meaning_in(said), credit, wanted, tell)


def _with_parts(index: Path) -> list[Path]:
    return [index, *(index.parent / name for name in sharded.parts_of(index))]


def _said(path: Path) -> Mapping[str, Any]:
    """The hyperparameters in the file; none of one that holds tensors alone."""
    if sharded.is_index(path):
        return {}
    sharded.check_alone(path)
    if path.suffix.lower() == ".safetensors":
        from unet_export.conversion.safetensors_file import check_length

        check_length(path)
        return {}
    from unet_export.conversion.weights import read_data

    return _hyperparameters(read_data(path))


def _of_config(path: Path, said: Mapping[str, Any]) -> Named:
    name = name_of(said.get("_model_class"))
    if name is None:
        raise ModelError(
            f"{path}: its config.json names the class {said.get('_model_class')}, which is none that is built here; name "
            f"the network, {HOW}"
        )
    arguments = {k: v for k, v in said.items() if not k.startswith("_") and k not in _OWN}
    return Named(name, str(said.get("encoder_name", "resnet34")), arguments)


def _imported(
    path: str, named: Named, weights: Path, meaning: dict[str, Any], credit: Credit, wanted: Wanted, tell: Tell
) -> Imported:
    from unet_export.conversion.weights import fill, read_weights

    held = read_weights(weights)
    named = as_weights_say(path, named, held)
    network = built(path, named)
    channels = named.arguments.get("in_channels", 3)
    taken = take_scaling(held, network, channels) if isinstance(channels, int) else None
    fill(network, held, wanted.weights, tell, "--smp")
    if named.arguments.get("activation"):  # done inside, as the graph tells
        meaning = {key: value for key, value in meaning.items() if key != "activation"}
    promised = {"name": Path(path).stem, **meaning}
    if isinstance(channels, int):
        promised["channels_in"] = channels
    if window := window_of(network, named.encoder):
        promised["window"] = window
    if not wanted.normalize:
        promised |= {"normalization": taken} if taken else {}
        tell_scaling(taken, named, tell)
    version = version_of("segmentation-models-pytorch")
    return Imported(
        (Member(weights.name, network),), promised, "what builds its network", credit, head=wanted.head,
        versions={"segmentation-models-pytorch": version or ""},
    )  # fmt: skip


def _hyperparameters(held: Any) -> Mapping[str, Any]:
    """The first of the keys that hold such."""
    if not isinstance(held, Mapping):
        return {}
    found: Mapping[str, Any] = next(
        (held[key] for key in hyperparameters.KEYS if isinstance(held.get(key), Mapping)), {}
    )
    return hyperparameters.unwrapped(found)


def _told(said: Mapping[str, Any]) -> str:
    names = [str(key) for key in said]
    return f" ({', '.join(names[:6])}{' …' if len(names) > 6 else ''} do not tell)" if names else ""


def _licence(card: str) -> str:
    """What the card of a hub folder says between its dashes."""
    import yaml

    if not card.startswith("---"):
        return ""
    try:
        said = yaml.safe_load(card.split("---")[1])
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        return f"not readable: {first_line(error)}"
    return str(said.get("license") or "") if isinstance(said, Mapping) else ""
