"""What a graph that says nothing of itself tells when it is looked at: axes, channels, window, which output, on which
grid, of which type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from unet_engine.errors import ModelError
from unet_engine.model import outputs
from unet_engine.model.onnx_chance import about_branches, about_training, learns, refuse_chance
from unet_engine.model.onnx_heads import Head, Heads, checked
from unet_engine.model.onnx_layout import Layout, layout_of
from unet_engine.model.onnx_rewrite import FLOAT, INTEGERS, NUMBERS, Rewriting
from unet_engine.model.onnx_shapes import (
    SOFTMAXES,
    Tensors,
    all_of,
    are_joint,
    attribute,
    dims,
    images_of,
    inferred,
    is_own,
)
from unet_engine.model.onnx_trial import can_run, refused, tried
from unet_engine.units import times

PROBES = (0, 16, 32, 64)
"""By how much a second window is larger, to see what its output does; 0: twice as large."""


@dataclass(frozen=True)
class Found:
    """What the graph tells, for one window."""

    axes: str
    channels_in: int
    window: tuple[int, ...]
    channels_out: int
    margin: tuple[int, ...]
    head: Head
    tensors: Tensors
    rewriting: Rewriting
    notes: tuple[str, ...]


def look(
    path: Path, model: Any, given: Mapping[str, Any], window: tuple[int, ...] | None, head: str | None, *, said: bool
) -> Found:
    """Look at the graph. `given`: what a spec says, as far as it does; `window`, where given, wins over it; `said`:
    whether the activation is said. Raises `ModelError` where the graph is no network of one image, or tells too
    little."""
    image = image_of(path, model)
    _refuse_unknown(path, model.graph)
    entrance = _Entrance.of(path, model, image, given)
    sizes, channels = entrance.sizes(window or tuple(given.get("window", ())), given.get("channels_in", 0))
    shape = entrance.shape(channels, sizes)
    tensors, trusted = _traced(path, model, image.name, shape, sizes, given)
    heads = Heads(model.graph, tensors, entrance.layout, entrance.input_axes, sizes)
    found = heads.all()
    if any(h.shape is None and h.type for h in found) and not trusted:
        tensors = _run(path, shape, sizes, [h.tensor for h in found if h.type], tensors)
        heads = Heads(model.graph, tensors, entrance.layout, entrance.input_axes, sizes)
        found = heads.all()
    asked = head or given.get("head")
    index, note = outputs.choose(path, [h.output() for h in found], sizes, asked, given.get("channels_out"))
    chosen = checked(path, found[index], said)
    refuse_chance(path, model.graph, chosen.tensor)
    channels_out, margin = _grid(entrance, chosen, channels, sizes, given)
    takes = image.type.tensor_type.elem_type
    plain = (
        len(found) == 1
        and not chosen.is_cut
        and takes == chosen.type == FLOAT
        and not entrance.input_axes
        and not chosen.axes
    )
    alone, joint = learns(model.graph, chosen.tensor), _is_joint(model, tensors)
    changes = not plain or alone or joint
    how = Rewriting(chosen.tensor, takes, chosen.type, entrance.input_axes, chosen.axes, changes, alone, joint)
    told = (
        note,
        *_notes(how, chosen),
        about_training(model.graph, chosen.tensor),
        about_branches(model.graph, chosen.tensor),
    )
    notes = tuple(n for n in told if n)
    return Found(entrance.axes, channels, sizes, channels_out, margin, chosen, tensors, how, notes)


def _is_joint(model: Any, tensors: Tensors) -> bool:
    """Whether a Softmax of before opset 13 is of more than one axis with several voxels, or of axes that nobody
    knows."""
    if not are_joint(model):
        return False
    for node in model.graph.node:
        if node.op_type in SOFTMAXES and is_own(node):
            axis, shape = attribute(node, "axis", 1), tensors.shapes.get(node.input[0])
            if axis != -1 and (shape is None or any(n != 1 for n in shape[axis:][1:])):
                return True
    return False


def image_of(path: Path, model: Any) -> Any:
    """The one input. Raises `ModelError` where there are others, or where it is of a type that voxels do not become."""
    found = images_of(model.graph)
    if len(found) != 1:
        names = f" ({', '.join(i.name for i in found)})" if found else ""
        raise ModelError(
            f"{path} has {len(found)} inputs{names}; one image input is needed: export it again with all others as "
            "constants"
        )
    kind = found[0].type.tensor_type.elem_type
    if kind not in NUMBERS:
        import onnx

        name = onnx.TensorProto.DataType.Name(kind).lower() if found[0].type.HasField("tensor_type") else "no tensor"
        raise ModelError(f"{path}: its input {found[0].name} takes {name}; export it again with numbers as its input")
    if not found[0].type.tensor_type.HasField("shape"):
        raise ModelError(
            f"{path} says nothing of the axes of its input {found[0].name}; export it again with a shape, in which sizes "
            "may stay free"
        )
    return found[0]


_DOMAINS = ("ai.onnx", "com.microsoft", "org.openvinotoolkit", "trt")
"""What domains of operators begin with that some library here knows; the last are plugins of TensorRT."""


def _refuse_unknown(path: Path, graph: Any) -> None:
    """Raise `ModelError` where the graph has operators that are neither known anywhere nor explained in the file."""
    for node in all_of(graph.node):
        if node.domain and not node.domain.startswith(_DOMAINS):
            raise ModelError(
                f"{path} uses {node.op_type} of {node.domain}, an operator of its own that no library knows; export it "
                "with ONNX's operators, or with what that does as a function in the file"
            )


def _notes(how: Rewriting, head: Head) -> list[str]:
    notes = []
    if how.input_axes:
        notes.append(
            "the network takes channels last, as the graph shows"
            if 1 in how.input_axes
            else "the network takes no channel axis"
        )
    if how.takes in INTEGERS:
        notes.append(
            f"the network takes {NUMBERS[how.takes]}: normalised voxels are rounded and cut off at what it holds"
        )
    if head.is_cut:
        notes.append(
            f"the network ends in ArgMax: what goes into it, {head.tensor}, is blended, and the labels are its largest "
            "channel"
        )
    elif how.gives in INTEGERS:
        notes.append(f"the outputs are {NUMBERS[how.gives]}, and are taken as the numbers they are")
    return notes


# --- the input ---


@dataclass(frozen=True)
class _Entrance:
    """The input, and what its axes are."""

    path: Path
    model: Any
    name: str
    fixed: tuple[int, ...]
    """Sizes as the file has them, 0 where they are free, as (batch, channel, *space)."""
    axes: str
    input_axes: tuple[int, ...]
    """As `Rewriting.input_axes`."""
    layout: Layout

    @classmethod
    def of(cls, path: Path, model: Any, image: Any, given: Mapping[str, Any]) -> _Entrance:
        own = dims(image)
        rank = len(own)
        said = str(given.get("axes", ""))
        layout = layout_of(model.graph, image.name, rank, _as_saved(model, image))
        order = _said_axes(said, rank) or layout.input_axes(rank)
        if order is None:
            _refuse_ambiguous(path, said, own)
            order = tuple(range(rank))
        space = {3: "yx", 4: "zyx"}.get(max(order, default=0))
        axes = said.replace("c", "") or space
        if axes is None:
            raise ModelError(
                f"{path}: its input has {rank} axes; export it with 4 (batch, channel, y, x) or 5 (with z)"
            )
        placed = dict(zip(order, own, strict=True))
        fixed = tuple(placed.get(axis, 1) for axis in range(max(order) + 1))
        return cls(path, model, image.name, fixed, axes, () if order == tuple(range(rank)) else order, layout)

    def sizes(self, window: tuple[int, ...], channels: int) -> tuple[tuple[int, ...], int]:
        """Window and channels. Raises `ModelError` where they are not known, or are not those of the file."""
        path, axes, own = self.path, self.axes, self.fixed[2:]
        window = window or own
        if len(own) != len(axes):
            raise ModelError(
                f"{path}: its input has {len(own)} axes beside batch and channel, not {axes}; correct axes in its spec"
            )
        if not all(window) or len(window) != len(axes):
            example = ",".join(["64"] * len(axes))
            raise ModelError(
                f"{path} takes windows of any size along {axes}; choose one with --window, e.g. --window {example}"
            )
        for axis, size, fixed in zip(axes, window, own, strict=True):
            if fixed not in (0, size):
                raise ModelError(f"{path} takes only {fixed} voxels along {axis}, not {size}; leave out --window")
        channels = self.fixed[1] or channels or self.layout.channels
        if not channels:
            toml = path.with_suffix(".toml").name
            raise ModelError(f"{path} says no number of input channels; write channels_in to {toml}")
        return window, channels

    def shape(self, channels: int, window: tuple[int, ...]) -> tuple[int, ...]:
        """Of the graph's own input, for one window."""
        whole = (self.fixed[0] or 1, channels, *window)
        return tuple(whole[axis] for axis in self.input_axes) if self.input_axes else whole


