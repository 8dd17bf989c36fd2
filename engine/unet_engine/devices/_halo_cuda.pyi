"""Stitching on the GPU, bit for bit as `unet_engine.stitching.operations` does it on the CPU. Present where nvcc
was at build time.

`DeviceArray` is anything that speaks DLPack on a CUDA device (torch, CuPy, JAX, or `array` below), channels first with
two or three spatial axes, of any strides: channels last is a matter of strides. Work is queued on `stream` (a
`cudaStream_t` as an integer, 0 the default stream) of the device of the first array; the caller keeps the arrays alive
until it ran. Nothing is allocated, copied or waited for, so calls may be recorded in a CUDA graph. Wrong shapes,
types, devices and ranges raise ValueError before anything is queued; a failed launch raises RuntimeError with the
kernel's name. What lies *in* arrays on the device (positions, spans, entries) is not looked into.

`entries` (windows, 4) int32 names for each window the span that it takes on z, y and x, and its row in the batch; -1
for a window that was skipped and stands for a constant. Tables are given for three axes always. `poses` (windows,)
int32 says how each window is held to the network (`Pose.bits`), `shares` (windows,) float32 what part each is of all
that is added for its place; without them all are upright, and each is all of it.
"""

from collections.abc import Sequence
from typing import Any

DeviceArray = Any
MOST_ENTRIES: int
"""Entries that one `add` takes."""
MOST_HALOS: int
"""Halos that one `commit` merges."""
MOST_REGIONS: int
"""Regions that one `commit` numbers."""

def array(
    address: int,
    shape: Sequence[int],
    dtype: str,
    strides: Sequence[int] | None = None,
    owner: object = None,
    *,
    device: int = 0,
) -> DeviceArray:
    """Memory at `address` as an array; strides in elements. It keeps `owner` alive, and owns nothing else."""

def gather(
    windows: DeviceArray,
    raw: DeviceArray,
    positions: Sequence[DeviceArray],
    entries: DeviceArray,
    order: DeviceArray,
    scale: DeviceArray,
    shift: DeviceArray,
    fill: float,
    *,
    limits: DeviceArray | None = None,
    poses: DeviceArray | None = None,
    stream: int = 0,
) -> None:
    """`operations.gather` of the entries that `order` (n,) int32 names, to the first n of windows (N, C, *W)
    float32, float16 or bfloat16.

    raw: (C, *S) bool, any integer, float16 to float64. positions: per axis (spans, W[axis]) int32, -1 for `fill`.
    scale, shift: (C,) float64. limits: (C, 4) float64, as in `operations.gather`.
    """

def add(
    sums: DeviceArray,
    windows: DeviceArray,
    weights: Sequence[DeviceArray],
    spans: Sequence[DeviceArray],
    entries: DeviceArray,
    constants: DeviceArray,
    lo: Sequence[int],
    hi: Sequence[int],
    *,
    poses: DeviceArray | None = None,
    shares: DeviceArray | None = None,
    floor: float = 0.0,
    stream: int = 0,
) -> None:
    """`operations.add` and `operations.add_constant` of all entries to sums (K, *S) float32, in their order;
    `MOST_ENTRIES` at most.

    windows: (N, K, *W) float32, float16 or bfloat16. weights: per axis (spans, W[axis]) float32. spans: per axis
    (spans, 3) int64: where the window begins in the sums, and the range to add in window coordinates. constants: (K,)
    float32. lo, hi: three voxels each: a box of the sums that holds all that is added.
    """

def divide(sums: DeviceArray, covers: Sequence[DeviceArray], floor: float, *, stream: int = 0) -> None:
    """As `operations.divide`; covers for three axes always."""

