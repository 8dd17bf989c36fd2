"""The transforms of a MONAI bundle as our normalisation, spacing and activation; what is none of these is named.

The meaning of each is that of `monai.transforms`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unet_engine.model.spec import Activation
from unet_export.importers.intensity import Intensity, NotPossible

Kwargs = Mapping[str, Any]
_HARMLESS = (
    "LoadImage", "EnsureChannelFirst", "AddChannel", "AsChannelFirst", "EnsureType", "ToTensor", "CastToType", "Identity",
    "ToDevice", "SelectItems", "DeleteItems", "SpatialPad", "DivisiblePad", "BorderPad", "Compose", "SqueezeDim", "ToNumpy",
    "CopyItems", "FlattenSubKeys", "ConcatItems",
)  # fmt: skip
"""Those that bring a file into memory, pad what windows pad, or change a type."""
_AS_STORED = ("NumpyReader", "WSIReader", "TiffFileWSIReader", "CuCIMWSIReader", "OpenSlideWSIReader")
"""Readers that leave axes in the order of the array; the others have x first."""


@dataclass
class Before:
    """What is done to a volume before the network."""

    intensity: Intensity = field(default_factory=Intensity)
    array_transforms: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Those of intensity, as classes of `monai.transforms` for arrays and their arguments."""
    spacing: tuple[float, ...] | None = None
    """In MONAI's order of axes, millimetres."""
    resampling: dict[str, Any] | None = None
    """How that is reached: fields of `Resampling` that concern the image; None: in a way that is not known."""
    orientation: str | None = None
    x_first: bool | None = None
    """Whether files are read with x first; None: nothing is read."""
    left_out: list[str] = field(default_factory=list)


def transforms_of(said: Any) -> list[Kwargs]:
    """The transforms in a ``Compose``, in a list, or a single one."""
    if isinstance(said, Mapping) and _name(said) == "Compose":
        return transforms_of(said.get("transforms") or [])
    if isinstance(said, Mapping):
        return [] if said.get("_disabled_") in (True, "true", "True") else [said]
    found: list[Kwargs] = []
    for one in said if isinstance(said, list | tuple) else ():
        found += transforms_of(one)
    return found


def _name(said: Kwargs) -> str:
    """Name of the class, without what says that it works on dictionaries."""
    name = str(said.get("_target_", "")).rpartition(".")[2]
    for end in ("Dict", "d", "D"):
        if name.endswith(end) and name not in ("Identity",):
            return name.removesuffix(end)
    return name


def before_of(listed: Sequence[Kwargs], image: str = "image") -> Before:
    """The transforms before the network. Raises `NotPossible` naming one that has no counterpart."""
    found = Before()
    for said in listed:
        name, kwargs = _name(said), {k: v for k, v in said.items() if not k.startswith("_")}
        keys = kwargs.get("keys", image)
        if image not in ([keys] if isinstance(keys, str) else list(keys or [])):
            continue
        if name == "LoadImage":
            reader = str(kwargs.get("reader") or "").rpartition(".")[2]
            found.x_first = reader not in _AS_STORED
        if name in _HARMLESS:
            continue
        understood = _BEFORE.get(name)
        if understood is None:
            raise NotPossible(f"{name} has no counterpart for volumes that are cut into windows")
        try:
            understood(_of_key(kwargs, image), found)
        except NotPossible as why:
            raise NotPossible(f"{name} {why}") from why
        if name in _INTENSITY:
            plain = {k: v for k, v in kwargs.items() if k not in ("keys", "allow_missing_keys", "factor_key", "dtype")}
            found.array_transforms.append((name, plain))
    return found


def _range(kwargs: Kwargs, found: Before) -> None:
    low, high = float(kwargs["a_min"]), float(kwargs["a_max"])
    if high == low:
        raise NotPossible("has ends that are equal")
    found.intensity.affine((1 / (high - low),), (-low / (high - low),))
    _to_ends(kwargs, found)


def _to_ends(kwargs: Kwargs, found: Before) -> None:
    b_min, b_max = kwargs.get("b_min"), kwargs.get("b_max")
    if b_min is not None and b_max is not None:
        found.intensity.affine((float(b_max) - float(b_min),), (float(b_min),))
    if kwargs.get("clip"):
        found.intensity.limit(None if b_min is None else float(b_min), None if b_max is None else float(b_max))


