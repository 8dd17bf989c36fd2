"""What a MONAI bundle does to the network's outputs, as activation, threshold and way back; what is none of these is
named.

The meaning of each is that of `monai.transforms`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import exp
from typing import Any

from unet_engine.model.spec import Activation
from unet_export.importers.intensity import NotPossible
from unet_export.importers.monai.objects import OF_OBJECTS
from unet_export.importers.monai.transforms import HARMLESS, Kwargs, keys_of, name_of


@dataclass
class Behind:
    """What is done to the network's outputs."""

    activation: Activation | None = None
    numbers_above: float | None = None
    """Of what the network gives, where no activation is done: what exceeds it is 1, else 0."""
    exclusive: bool = False
    """Whether the largest channel is the label."""
    one_hot: bool = False
    """Whether labels become a channel each."""
    threshold: float | None = None
    kept: set[int] | None = None
    """Labels but 0 that are left, of those of the largest channel; None: all."""
    saved: bool = False
    """Whether it is written by now."""
    output: dict[str, Any] = field(default_factory=lambda: {"output": 1, "output_apart": 1})
    """How the result comes back to the scan's grid: fields of `Resampling`."""
    done: list[str] = field(default_factory=list)
    """What was done to the outputs so far."""
    left_out: list[str] = field(default_factory=list)
    objects: list[tuple[str, Kwargs]] = field(default_factory=list)
    """What looks at objects of the whole result, in its order."""
    other: list[str] = field(default_factory=list)
    """What is not done here and makes other labels."""


_LABELS = 2**16
_OF_VALUES = ("DataStats", "ToMetaTensor", "FromMetaTensor", "MetaToTensor", "ToCupy", "SimulateDelay")


def behind_of(listed: Sequence[Kwargs]) -> Behind:
    """The transforms behind the network; those without a counterpart are left out by name. Raises `NotPossible` for what
    puts the outputs of several networks together, as labels of one of them would be others."""
    found = Behind()
    for said in listed:
        name, kwargs = name_of(said), _of_prediction(said)
        if kwargs is None:
            continue
        if name in ("MeanEnsemble", "VoteEnsemble") and len(keys_of(said)) > 1:
            raise NotPossible(
                f"{name} puts together what {len(keys_of(said))} networks give ({', '.join(keys_of(said))})"
            )
        if name in ("Activations", "AsDiscrete"):
            found.done.append(name)
        if name == "Activations":
            if kwargs.get("other"):
                found.other.append(f"Activations(other={kwargs['other']!r}): it is a function of its own")
            found.activation = "softmax" if kwargs.get("softmax") else "sigmoid" if kwargs.get("sigmoid") else None
        elif name in _OF_LABELS:
            _OF_LABELS[name](kwargs, found)
        elif name in OF_OBJECTS:
            found.objects.append((name, kwargs))
        elif name in ("Invert", "SaveImage"):
            _back(name, kwargs, found)
            found.saved = found.saved or name == "SaveImage"
        elif name not in (*HARMLESS, *_OF_VALUES, "MeanEnsemble", "SplitDim"):
            found.other.append(f"{name or 'a postprocessing without a name'}: it has no counterpart")
    if found.exclusive and found.activation == "sigmoid":
        found.left_out.append("Activations(sigmoid) before argmax: the largest channel is the label, of a softmax here")
    if found.exclusive:
        found.activation = "softmax"
    _about_threshold(found)
    return found


def _discrete(kwargs: Kwargs, found: Behind) -> None:
    found.exclusive = found.exclusive or bool(kwargs.get("argmax"))
    found.one_hot = found.one_hot or bool(kwargs.get("to_onehot"))
    found.threshold = _threshold_of(kwargs) if found.threshold is None else found.threshold
    if kwargs.get("rounding"):
        _rounded(kwargs, found)


def _filtered(kwargs: Kwargs, found: Behind) -> None:
    """Numbers that are no label keep nothing, and 0 is 0 either way. Before argmax, and of one-hot channels, they are
    those that happen to be there."""
    if not found.exclusive or found.one_hot:
        found.other.append(f"LabelFilter of {'one-hot channels' if found.one_hot else 'what no argmax made labels of'}")
        return
    if found.saved:
        found.other.append("LabelFilter behind SaveImage: the file that it writes has all labels")
        return
    if found.objects:
        found.other.append(f"LabelFilter behind {found.objects[-1][0]}: labels are filtered before their objects here")
        return
    said = kwargs.get("applied_labels")
    listed: list[Any] = list(said) if isinstance(said, Iterable) else [said]
    if not all(isinstance(label, int | float) for label in listed):
        found.other.append("LabelFilter: its arguments are not understood")
        return
    labels = {int(label) for label in listed if 0 < label < _LABELS and label == int(label)}
    found.kept = labels if found.kept is None else found.kept & labels
    if not found.kept:
        found.other.append("LabelFilter: it keeps no label")
        found.kept = None


