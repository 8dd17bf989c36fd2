"""What ``plans.json`` and ``dataset.json`` of nnU-Net v2 say, of every version of that format, as plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unet_engine.errors import ModelError, first_line
from unet_engine.units import MOST
from unet_export.importers.files import Files

M = TypeVar("M", bound=BaseModel)
Length = Annotated[int, Field(ge=1, le=MOST)]
PLANS, DATASET = "plans.json", "dataset.json"
RESAMPLING = "resample_data_or_seg_to_shape"
"""The function that resamples unless plans name another one."""
BY_TORCH, UNTOUCHED = "resample_torch_fornnunet", "no_resampling_hack"
"""Of its other planners: linear, by PyTorch; and the one that leaves voxels as they are."""
ANISOTROPIC = 3.0
"""How many times as long as they are short voxels are that are resampled apart, unless plans say otherwise."""
_MOST_LABELS = 2**16
_UNETS = "dynamic_network_architectures.architectures.unet."


class _Said(BaseModel):
    """Keys that are not known are passed over: every version has some of its own."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Intensities(_Said):
    """Of the foreground of one channel over all training images."""

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


class Architecture(_Said):
    network_class_name: str
    arch_kwargs: dict[str, Any]


class Interpolated(_Said):
    """What a function that resamples is called with; what is left out is as it has it."""

    order: int = 3
    order_z: int = 0
    force_separate_z: bool | Literal["as the function has it"] | None = "as the function has it"
    separate_z_anisotropy_threshold: float = ANISOTROPIC
    mode: str = "linear"
    aniso_axis_mode: str = "nearest-exact"

    def splines(self, function: str) -> tuple[int, int, bool | None] | None:
        """Order, order along the axis that is resampled apart, and whether one is (None: by the spacing). None where
        that is not known."""
        usual = {RESAMPLING: False, BY_TORCH: None}
        if function not in usual:
            return None
        said = self.force_separate_z
        apart = usual[function] if isinstance(said, str) else said
        if apart is None and self.separate_z_anisotropy_threshold != ANISOTROPIC:
            return None
        if function == RESAMPLING:
            orders = self.order, self.order_z
        elif self.mode == "linear" and self.aniso_axis_mode in _MODES:
            orders = 1, _MODES[self.aniso_axis_mode]
        else:
            return None
        return (*orders, apart) if {*orders} <= {0, 1, 3} else None


_MODES = {"nearest-exact": 0, "linear": 1}
_PLANNED = Interpolated(force_separate_z=None)


class Configuration(_Said):
    """One of those that the plans hold. Sizes follow the axes as the plans transpose them."""

    patch_size: tuple[Length, ...] = Field(min_length=2, max_length=3)
    spacing: tuple[Annotated[float, Field(gt=0)], ...]
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]
    architecture: Architecture
    preprocessor_name: str | None = None
    previous_stage: str | None = None
    resampling_fn_data: str = RESAMPLING
    resampling_fn_data_kwargs: Interpolated = _PLANNED
    resampling_fn_probabilities: str = RESAMPLING
    resampling_fn_probabilities_kwargs: Interpolated = Interpolated(order=1, force_separate_z=None)

    @property
    def resamples(self) -> bool:
        """Whether volumes are brought to its spacing at all."""
        return {self.resampling_fn_data, self.resampling_fn_probabilities} != {UNTOUCHED}


class Plans(_Said):
    dataset_name: str = "nnU-Net"
    image_reader_writer: str | None = None
    label_manager: str | None = None
    transpose_forward: tuple[int, int, int] = (0, 1, 2)
    transpose_backward: tuple[int, int, int] = (0, 1, 2)
    configurations: dict[str, dict[str, Any]]
    intensities: dict[str, Intensities] = Field(
        default_factory=dict, alias="foreground_intensity_properties_per_channel"
    )


class Dataset(_Said):
    labels: dict[str, int | tuple[int, ...]]
    channel_names: dict[str, str]
    regions_class_order: tuple[int, ...] | None = None
    name: str = ""
    licence: str = ""
    reference: str = ""
    description: str = ""
    release: str = ""


@dataclass(frozen=True)
class Labels:
    """What the outputs of the network are."""

    channels: tuple[str, ...]
    """A name for each, in order."""
    regions: tuple[int, ...] | None
    """Where channels are regions that may overlap: the label that each of them gives, later ones over earlier ones.
    None: they are labels that exclude one another."""


def read_json(files: Files, name: str) -> dict[str, Any]:
    """The object in a JSON file of the folder. Raises `ModelError` where there is none."""
    try:
        said = json.loads(files.text(name))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{files.path}: {name} is no JSON: {first_line(error)}; get the folder again") from error
    if not isinstance(said, dict):
        raise ModelError(f"{files.path}: {name} holds no JSON object; get the folder again")
    return said