def _percentiles(kwargs: Kwargs, found: Before) -> None:
    low, high = float(kwargs["lower"]), float(kwargs["upper"])
    together = not kwargs.get("channel_wise", False)
    found.intensity.measure({"mode": "percentile", "low": low, "high": high}, together=together)
    if not kwargs.get("relative"):
        _to_ends(kwargs, found)
        return
    b_min, b_max = float(kwargs["b_min"]), float(kwargs["b_max"])
    ends = [(b_max - b_min) * p / 100 + b_min for p in (low, high)]
    found.intensity.affine((ends[1] - ends[0],), (ends[0],))
    if kwargs.get("clip"):
        found.intensity.limit(b_min, b_max)


def _scale(kwargs: Kwargs, found: Before) -> None:
    low, high = kwargs.get("minv", 0.0), kwargs.get("maxv", 1.0)
    if low is None or high is None:
        factor = 1 + float(kwargs.get("factor") or 0.0)
        found.intensity.affine((factor,), (0.0,))
        return
    found.intensity.measure({"mode": "minmax"}, together=not kwargs.get("channel_wise", False))
    found.intensity.affine((float(high) - float(low),), (float(low),))


def _normalize(kwargs: Kwargs, found: Before) -> None:
    mean, std = kwargs.get("subtrahend"), kwargs.get("divisor")
    nonzero = bool(kwargs.get("nonzero"))
    if (mean is None) != (std is None):
        raise NotPossible("is given one of subtrahend and divisor alone")
    if mean is None:
        fields = {"mode": "zscore"} | ({"foreground": "nonzero"} if nonzero else {})
        found.intensity.measure(fields, together=not kwargs.get("channel_wise", False))
        return
    means, stds = (
        [float(v) for v in (x if isinstance(x, list | tuple) else (x,))]
        for x in (kwargs["subtrahend"], kwargs["divisor"])
    )
    if nonzero and not found.intensity.untouched:
        raise NotPossible("leaves out zeros of what was changed already")
    found.intensity.affine([1 / (s or 1.0) for s in stds], [-m / (s or 1.0) for m, s in zip(means, stds, strict=True)])
    found.intensity.foreground = "nonzero" if nonzero else None


def _threshold(kwargs: Kwargs, found: Before) -> None:
    limit, value = float(kwargs["threshold"]), float(kwargs.get("cval", 0.0))
    if limit != value:
        raise NotPossible("puts another value than its threshold in the place of what lies beyond")
    found.intensity.limit(*((limit, None) if kwargs.get("above", True) else (None, limit)))


def _clip_percentiles(kwargs: Kwargs, found: Before) -> None:
    low, high = kwargs.get("lower"), kwargs.get("upper")
    if low is None or high is None or kwargs.get("sharpness_factor") or not kwargs.get("channel_wise", True):
        raise NotPossible("is open at one side, soft, or of all channels together")
    found.intensity.limit_to_percentiles(float(low), float(high))


def _spacing(kwargs: Kwargs, found: Before) -> None:
    pixdim = kwargs["pixdim"]
    values = [float(v) for v in (pixdim if isinstance(pixdim, list | tuple) else [pixdim] * 3)]
    if min(values) <= 0:
        raise NotPossible(f"keeps the spacing of some axes ({values})")
    found.spacing = tuple(values)
    order = _ORDERS.get(kwargs.get("mode") or "bilinear")
    others = [
        name
        for name in ("diagonal", "scale_extent", "recompute_affine", "min_pixdim", "max_pixdim")
        if kwargs.get(name)
    ]
    if order is None or others:
        what = ", ".join(others) or f"mode {kwargs.get('mode')}"
        found.left_out.append(f"Spacing with {what}: volumes of other voxels are refused")
        return
    if (padding := kwargs.get("padding_mode") or "border") != "border":
        found.left_out.append(
            f"Spacing with padding {padding}: beyond its ends a volume goes on with its last voxels here"
        )
    found.resampling = {
        "image": order, "image_apart": order, "apart": "never", "aligned": "first",
        "first": "normalised" if found.array_transforms else "interpolated",
    }  # fmt: skip


_ORDERS = {"bilinear": 1, "nearest": 0, "GridSampleMode.BILINEAR": 1, "GridSampleMode.NEAREST": 0, 0: 0, 1: 1}


def _of_key(kwargs: Kwargs, image: str) -> Kwargs:
    """With the values of `image` where each key has its own."""
    keys = kwargs.get("keys")
    if not isinstance(keys, list | tuple) or image not in keys:
        return kwargs
    place, several = list(keys).index(image), ("mode", "padding_mode", "align_corners")
    return {
        name: value[place] if name in several and isinstance(value, list | tuple) and len(value) == len(keys)
        else value[0] if name in several and isinstance(value, list | tuple) and value else value
        for name, value in kwargs.items()
    }  # fmt: skip


