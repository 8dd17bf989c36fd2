"""What a model file promises: `ModelSpec`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_serializer, model_validator
from pydantic_core.core_schema import SerializerFunctionWrapHandler

from unet_engine import text_files
from unet_engine.errors import ModelError
from unet_engine.model.normalization import Normalization
from unet_engine.units import MOST, times

METADATA_KEY = "unet_engine.spec"
"""Key of the ONNX ``metadata_props`` entry (and of the ``extra_files`` of .pt2 and TorchScript) with the spec as
JSON."""
EXPORT_KEY = "unet_engine.export"
"""Of an ONNX file: what it was compared with when it was exported, by how much they differed, and what told each field
of the spec. JSON in ``metadata_props``."""

Activation = Literal["softmax", "sigmoid", "none", "probabilities", "probabilities_each"]
"""What the network's outputs are: logits of classes that exclude one another (`softmax`), logits of each channel on its
own (`sigmoid`), numbers (`none`), or probabilities already: of classes that exclude one another, as after a softmax, or
of a single channel (`probabilities`), or of each channel on its own, as after a sigmoid (`probabilities_each`)."""
ARE_PROBABILITIES = ("probabilities", "probabilities_each")
_EACH = ("sigmoid", "probabilities_each")
Channels = Literal["classes", "multilabel", "image", "offsets", "unknown"]
"""What output channels are: classes that exclude one another, classes that may overlap, an image, or offsets and
affinities. `unknown`: it was not to be told as the file was made, and is asked for. Of older files: None."""

ACTIVATION_OF: dict[Channels, Activation] = {"multilabel": "sigmoid", "image": "none", "offsets": "none"}
"""The activation that follows from what channels are where nothing else tells it."""

_NOT_IN_NAMES = re.compile(r"[^\w .+()\[\]{}=,;@!#$%&'^~`-]")


def plain_name(name: str) -> str:
    """`name` as a part of file names and of lines for people: of letters, digits and marks that lead nowhere, 100
    characters at most. Models come from anywhere, and outputs are named after them."""
    return _NOT_IN_NAMES.sub("_", name).lstrip(". ")[:100].rstrip(". ") or "model"


_LATER = (
    "channels",
    "mirror_axes",
    "resampling",
    "regions",
    "orientation",
    "threshold",
    "colours",
    "crop",
    "crop_margin",
    "kept_labels",
)
"""Fields that came after the first files were written."""
_DIRECTIONS = [[a, b, c] for a in (0, 1) for b in (2, 3) for c in (4, 5)]
"""Places in ``LRAPSI`` of three that are no opposites."""
MOST_CHANNELS = 2**20
Size = Annotated[int, Field(ge=1, le=MOST)]
Extent = Annotated[int, Field(ge=0, le=MOST)]


Order = Literal[0, 1, 3]


class Resampling(BaseModel):
    """How a volume is brought to a network's spacing, and the result back: orders of splines (0 the nearest voxel, 1
    linear, 3 cubic). Defaults are nnU-Net's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: Order = 3
    image_apart: Order = 0
    """Of the image along the axis that is resampled apart, if one is."""
    output: Order = 1
    """Of the outputs, before they become labels or probabilities."""
    output_apart: Order = 0
    apart: Literal["anisotropic", "always", "never"] = "anisotropic"
    """When the axis along which voxels are longest is resampled apart from the others: where they are over three times
    as long as they are short."""
    aligned: Literal["ends", "first"] = "ends"
    """Whether both grids end at the same places, as nnU-Net has it, or the middles of their first voxels are the same
    and voxels as long as the spacing says to the last digit, as MONAI has it."""
    first: Literal["normalised", "interpolated"] = "normalised"
    """What is done with voxels before the other."""
    of: Literal["outputs", "probabilities"] = "outputs"
    """What is interpolated on the way back: what the network gives, or what its activation makes of that."""

    cut: Literal["extremes"] | None = None
    """What cubic splines of the image overshoot is cut off at: the least and the largest normalised voxel of the
    volume, of each plane where an axis is resampled apart, as nnU-Net has it. None: where the normalisation clips."""

    @model_serializer(mode="wrap")
    def _what_is_said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what came later and is as it was: so digests stay."""
        said: dict[str, Any] = handler(self)
        later = {"aligned": "ends", "first": "normalised", "of": "outputs", "cut": None}
        return {key: value for key, value in said.items() if key not in later or later[key] != value}


class ModelSpec(BaseModel):
    """What a model file promises. Tuples per axis follow `axes`; sizes are in voxels.

    A window is the box of one network call. Admissible input sizes of axis a are
    ``window_min[a] + k * window_step[a]`` for k = 0, 1, 2, …; a step of 0 means that only `window_min` is taken.
    The network's output is smaller than its input by `margin` at each side (0 for padded convolutions).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    axes: Literal["yx", "zyx"]
    channels_in: int = Field(ge=1, le=MOST_CHANNELS)
    channels_out: int = Field(ge=1, le=MOST_CHANNELS)
    classes: tuple[str, ...] = ()
    colours: tuple[Annotated[str, Field(pattern="^#[0-9a-fA-F]{6}$")], ...] | None = None
    """A colour for each label, 0 first, as ``#RRGGBB``, for files that hold colours. None: they get some."""
    window: tuple[Size, ...]
    """The input size used unless the user gives another one."""
    window_min: tuple[Size, ...]
    window_step: tuple[Extent, ...]
    margin: tuple[Extent, ...]
    context: tuple[int, ...] | None = None
    """Radius of the receptive field: an output voxel sees inputs at most this far away. None: unknown."""
    activation: Activation = "softmax"
    normalization: Normalization = Normalization()
    spacing: tuple[float, ...] | None = None
    """Size of a voxel the network was trained on, in `spacing_unit`; 0 along an axis where any will do."""
    spacing_unit: str = "micrometer"
    background: float = 0.0
    """Raw value that means 'nothing here'; only used where `empty` is given."""
    empty: tuple[float, ...] | None = None
    """Output per channel of a window that is all background, which then is not inferred. None: infer all."""
    input_quantiles: tuple[tuple[float, ...], ...] | None = None
    """Per channel the 1, 25, 50, 75 and 99 % quantiles of the normalised voxels it was trained on. None: unknown."""
    flops: int | None = None
    """Floating point operations (two per multiply-add) of one default window. None: unknown."""
    channels: Channels | None = None
    regions: tuple[Annotated[int, Field(ge=1, le=2**16 - 1)], ...] | None = None
    """Of channels that are regions and may overlap: the label that each gives where it holds, later channels over
    earlier ones. None: the largest channel that holds gives its number, counted from 1."""
    resampling: Resampling | None = None
    """How volumes of another spacing come to that of the network. None: they are refused."""
    mirror_axes: str | None = None
    """Axes along which windows may be mirrored for test-time augmentation, e.g. ``yx``, as whoever trained it does;
    empty: none. None: unknown, and nothing is mirrored unless it is asked for."""

    orientation: str | None = None
    """Where z, y and x of a volume have to point: right or left, anterior or posterior, superior or inferior, e.g.
    ``SAR``. None: unknown, or any."""
    threshold: float | None = None
    """What a channel on its own has to exceed to be a label: a probability, or with the activation `none` what the
    network gives. None: a half, or 0."""
    crop: Literal["nonzero"] | Annotated[float, Field(allow_inf_nan=False)] | None = None
    """What of a volume is taken for all of it: the box of its voxels that are not 0 in some channel, or that are above
    this number in one. Outside, all that is written is 0. None: all of it. A number is said of voxels of the network's
    spacing: of a volume that is brought to it, all is taken."""
    crop_margin: tuple[Extent, Extent, Extent] | None = None
    """By how many voxels the box of a `crop` to a number is larger at each side, along z, y and x of a volume, as far as
    it has voxels."""
    kept_labels: tuple[Annotated[int, Field(ge=0, le=2**16 - 1)], ...] | None = None
    """Of classes that exclude one another, the labels that are written; voxels of others become 0. Probabilities and
    logits are those of all classes. None: all labels."""

    @model_serializer(mode="wrap")
    def _what_is_said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what came later and is not said: so files stay readable for older versions, and digests what they
        were."""
        said: dict[str, Any] = handler(self)
        return {key: value for key, value in said.items() if key not in _LATER or value is not None}

    @field_validator("mirror_axes")
    @classmethod
    def _axes_once(cls, axes: str | None) -> str | None:
        if axes is None:
            return None
        if len(set(axes)) < len(axes) or not set(axes) <= set("zyx"):
            raise ValueError("name axes of the model, each once, e.g. zyx")
        return "".join(sorted(axes, key="zyx".index))

    @field_validator("orientation")
    @classmethod
    def _directions_once(cls, orientation: str | None) -> str | None:
        if orientation is not None and sorted(map("LRAPSI".find, orientation)) not in _DIRECTIONS:
            raise ValueError("name where z, y and x point, one of L and R, of A and P, of S and I, e.g. SAR")
        return orientation

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        return plain_name(name)

    @model_validator(mode="after")
    def _consistent(self) -> ModelSpec:
        n = len(self.axes)
        for field in ("window", "window_min", "window_step", "margin", "context", "spacing"):
            value = getattr(self, field)
            if value is not None and len(value) != n:
                raise ValueError(f"{field} has {len(value)} entries for the {n} axes {self.axes}")
        if self.mirror_axes is not None and not set(self.mirror_axes) <= set(self.axes):
            raise ValueError(f"mirror_axes {self.mirror_axes} are not all among the axes {self.axes}")
        if self.empty is not None and len(self.empty) != self.channels_out:
            raise ValueError(f"empty has {len(self.empty)} entries for {self.channels_out} output channels")
        labels = self.channels_out if self.activation == "none" else self.label_count
        if self.classes and len(self.classes) != labels:
            raise ValueError(f"{len(self.classes)} class names for {labels} labels")
        if self.colours is not None and len(self.colours) != labels:
            raise ValueError(f"{len(self.colours)} colours for {labels} labels")
        if self.activation == "softmax" and self.channels_out == 1:
            raise ValueError("softmax over one channel is constant; use sigmoid")
        if self.channels in ("multilabel", "image", "offsets") and self.activation == "softmax":
            raise ValueError(f"softmax makes classes that exclude one another of channels; {self.channels} are none")
        if self.channels == "multilabel" and self.channels_out > 1 and not self.overlaps:
            raise ValueError("channels that may overlap are sigmoid (logits), or probabilities_each")
        if self.regions is not None and not (self.overlaps and len(self.regions) == self.channels_out):
            raise ValueError("regions names a label for each output channel, of a sigmoid or of probabilities_each")
        self._check_threshold()
        if self.resampling and not self.spacing:
            raise ValueError("resampling needs the spacing that volumes are brought to")
        if self.resampling and not (
            all(isfinite(s) and s >= 0 for s in self.spacing or ()) and any(self.spacing or ())
        ):
            raise ValueError("resampling needs a spacing above 0 along each axis, or 0 where any will do")
        self.normalization.check_channels(self.channels_in)
        self.check_window(self.window)
        return self

    @model_validator(mode="after")
    def _margin_of_a_crop(self) -> ModelSpec:
        if self.crop_margin is not None and not isinstance(self.crop, float):
            raise ValueError("crop_margin is that of a crop to what is above a number")
        return self

    @model_validator(mode="after")
    def _some_kept(self) -> ModelSpec:
        if self.kept_labels is None:
            return self
        if self.overlaps or self.channels_out == 1:
            raise ValueError("kept_labels is for classes that exclude one another")
        if not any(0 < label < self.label_count for label in self.kept_labels):
            raise ValueError("kept_labels keeps none of the labels but the background")
        return self

    def _check_threshold(self) -> None:
        if self.threshold is None:
            return
        if self.channels_out > 1 and not self.overlaps:
            raise ValueError("threshold is for channels that are each on their own; of classes the largest wins")
        if self.activation != "none" and not 0 < self.threshold < 1:
            raise ValueError("threshold is a probability, above 0 and below 1")

    @classmethod
    def written(cls, values: Mapping[str, Any], source: Path) -> ModelSpec:
        """The spec with these values, which somebody wrote to `source`. Raises `ModelError` naming the first that is
        wrong."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "spec"
            raise ModelError(f"{source}: the model spec is not valid: {where}: {first['msg']}; correct it") from error

    @classmethod
    def exported(cls, text: str, source: Path) -> ModelSpec:
        """The spec that an export left in `source` as JSON. Raises `ModelError` where it is not valid."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ModelError(
                f"{source}: its model spec is not valid: {error.errors()[0]['msg']}; export it again"
            ) from error

    def smaller_window(self, window: tuple[int, ...]) -> tuple[int, ...] | None:
        """The next smaller admissible window, its longest axis shrunk by a step or to about three quarters; None where
        there is none."""
        order = sorted(range(len(window)), key=lambda a: -window[a])
        for a in order:
            step, least, margin = self.window_step[a], self.window_min[a], self.margin[a]
            if step == 0:
                continue
            wanted = least + max(0, (window[a] * 3 // 4 - least) // step) * step
            while wanted <= 2 * margin:
                wanted += step
            if wanted < window[a]:
                return tuple(wanted if i == a else w for i, w in enumerate(window))
        return None

    def check_window(self, window: tuple[int, ...]) -> None:
        """Raise `ModelError` unless `window` (input sizes per axis) is admissible; the message names sizes that are."""
        if len(window) != len(self.axes):
            raise ModelError(
                f"window {times(window)} has {len(window)} axes, the model {self.name} has {self.axes}; give one size "
                "for each"
            )
        for axis, size, least, step, margin in zip(
            self.axes, window, self.window_min, self.window_step, self.margin, strict=True
        ):
            fits = size == least if step == 0 else size >= least and (size - least) % step == 0
            if fits and size > 2 * margin:
                continue
            if step == 0:
                raise ModelError(
                    f"the model {self.name} takes only {least} voxels along {axis}, not {size}; leave out --window"
                )
            below = max(least, least + (size - least) // step * step)
            raise ModelError(
                f"the model {self.name} takes {least} + k*{step} voxels along {axis}, not {size}; "
                f"use the nearest: {below} or {below + step}"
            )

    @property
    def overlaps(self) -> bool:
        """Whether channels are each on their own, so that several may hold of one voxel."""
        return self.activation in _EACH

    @property
    def label_count(self) -> int:
        """Number of different labels: channels on their own have a background 0 beside them, one channel means 0 and
        1."""
        each = self.activation in _EACH or self.channels_out == 1
        return max([self.channels_out + each, *(label + 1 for label in self.regions or ())])

    @property
    def class_names(self) -> tuple[str, ...]:
        """A name for each label: those in `classes`, or their numbers."""
        return self.classes or tuple(f"class {k}" for k in range(self.label_count))


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file says that holds a spec or a part of one. Raises `ModelError` where it is no TOML."""
    try:
        return text_files.read_toml(path)
    except text_files.NotReadable as error:
        raise ModelError(f"{path} {error}") from error
