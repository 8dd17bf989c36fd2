"""bioimage.io packages, formats 0.4 and 0.5: a folder or zip with ``rdf.yaml``, or that file itself."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.errors import ModelError, SettingsError, first_line
from unet_engine.model.credit import Credit
from unet_engine.units import Tell, times
from unet_export.importers.base import LINEAR, Array, Imported, Member, Sample, Wanted
from unet_export.importers.bioimageio import processing
from unet_export.importers.bioimageio.description import Description, Tensor, described, file_of, plain
from unet_export.importers.bioimageio.layout import Layout, Order, layout_of, on_steps, window_near
from unet_export.importers.bioimageio.weights import Found, network_of
from unet_export.importers.files import Files
from unet_export.importers.steps import Crop, Finer, Reorder, Step, wrapped_graph

_IMAGES = ("restoration", "denoising", "image-restoration", "super-resolution", "reconstruction", "virtual-staining")
"""Tags of models whose outputs are images."""
_WINDOW = {"yx": 256, "zyx": 64}
"""Size that is taken where no test input tells one."""


class BioimageIO:
    name = "bioimage.io"
    extra = "export"
    keeps = (
        "formats 0.4 and 0.5: axes, sizes, halo, pre- and postprocessing, class names, licence, authors, citation; ONNX as "
        "it is; TorchScript, and PyTorch weights with their code, with --trust; its test tensors are the certificate"
    )
    cannot = (
        "several inputs, outputs finer than the input, time, Keras and TensorFlow weights, postprocessing that measures "
        "the whole output or makes objects of it (left out)"
    )

    def recognises(self, path: Path) -> bool:
        if path.is_dir():
            return file_of([p.name for p in path.iterdir()]) is not None
        if path.name.lower().endswith((".yaml", ".yml")):
            return file_of([path.name]) is not None
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
            return False
        return file_of([n.rpartition("/")[2] for n in names if n.count("/") <= 1]) is not None

    def content(self, path: Path) -> list[Path]:
        return [path.parent if path.is_file() and not zipfile.is_zipfile(path) else path]

    def read(self, path: Path, wanted: Wanted, tell: Tell) -> Imported:
        named = path.name if path.is_file() and not zipfile.is_zipfile(path) else None
        with Files(path.parent if named else path) as files:
            file = named or file_of(files.names)
            if file is None:
                raise ModelError(f"{path} holds no rdf.yaml at its top; get the package again")
            return _read(files, described(files, file), wanted, tell)


def _read(files: Files, said: Description, wanted: Wanted, tell: Tell) -> Imported:
    given, index = _one_input(said), _output(said, wanted)
    made = said.outputs[index]
    layout = layout_of(said, given, made)
    behind = processing.behind_of(said, given, made)
    _check_outputs(said, behind, wanted)
    promised = _promised(said, given, made, layout, behind, wanted)
    found = network_of(files, said, index, wanted, tell)
    promised |= _fixed(found, given, layout)
    samples, tested = _samples(files, said, given, made, layout, behind, tell)
    if "window" not in promised:
        size = tested or (_WINDOW[layout.axes],) * len(layout.axes)
        least = [max(n, 4 * h) if 2 * h >= n else n for n, h in zip(size, layout.halo, strict=True)]
        promised["window"] = window_near(promised["window_min"], promised["window_step"], least)
        _check_halo(said, promised["window"], layout)
    return Imported(
        (Member(found.name, _network(said, found, layout, given, behind, index)),),
        promised,
        "its description",
        _credit(said, behind),
        samples,
        _finish(behind),
        behind.finished_as,
        _tolerance(said, behind, samples),
        versions={"bioimage.io format": said.format},
    )


def _check_outputs(said: Description, behind: processing.Behind, wanted: Wanted) -> None:
    """Raise `ModelError` where some of what follows the network is not done here and outputs would be others."""
    others = (*_around(said), *behind.other)
    if others and not wanted.uncertified:
        raise ModelError(
            f"{said.path}: its outputs would be others, as not all of it is done here: {'; '.join(others)}; run it "
            "with bioimageio.core, or import it without that: unet-engine import --uncertified"
        )


def _check_halo(said: Description, window: Sequence[int], layout: Layout) -> None:
    if any(2 * h >= n for n, h in zip(window, layout.halo, strict=True)):
        raise ModelError(
            f"{said.path}: of its window of {times(window)} nothing is left once {times(layout.halo)} voxels at each side are "
            "taken off, as it says; correct its description"
        )


def _tolerance(said: Description, behind: processing.Behind, samples: Sequence[Sample]) -> tuple[float, float]:
    """Relative and absolute; of a test output of whole numbers, which cut off what follows the point, one of them."""
    relative, absolute = said.tolerance or (1e-3, 1e-3)
    whole = behind.threshold is None and any(s.expected.dtype.kind in "iu" and s.expected.max() > 1 for s in samples)
    return relative, max(absolute, 1.0) if whole else absolute


def _around(said: Description) -> tuple[str, ...]:
    """What is done around the network that no part of its description says, so that outputs are others."""
    mode, found = said.said.get("run_mode"), list[str]()
    if isinstance(mode, Mapping):
        found.append(f"run_mode {mode.get('name')}: it is a way of its own to run the network")
    for given in said.said.get("inputs") or ():
        if isinstance(given, Mapping) and given.get("output_of"):
            found.append(f"{given.get('id')} is what the model {given['output_of']} gives, and no image")
    return tuple(found)


def _one_input(said: Description) -> Tensor:
    if len(said.inputs) != 1:
        names = ", ".join(t.id for t in said.inputs)
        raise ModelError(
            f"{said.path}: {said.name} takes {len(said.inputs)} inputs ({names}), and a volume is one; run it with "
            "bioimageio.core"
        )
    return said.inputs[0]


def _output(said: Description, wanted: Wanted) -> int:
    names = [t.id for t in said.outputs]
    if wanted.head is not None:
        if wanted.head not in names:
            raise SettingsError(
                f"--head {wanted.head}: {said.path} has the outputs {', '.join(names)}; name one of them"
            )
        return names.index(wanted.head)
    if len(names) != 1:
        raise ModelError(
            f"{said.path}: {said.name} has the outputs {', '.join(names)}; name the one you want with --head"
        )
    return 0


def _promised(
    said: Description, given: Tensor, made: Tensor, layout: Layout, behind: processing.Behind, wanted: Wanted
) -> dict[str, Any]:
    """Fields of the `ModelSpec` that the description says."""
    values: dict[str, Any] = {
        "name": said.name,
        "window_min": layout.window_min,
        "window_step": on_steps(layout.window_step, layout.scale),
    }
    if layout.channels_in:
        values["channels_in"] = layout.channels_in
    if layout.spacing:
        values |= {"spacing": layout.spacing, "spacing_unit": layout.spacing_unit, "resampling": LINEAR}
    if not wanted.normalize:
        values["normalization"] = processing.before_of(said, given).normalization()
    channel = made.axis("channel")
    names = processing.channel_names(channel)
    if behind.activation:
        values["activation"] = behind.activation
    several = channel is not None and channel.size not in (None, 1)
    if behind.activation == "softmax":
        values["channels"] = "classes"
        values |= {"classes": names} if several and len(names) == (channel.size if channel else 0) else {}
    elif behind.activation == "sigmoid" and several:
        values["channels"] = "multilabel"
        values |= {"classes": ("background", *names)} if names else {}
    elif behind.threshold is not None and behind.activation is None:  # what is binarized is taken for probabilities
        values |= _binarized(behind, several=several)
    elif behind.activation is None and (_makes_images(said) or behind.scales_an_activation):
        values |= {"channels": "image", "activation": "none"}
    if behind.activation == "sigmoid" and behind.threshold not in (None, 0.5):
        values["threshold"] = behind.threshold
    return values


def _binarized(behind: processing.Behind, *, several: bool) -> dict[str, Any]:
    """What the numbers are that a threshold is set to without an activation: probabilities, where it is one."""
    limit = behind.threshold or 0.0
    if 0 < limit < 1:
        meaning: dict[str, Any] = {"activation": "probabilities_each" if several else "probabilities"}
        meaning |= {"channels": "multilabel"} if several else {}
        return meaning | ({"threshold": limit} if limit != 0.5 else {})
    if several:
        processing.divide_at_zero(behind, [limit])
        return {"activation": "sigmoid", "channels": "multilabel"}
    return {"activation": "none", "threshold": limit}


def _makes_images(said: Description) -> bool:
    told = said.said.get("tags")
    tags = {str(tag).lower() for tag in told} if isinstance(told, list) else set()
    return bool(tags & set(_IMAGES)) and not any("segmentation" in tag for tag in tags)


def _fixed(found: Found, given: Tensor, layout: Layout) -> dict[str, Any]:
    """Sizes that the graph of the network fixes, whatever the description says."""
    if len(found.sizes) != len(given.axes) or found.sizes.count(None) == len(found.sizes):
        return {}
    by_axis = {a.id: n for a, n in zip(given.axes, found.sizes, strict=True) if a.kind == "space"}
    sizes = [by_axis.get(axis) for axis in layout.axes]
    if not any(sizes):
        return {}
    pairs = list(zip(sizes, layout.window_min, layout.window_step, strict=True))
    least = tuple(n or low for n, low, _ in pairs)
    step = tuple(0 if n else s for n, _, s in pairs)
    return {"window_min": least, "window_step": step}


# --- the network between its axes ---


def _network(
    said: Description, found: Found, layout: Layout, given: Tensor, behind: processing.Behind, index: int
) -> Any:
    before: list[Step] = list(processing.before_of(said, given).steps) if _has_steps(said, given) else []
    before += _into(layout.input)
    after: list[Step] = [*_out_of(layout.output), *behind.steps]
    if any(s > 1 for s in layout.scale):
        after.append(Finer(layout.scale))
    if any(layout.halo):
        after.append(Crop(layout.halo))
    if hasattr(found.network, "SerializeToString"):
        if not before and not after and _is_plain(found):
            return found.network
        try:
            return wrapped_graph(found.network, before, after, found.output, len(layout.axes))
        except Exception as error:  # ONNX's converter raises what it likes
            raise ModelError(
                f"{said.path}: {found.name} cannot be brought into the engine's order of axes: {first_line(error)}; export "
                "it with a newer operator set"
            ) from error
    from unet_export.importers.module_steps import wrapped_module

    return wrapped_module(found.network, before, after, index if len(said.outputs) > 1 else None)


def _has_steps(said: Description, given: Tensor) -> bool:
    try:
        return bool(processing.before_of(said, given).steps)
    except ModelError:  # --normalize says what is done instead
        return False


def _is_plain(found: Found) -> bool:
    images = [v for v in found.network.graph.input if v.type.tensor_type.elem_type != 1]
    return not images and len(found.network.graph.output) == 1


def _into(order: Order) -> list[Step]:
    return [] if order.is_plain else [Reorder(order.leaving(), order.permutation(), order.entering())]


def _out_of(order: Order) -> list[Step]:
    """Back from the order of the source: what entered leaves, what left enters."""
    if order.is_plain:
        return []
    back = tuple(int(i) for i in np.argsort(order.permutation()))
    return [Reorder(order.entering(), back, order.leaving())]


# --- what comes with it ---


def _samples(
    files: Files, said: Description, given: Tensor, made: Tensor, layout: Layout, behind: processing.Behind, tell: Tell
) -> tuple[tuple[Sample, ...], tuple[int, ...] | None]:
    """Its test tensors, where they can be compared, and the size of the input."""
    if not given.test or not made.test:
        return (), None
    arrays = [_array(files, said, t) for t in (given, made)]
    for tensor, array in zip((given, made), arrays, strict=True):
        if array.ndim != len(tensor.axes):
            raise ModelError(
                f"{said.path}: the test tensor of {tensor.id} has {array.ndim} axes, its description {len(tensor.axes)}; "
                "get the package again"
            )
    image = layout.input.to_ours(arrays[0])
    expected = layout.output.to_ours(arrays[1])
    if any(s > 1 for s in layout.scale):
        if behind.finish:
            tell("note: its test output is coarser than its input and behind an activation: it is not compared with")
            return (), image.shape[1:]
        expected = _finer(expected, layout.scale)
    if any(2 * h >= n for n, h in zip(image.shape[1:], layout.halo, strict=True)):
        tell("note: nothing of its test output is left without its halo: it is not compared with")
        return (), image.shape[1:]
    return (Sample(image, expected),), image.shape[1:]


def _array(files: Files, said: Description, tensor: Tensor) -> Array:
    path = files.check(plain(str(tensor.test)), tensor.test_sha256)
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise ModelError(
            f"{said.path}: its test tensor {tensor.test} cannot be read: {first_line(error)}; get the package again"
        ) from error


def _finer(array: Array, scale: Sequence[int]) -> Array:
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array, np.float32))[None]
    return np.asarray(Finer(tuple(scale)).on_torch(tensor)[0])


def _finish(behind: processing.Behind) -> Any:
    def finish(values: Array) -> Array:
        for step in behind.finish:
            values = step(values)
        return values

    return finish


def _credit(said: Description, behind: processing.Behind) -> Credit:
    return Credit(
        source=f"bioimage.io {said.format}: {said.name}",
        version=said.version,
        licence=said.licence,
        authors=said.authors,
        citation=said.citation,
        left_out=(*_around(said), *behind.other, *behind.left_out),
    )