def _as_saved(model: Any, image: Any) -> dict[str, list[int]]:
    """Shapes for an input as the file has it, free sizes set to some; as far as they can be told."""
    shape = [size or (1 if axis == 0 else 32 * (axis + 1)) for axis, size in enumerate(dims(image))]
    try:
        return inferred(model, image.name, shape, strict=False).shapes
    except Exception:  # inference raises what it likes; axes are followed without shapes then
        return {}


def _said_axes(said: str, rank: int) -> tuple[int, ...] | None:
    """What a spec that names the channel says of the input: "yxc" is (batch, y, x, channel)."""
    space = said.replace("c", "")
    if "c" not in said or len(said) + 1 != rank:
        return None
    return (0, *(1 if axis == "c" else 2 + space.index(axis) for axis in said))


def _refuse_ambiguous(path: Path, said: str, sizes: list[int]) -> None:
    """Raise `ModelError` where sizes look like channels last and nothing in the graph tells."""
    few = range(1, 5)
    if len(sizes) in (4, 5) and not said and sizes[-1] in few and sizes[1] not in few:
        last, first = ("yxc", "cyx") if len(sizes) == 4 else ("zyxc", "czyx")
        shown = times([s or "?" for s in sizes])  # type: ignore[misc]
        raise ModelError(
            f"{path}: whether its input of {shown} has channels last cannot be told; write "
            f'axes = "{last}" or axes = "{first}" to {path.with_suffix(".toml").name}'
        )


