"""The settings of a run as keywords, for editors that complete and check them. What each means says
`unet_engine.settings.settings.Settings`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict

from unet_engine.settings.fields import Precision


class Options(TypedDict, total=False):
    """All but the volume, the model and the output. None: as where it is left out."""

    folds: str | int | Sequence[int] | None
    weights: str | Sequence[float] | None
    into: str | Path | None
    device: str
    gpus: int | None
    backend: str | None
    precision: Precision
    window: Sequence[int] | str | None
    overlap: float | Literal["auto"]
    overlap_tolerance: float | None
    blend: Literal["gaussian", "constant", "crop", "monai", "nnunet"]
    blend_at: Literal["auto", "features", "outputs"]
    split_concat: bool
    tiling: str | None
    coarse: Literal["auto"] | None
    coarse_miss: float | None
    coarse_budget: float | None
    tolerance: float | None
    tiling_budget: float | None
    truth: str | None
    padding: Literal["reflect", "constant", "edge"] | None
    tta: str | None
    channels: Literal["classes", "multilabel", "image", "offsets"] | None
    threshold: float | None
    output: Literal["masks", "labels", "probabilities", "logits"]
    dtype: Literal["uint8", "float16", "float32"] | None
    components: bool
    connectivity: int | None
    min_size: int | None
    fill_holes: bool
    largest: int | None
    pyramid: bool
    levels: int | None
    roi: str | None
    axes: str | None
    image: int | str | None
    level: int | None
    timepoint: int | str | None
    input_channels: str | int | Sequence[int | str] | None
    normalize: str | None
    activation: Literal["softmax", "sigmoid", "none", "probabilities", "probabilities_each"] | None
    head: str | None
    replace_nonfinite: float | None
    grid: Literal["model", "scan"] | None
    mask: str | Path | None
    outside: float | str | None
    nodata: float | str | Sequence[float] | None
    memory: int | str | None
    batch: int | None
    threads: int | None
    window_threads: int | None
    workers: int | None
    scheduler: str | None
    protocol: Literal["tcp", "ucx"]
    cluster: str | None
    part: str | None
    hang_seconds: float | None
    tls_ca: str | None
    tls_cert: str | None
    tls_key: str | None
    dashboard: str | None
    dashboard_token: str | None
    profile: str | Path | None
    resume: bool
    verify: bool
    overwrite: bool
    durable: bool
    trust: bool
    ignore_spacing: bool
    strict: bool
