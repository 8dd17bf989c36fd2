"""What a `.pt2` or TorchScript file promises: the spec in it, or a file beside it; and what its graph says of
outputs."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unet_engine.errors import ModelError
from unet_engine.model.ending import UNPROVED, Ending, refusal
from unet_engine.model.outputs import Output, choose
from unet_engine.model.spec import ACTIVATION_OF, METADATA_KEY, Activation, ModelSpec, read_toml
from unet_engine.model.torch_graph import Steps, ending_of, steps_of

LARGEST_SPEC = 2**24
"""Bytes of a spec in an archive: what is said to unpack to more is none."""
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError, NotImplementedError, RuntimeError, OSError)


@dataclass(frozen=True)
class TorchFile:
    """What such a file says of its network."""

    spec: ModelSpec
    ends_in: str
    """What in the graph told the spec's activation, in words; empty where it was said, or guessed."""
    proved: Ending
    """What the graph proves of the output, whatever the spec says."""
    saved_batch: int | None
    """The batch that it was saved for; None where it takes any, or where that is not known."""
    head: str | None
    """The output that is wanted, where it was named."""
    guessed: bool = False
    """Whether the activation was neither said nor proved."""


def read_torch(path: Path, kind: str, activation: Activation | None, head: str | None) -> TorchFile:
    """What the file at `path`, a "pt2" or "torchscript", says. Nothing in it is run.

    Where `activation` is given, it is the caller's to put in. `head`: the output that is wanted, of several. Raises
    `ModelError` where the file is corrupt or has no spec, or where which output is meant cannot be told.
    """
    carried, values = _spec_values(path)
    head = head or values.pop("head", None)
    steps = steps_of(path, kind)
    if steps.drawn:
        raise ModelError(
            f"{path} draws random numbers ({steps.drawn}), so that each run gives other labels; save it in inference mode "
            "(net.eval())"
        )
    if carried is None and "activation" not in values and activation is None:
        return _undecided(path, steps, values, head)
    beside = path.with_suffix(".toml")
    spec = carried or ModelSpec.written({"activation": activation, **values}, beside)
    return TorchFile(spec, "", _proved(path, steps, spec, head), steps.batch, head)


def _undecided(path: Path, steps: Steps, values: dict[str, Any], head: str | None) -> TorchFile:
    """A network of which nobody said what its outputs are: what its graph proves, else a guess by their number."""
    beside = path.with_suffix(".toml")
    follow = ("classes", "channels")  # what they may be depends on the activation
    spec = ModelSpec.written({k: v for k, v in values.items() if k not in follow} | {"activation": "none"}, beside)
    end = _proved(path, steps, spec, head)
    found, why = end.activation(spec.channels_out)
    if not why and values.get("channels") in ACTIVATION_OF:
        found = ACTIVATION_OF[values["channels"]]
    if found is None:
        raise ModelError(refusal(path, why))
    decided = ModelSpec.written({**values, "activation": found}, beside)
    return TorchFile(decided, why, end, steps.batch, head, guessed=not why and decided.channels is None)


def _spec_values(path: Path) -> tuple[ModelSpec | None, dict[str, Any]]:
    """The spec in the file, else what the one beside it says. Both PyTorch formats are zip archives that keep extra
    files in a folder ``extra``."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = [n for n in archive.namelist() if n.split("/", 1)[-1] == f"extra/{METADATA_KEY}"]
            if found and archive.getinfo(found[0]).file_size > LARGEST_SPEC:
                raise ModelError(
                    f"{path}: its model spec is said to be {archive.getinfo(found[0]).file_size} bytes long, "
                    f"and none is above {LARGEST_SPEC}; export it again"
                )
            text = archive.read(found[0]).decode() if found else None
    except _UNREADABLE as error:
        raise ModelError(f"{path} is not a readable PyTorch archive: {error}; export it again") from error
    if text is not None:
        return ModelSpec.exported(text, path), {}
    beside = path.with_suffix(".toml")
    if beside.exists():
        return None, read_toml(beside)
    raise ModelError(
        f"{path} does not say its axes, channels and windows; write them to {beside.name} beside it, see docs/export.md, or "
        "make the file with unet-engine export"
    )


def _proved(path: Path, steps: Steps, spec: ModelSpec, head: str | None) -> Ending:
    """Of the output that will be taken; of several whose shapes the file does not tell, what holds of all."""
    if not steps.outputs:
        return UNPROVED
    rank = len(spec.axes) + 2
    endings = [ending_of(steps, tensor, rank) for _, tensor, _ in steps.outputs]
    known = all(len(shape) for _, _, shape in steps.outputs) and len(steps.given) == rank
    if known or head or len(endings) == 1:
        outputs = [Output(name, shape[1:] or None) for name, _, shape in steps.outputs]
        index, _ = choose(path, outputs, steps.given[2:], head, spec.channels_out)
        return endings[index]
    return endings[0] if all(e == endings[0] for e in endings) else UNPROVED
