"""What a user can ask for: a field for each setting, and what it means."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from unet_engine.settings.values import Values
from unet_engine.units import MOST

MOST_THREADS = 1024
"""Threads of one process that are started at most."""
MOST_WORKERS = 10**6
"""Of whatever cluster; on this machine memory is the limit, see `unet_engine.cluster.local_workers`."""

AUTO = "auto"

Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]


class Fields(Values):
    """The settings of a run, with their types and what they are by default."""

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
