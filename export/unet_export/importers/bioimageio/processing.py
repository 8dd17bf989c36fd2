"""What bioimage.io models want done before and behind the network, as our normalisation, activation and steps in the
graph; what is none of these is named.

The meaning of each operation is that of bioimageio.core (`bioimageio.core.proc_ops`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from unet_engine.errors import ModelError
from unet_engine.model.spec import Activation
from unet_export.importers.base import Array
from unet_export.importers.bioimageio.description import Axis, Description, Step, Tensor
from unet_export.importers.intensity import Intensity, NotPossible
from unet_export.importers.steps import Above, Affine, Cast, Clip, Sigmoid, Softmax
from unet_export.importers.steps import Step as GraphStep

EPS = 1e-6
_FLOATS = ("float32", "float64", "float16")


# --- before ---


def before_of(said: Description, given: Tensor) -> Intensity:
    """The steps before the network. Raises `ModelError` naming one that has no counterpart here."""
    found = Intensity()
    for step in given.steps:
        understood = _BEFORE.get(step.name)
        if understood is None:
            raise _not_possible(said, step, "runs code or looks at what no window shows")
        try:
            understood(said, given, step, found)
        except NotPossible as why:
            raise _not_possible(said, step, str(why)) from why
    return found


def _not_possible(said: Description, step: Step, why: str) -> ModelError:
    return ModelError(
        f"{said.path}: its preprocessing {step.name} {why}; prepare the volume with bioimageio.core, or say how voxels "
        "become numbers with --normalize"
    )


def _linear(said: Description, given: Tensor, step: Step, found: Intensity) -> None:
    _check_axis(said, step)
    found.affine(_numbers(step, "gain", 1.0), _numbers(step, "offset", 0.0))


def _fixed(said: Description, given: Tensor, step: Step, found: Intensity) -> None:
    _check_axis(said, step)
    mean, std = np.asarray(_numbers(step, "mean")), np.asarray(_numbers(step, "std"))
    scale = 1 / (std + float(step.kwargs.get("eps", EPS)))
    found.affine(scale.tolist(), np.atleast_1d(-mean * scale).tolist())


def _clip(said: Description, given: Tensor, step: Step, found: Intensity) -> None:
    kwargs = step.kwargs
    percent = _maybe(kwargs.get("min_percentile")), _maybe(kwargs.get("max_percentile"))
    low, high = _maybe(kwargs.get("min")), _maybe(kwargs.get("max"))
    if percent != (None, None):
        lower, upper = 0.0 if percent[0] is None else percent[0], 100.0 if percent[1] is None else percent[1]
        found.limit_to_percentiles(lower, upper, together=_joint(said, given, step))
    if (low, high) != (None, None) or percent == (None, None):
        found.limit(low, high)


def _maybe(value: Any) -> float | None:
    return None if value is None else float(value)


def _zscore(said: Description, given: Tensor, step: Step, found: Intensity) -> None:
    if step.kwargs.get("mode") == "fixed" or step.kwargs.get("mean") is not None:  # 0.4, where that is the default
        _fixed(said, given, step, found)
        return
    eps = float(step.kwargs.get("eps", EPS))
    found.measure({"mode": "zscore"}, eps=eps, together=_joint(said, given, step))


def _range(said: Description, given: Tensor, step: Step, found: Intensity) -> None:
    other = step.kwargs.get("reference_tensor")
    if other not in (None, given.id):
        raise NotPossible(f"is measured of {other}")
    low, high = float(step.kwargs.get("min_percentile", 0.0)), float(step.kwargs.get("max_percentile", 100.0))
    eps = float(step.kwargs.get("eps", EPS))
    fields = {"mode": "percentile", "low": low, "high": high}
    found.measure(fields, eps=eps, together=_joint(said, given, step))


def _joint(said: Description, given: Tensor, step: Step) -> bool:
    """Whether statistics are of all channels together. Raises where they are not of all of space."""
    axes = step.kwargs.get("axes")
    channel = given.axis("channel")
    several = channel is not None and channel.size != 1
    if axes is None:
        return several
    if not isinstance(axes, str | list | tuple):
        raise NotPossible(f"is measured along {str(axes)[:40]!r}, which are no axes")
    names = set(axes) if isinstance(axes, str) else {str(a) for a in axes}
    lacking = [a.id for a in given.axes if a.kind == "space" and a.id not in names and a.size != 1]
    if lacking:
        raise NotPossible(f"is measured apart along {', '.join(lacking)}")
    return several and bool(names & {"c", "channel", channel.id if channel else "channel"})


def _type(said: Description, given: Tensor, step: Step, found: Intensity) -> None:
    if "dtype" not in step.kwargs:
        raise NotPossible("says no dtype")
    dtype = str(step.kwargs["dtype"])
    if dtype in _FLOATS:
        return
    if not (found.untouched and dtype == given.dtype):
        found.steps.extend([Cast(dtype), Cast("float32")])


def _binarize(said: Description, given: Tensor, step: Step, found: Intensity) -> None:
    _check_axis(said, step)
    found.steps.append(Above(_numbers(step, "threshold")))


def _sigmoid(said: Description, given: Tensor, step: Step, found: Intensity) -> None:
    found.steps.append(Sigmoid())


def _softmax(said: Description, given: Tensor, step: Step, found: Intensity) -> None:
    if str(step.kwargs.get("axis", "channel")) != "channel":
        raise NotPossible(f"runs along {step.kwargs['axis']}")
    found.steps.append(Softmax())


_BEFORE: dict[str, Callable[[Description, Tensor, Step, Intensity], None]] = {
    "scale_linear": _linear,
    "fixed_zero_mean_unit_variance": _fixed,
    "zero_mean_unit_variance": _zscore,
    "scale_range": _range,
    "clip": _clip,
    "ensure_dtype": _type,
    "binarize": _binarize,
    "sigmoid": _sigmoid,
    "softmax": _softmax,
}


def _numbers(step: Step, name: str, default: float | None = None) -> tuple[float, ...]:
    value = step.kwargs.get(name, default)
    if value is None:
        raise KeyError(name)
    return tuple(float(v) for v in value) if isinstance(value, list | tuple) else (float(value),)


_OF_CHANNELS = ("gain", "offset", "mean", "std", "threshold")


def _check_axis(said: Description, step: Step) -> None:
    if not any(name in step.kwargs for name in _OF_CHANNELS):
        return
    axis = step.kwargs.get("axis")
    if axis not in (None, "channel", "c"):
        raise ModelError(
            f"{said.path}: its {step.name} has values along {axis}, and only channels may have their own; "
            "correct its description"
        )
    axes = step.kwargs.get("axes")  # of 0.4: those that a value is for together
    several = any(len(_numbers(step, n)) > 1 for n in _OF_CHANNELS if n in step.kwargs)
    if several and axis is None and axes is not None and not {"y", "x"} <= set(axes) <= set("bzyx"):
        raise ModelError(
            f"{said.path}: its {step.name} has values along other axes than channels; correct its description"
        )


# --- behind ---


@dataclass
class Behind:
    """What follows the network."""

    activation: Activation | None = None
    """None: whatever the graph ends in."""
    threshold: float | None = None
    """Of probabilities, or of numbers where there is no activation."""
    steps: list[GraphStep] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    """What is not done here and makes other outputs."""
    finish: list[Callable[[Array], Array]] = field(default_factory=list)
    """The same on NumPy arrays (c, [z,] y, x), for comparing with test tensors; those left out, too."""
    finished_as: Activation | None = None
    """What outputs are behind it."""

    @property
    def scales_an_activation(self) -> bool:
        """Whether something is done in the graph behind an activation, e.g. to bring it to 0 to 255: its numbers are
        what the source gives then."""
        return any(isinstance(step, Sigmoid | Softmax) for step in self.steps)


def behind_of(said: Description, given: Tensor, made: Tensor) -> Behind:
    """The steps behind the network. What has no counterpart is left out, with all that follows it."""
    found = Behind()
    for step in made.steps:
        if step.name != "ensure_dtype" and (found.threshold is not None or found.other or found.left_out):
            # numbers of a mask may be others, and it is the same
            told = found.left_out if found.threshold is not None and step.name in _OF_MASKS else found.other
            told.append(f"{step.name}, which follows that")
            continue
        understood = _BEHIND.get(step.name)
        if understood is None:
            found.other.append(f"postprocessing {step.name}: {_WHY.get(step.name, 'it is not known here')}")
            continue
        _check_axis(said, step)
        understood(step, found)
    return found


_OF_MASKS = ("scale_linear", "clip")
_WHY = {
    "scale_mean_variance": "it measures the whole output, which is written block by block",
    "scale_range": "it measures the whole output, which is written block by block",
    "zero_mean_unit_variance": "it measures the whole output, which is written block by block",
    "stardist_postprocessing": "it makes objects of the whole output; run it on the written probabilities",
    "cellpose_flow_dynamics": "it makes objects of the whole output; run it on the written outputs",
    "custom": "it is code of the package",
    "custom_processing": "it is code of the package",
}


def _behind_sigmoid(step: Step, found: Behind) -> None:
    _into_graph(found)
    found.activation, found.finished_as = "sigmoid", "probabilities_each"
    found.finish.append(lambda y: 1 / (1 + np.exp(-y)))


def _behind_softmax(step: Step, found: Behind) -> None:
    if str(step.kwargs.get("axis", "channel")) != "channel":
        found.other.append(f"postprocessing softmax along {step.kwargs['axis']}: channels alone are known here")
        return
    _into_graph(found)
    found.activation, found.finished_as = "softmax", "probabilities"
    found.finish.append(_softmax_of)


def _softmax_of(y: Array) -> Array:
    e = np.exp(y - y.max(0, keepdims=True))
    return np.asarray(e / e.sum(0, keepdims=True))


def _behind_binarize(step: Step, found: Behind) -> None:
    limits = _numbers(step, "threshold")
    if found.activation == "softmax" and set(limits) != {0.5}:
        found.other.append(
            f"postprocessing binarize above {_listed(limits)} of a softmax: the largest class is the label"
        )
        return
    if found.activation is not None and not all(0 < limit < 1 for limit in limits):
        found.other.append(f"postprocessing binarize above {_listed(limits)}, which is no probability")
        return
    if len(set(limits)) > 1:
        divide_at_zero(found, limits)
        return
    found.threshold = limits[0]
    found.finish.append(lambda y: np.asarray(y > limits[0], np.float32))
    found.finished_as = "probabilities_each"


def _listed(limits: Sequence[float]) -> str:
    return ", ".join(f"{limit:g}" for limit in dict.fromkeys(limits))


def divide_at_zero(found: Behind, limits: Sequence[float]) -> None:
    """Thresholds that are no single probability are taken off the outputs, so that 0, a half behind a sigmoid, divides
    them: masks are those of the source then."""
    logits = np.asarray(limits, float)
    if found.activation == "sigmoid":
        logits = np.log(logits / (1 - logits))
    found.steps.append(Affine((1.0,), tuple((-logits).tolist())))
    found.activation, found.finished_as, found.threshold = "sigmoid", "probabilities_each", 0.5
    found.finish = [lambda y: np.asarray(y > 0, np.float32)]
    found.left_out.append(
        f"values before its binarize above {_listed(limits)}: thresholds are taken off, so that masks are its own, and "
        "probabilities and logits are not"
    )


def _into_graph(found: Behind) -> None:
    """What is done behind an activation can be done in the graph alone, and then the activation, too."""
    if found.activation is not None:
        found.steps.append(Sigmoid() if found.activation == "sigmoid" else Softmax())
    found.activation = found.finished_as = None
    found.finish.clear()


def _behind_linear(step: Step, found: Behind) -> None:
    gain, offset = _numbers(step, "gain", 1.0), _numbers(step, "offset", 0.0)
    _into_graph(found)
    found.steps.append(Affine(gain, offset))


def _behind_clip(step: Step, found: Behind) -> None:
    low, high = step.kwargs.get("min"), step.kwargs.get("max")
    if any(step.kwargs.get(end) is not None for end in ("min_percentile", "max_percentile")):
        found.other.append("postprocessing clip to percentiles: it measures the whole output")
        return
    _into_graph(found)
    found.steps.append(Clip(_maybe(low), _maybe(high)))


def _behind_fixed(step: Step, found: Behind) -> None:
    mean, std = np.asarray(_numbers(step, "mean")), np.asarray(_numbers(step, "std"))
    scale = 1 / (std + float(step.kwargs.get("eps", EPS)))
    _behind_linear(replace(step, kwargs={"gain": scale.tolist(), "offset": (-mean * scale).tolist()}), found)


def _behind_type(step: Step, found: Behind) -> None:
    if "dtype" not in step.kwargs:
        raise NotPossible("says no dtype")
    dtype = str(step.kwargs["dtype"])
    if dtype not in _FLOATS and found.threshold is None:
        found.left_out.append(f"postprocessing ensure_dtype {dtype}: outputs are blended as floats, see --dtype")


_BEHIND: dict[str, Callable[[Step, Behind], None]] = {
    "sigmoid": _behind_sigmoid,
    "softmax": _behind_softmax,
    "binarize": _behind_binarize,
    "scale_linear": _behind_linear,
    "clip": _behind_clip,
    "fixed_zero_mean_unit_variance": _behind_fixed,
    "ensure_dtype": _behind_type,
}


def channel_names(axis: Axis | None) -> tuple[str, ...]:
    """Names of channels that tell something."""
    names = axis.names if axis else ()
    return () if any(n.lower().startswith("channel") for n in names) else names
