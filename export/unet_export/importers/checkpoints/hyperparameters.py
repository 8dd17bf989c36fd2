"""What the hyperparameters of a training tell of its network: read as data, whatever objects they were pickled with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from unet_export.importers.checkpoints.smp import Named, name_of

KEYS = ("hyper_parameters", "hparams", "config", "cfg", "args")
_NETWORK = ("arch", "architecture", "model", "model_name", "decoder_name", "network", "model_type", "_model_class")
_TARGET = ("_target_", "class_path", "name", "class_name", "type")
"""Beside these, where the arguments of a network lie together: of Hydra, of Lightning's command line."""
_ENCODER = ("encoder_name", "backbone", "encoder")
_IN = ("in_channels", "num_channels", "input_channels", "channels")
_OUT = ("classes", "num_classes", "out_classes", "n_classes", "out_channels", "num_outputs")
_FURTHER = (
    "encoder_depth", "encoder_output_stride", "encoder_output_indices", "decoder_channels", "decoder_use_batchnorm",
    "decoder_use_norm", "decoder_attention_type", "decoder_pyramid_channels", "decoder_segmentation_channels",
    "decoder_merge_policy", "decoder_atrous_rates", "decoder_aspp_separable", "decoder_interpolation",
    "decoder_pab_channels", "decoder_readout", "decoder_intermediate_channels", "decoder_fusion_channels",
    "psp_out_channels", "psp_use_batchnorm", "upsampling",
    "dynamic_img_size",
)  # fmt: skip
"""Arguments that decide what a network computes; some of them change no weight, so that weights would fit without."""
_ACTIVATIONS = ("sigmoid", "softmax", "softmax2d", "logsoftmax", "tanh", "argmax", "argmax2d", "clamp", "identity")
"""Those that the library knows: in hyperparameters of others the word means something inside of a network."""
_INSIDE = ("model_args", "model_kwargs", "net", "model", "network", "model_params", "hparams")
"""Keys under which the arguments of a network lie together."""


_AROUND = ("cfg", "config", "hparams", "args", "hyper_parameters", "params")
"""Under which a training keeps all that it was told, as one argument of its module."""
_DEEPEST = 4


def unwrapped(said: Mapping[str, Any], depth: int = _DEEPEST) -> Mapping[str, Any]:
    """With what lies together under one of those keys beside the others, which are nearer to the network."""
    inside = [said[key] for key in _AROUND if isinstance(said.get(key), Mapping)] if depth else []
    others = {key: value for key, value in said.items() if not any(value is one for one in inside)}
    return {k: v for one in inside for k, v in unwrapped(one, depth - 1).items()} | others if inside else said


def named_in(said: Mapping[str, Any]) -> Named | None:
    """The network of segmentation-models-pytorch that hyperparameters mean; None where they mean none, or not all of
    it."""
    for keys, values in _places(said):
        name = next((found for key in keys if (found := name_of(_word(values.get(key))))), None)
        encoder = next((str(values[key]) for key in _ENCODER if isinstance(values.get(key), str)), None)
        if name and encoder:
            return Named(name, encoder.removeprefix("smp_"), _arguments({**said, **values}))
    return None


def _places(said: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Where a network may be named: keys of its name, and what lies beside it."""
    yield _NETWORK, said
    for inside in (said[key] for key in _INSIDE if isinstance(said.get(key), Mapping)):
        arguments = inside.get("init_args")
        yield (*_NETWORK, *_TARGET), {**inside, **arguments} if isinstance(arguments, Mapping) else inside


def _word(value: Any) -> str:
    """Of a class its own name."""
    return value.rpartition(".")[2].removeprefix("smp_") if isinstance(value, str) else ""


def _arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {key: values[key] for key in _FURTHER if key in values}
    activation = values.get("activation")
    if isinstance(activation, str) and activation in _ACTIVATIONS:
        found["activation"] = activation
    if isinstance(values.get("aux_params"), Mapping):
        found["aux_params"] = dict(values["aux_params"])
    for name, keys in (("in_channels", _IN), ("classes", _OUT)):
        number = next((values[key] for key in keys if isinstance(values.get(key), int)), None)
        if number is not None:
            found[name] = number
    if "classes" not in found and isinstance(values.get("classes"), list | tuple):
        found["classes"] = len(values["classes"])
    return found


def meaning_in(said: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `ModelSpec` that they tell: what outputs are, and names of classes."""
    inside: Mapping[str, Any] = next((said[key] for key in _INSIDE if isinstance(said.get(key), Mapping)), {})
    task = str(said.get("task") or said.get("mode") or inside.get("task") or "").lower()
    loss = str(said.get("loss") or "").lower()
    found: dict[str, Any] = {}
    if task == "multilabel":
        found |= {"activation": "sigmoid", "channels": "multilabel"}
    elif task == "multiclass" or loss in ("ce", "cross_entropy"):
        found |= {"activation": "softmax", "channels": "classes"}
    names = next((said[k] for k in ("class_names", "labels", "classes") if isinstance(said.get(k), list | tuple)), ())
    if found.get("activation") == "softmax" and names and all(isinstance(n, str) for n in names):
        found["classes"] = tuple(names)
    return found
