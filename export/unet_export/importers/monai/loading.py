"""How a MONAI bundle reads volumes, and what of what it puts around them is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unet_export.importers.intensity import NotPossible
from unet_export.importers.monai.before import Before

Kwargs = Mapping[str, Any]
_AS_STORED = ("NumpyReader", "WSIReader", "TiffFileWSIReader", "CuCIMWSIReader", "OpenSlideWSIReader")
"""Readers that leave axes in the order of the array; the others have x first."""


def load(kwargs: Kwargs, found: Before) -> None:
    """What a file is read by, and how: options of readers may turn what they read."""
    named = kwargs.get("reader")
    reader = str(named or "").rpartition(".")[2]
    strange = sorted(name for name, value in kwargs.items() if name not in _OF_LOADING and value != _READS.get(name))
    if strange or isinstance(named, list | Mapping):
        raise NotPossible(f"LoadImage reads with {', '.join(strange) or 'several readers'}, which has no counterpart")
    backwards = bool(kwargs.get("reverse_indexing", reader == "PILReader")) != (reader == "PILReader")
    found.x_first = reader not in _AS_STORED and not backwards and kwargs.get("index_order") != "C"
    if kwargs.get("as_closest_canonical"):
        found.orientation = "RAS"


_OF_LOADING = (
    "keys", "reader", "dtype", "meta_keys", "meta_key_postfix", "overwriting", "image_only", "ensure_channel_first",
    "simple_keys", "prune_meta_pattern", "prune_meta_sep", "allow_missing_keys", "expanduser", "channel_dim",
    "as_closest_canonical", "reverse_indexing", "index_order", "squeeze_non_spatial_dims", "to_gpu", "series_meta",
    "prune_metadata", "allow_pickle", "fname_regex", "mmap_mode", "label_dict",
)  # fmt: skip
"""Arguments of LoadImage and its readers that change no voxel, or are understood."""
_READS = {"affine_lps_to_ras": True, "swap_ij": True, "series_name": ""}
"""Others, as they are by default."""


def check_type(name: str, kwargs: Kwargs, found: Before) -> None:
    """Whole numbers are what integer volumes hold anyway. Raises `NotPossible` where something is cut off by them."""
    said = str(kwargs.get("dtype") or kwargs.get("data_type") or "")
    if "int" in said and ("int8" in said or not found.intensity.untouched):
        raise NotPossible(f"{name} makes whole numbers ({said}) of voxels")


def about_measured_pads(found: Before) -> None:
    """Voxels around a volume are measured with it, unless what is measured is not 0."""
    said, pads = (
        found.intensity.normalization(),
        [kwargs for kwargs, done in found.pads if done < len(found.array_transforms)],
    )
    measured = found.intensity.measured is not None or found.intensity.clip_percentiles is not None
    if pads and measured and (said.get("foreground") is None or any(map(odd_pad, pads))):
        found.other.append(
            f"padding ({', '.join(map(of_pad, pads))}) before voxels are measured: its zeros would count"
        )


def odd_pad(kwargs: Kwargs) -> bool:
    """Whether something else than zeros at both sides is put there."""
    return (
        str(kwargs.get("mode", "constant")).rpartition(".")[2].lower() != "constant"
        or bool(kwargs.get("value") or kwargs.get("constant_values"))
        or str(kwargs.get("method", "symmetric")).rpartition(".")[2].lower() != "symmetric"
    )


def of_pad(kwargs: Kwargs) -> str:
    return ", ".join(f"{name}={kwargs[name]}" for name in ("spatial_size", "k", "spatial_border") if name in kwargs)
