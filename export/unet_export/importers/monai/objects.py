"""What a MONAI bundle does to objects of its labels: no run does it, and the command that does is named where it means
the same.

The meaning of each is that of `monai.transforms`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unet_engine.postprocess.labelling import CONNECTIVITY
from unet_export.importers.intensity import NotPossible

Kwargs = Mapping[str, Any]
_COMMAND = "unet-engine components LABELS OUT --values labels"


def about_objects(listed: Sequence[tuple[str, Kwargs]], dims: int, foreground: int | None) -> list[str]:
    """A line for each: what does the same to labels that are written, or why nothing does. foreground: how many labels
    there are but 0; None where channels may overlap."""
    told = []
    for name, said in listed:
        try:
            if foreground is None:
                raise NotPossible("it is of channels that may overlap")
            if said.get("before"):
                raise NotPossible(f"it comes before {said['before']}, on the grid of the network")
            told.append(f"{name}: behind a run, {_COMMAND} {OF_OBJECTS[name](said, dims, foreground)} does it")
        except NotPossible as why:
            told.append(f"{name}: it has no counterpart, as {why}")
        except (TypeError, ValueError, IndexError):
            told.append(f"{name}: its arguments are not understood")
    return told


def _largest(said: Kwargs, dims: int, foreground: int) -> str:
    labels = said.get("applied_labels")
    labels = [labels] if isinstance(labels, int) else sorted(set(map(int, labels or range(1, foreground + 1))))
    if not said.get("independent", True) and foreground > 1:
        raise NotPossible("it joins objects of several labels (independent=false)")
    if min(labels) < 1:
        raise NotPossible("it concerns the background (applied_labels)")
    some = "" if labels == list(range(1, foreground + 1)) else f" --classes {','.join(map(str, labels))}"
    return f"--largest {int(said.get('num_components', 1))} --connectivity {_neighbours(said, dims, dims)}{some}"


def _holes(said: Kwargs, dims: int, foreground: int) -> str:
    if _neighbours(said, dims, dims) != CONNECTIVITY[dims][0]:
        raise NotPossible("its background is connected by edges and corners, and here by faces (connectivity)")
    _alone(foreground)
    return "--fill-holes"


def _small(said: Kwargs, dims: int, foreground: int) -> str:
    if said.get("by_measure"):
        raise NotPossible("it measures objects in the unit of the scan (by_measure)")
    _alone(foreground)
    return f"--min-size {int(said.get('min_size', 64))} --connectivity {_neighbours(said, dims, 1)}"


def _alone(foreground: int) -> None:
    """Of several labels MONAI does not mean objects of each: holes hold other labels, and a label is one object."""
    if foreground > 1:
        raise NotPossible("of several labels it does not look at each by itself")


def _neighbours(said: Kwargs, dims: int, usual: int) -> int:
    """As many steps along axes as MONAI says, by how many neighbours that are."""
    steps = said.get("connectivity")
    return CONNECTIVITY[dims][range(1, dims + 1).index(int(steps or usual))]


OF_OBJECTS: dict[str, Callable[[Kwargs, int, int], str]] = {
    "KeepLargestConnectedComponent": _largest,
    "FillHoles": _holes,
    "RemoveSmallObjects": _small,
}