_OF_LABELS: dict[str, Callable[[Kwargs, Behind], None]] = {"AsDiscrete": _discrete, "LabelFilter": _filtered}


def _rounded(kwargs: Kwargs, found: Behind) -> None:
    """Of what lies between 0 and 1, that is what exceeds a half; of one that is the largest class, nothing."""
    if found.activation == "sigmoid" and found.threshold is None:
        found.threshold = 0.5
    elif not found.exclusive and found.activation is None:
        found.other.append(f"AsDiscrete(rounding={kwargs['rounding']!r}): whole numbers of what the network gives")


def _threshold_of(kwargs: Kwargs) -> Any:
    """Of MONAI 1; before, a word said that there is one, and another which."""
    said = kwargs.get("threshold")
    if said is True or (said is None and kwargs.get("threshold_values")):
        return kwargs.get("logit_thresh", 0.5)
    return None if said is False else said


_NO_PREDICTION = ("image", "label")
_OF_EACH = ("softmax", "sigmoid", "argmax", "threshold", "to_onehot", "nearest_interp", "mode")


def _of_prediction(said: Kwargs) -> Kwargs | None:
    """The arguments, those of the network's output where each key has its own; None of what concerns others alone."""
    keys = keys_of(said)
    mine = [i for i, key in enumerate(keys) if key not in _NO_PREDICTION]
    if not keys:
        return said
    if not mine:
        return None
    return {
        name: value[mine[0]]
        if name in _OF_EACH and isinstance(value, list | tuple) and len(value) == len(keys) > 1
        else value
        for name, value in said.items()
    }


def numbers_above(limit: float, *, several: bool) -> dict[str, Any]:
    """Fields of a `ModelSpec` whose labels are where what the network gives exceeds `limit`. Of several channels it is
    said of their sigmoids, which are in the same order."""
    if not several:
        return {"activation": "none", "threshold": limit}
    return {"activation": "sigmoid", "channels": "multilabel", "threshold": 1 / (1 + exp(-limit))}


def _back(name: str, kwargs: Kwargs, found: Behind) -> None:
    """`Invert` brings back what there is by then, nearest unless told otherwise; without it `SaveImage` does."""
    if name == "SaveImage" and ("Invert" in found.done or kwargs.get("resample") is False):
        return
    nearest = kwargs.get("nearest_interp", True) if name == "Invert" else kwargs.get("mode", "nearest") == "nearest"
    nearest = bool(nearest[0]) if isinstance(nearest, list | tuple) and nearest else bool(nearest)
    found.output = {"output": 0 if nearest else 1, "output_apart": 0 if nearest else 1}
    if not nearest and "AsDiscrete" in found.done:
        found.other.append(f"{name} of labels, interpolated between them: probabilities are interpolated here")
    if not nearest and found.done:
        found.output["of"] = "probabilities"
    if name == "Invert":
        found.objects = [(of, {**said, "before": name}) for of, said in found.objects]
    found.done.append(name)


def _about_threshold(found: Behind) -> None:
    """Of probabilities alone is a threshold kept: what other numbers mean is not known."""
    if found.threshold is None:
        return
    if found.exclusive:
        if not found.one_hot:
            found.other.append(
                f"AsDiscrete(threshold={found.threshold}) behind argmax: it makes one label of all classes but the first, and "
                "here each has its own"
            )
        found.threshold = None
    elif found.activation is None:
        found.numbers_above, found.threshold = float(found.threshold), None
    elif found.activation == "softmax":
        found.other.append(f"AsDiscrete(threshold={found.threshold}) of a softmax: the largest class is the label")
        found.threshold = None
    elif not 0 < float(found.threshold) < 1:
        found.other.append(f"AsDiscrete(threshold={found.threshold}) of no probabilities: --threshold says one")
        found.threshold = None
    elif float(found.threshold) == 0.5:
        found.threshold = None