def _orientation(kwargs: Kwargs, found: Before) -> None:
    said = kwargs.get("axcodes")
    found.orientation = "RAS" if not said or kwargs.get("as_closest_canonical") else "".join(map(str, said)).upper()


def _crop(kwargs: Kwargs, found: Before) -> None:
    found.left_out.append(
        "CropForeground: the whole volume is inferred, and statistics are of all of it; --mask leaves out what is outside"
    )


_BEFORE: dict[str, Callable[[Kwargs, Before], None]] = {
    "ScaleIntensityRange": _range,
    "ScaleIntensityRangePercentiles": _percentiles,
    "ScaleIntensity": _scale,
    "NormalizeIntensity": _normalize,
    "ThresholdIntensity": _threshold,
    "ClipIntensityPercentiles": _clip_percentiles,
    "Spacing": _spacing,
    "Orientation": _orientation,
    "CropForeground": _crop,
}
_INTENSITY = tuple(_BEFORE)[:6]


# --- behind ---


@dataclass
class Behind:
    """What is done to the network's outputs."""

    activation: Activation | None = None
    exclusive: bool = False
    """Whether the largest channel is the label."""
    threshold: float | None = None
    output: dict[str, Any] = field(default_factory=lambda: {"output": 1, "output_apart": 1})
    """How the result comes back to the scan's grid: fields of `Resampling`."""
    done: list[str] = field(default_factory=list)
    """What was done to the outputs so far."""
    left_out: list[str] = field(default_factory=list)


_NOT_OF_VOXELS = ("KeepLargestConnectedComponent", "FillHoles", "RemoveSmallObjects", "LabelToContour", "LabelFilter")


def behind_of(listed: Sequence[Kwargs]) -> Behind:
    """The transforms behind the network; those without a counterpart are left out by name."""
    found = Behind()
    for said in listed:
        name, kwargs = _name(said), said
        if name in ("Activations", "AsDiscrete"):
            found.done.append(name)
        if name == "Activations":
            if kwargs.get("other"):
                found.left_out.append(f"Activations(other={kwargs['other']!r}): it is a function of its own")
            found.activation = "softmax" if kwargs.get("softmax") else "sigmoid" if kwargs.get("sigmoid") else None
        elif name == "AsDiscrete":
            found.exclusive = found.exclusive or bool(kwargs.get("argmax"))
            found.threshold = kwargs.get("threshold") if found.threshold is None else found.threshold
        elif name in _NOT_OF_VOXELS:
            found.left_out.append(f"{name}: it works on the whole result; do it on what was written")
        elif name in ("Invert", "SaveImage"):
            _back(name, kwargs, found)
        elif name not in (*_HARMLESS, "MeanEnsemble", "SplitDim"):
            found.left_out.append(f"{name or 'a postprocessing without a name'}: it has no counterpart")
    if found.exclusive and found.activation is None:
        found.activation = "softmax"
    _about_threshold(found)
    return found


def _back(name: str, kwargs: Kwargs, found: Behind) -> None:
    """`Invert` brings back what there is by then, nearest unless told otherwise; without it `SaveImage` does."""
    if name == "SaveImage" and ("Invert" in found.done or kwargs.get("resample") is False):
        return
    nearest = kwargs.get("nearest_interp", True) if name == "Invert" else kwargs.get("mode", "nearest") == "nearest"
    nearest = bool(nearest[0]) if isinstance(nearest, list | tuple) and nearest else bool(nearest)
    found.output = {"output": 0 if nearest else 1, "output_apart": 0 if nearest else 1}
    if not nearest and "AsDiscrete" in found.done:
        found.left_out.append(f"{name} of labels, interpolated between them: probabilities are interpolated here")
    if not nearest and found.done:
        found.output["of"] = "probabilities"
    found.done.append(name)


def _about_threshold(found: Behind) -> None:
    """Of probabilities alone is a threshold kept: what other numbers mean is not known."""
    if found.threshold is None or found.exclusive:
        found.threshold = None
    elif found.activation == "softmax":
        found.left_out.append(f"AsDiscrete(threshold={found.threshold}) of a softmax: the largest class is the label")
        found.threshold = None
    elif not 0 < float(found.threshold) < 1 or (found.activation is None and float(found.threshold) != 0.5):
        found.left_out.append(f"AsDiscrete(threshold={found.threshold}) of no probabilities: --threshold says one")
        found.threshold = None
    elif float(found.threshold) == 0.5:
        found.threshold = None
