"""The transforms of a MONAI bundle as our normalisation, spacing and activation; what is none of these is named.

The meaning of each is that of `monai.transforms`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unet_export.importers.intensity import NotPossible
from unet_export.importers.monai import loading
from unet_export.importers.monai.before import Before
from unet_export.importers.monai.config import Above

Kwargs = Mapping[str, Any]
HARMLESS = (
    "LoadImage", "EnsureChannelFirst", "AddChannel", "AsChannelFirst", "EnsureType", "ToTensor", "CastToType", "Identity",
    "ToDevice", "SelectItems", "DeleteItems", "Compose", "SqueezeDim", "ToNumpy", "CopyItems", "FlattenSubKeys",
    "ConcatItems",
)  # fmt: skip
"""Those that bring a file into memory, or change a type."""
_OF_CHANNELS = ("ScaleIntensityRangePercentiles", "ScaleIntensity", "NormalizeIntensity", "ClipIntensityPercentiles")
"""Those that measure, of all channels or of each."""
_FLAT = 1e-12
"""Added to what is divided by, so little that nothing else changes: MONAI divides by 1 where all voxels are alike, so
that they become 0, and leaves channels of nothing but 0 as they are."""


def transforms_of(said: Any) -> list[Kwargs]:
    """The transforms in a ``Compose``, in a list, or a single one."""
    if isinstance(said, Mapping) and name_of(said) == "Compose":
        return transforms_of(said.get("transforms") or [])
    if isinstance(said, Mapping):
        return [] if said.get("_disabled_") in (True, "true", "True") else [said]
    found: list[Kwargs] = []
    for one in said if isinstance(said, list | tuple) else ():
        found += transforms_of(one)
    return found


def name_of(said: Kwargs) -> str:
    """Name of the class, without what says that it works on dictionaries."""
    name = str(said.get("_target_", "")).rpartition(".")[2]
    for end in ("Dict", "d", "D"):
        if name.endswith(end) and name not in ("Identity",):
            return name.removesuffix(end)
    return name


def before_of(listed: Sequence[Kwargs], image: str = "image") -> Before:
    """The transforms before the network. Raises `NotPossible` naming one that has no counterpart."""
    found = Before()
    image = _called(listed, image)
    parts = _joined(listed, image)
    if len(parts) > 1:
        found.left_out.append(f"ConcatItems: the channels of a volume are {', '.join(parts)}, in this order")
    for said in listed:
        name, kwargs = name_of(said), {k: v for k, v in said.items() if not k.startswith("_")}
        keys = keys_of(said) or (image,)
        if image not in keys and not set(parts) & set(keys):
            continue
        if image not in keys and name not in HARMLESS:
            if not set(parts) <= set(keys):
                raise NotPossible(f"{name} changes some of the channels alone ({', '.join(keys)})")
            kwargs |= {"channel_wise": True} if name in _OF_CHANNELS and len(parts) > 1 else {}
        if kwargs.get("source_key") == image:  # else another one tells what of it is cropped
            del kwargs["source_key"]
        if name == "LoadImage":
            loading.load(kwargs, found)
        if name in HARMLESS:
            loading.check_type(name, kwargs, found)
            continue
        understood = _BEFORE.get(name)
        if understood is None:
            raise NotPossible(f"{name} has no counterpart for volumes that are cut into windows")
        try:
            if "int" in str(kwargs.get("dtype") or ""):
                raise NotPossible(f"makes whole numbers ({kwargs['dtype']}) of voxels")
            understood(of_key(kwargs, image if image in keys else parts[0]), found)
        except NotPossible as why:
            raise NotPossible(f"{name} {why}") from why
        if name in _INTENSITY:
            plain = {k: v for k, v in kwargs.items() if k not in ("keys", "allow_missing_keys", "factor_key", "dtype")}
            found.array_transforms.append((name, plain))
    loading.about_measured_pads(found)
    return found


def keys_of(said: Kwargs) -> tuple[str, ...]:
    """What a transform of dictionaries changes; empty of one of arrays."""
    keys = said.get("keys")
    return (keys,) if isinstance(keys, str) else tuple(map(str, keys or ()))


def _called(listed: Sequence[Kwargs], image: str) -> str:
    """The key of what the network is given: `image`, or the one that is read where no transform knows of that. Raises
    `NotPossible` where there are several."""
    keyed = [said for said in listed if keys_of(said)]
    if not keyed or any(image in (*keys_of(said), said.get("name")) for said in keyed):
        return image
    read = {key for said in keyed if name_of(said) == "LoadImage" for key in keys_of(said)}
    if len(read) != 1:
        every = sorted({key for said in keyed for key in keys_of(said)})
        raise NotPossible(f"is of {', '.join(every)}, and the network is given {image}")
    return read.pop()


def _joined(listed: Sequence[Kwargs], image: str) -> tuple[str, ...]:
    """The keys that `image` is put together of; empty where it is read as it is."""
    for said in listed:
        if name_of(said) == "ConcatItems" and said.get("name") == image:
            return keys_of(said)
    return ()


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
        found.intensity.limit(*ends)


def _scale(kwargs: Kwargs, found: Before) -> None:
    low, high = kwargs.get("minv", 0.0), kwargs.get("maxv", 1.0)
    if low is None or high is None:
        factor = 1 + float(kwargs.get("factor") or 0.0)
        found.intensity.affine((factor,), (0.0,))
        return
    eps = 0.0 if float(low) else _FLAT  # of voxels that are all alike it makes the least, where that is 0
    found.intensity.measure({"mode": "minmax"}, eps=eps, together=not kwargs.get("channel_wise", False))
    found.intensity.affine((float(high) - float(low),), (float(low),))


def _normalize(kwargs: Kwargs, found: Before) -> None:
    mean, std = kwargs.get("subtrahend"), kwargs.get("divisor")
    nonzero = bool(kwargs.get("nonzero"))
    if (mean is None) != (std is None):
        raise NotPossible("is given one of subtrahend and divisor alone")
    if mean is None:
        fields = {"mode": "zscore"} | ({"foreground": "nonzero"} if nonzero else {})
        found.intensity.measure(fields, eps=_FLAT, together=not kwargs.get("channel_wise", False))
        return
    means, stds = (
        [float(v) for v in (x if isinstance(x, list | tuple) else (x,))]
        for x in (kwargs["subtrahend"], kwargs["divisor"])
    )
    if nonzero and not found.intensity.untouched:
        raise NotPossible("leaves out zeros of what was changed already")
    found.intensity.affine([1 / (s or 1.0) for s in stds], [-m / (s or 1.0) for m, s in zip(means, stds, strict=True)])
    if nonzero:
        found.intensity.foreground = "nonzero"


def _threshold(kwargs: Kwargs, found: Before) -> None:
    limit, value = float(kwargs["threshold"]), float(kwargs.get("cval", 0.0))
    if limit != value:
        raise NotPossible("puts another value than its threshold in the place of what lies beyond")
    found.intensity.limit(*((limit, None) if kwargs.get("above", True) else (None, limit)))


def _clip_percentiles(kwargs: Kwargs, found: Before) -> None:
    low, high = kwargs.get("lower"), kwargs.get("upper")
    if kwargs.get("sharpness_factor") is not None:
        raise NotPossible("is soft (sharpness_factor)")
    found.intensity.limit_to_percentiles(
        0.0 if low is None else float(low),
        100.0 if high is None else float(high),
        together=not kwargs.get("channel_wise", False),
    )


def _spacing(kwargs: Kwargs, found: Before) -> None:
    pixdim = kwargs["pixdim"]
    values = [float(v) for v in (pixdim if isinstance(pixdim, list | tuple) else [pixdim])]
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
    if found.crop is not None:
        found.crop, found.crop_margin = None, ()
        found.array_transforms = [one for one in found.array_transforms if one[0] != CROP]
        found.other.append(f"{CROP} before Spacing: {_ALL_OF_IT}")


_ORDERS = {"bilinear": 1, "nearest": 0, "GridSampleMode.BILINEAR": 1, "GridSampleMode.NEAREST": 0, 0: 0, 1: 1}


def of_key(kwargs: Kwargs, image: str) -> Kwargs:
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


def _shift(kwargs: Kwargs, found: Before) -> None:
    if kwargs.get("safe"):
        raise NotPossible("keeps to the type of the voxels (safe)")
    found.intensity.affine((1.0,), (float(kwargs["offset"]),))


def _pad(kwargs: Kwargs, found: Before) -> None:
    found.pads.append((dict(kwargs), len(found.array_transforms)))


CROP = "CropForeground"
_ALL_OF_IT = "the whole volume is inferred, and statistics are of all of it; --mask leaves out what is outside"


def _crop(kwargs: Kwargs, found: Before) -> None:
    """To what is above a number, which is one of raw voxels as long as they were shifted and scaled alone."""
    selected = kwargs.get("select_fn", Above(0.0))
    odd = [
        f"{name}={kwargs[name]}"
        for name, plain in (("k_divisible", 1), ("channel_indices", None), ("source_key", None))
        if kwargs.get(name, plain) not in (plain, [plain] * 2, [plain] * 3)
    ]
    margin = _margin(kwargs.get("margin", 0))
    if any(margin) and kwargs.get("allow_smaller") is not True:
        odd.append(f"margin={kwargs['margin']} without allow_smaller, which puts zeros around the volume")
    limit = found.intensity.raw(selected.limit) if isinstance(selected, Above) else None
    if found.resampling is None and found.spacing is not None:
        odd.append("behind a Spacing that is not done here")
    if found.crop is not None or limit is None or odd:
        of = ", ".join(odd) or ("behind what measures the volume" if isinstance(selected, Above) else "by a function")
        found.other.append(f"{CROP} {of}: {_ALL_OF_IT}")
        return
    found.crop, found.crop_margin = limit, margin if any(margin) else ()
    own = {"margin": margin if len(margin) > 1 else margin[0]} if any(margin) else {}
    found.array_transforms.append((CROP, {"select_fn": selected, "allow_smaller": True, **own}))


def _margin(said: Any) -> tuple[int, ...]:
    """Voxels along all axes, or along each. Raises `NotPossible` where it is neither."""
    margin = tuple(said) if isinstance(said, list | tuple) else (said,)
    if len(margin) not in (1, 2, 3) or any(isinstance(m, bool) or not isinstance(m, int) or m < 0 for m in margin):
        raise NotPossible(f"has the margin {said}, which is no number of voxels along each axis")
    return margin


_BEFORE: dict[str, Callable[[Kwargs, Before], None]] = {
    "ScaleIntensityRange": _range,
    "ScaleIntensityRangePercentiles": _percentiles,
    "ScaleIntensity": _scale,
    "NormalizeIntensity": _normalize,
    "ThresholdIntensity": _threshold,
    "ClipIntensityPercentiles": _clip_percentiles,
    "ShiftIntensity": _shift,
    "Spacing": _spacing,
    "Orientation": _orientation,
    "CropForeground": _crop,
    "SpatialPad": _pad,
    "DivisiblePad": _pad,
    "BorderPad": _pad,
}
_INTENSITY = tuple(_BEFORE)[:7]