# --- shapes ---


def _traced(
    path: Path, model: Any, name: str, shape: tuple[int, ...], window: tuple[int, ...], given: Mapping[str, Any]
) -> tuple[Tensors, bool]:
    """Shapes and types for one window, and whether what is missing of them is said by a spec."""
    trusted = "channels_out" in given
    try:
        return inferred(model, name, shape, strict=True), trusted
    except Exception as error:
        # inference refuses some graphs that every library runs
        if not trusted and not can_run():
            raise refused(path, times(window), error) from error
    try:
        loose = inferred(model, name, shape, strict=False)
    except Exception:
        loose = Tensors({}, {})
    known = {o.name for o in model.graph.output}
    if trusted:
        return loose, trusted
    return _run(path, shape, window, sorted(known), loose), trusted


def _run(path: Path, shape: tuple[int, ...], window: tuple[int, ...], tensors: list[str], known: Tensors) -> Tensors:
    """What is known with what a run of one window shows."""
    if not can_run():
        toml = path.with_suffix(".toml").name
        raise ModelError(
            f"{path}: the shape of its output cannot be told without running it; pip install "
            "'unet-engine[onnxruntime]', or "
            f"write channels_out and margin to {toml}"
        )
    try:
        seen = tried(path, shape, tensors)
    except Exception as error:
        raise refused(path, times(window), error) from error
    return Tensors({**known.shapes, **seen.shapes}, {**known.types, **seen.types}, ran=True)


# --- the grid of the output ---


def _grid(
    entrance: _Entrance, head: Head, channels: int, window: tuple[int, ...], given: Mapping[str, Any]
) -> tuple[int, tuple[int, ...]]:
    """Channels of the output, and by how much it is smaller at each side."""
    said = tuple(given.get("margin", ()))
    if head.shape is None:  # a spec says it, or nobody would have come here
        return int(given["channels_out"]), said or (0,) * len(window)
    if len(head.shape) != len(window) + 1:
        raise ModelError(
            f"{entrance.path}: its output {head.name} of {times(head.shape) or 'one number'} is no image of the axes "
            f"{entrance.axes}; take an output that is an image with --head, or another network"
        )
    sizes = head.shape[1:]
    scale: tuple[Fraction | None, ...] = (None,) * len(window)
    if sizes != window:
        scale = _scale(entrance, head, channels, window)
        if (
            said
            and all(s is None or s == 1 for s in scale)
            and tuple(w - 2 * m for w, m in zip(window, said, strict=False)) == sizes
        ):
            return head.shape[0], said
    return head.shape[0], outputs.margin(entrance.path, window, sizes, scale)


def _scale(entrance: _Entrance, head: Head, channels: int, window: tuple[int, ...]) -> tuple[Fraction | None, ...]:
    """As `outputs.scales`, from windows of other sizes that the graph takes: 1 wherever one of them says so, as a
    network that pools rounds at sizes that it does not divide."""
    seen: list[tuple[Fraction | None, ...]] = []
    for more in PROBES:
        larger = tuple(w + (more or w) for w in window)
        try:
            shapes = inferred(entrance.model, entrance.name, entrance.shape(channels, larger), strict=True).shapes
        except Exception:
            continue
        shape = shapes.get(head.tensor, [])
        places = head.axes[2:] or tuple(range(2, 2 + len(window)))
        sizes = tuple(shape[p] if p is not None and p < len(shape) else 0 for p in places)
        if all(sizes):
            seen.append(outputs.scales((window, (head.shape or ())[1:]), (larger, sizes)))
    if not seen:
        return (None,) * len(window)
    return tuple(
        next((s for s in axis if s == 1), next((s for s in axis if s), None)) for axis in zip(*seen, strict=True)
    )