def instance_norm(
    windows: DeviceArray,
    outputs: Sequence[DeviceArray],
    scratch: DeviceArray,
    *,
    weight: DeviceArray | None = None,
    bias: DeviceArray | None = None,
    eps: float = 1e-5,
    slope: float = 1.0,
    stream: int = 0,
) -> None:
    """Each channel of each window to a mean of 0 and a variance of 1 (biased, as PyTorch's), times weight (C,), plus
    bias (C,), both float32, and what is below 0 then times `slope`; the same to each of one or two outputs.

    windows, outputs: (N, C, *W) float32, float16 or bfloat16, all of one type, channels last in memory; an output may be
        `windows`, or a slice of the channels of a larger batch. Statistics are float64.
    scratch: uint8, as many as `instance_norm_scratch` says.
    """

def instance_norm_scratch(windows: int, channels: int, voxels: int) -> int:
    """Bytes that `instance_norm` of so many takes besides."""

def put(windows: DeviceArray, output: DeviceArray, *, stream: int = 0) -> None:
    """output = windows, as `instance_norm` takes both: (N, C, *W), channels last; the output may be a slice of the channels
    of a larger batch."""

def pack(sums: DeviceArray, out: DeviceArray, at: Sequence[int], *, stream: int = 0) -> None:
    """out (K, *H) = sums[:, at : at + H], both float32."""

def merge(sums: DeviceArray, halo: DeviceArray, at: Sequence[int], *, stream: int = 0) -> None:
    """As `operations.merge`."""

def commit(
    sums: DeviceArray,
    out: DeviceArray,
    kind: str,
    activation: str,
    halos: Sequence[DeviceArray],
    at: Sequence[Sequence[int]],
    nonfinite: DeviceArray,
    *,
    above: float | None = None,
    order: Sequence[int] = (),
    stream: int = 0,
) -> None:
    """Merge up to `MOST_HALOS` halos, in their order, and finish, in one pass: `operations.labels`,
    `operations.regions`, `operations.masks`, `operations.probabilities` or `operations.logits`, as `kind` says.

    above: see `operations.label_threshold`; None: that of no threshold. order: of regions, the label of each channel,
        `MOST_REGIONS` at most.
    out: (*S) uint8 or uint16 for labels and regions, (K, *S) uint8, float16 or float32 for probabilities, float32 or float16
        for logits.
    nonfinite: one int32, set to 1 where a merged sum is NaN or Inf. Softmax leaves the merged sums in `sums`;
    otherwise they are only read. `out` may be `sums`.
    """

def resample(
    scan: DeviceArray,
    out: DeviceArray,
    first: Sequence[DeviceArray | None],
    weights: Sequence[DeviceArray | None],
    begin: Sequence[int],
    *,
    scale: DeviceArray | None = None,
    shift: DeviceArray | None = None,
    limits: DeviceArray | None = None,
    pivot: DeviceArray | None = None,
    stream: int = 0,
) -> None:
    """out (C, *S) float32 = what `operations.interpolate` makes of `scan` (C, *R), of any type and strides, once that is
    normalised as `gather` does it and `pivot` (C,) float32 is taken off. Without `scale` and `shift`, of the voxels as
    they are.

    first, weights, begin: as for `interpolate`.
    """

def clip(voxels: DeviceArray, low: DeviceArray, high: DeviceArray, *, stream: int = 0) -> None:
    """Raise `voxels` (C, *S) float32 to `low` and lower them to `high`, where they lie; both of the same shape, with any
    strides. NaN stays NaN."""

def interpolate(
    sums: DeviceArray,
    out: DeviceArray,
    first: Sequence[DeviceArray | None],
    weights: Sequence[DeviceArray | None],
    begin: Sequence[int],
    kind: str,
    activation: str,
    *,
    above: float | None = None,
    order: Sequence[int] = (),
    stream: int = 0,
) -> None:
    """Finish, as `commit` does, the sums that `operations.interpolate` makes of `sums` (K, *S) float32; these are stored
    nowhere.

    first, weights: for each of z, y and x (n,) int32 and (n, taps) float32, as `unet_engine.stitching.interpolation.Taps`
        has them, with `begin` taken off `first`; both None along an axis where voxels are the sums at their place.
    out: as for `commit`, on the new grid.
    """
