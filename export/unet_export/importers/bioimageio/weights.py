"""The network of a bioimage.io package, from whichever of its weights can be had."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from unet_engine.errors import ModelError, SettingsError, first_line
from unet_engine.model.onnx_chance import about_branches, about_training, refuse_chance
from unet_engine.units import Tell
from unet_export.importers import code
from unet_export.importers.base import Wanted
from unet_export.importers.bioimageio.description import Description, Entry, plain
from unet_export.importers.files import Files

RUNNABLE = ("onnx", "pytorch_state_dict", "torchscript")
"""Formats of weights that are taken, the first that can be had first."""
_AWAY = {
    "keras_hdf5": "Keras weights become ONNX with: python -m tf2onnx.convert --keras MODEL.h5 --output model.onnx",
    "keras_v3": "Keras weights become ONNX in Keras itself: model.export('model.onnx', format='onnx')",
    "tensorflow_saved_model_bundle": "a SavedModel becomes ONNX with: "
    "python -m tf2onnx.convert --saved-model FOLDER --output model.onnx",
    "tensorflow_js": "TensorFlow.js weights cannot be read back; ask the authors for another format",
}


@dataclass(frozen=True)
class Found:
    """A network as the package has it, in the package's order of axes."""

    name: str
    network: Any
    """A torch module, a TorchScript, or a ModelProto."""
    output: str = ""
    """Of a ModelProto: the output that is meant."""
    sizes: tuple[int | None, ...] = ()
    """Of a ModelProto: what it fixes of its input, in the package's order."""


def network_of(files: Files, said: Description, output: int, wanted: Wanted, tell: Tell) -> Found:
    """Raises `ModelError` naming the way out where none of the weights can be had."""
    there = [name for name in RUNNABLE if name in said.weights]
    if wanted.weights:
        if wanted.weights not in said.weights:
            raise SettingsError(
                f"--weights {wanted.weights}: {said.path} has {', '.join(said.weights) or 'none'}; name one of them"
            )
        there = [wanted.weights] if wanted.weights in RUNNABLE else []
    problems = []
    for name in there:
        try:
            return _READERS[name](files, said, said.weights[name], output, wanted, tell)
        except ModelError as error:
            problems.append(error)
    if problems:
        # with several, the one that trust alone keeps away says most
        raise next((p for p in problems if "--trust" in str(p)), problems[0])
    raise _none(said)


def _none(said: Description) -> ModelError:
    names = list(said.weights)
    ways = "; ".join(_AWAY[name] for name in names if name in _AWAY)
    return ModelError(
        f"{said.path} has weights as {', '.join(names) or 'nothing'} alone, and {', '.join(RUNNABLE)} are taken: "
        f"{ways or 'ask its authors for one of those'}; put the result into its description, or run it by itself"
    )


# --- ONNX ---


def _onnx(files: Files, said: Description, entry: Entry, output: int, wanted: Wanted, tell: Tell) -> Found:
    import onnx

    path = files.check(plain(entry.source), entry.sha256)
    for beside in files.names:  # weights may lie in files of their own, which the graph names
        if beside.endswith((".data", ".bin", ".onnx_data", ".weight", ".weights")):
            files.local(beside)
    try:
        proto = onnx.load(path)
    except Exception as error:  # the parser raises what it likes
        raise ModelError(
            f"{said.path}: {entry.source} is no readable ONNX file: {first_line(error)}; download it again"
        ) from error
    held = {value.name for value in proto.graph.initializer}
    images = [value for value in proto.graph.input if value.name not in held]
    if len(images) != 1 or not proto.graph.output:
        raise ModelError(
            f"{said.path}: {entry.source} takes {len(images)} inputs, and a volume is one; run it with bioimageio.core"
        )
    dims = images[0].type.tensor_type.shape.dim
    sizes = tuple(int(d.dim_value) if d.HasField("dim_value") and d.dim_value else None for d in dims)
    made = [value.name for value in proto.graph.output]
    if output >= len(made):
        raise ModelError(
            f"{said.path}: {entry.source} gives {len(made)} outputs ({', '.join(made)}), and its description names "
            f"{len(said.outputs)}; get the package again"
        )
    refuse_chance(f"{said.path}: {entry.source}", proto.graph, made[output])
    for note in (about_training(proto.graph, made[output]), about_branches(proto.graph, made[output])):
        if note:
            tell(f"note: {entry.source}: {note}")
    return Found(f"{Path(plain(entry.source)).name}", proto, made[output], sizes)


