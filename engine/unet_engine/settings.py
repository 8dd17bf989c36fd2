"""What a user can ask for: the same names on the command line, in ``unet-engine.toml`` and in Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, ValidationInfo, field_validator

from unet_engine.endings import refuse_other_formats
from unet_engine.errors import SettingsError
from unet_engine.paths import plain, unusable
from unet_engine.redaction import hide, hide_in_url
from unet_engine.settings_files import SettingsFile, settings_files
from unet_engine.settings_sources import Sources, variables
from unet_engine.settings_text import parse_part, parse_tiling, parse_tta, parse_values, parse_window, plausible_window
from unet_engine.units import MOST, MOST_BYTES, parse_bytes

MOST_THREADS = 1024
"""Threads of one process that are started at most."""
MOST_WORKERS = 10**6
"""Of whatever cluster; on this machine memory is the limit, see `unet_engine.cluster.local_workers`."""

AUTO = "auto"
KEEP = "keep"
"""Of `Settings.outside`: voxels outside keep what the windows that reach them give."""

Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]


class Settings(BaseModel):
    """One run. Everything but `input` has a default; `model` may come from a ``unet-engine.toml``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    input: str
    """Zarr array or OME-Zarr group, a path or a URL; or a file of another format, see `unet_engine.volumes.formats`."""
    model: str | None = None
    """Model file: .onnx, .pt2, .pt; several, parted by commas, are averaged."""
    folds: str | None = None
    """Which networks of a model of several run: their names or numbers, ``0,1``, or ``all``; default: all."""
    weights: str | None = None
    """What the answers of each of these networks count, ``2,1,1``; default: as the model says, else alike."""
    out: str | None = None
    """Output: a Zarr group, called NAME.zarr or whatever no other format is, or a file of the format that the name
    says, see `unet_engine.postprocess.formats`; default: beside the input, named after both, and of the kind of the
    input."""
    into: str | None = None
    """Put labels into the OME-Zarr image that is read, ``IMAGE/labels/NAME``, instead of `out`: their name, or the path
    of the image; ``auto``: called after the model. See `unet_engine.postprocess.into`."""
    device: str = "auto"
    """``cpu``, ``cuda``, ``cuda:0,1`` or ``auto``."""
    gpus: int | None = Field(default=None, ge=1, le=MOST)
    """Number of GPUs, instead of `device`."""
    backend: str | None = None
    precision: Precision = "auto"
    window: tuple[int, ...] | None = None
    """Input size per axis of the model; default: what the model names."""
    overlap: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = 0.5
    """Fraction by which windows overlap; ``auto``: see `unet_engine.prepare.overlap`."""
    overlap_tolerance: float | None = Field(default=None, gt=0, le=1)
    """Least agreement and Dice coefficient of every class that ``auto`` accepts; default 0.999."""
    blend: Literal["gaussian", "constant", "crop", "monai", "nnunet"] = "gaussian"
    """``monai`` and ``nnunet``: the weights and places of windows of these tools, see docs/blending.md."""
    blend_at: Literal["auto", "features", "outputs"] = "auto"
    """What is blended: the network's outputs, or the features that its last layer, a convolution of one voxel, makes
    them of; see `unet_engine.prepare.blending`. ``auto``: features where classes are many and that gives the same."""
    split_concat: bool = False
    """Whether convolutions of concatenated tensors are computed as sums of convolutions, see
    `unet_engine.model.onnx_split`: the same but for rounding, in fp32 on a CPU faster."""
    tiling: str | None = None
    """Window, least voxels that neighbours share, and blend in one, ``136,144,144:16,16,16:crop``: windows are then
    spread evenly. ``auto``: the cheapest that is proved, see `unet_engine.prepare.tiling`. Default: `window`, `overlap`
    and `blend` say it."""
    tolerance: float | None = Field(default=None, gt=0, le=1)
    """Least agreement and Dice coefficient of every class that ``tiling="auto"`` accepts; default: what the model's own
    window at overlap 0.5 reaches."""
    tiling_budget: float | None = Field(default=None, gt=0, le=MOST)
    """Part of a run that ``tiling="auto"`` may compute to find out; default 0.03."""
    truth: str | None = None
    """Volume of labels, of the input's shape, by which ``tiling="auto"`` decides."""
    coarse: Literal["auto"] | None = None
    """``auto``: where a coarse pass proves that there is no foreground, background is written and nothing computed; see
    `unet_engine.prepare.coarse`. Default: all is computed."""
    coarse_miss: float | None = Field(default=None, gt=0, lt=1)
    """Part of the foreground's voxels that ``coarse="auto"`` may miss; default 0.001."""
    coarse_budget: float | None = Field(default=None, gt=0, le=MOST)
    """Part of a run that ``coarse="auto"`` may compute to find out; default 0.1."""
    padding: Literal["reflect", "constant", "edge"] | None = None
    """What windows read outside of the volume; default: reflect, with the blending of a peer constant, as it does."""
    tta: str | None = None
    """Test-time augmentation: ``none``, ``mirror``, ``mirror:yx``, ``turns``, or several joined by ``+``; see
    `unet_engine.plan.poses`. Default: mirrors along the axes that the model names, as its source does."""
    channels: Literal["classes", "multilabel", "image", "offsets"] | None = None
    """What the network's output channels are, see `unet_engine.model.spec.Channels`; default: what the model says."""
    threshold: float | None = None
    """What a channel on its own has to exceed to be a label: a probability, or with the activation `none` what the
    network gives; default: what the model says, else a half, or 0."""
    output: Literal["masks", "labels", "probabilities", "logits"] = "labels"
    """``masks``: of each channel 0 or 1, for classes that may overlap."""
    dtype: Literal["uint8", "float16", "float32"] | None = None
    """Type of probabilities (default uint8: 0 to 255 for 0 to 1) and logits (default float32). Rounded once, at the
    end: uint8 with halves up, float16 to nearest with ties to even."""
    components: bool = False
    """Write numbers of connected objects in place of labels, see `unet_engine.postprocess.components`; the next four
    are for that."""
    connectivity: int | None = None
    """Neighbours that count: 6 (faces; default), 18 or 26; in 2D 4 (default) or 8."""
    min_size: int | None = Field(default=None, ge=1, le=2**62)
    """Voxels that an object has at the least."""
    fill_holes: bool = False
    """Whether background that one class encloses becomes that class first."""
    largest: int | None = Field(default=None, ge=1, le=MOST)
    """So many objects of each class are kept."""
    pyramid: bool = False
    """Add coarser levels to the output, see `unet_engine.postprocess.pyramid`; `levels` is for that."""
    levels: int | None = Field(default=None, ge=1, le=MOST)
    """How many there are, with the full resolution; default: until they are small."""
    roi: str | None = None
    """``z0:z1,y0:y1,x0:x1`` in voxels of the input; an empty end means the edge."""
    axes: str | None = None
    """Axes of the stored array, e.g. ``czyx``; default: what its metadata say."""
    image: str | None = None
    """Of a plate, collection, TIFF or folder of DICOM: an image in it, by its path, name or number from 0."""
    level: int | None = Field(default=None, ge=0, le=MOST)
    """Of a pyramid or overviews: 0 is the full resolution; default: that."""
    timepoint: Annotated[int, Field(ge=0, le=MOST)] | str | None = None
    """Counted from 0; needed where the volume has several. ``all``, or a range ``2:5``, in `run` and where the output
    is OME-Zarr: each is run, and the output keeps the time axis."""
    input_channels: str | None = None
    """Channels of the volume that the network takes, in its order: names, or numbers from 0, as ``DAPI,2``; default:
    all."""
    normalize: str | None = None
    """How voxels become numbers for the network, e.g. ``zscore``, ``percentile:1,99,clip`` or ``range:-1000,400``: see
    `unet_engine.model.normalization.Normalization`; default: what the model names."""
    activation: Literal["softmax", "sigmoid", "none", "probabilities", "probabilities_each"] | None = None
    """What the network's outputs are, see `unet_engine.model.spec.Activation`; default: what the model or its graph
    says."""
    head: str | None = None
    """Name of the output that is wanted, of a network with several; default: see `unet_engine.model.outputs.choose`."""
    replace_nonfinite: float | None = None
    """Value for NaN and Inf in the input, which are an error otherwise."""
    grid: Literal["model", "scan"] | None = None
    """Where a model brings the volume to its own spacing: the grid that the result is written on. ``scan``: that of the
    volume; default."""
    mask: str | None = None
    """Volume of the same shape, or coarser or finer by a whole number along each axis: voxels where it is zero get
    `outside`, and windows that reach none of the others are not inferred."""
    outside: str | None = None
    """What is written outside the mask and where nothing was measured, a number as it is stored, or ``nan``; ``keep``:
    what windows give there. Default: the output that the model names for empty windows, else 0, the background
    label."""
    nodata: str | None = None
    """Values of voxels that were not measured, e.g. ``-9999``, ``0,255`` or ``nan``; ``none``: there are none. Default:
    what the volume's attributes say."""
    memory: int | None = None
    """Bytes of RAM the run may use, also as ``8GiB``; default: half of what is free."""
    batch: int | None = Field(default=None, ge=1, le=MOST)
    """Windows that a GPU infers at once, at most; default: from the window and what memory is free."""
    threads: int | None = Field(default=None, ge=1, le=MOST_THREADS)
    """Windows inferred at the same time by a process on a CPU; default: one per core, shared out among the workers, or
    what was measured to be faster."""
    window_threads: int | None = Field(default=None, ge=1, le=MOST_THREADS)
    """Threads that infer one window together on a CPU; default: one, or more where that was measured to be faster and
    gives the same bytes. `threads` is then as many windows as there are cores for."""
    workers: int | None = Field(default=None, ge=1, le=MOST_WORKERS)
    """Worker processes on this machine, run by Dask; default: none, all in this process."""
    scheduler: str | None = None
    """Address (``tcp://host:port``, ``tls://host:port``) or scheduler file of a running Dask cluster."""
    protocol: Literal["tcp", "ucx"] = "tcp"
    """How processes of this machine send halos to one another; see `unet_engine.cluster.local_workers`."""
    cluster: str | None = None
    """YAML file that says how to start workers as batch jobs; see `unet_engine.cluster.connection`."""
    part: str | None = None
    """``i/n``: only the i-th of n parts, counted from 1; parts share nothing but the output."""
    hang_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """How long a worker may take over one task before it counts as hung; default: from the plan. Without Dask, how long
    this process may get nowhere before it is ended; default: for ever."""
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    """PEM files for encrypted traffic between client, scheduler and workers."""
    dashboard: str | None = None
    """Where Dask's dashboard listens, ``host:port``; default: a free port on loopback; ``none`` for none."""
    dashboard_token: str | None = None
    """Secret without which the dashboard answers nobody."""
    profile: str | None = None
    """Folder, or ``NAME.json``, for a trace and a picture of where the time went; ``auto``: a folder named after the
    output."""
    resume: bool = False
    verify: bool = False
    """Where a run is resumed: compare not only the lengths of committed chunks but also their contents."""
    overwrite: bool = False
    durable: bool = True
    """Whether what is committed outlives a power cut, at a price of at most some percent; kills never cost it."""
    trust: bool = False
    """Trust a model that runs code as it is opened (.pt2, TorchScript): once, its hash is remembered."""
    ignore_spacing: bool = False
    """Run although the voxels are larger or smaller than those the model was trained on, which is an error otherwise;
    and take the volume as it lies, which is turned otherwise where the model says how it has to lie."""
    strict: bool = False
    """Make every fallback an error."""
    _notes: tuple[str, ...] = PrivateAttr(default=())

    @property
    def notes(self) -> tuple[str, ...]:
        """What was taken from which settings file, as people are told."""
        return self._notes

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic takes true and false for 1 and 0."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("it is not switched on and off; give its value, or leave it out")
        return value

    @field_validator("overlap", mode="before")
    @classmethod
    def _fraction(cls, value: Any) -> Any:
        if not isinstance(value, str) or value == "auto":
            return value
        try:
            return float(value)
        except ValueError:
            raise ValueError("give a fraction from 0 to below 1, or auto") from None

    @field_validator("timepoint", mode="before")
    @classmethod
    def _times(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value.isascii() and value.isdigit():
            return int(value[:12])
        if value != "all" and not re.fullmatch(r"[0-9]{0,9}:[0-9]{0,9}", value):
            raise ValueError("give a number from 0, a range such as 0:10, or all")
        return value

    @field_validator("memory", mode="before")
    @classmethod
    def _bytes(cls, value: Any) -> Any:
        return parse_bytes(value) if isinstance(value, str) else value

    @field_validator("memory")
    @classmethod
    def _some(cls, value: int | None) -> int | None:
        if value is not None and not 1 <= value <= MOST_BYTES:
            raise ValueError("give a number of bytes that a machine may have, e.g. 8GiB")
        return value

    @field_validator("outside", "nodata", "image", "folds", "weights", "input_channels", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """Numbers, and lists of numbers and names, as the command line has them."""
        parts = value if isinstance(value, list | tuple) else [value]
        known = parts and all(isinstance(part, str | int | float) and not isinstance(part, bool) for part in parts)
        return ",".join(map(str, parts)) if known else value

    @field_validator("outside")
    @classmethod
    def _one(cls, value: str | None) -> str | None:
        if value in (None, KEEP):
            return value
        try:
            (number,) = parse_values(str(value))
        except ValueError:
            raise ValueError(f"give a finite number, nan, or {KEEP}") from None
        return repr(number)

    @field_validator("nodata")
    @classmethod
    def _values(cls, value: str | None) -> str | None:
        if value not in (None, "none"):
            parse_values(str(value))
        return value

    @field_validator("model", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and value and all(isinstance(part, str | Path) for part in value):
            return ",".join(map(str, value))
        return str(value) if isinstance(value, Path) else value

    @field_validator("input", "out", "into", "mask", "truth", "profile", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator(
        "input",
        "model",
        "out",
        "into",
        "mask",
        "outside",
        "nodata",
        "tiling",
        "truth",
        "roi",
        "axes",
        "image",
        "input_channels",
        "normalize",
        "folds",
        "weights",
        "head",
        "backend",
        "device",
        "scheduler",
        "cluster",
        "part",
        "profile",
        "dashboard",
        "dashboard_token",
        "tls_ca",
        "tls_cert",
        "tls_key",
    )
    @classmethod
    def _said(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("it is empty; give a value or leave the option out")
        return value

    @field_validator("out")
    @classmethod
    def _zarr(cls, value: str | None) -> str | None:
        if value is not None:
            refuse_other_formats(value)
        return value

    @field_validator(
        "input",
        "model",
        "out",
        "into",
        "mask",
        "truth",
        "profile",
        "scheduler",
        "cluster",
        "tls_ca",
        "tls_cert",
        "tls_key",
    )
    @classmethod
    def _place(cls, value: str | None) -> str | None:
        if value is not None and (why := unusable(value)):
            raise ValueError(why)
        return value and plain(value)

    @field_validator("part")
    @classmethod
    def _part(cls, value: str | None) -> str | None:
        if value is not None:
            parse_part(value)
        return value

    @field_validator("tta")
    @classmethod
    def _tta(cls, value: str | None) -> str | None:
        if value is not None:
            parse_tta(value)
        return value

    @field_validator("tiling")
    @classmethod
    def _tiling(cls, value: str | None) -> str | None:
        if value not in (None, "auto"):
            parse_tiling(str(value))
        return value

    @field_validator("window", mode="before")
    @classmethod
    def _window(cls, value: Any) -> Any:
        return parse_window(value) if isinstance(value, str) else value

    @field_validator("window")
    @classmethod
    def _positive(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if value is None else plausible_window(value)

    def _check_protocol(self) -> None:
        if self.protocol == "tcp":
            return
        if not self.workers and (self.gpus or 1) < 2:
            raise SettingsError(
                f"--protocol {self.protocol} is for --workers N and for --gpus N of two or more; leave it out. "
                f"Elsewhere the address says it: --scheduler {self.protocol}://host:port"
            )
        if self.tls_ca:
            raise SettingsError(f"--protocol {self.protocol} is not encrypted; leave one of the two out")

    @classmethod
    def of(cls, **given: Any) -> Settings:
        """Settings from keywords; what those leave open from the environment (`UNET_ENGINE_<SETTING>`), then from
        settings files: the one in the current folder, then the one beside the input, then the user's.

        Raises `SettingsError` naming the option that makes no sense, or that a file beside the input may not set.
        """
        given = {key: value for key, value in given.items() if value is not None}
        around = {key: value for key, value in from_environment().items() if key not in given}
        given = {**around, **given}
        files: dict[str, SettingsFile] = {}
        for file in settings_files(plain(str(given.get("input", "")))):
            files |= {key: file for key in file.values if key not in given and key not in files}
        sources = Sources(around, files)
        try:
            settings = cls.model_validate({**{key: file.values[key] for key, file in files.items()}, **given})
        except ValidationError as error:
            raise SettingsError(sources.explained(error)) from error
        hide(settings.dashboard_token)
        hide_in_url(settings.input, settings.out, settings.mask, settings.truth, settings.scheduler)
        try:
            settings._check()
        except SettingsError as error:
            raise sources.told(error) from error
        for key, file in files.items():
            file.check(key)
        if settings.part:  # other parts may have begun the output
            settings = settings.model_copy(update={"resume": True})
        if settings.tiling and settings.tiling != "auto":
            window, _, blend = parse_tiling(settings.tiling)
            settings = settings.model_copy(update={"window": window, "blend": blend})
        settings._notes = sources.notes(cls.model_fields)
        return settings

    def _check(self) -> None:
        """Raise `SettingsError` where settings exclude one another."""
        if self.resume and self.overwrite:
            raise SettingsError("--resume and --overwrite exclude each other; give one")
        if self.gpus and self.device != "auto":
            raise SettingsError("--gpus and --device exclude each other; give one")
        crowd = [name for name in ("workers", "scheduler", "cluster") if getattr(self, name)]
        if len(crowd) > 1:
            raise SettingsError(f"--{crowd[0]} and --{crowd[1]} exclude each other; give one")
        if self.gpus and self.workers:
            raise SettingsError("--gpus and --workers exclude each other: every GPU gets a worker of its own; give one")
        tls = [getattr(self, name) for name in ("tls_ca", "tls_cert", "tls_key")]
        if any(tls) and not all(tls):
            raise SettingsError("--tls-ca, --tls-cert and --tls-key belong together; give all three")
        self._check_protocol()
        self._check_tiling()
        self._check_coarse()
        if self.overlap == "auto" and self.blend != "gaussian":
            raise SettingsError("--overlap auto chooses how to blend as well; leave out --blend")
        if self.overlap_tolerance is not None and self.overlap != "auto":
            raise SettingsError("--overlap-tolerance is for --overlap auto; leave it out, or give both")
        if self.part and self.overwrite:
            raise SettingsError(
                "--overwrite and --part exclude each other: it would delete what other parts wrote; remove --out first"
            )
        if self.output in ("labels", "masks") and self.dtype:
            raise SettingsError("--dtype is for probabilities and logits; labels take the smallest unsigned type")
        if self.output == "logits" and self.dtype == "uint8":
            raise SettingsError("logits do not fit uint8; use --dtype float32 or float16")
        self._check_outside()
        self._check_objects()
        self._check_levels()

    def _check_levels(self) -> None:
        """Raise `SettingsError` where levels and labels in an image are asked for in ways that exclude one another."""
        if self.into and self.out:
            raise SettingsError("--into and --out exclude each other; give one")
        if self.into and self.pyramid:
            raise SettingsError("--into gives labels the levels of their image; leave --pyramid out")
        if self.levels and not self.pyramid:
            raise SettingsError("--levels is for --pyramid; leave it out, or give both")

    def _check_objects(self) -> None:
        """Raise `SettingsError` where objects cannot be told, or are not asked for."""
        given = [name for name in ("connectivity", "min_size", "fill_holes", "largest") if getattr(self, name)]
        if given and not self.components:
            raise SettingsError(f"--{given[0].replace('_', '-')} is for --components; leave it out, or give both")
        if self.components and self.output != "labels":
            raise SettingsError(f"--components are of labels, not of {self.output}; leave --output out")

    def _check_tiling(self) -> None:
        """Raise `SettingsError` where the tiling is said twice, or not asked for."""
        auto = self.tiling == "auto"
        if auto and (self.overlap != 0.5 or self.blend != "gaussian"):
            raise SettingsError("--tiling auto chooses overlap and blend; leave out --overlap and --blend")
        if self.tiling and not auto and (self.window or self.overlap != 0.5 or self.blend != "gaussian"):
            raise SettingsError("--tiling names window, overlap and blend; leave out --window, --overlap and --blend")
        for name in ("tolerance", "tiling_budget", "truth"):
            if getattr(self, name) is not None and not auto:
                raise SettingsError(
                    f"--{name.replace('_', '-')} is for --tiling auto; leave it out, or give both"
                    + (" (--overlap auto has --overlap-tolerance)" if name == "tolerance" else "")
                )

    def _check_coarse(self) -> None:
        """Raise `SettingsError` where nothing may be skipped, or that is not asked for."""
        for name in ("coarse_miss", "coarse_budget"):
            if getattr(self, name) is not None and not self.coarse:
                raise SettingsError(f"--{name.replace('_', '-')} is for --coarse auto; leave it out, or give both")
        if self.coarse and self.output != "labels":
            raise SettingsError(f"--coarse auto proves labels, and {self.output} are wanted; leave out one of them")
        if self.coarse and self.outside is not None:
            raise SettingsError("--coarse auto writes background where nothing is computed; leave out --outside")

    def _check_outside(self) -> None:
        """Raise `SettingsError` where the value for voxels outside cannot be stored."""
        if self.outside in (None, KEEP):
            return
        value = float(str(self.outside))
        stored = self.dtype or {"labels": "uint16", "probabilities": "uint8", "masks": "uint8"}.get(
            self.output, "float32"
        )
        highest = {"uint8": 2**8 - 1, "uint16": 2**16 - 1, "float16": 65504.0}.get(stored, 3.4e38)
        if stored.startswith("uint") and value not in range(int(highest) + 1):
            raise SettingsError(
                f"--outside {self.outside}: {self.output} are stored as whole numbers from 0 to {highest:g}; give one "
                "of these" + (", or --dtype float32" if self.output == "probabilities" else "")
            )
        if abs(value) > highest:
            raise SettingsError(f"--outside {self.outside} does not fit {stored}; give a value within ±{highest:g}")

    @property
    def padding_mode(self) -> Literal["reflect", "constant", "edge"]:
        return self.padding or ("constant" if self.blend in ("monai", "nnunet") else "reflect")

    @property
    def nodata_values(self) -> tuple[float, ...]:
        """Values of voxels that were not measured, as far as the settings name them."""
        return () if self.nodata in (None, "none") else parse_values(str(self.nodata))


def from_environment() -> dict[str, str]:
    """What the environment says of settings, by their names. An empty value says nothing."""
    return variables(Settings.model_fields)