def plans_of(folder: Path, said: Mapping[str, Any]) -> Plans:
    """Raises `ModelError` naming the key that is missing or wrong."""
    older = "foreground_intensity_properties_by_modality"
    key = "foreground_intensity_properties_per_channel"
    values = {**said, key: said.get(key) or said.get(older) or {}}
    plans = _valid(Plans, values, folder, PLANS)
    forward, backward = plans.transpose_forward, plans.transpose_backward
    if sorted(forward) != [0, 1, 2] or tuple(forward.index(a) for a in range(3)) != backward:
        raise ModelError(
            f"{folder}: {PLANS}: transpose_backward {list(backward)} does not undo transpose_forward {list(forward)}; "
            "get the folder again"
        )
    return plans


def configuration_of(folder: Path, plans: Plans, name: str) -> Configuration:
    """The configuration `name`, with what it inherits. Raises `ModelError` where it is none, or not complete."""
    values: dict[str, Any] = {}
    seen: list[str] = []
    following: Any = name
    while following is not None:
        if following in seen:
            raise ModelError(f"{folder}: {PLANS}: {following} inherits from itself; get the folder again")
        if not isinstance(following, str) or following not in plans.configurations:
            raise ModelError(
                f"{folder}: {PLANS} has no configuration {following!r}, only {', '.join(plans.configurations)}; "
                "get the plans that the network was trained with"
            )
        seen.append(following)
        values = {**plans.configurations[following], **values}
        following = plans.configurations[following].get("inherits_from")
    if "architecture" not in values:
        values["architecture"] = _of_old_plans(folder, name, values)
    found = _valid(Configuration, values, folder, f"{PLANS}: {name}")
    if len(found.spacing) != len(found.patch_size):
        raise ModelError(f"{folder}: {PLANS}: {name}: spacing and patch_size differ in length; get the folder again")
    return found


def _of_old_plans(folder: Path, name: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture as plans before version 2.4 say it, key by key."""
    kind, dims = said.get("UNet_class_name"), len(said.get("patch_size") or ())
    blocks = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}
    if kind not in blocks:
        raise ModelError(
            f"{folder}: {PLANS}: {name} has no architecture that is known (UNet_class_name {kind!r}); export the network "
            "yourself, with unet-engine export --factory"
        )
    try:
        stages = len(said["n_conv_per_stage_encoder"])
        first, most = int(said["UNet_base_num_features"]), int(said["unet_max_num_features"])
        return {
            "network_class_name": _UNETS + kind,
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": [min(first * 2**i, most) for i in range(min(stages, 32))],
                "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
                "kernel_sizes": said["conv_kernel_sizes"],
                "strides": said["pool_op_kernel_sizes"],
                blocks[kind]: said["n_conv_per_stage_encoder"],
                "n_conv_per_stage_decoder": said["n_conv_per_stage_decoder"],
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{folder}: {PLANS}: {name}: {first_line(error)} is missing or no number; get the folder again"
        ) from error


def dataset_of(folder: Path, said: Mapping[str, Any]) -> Dataset:
    """Raises `ModelError` naming the key that is missing or wrong."""
    values = dict(said)
    values.setdefault("channel_names", said.get("modality"))
    values["licence"] = str(said.get("licence") or said.get("license") or "")
    for key in ("name", "reference", "description", "release"):
        values[key] = str(said.get(key) or "")
    if isinstance(values["channel_names"], Mapping):
        values["channel_names"] = {str(k): str(v) for k, v in values["channel_names"].items()}
    if isinstance(said.get("labels"), Mapping):
        values["labels"] = {str(k): _whole(v) for k, v in said["labels"].items()}
    return _valid(Dataset, values, folder, DATASET)


def _whole(value: Any) -> Any:
    """Old files write labels as text."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


def labels_of(folder: Path, dataset: Dataset) -> Labels:
    """As nnU-Net's `LabelManager` reads them. Raises `ModelError` where they make no sense."""
    said = {name: value for name, value in dataset.labels.items() if name != "ignore"}
    values = [v for value in said.values() for v in (value if isinstance(value, tuple) else (value,))]
    empty = any(value == () for value in said.values())
    if said.get("background") != 0 or empty or not all(0 <= v < _MOST_LABELS for v in values):
        raise ModelError(
            f"{folder}: {DATASET}: labels are whole numbers from 0, or lists of some, and background is 0; get the folder again"
        )
    if not any(isinstance(value, tuple) and len(value) > 1 for value in said.values()):
        by_value = {v[0] if isinstance(v, tuple) else v: name for name, v in said.items()}
        return Labels(tuple(by_value[v] for v in sorted(by_value)), None)
    regions = [name for name, v in said.items() if set(v if isinstance(v, tuple) else (v,)) != {0}]
    order = dataset.regions_class_order
    if order is None or len(order) != len(regions) or not all(1 <= v < _MOST_LABELS for v in order):
        raise ModelError(
            f"{folder}: {DATASET}: regions_class_order has to name a label above 0 for each of {len(regions)} regions; "
            "get the folder again"
        )
    return Labels(tuple(regions), order)


def _valid(kind: type[M], values: Mapping[str, Any], folder: Path, where: str) -> M:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ModelError(f"{folder}: {where}: {key}: {first['msg']}; get the folder again") from error