# --- PyTorch ---


def _torchscript(files: Files, said: Description, entry: Entry, output: int, wanted: Wanted, tell: Tell) -> Found:
    import torch

    path = files.check(plain(entry.source), entry.sha256)
    code.check_trust(
        files.path, path, f"{path.name} is TorchScript, which may write files as it runs", given=wanted.trust
    )
    try:
        script = torch.jit.load(str(path), map_location="cpu").float().eval()
    except Exception as error:  # PyTorch raises what its parsers raise
        raise ModelError(
            f"{said.path}: {path.name} cannot be loaded by PyTorch: {first_line(error)}; download it "
            "again, or take other weights of the model"
        ) from error
    return Found(path.name, script)


def _state_dict(files: Files, said: Description, entry: Entry, output: int, wanted: Wanted, tell: Tell) -> Found:
    from unet_export.conversion.weights import fill, read_weights

    path = files.check(plain(entry.source), entry.sha256)
    try:
        make, keywords = _architecture(files, said, entry, wanted)
    except ModelError as refused:
        network = None if wanted.uncertified else _rebuilt(said, entry)
        if network is None:
            raise
        try:
            fill(network, read_weights(path), None, tell, "its description")
        except ModelError:  # another class of that name
            raise refused from None
        tell("note: its network is one of torch-em's, which is built here without its own code")
        return Found(path.name, network)
    network = code.built(make, keywords, said.path)
    fill(network, read_weights(path), None, tell, "its description")
    return Found(path.name, network)


def _rebuilt(said: Description, entry: Entry) -> Any:
    """The network without its code, where its class is known here and test tensors will tell whether it is that one;
    else None."""
    from unet_export.importers.bioimageio import torch_em

    _, _, name, _, keywords = _named(said, entry)
    if not all(tensor.test for tensor in (*said.inputs, *said.outputs)) or not torch_em.known(name, keywords):
        return None
    return code.built(partial(torch_em.built, name), {"said": keywords}, said.path)


def _architecture(
    files: Files, said: Description, entry: Entry, wanted: Wanted
) -> tuple[Callable[..., Any], Mapping[str, Any]]:
    """What builds the network, once the user trusts it, and its arguments."""
    source, module, name, sha256, keywords = _named(said, entry)
    if source is not None:
        if not files.has(plain(source)):
            raise ModelError(
                f"{said.path} lacks {source}, the Python code that builds its network ({name}); get the whole package, or "
                "one with ONNX or TorchScript weights"
            )
        file = files.check(plain(source), sha256)
        code.check_trust(
            files.path, file, f"its network is built by Python code of its own ({source})", given=wanted.trust
        )
        return code.from_file(file, name), keywords
    if not wanted.trust:
        raise ModelError(
            f"{said.path}: its network is built by {module}.{name}, a package that would be imported; use --trust, if you "
            "trust that package"
        )
    return code.from_library(str(module), name), keywords


def _named(said: Description, entry: Entry) -> tuple[str | None, str | None, str, str | None, Mapping[str, Any]]:
    """(file or None, module or None, callable, hash of the file, arguments)."""
    told = entry.said.get("architecture")
    if isinstance(told, str):  # 0.4
        keywords = _keywords(said, entry.said.get("kwargs"))
        if ":" in told:
            source, _, name = told.rpartition(":")
            return source, None, name, entry.said.get("architecture_sha256"), keywords
        module, _, name = told.rpartition(".")
        return None, module, name, None, keywords
    if not isinstance(told, Mapping) or not told.get("callable"):
        raise ModelError(
            f"{said.path} has PyTorch weights, but no word of what builds their network; get the package again"
        )
    keywords = _keywords(said, told.get("kwargs"))
    name = str(told["callable"])
    if told.get("source"):
        return str(told["source"]), None, name, told.get("sha256"), keywords
    return None, str(told.get("import_from") or ""), name, None, keywords


def _keywords(said: Description, kwargs: Any) -> dict[str, Any]:
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ModelError(
            f"{said.path}: the arguments of its network are {str(kwargs)[:40]!r}, no names with values; correct them"
        )
    return dict(kwargs or {})


_READERS: dict[str, Callable[[Files, Description, Entry, int, Wanted, Tell], Found]] = {
    "onnx": _onnx,
    "torchscript": _torchscript,
    "pytorch_state_dict": _state_dict,
}
