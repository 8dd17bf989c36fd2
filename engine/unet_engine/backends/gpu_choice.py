"""Which library runs a network on a GPU, by what the GPU is and what is installed: a table, and looking things up in
it. Nothing is imported or asked here.

Sources: TensorRT's and TensorRT-RTX's support matrices (docs.nvidia.com/deeplearning/tensorrt and .../tensorrt-rtx,
"Supported Hardware"). PyTorch and ONNX Runtime come in builds for GPUs of any age, and say themselves where theirs is
none.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

Capability = tuple[int, int]
"""Compute capability, major and minor: (9, 0) is Hopper's."""

ARCHITECTURES: dict[Capability, str] = {
    (7, 5): "Turing",
    (8, 0): "Ampere (A100, A30)",
    (8, 6): "Ampere (RTX 30, A10, A40)",
    (8, 9): "Ada (RTX 40, L4, L40S)",
    (9, 0): "Hopper (H100, H200)",
    (10, 0): "Blackwell (B200)",
    (10, 3): "Blackwell (B300)",
    (12, 0): "Blackwell (RTX 50)",
    (12, 1): "Blackwell (GB10)",
}


@dataclass(frozen=True)
class Build:
    """One build of a library: which GPUs it is made for, and what it runs there."""

    name: str
    library: str
    """The record in `libraries.LIBRARIES`."""
    called: str
    formats: tuple[str, ...]
    listed: tuple[Capability, ...] = ()
    """Compute capabilities that it names; empty: all from `oldest` on."""
    majors: tuple[int, ...] = ()
    """Whole families that it names beside those."""
    oldest: Capability = (0, 0)

    def is_for(self, gpu: Capability) -> bool:
        if not (self.listed or self.majors):
            return gpu >= self.oldest
        return gpu in self.listed or gpu[0] in self.majors


BUILDS = (
    Build("tensorrt", "tensorrt", "TensorRT", ("onnx",), oldest=(7, 5)),
    Build("tensorrt_rtx", "tensorrt", "TensorRT-RTX", ("onnx",), ((7, 5), (8, 6), (8, 9)), (12,)),
    Build("torch", "pytorch", "PyTorch", ("pt2", "torchscript", "onnx")),
    Build("onnxruntime", "onnxruntime", "ONNX Runtime", ("onnx",)),
)
"""In order of preference. TensorRT is the fastest; PyTorch records a batch as one graph and keeps channels last, which
ONNX Runtime does not."""


def preferred(model_format: str, gpus: Sequence[Capability], installed: Collection[str]) -> tuple[Build, ...]:
    """The builds that run a model of that format on all of these GPUs (none: not known, so any will do), best first.

    installed: names of builds that are there and can use a GPU.
    """
    return tuple(
        build
        for build in BUILDS
        if build.name in installed and model_format in build.formats and all(map(build.is_for, gpus))
    )


def passed_over(
    model_format: str, gpus: Sequence[Capability], installed: Collection[str], chosen: str
) -> tuple[str, ...]:
    """What to tell of the builds that are installed, would have come before the one of the library `chosen`, and are
    not for these GPUs: one sentence each."""
    found = []
    for build in BUILDS:
        if build.library == chosen and all(map(build.is_for, gpus)):
            break
        if build.name not in installed or model_format not in build.formats:
            continue
        outside = [gpu for gpu in gpus if not build.is_for(gpu)]
        if outside:
            found.append(f"{build.called} is installed, and is not made for compute capability {shown(outside[0])}")
    return tuple(found)


def shown(gpu: Capability) -> str:
    return f"{gpu[0]}.{gpu[1]}"
