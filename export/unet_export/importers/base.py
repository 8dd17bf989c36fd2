"""What a source of models is: how it is recognised, and what reading it gives."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from unet_engine.errors import ModelError, UnetEngineError, first_line
from unet_engine.model.credit import Credit
from unet_engine.model.spec import Activation, Resampling
from unet_engine.units import Tell
from unet_export.conversion.request import Export

Array = npt.NDArray[Any]
LINEAR = Resampling(image=1, image_apart=1, output=1, output_apart=1, apart="never")
"""How volumes of other voxels are brought to a spacing of whose way the source says nothing, and the result back."""


@dataclass(frozen=True)
class Wanted(Export):
    """What the user asks of an import, beside what an export is asked for: `checkpoint` is the source."""

    folds: str | None = None
    """Of a source with several networks: which, as ``0,1`` or ``all``; None: as the source itself does."""
    order: str | None = None
    """Order of the network's axes, ``zyx`` or ``xyz``, where the source does not say."""
    smp: str | None = None
    """A network of segmentation-models-pytorch by name, e.g. ``Unet,resnet34,classes=5``."""
    uncertified: bool = False
    """Write the file although it does not give what the source says it does."""


@dataclass(frozen=True)
class Member:
    """One network of a source."""

    name: str
    network: Any
    """A `torch.nn.Module` in inference mode that takes and gives float32 (n, c, [z,] y, x); a TorchScript of that kind;
    or such a graph of ONNX, as a ModelProto."""
    weight: float = 1.0


@dataclass(frozen=True)
class Sample:
    """What a source gives to test its network with: arrays (c, [z,] y, x), as they are stored."""

    given: Array
    """As it comes, before any normalisation."""
    expected: Array
    """What the network makes of it: `compared` says behind which step."""


Predictor = Callable[..., Array]
"""The source's own: from a volume (c, [z,] y, x), as it comes, and the window, to float32 (c, [z,] y, x), what the
network's outputs blend to. Where a source has an ``example_spacing``, that is the third argument."""


@dataclass(frozen=True)
class Imported:
    """A source that was read."""

    members: tuple[Member, ...]
    promised: Mapping[str, Any]
    """Fields of `ModelSpec` that the source says; all others are found out."""
    told_by: str
    """What in the source says them."""
    credit: Credit
    samples: tuple[Sample, ...] = ()
    finish: Callable[[Array], Array] = np.asarray
    """From the network's outputs (c, [z,] y, x) to what `Sample.expected` holds: what the source does behind it."""
    finished_as: Activation | None = None
    """What those are then; None: what the network's outputs are."""
    tolerance: tuple[float, float] = (1e-3, 1e-3)
    """Relative and absolute, of a sample's values."""
    predictor: Predictor | None = None
    """The source's own, where it is installed."""
    predicted_by: str = ""
    """What that is, for people."""
    example: Callable[[tuple[int, ...]], Array] | None = None
    """By window, a volume for the predictor, where the source knows what suits it; else one is made."""
    example_spacing: tuple[float, ...] | None = None
    """Its voxel size, in the spec's unit, where a run and the predictor bring it to the network's and back. None: it
    has that of the network."""
    inference: Mapping[str, Any] = field(default_factory=dict)
    """Settings of a run that puts windows together as the source does."""
    versions: Mapping[str, str] | None = None
    head: str | None = None
    """Name of the output that is meant, where the networks still have several."""


_ALL = ("torch", "onnxscript", "onnxruntime")
"""Modules that every import needs: networks become ONNX, and are compared."""
_OWN = {"monai": ("monai",), "smp": ("segmentation_models_pytorch",), "nnunet": ("dynamic_network_architectures",)}
"""By an extra of unet-engine the modules that networks of that kind are made of."""


def lacking(extra: str) -> list[str]:
    """The packages of `extra`, or of all imports, that are not installed."""
    modules = (*_ALL, *_OWN.get(extra, ()))
    return [name.replace("_", "-") for name in modules if name not in sys.modules and find_spec(name) is None]


class Importer(Protocol):
    """A source of models. Its module imports nothing heavy before `read`."""

    @property
    def name(self) -> str: ...

    @property
    def keeps(self) -> str:
        """What of a source the model file keeps, for people."""
        ...

    @property
    def cannot(self) -> str:
        """What it does not take, for people."""
        ...

    @property
    def extra(self) -> str:
        """Of unet-engine, that installs what it needs; empty: it needs nothing."""
        ...

    def recognises(self, path: Path) -> bool:
        """Whether `path` is of this kind: cheap, and no pickle is read."""
        ...

    def content(self, path: Path) -> list[Path]:
        """Files and folders that decide what an import of `path` gives."""
        ...

    def read(self, path: Path, wanted: Wanted, tell: Tell) -> Imported:
        """What is in it. Nothing of it is executed but where ``wanted.trust`` says so.

        Raises `ModelError` naming what is missing, damaged or not taken, with the way out."""
        ...


def read(importer: Importer, wanted: Wanted, tell: Tell) -> Imported:
    """What `importer` finds in ``wanted.checkpoint``. Raises `ModelError`, also where what a source says of itself is of
    a type that no reader expects: descriptions are of whoever wrote them. Packages that are missing are told first."""
    if importer.extra and (missing := lacking(importer.extra)):
        raise ModelError(
            f"{wanted.checkpoint} ({importer.name}): importing it needs {', '.join(missing)}, which is not installed; run: "
            f"pip install 'unet-engine[{importer.extra}]'"
        )
    try:
        return importer.read(Path(wanted.checkpoint), wanted, tell)
    except (UnetEngineError, ImportError, OSError, MemoryError):
        raise
    except Exception as error:
        raise ModelError(
            f"{wanted.checkpoint} says something of itself that {importer.name} does not expect: "
            f"{first_line(error)}; correct its description, or get it again"
        ) from error
