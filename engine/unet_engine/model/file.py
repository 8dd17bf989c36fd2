"""Opening a model file: its format, its hash and its `ModelSpec`, without loading PyTorch or building an engine.

.onnx          spec in the ONNX metadata, else in a TOML of the same name beside it, else from the graph's shapes
.pt2           torch.export archive, spec as extra file
.pt .ts        TorchScript archive, spec as extra file
.fake.toml     no network at all: see `unet_engine.backends.fake`
"""

from __future__ import annotations

import base64
import hashlib
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from unet_engine.errors import ModelError, UnetEngineError, first_line
from unet_engine.model import attachments
from unet_engine.model.spec import METADATA_KEY, ModelSpec
from unet_engine.model.verdict import Verdict
from unet_engine.units import times

Format = Literal["onnx", "pt2", "torchscript", "fake"]


@dataclass(frozen=True)
class ModelFile:
    path: Path
    format: Format
    sha256: str
    """Of the network and its spec; what quantising attaches does not change it."""
    spec: ModelSpec
    verdicts: tuple[Verdict, ...] = ()
    outside: tuple[str, ...] = ()
    """Names of files beside it that hold weights."""


VERDICTS = "verdicts"
NETWORK = "network."
"""Keys of attachments: all verdicts as JSON, and per attached network this with its SHA-256, in base64."""
_VERDICTS = TypeAdapter(tuple[Verdict, ...])


def attached_network(model: ModelFile, sha256: str) -> bytes:
    """The attached network of that hash. Raises `ModelError` where it is missing or not what was judged."""
    text = attachments.read(model.path, NETWORK + sha256)
    data = base64.b64decode(text) if text else b""
    if hashlib.sha256(data).hexdigest() != sha256:
        state = "is damaged" if text else "is missing"
        raise ModelError(
            f"{model.path}: the network {sha256[:12]} that was judged {state}; run unet-engine quantize again"
        )
    return data


def with_attachments(model: ModelFile, target: Path, verdicts: Sequence[Verdict], networks: dict[str, bytes]) -> None:
    """Write the model to `target` with these verdicts and, of its networks and `networks` (by hash), those that passed.

    Networks that no verdict permits to run would only make the file larger.
    """
    needed = dict.fromkeys(v.network for v in verdicts if v.network and (v.passed or v.emulated))
    values = {VERDICTS: _VERDICTS.dump_json(tuple(verdicts))}
    for sha256 in needed:
        data = networks[sha256] if sha256 in networks else attached_network(model, sha256)
        values[NETWORK + sha256] = base64.b64encode(data)
    attachments.attach(model.path, target, values)


def _verdicts(path: Path) -> tuple[Verdict, ...]:
    """Those in the file; none where another version of the engine wrote them, which then is as if nothing had been judged."""
    text = attachments.read(path, VERDICTS)
    try:
        return _VERDICTS.validate_json(text) if text else ()
    except ValidationError:
        return ()


def open_model(path: str | Path, window: Sequence[int] | None = None) -> ModelFile:
    """Read what the model at `path` promises. `window` is needed, and used, only where the file does not fix a size itself.

    Raises `ModelError` where the file is missing, corrupt, of no known format, or says too little.
    """
    path = Path(path)
    if not path.exists():
        raise ModelError(f"{path} does not exist; give a model file with --model (.onnx, .pt2, .pt)")
    if path.is_dir():
        raise ModelError(f"{path} is a folder; give a model file with --model (.onnx, .pt2, .pt)")
    kind = _format(path)
    files = [path]
    if kind == "onnx":
        spec, weights = _onnx_spec(path, tuple(window) if window else None)
        files += weights
    elif kind == "fake":
        spec = _parsed(_toml(path).get("spec", {}), path)
    else:
        spec = _archive_spec(path)
    verdicts = _verdicts(path) if kind == "onnx" else ()
    return ModelFile(path, kind, _hash(files, kind), spec, verdicts, tuple(f.name for f in files[1:]))


def _hash(files: Sequence[Path], kind: Format) -> str:
    """Of all bytes of the files, one after the other, but for what is attached to the first."""
    digest = hashlib.sha256()
    for i, path in enumerate(files):
        try:
            for piece in attachments.own_bytes(path) if kind == "onnx" and i == 0 else _pieces(path):
                digest.update(piece)
        except OSError as error:
            raise ModelError(
                f"{path} cannot be read: {error.strerror}; restore it or correct its permissions"
            ) from error
    return digest.hexdigest()


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(2**20):
            yield piece


_SUFFIXES: dict[str, Format] = {
    ".onnx": "onnx",
    ".pt2": "pt2",
    ".pt": "torchscript",
    ".ts": "torchscript",
    ".fake.toml": "fake",
}


def is_model(path: str | Path) -> bool:
    """Whether `path` is called like a model file."""
    return str(path).lower().endswith(tuple(_SUFFIXES))


def _format(path: Path) -> Format:
    for suffix, kind in _SUFFIXES.items():
        if path.name.lower().endswith(suffix):
            return kind
    raise ModelError(f"{path} is called like no model file; give .onnx, .pt2, .pt or .ts")


def _parsed(values: dict[str, Any], source: Path) -> ModelSpec:
    try:
        return ModelSpec.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "spec"
        raise ModelError(f"{source}: the model spec is not valid: {where}: {first['msg']}; correct it") from error


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not valid TOML: {error}; correct it") from error


def _archive_spec(path: Path) -> ModelSpec:
    """Both PyTorch formats are zip archives that keep extra files in a folder ``extra``."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = [n for n in archive.namelist() if n.split("/", 1)[-1] == f"extra/{METADATA_KEY}"]
            text = archive.read(found[0]).decode() if found else None
    except (zipfile.BadZipFile, OSError) as error:
        raise ModelError(f"{path} is not a readable PyTorch archive: {error}; export it again") from error
    if text is not None:
        try:
            return ModelSpec.model_validate_json(text)
        except ValidationError as error:
            raise ModelError(
                f"{path}: its model spec is not valid: {error.errors()[0]['msg']}; export it again"
            ) from error
    beside = path.with_suffix(".toml")
    if beside.is_file():
        return _parsed(_toml(beside), beside)
    raise ModelError(
        f"{path} carries no model spec; write one to {beside.name} beside it, or export it with unet_export"
    )


# --- ONNX ---


def _onnx_spec(path: Path, window: tuple[int, ...] | None) -> tuple[ModelSpec, list[Path]]:
    """The spec, and the files that hold weights outside `path`."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
        if not model.graph.node:
            raise ValueError("its graph is empty")
        spec_text = {p.key: p.value for p in model.metadata_props}.get(METADATA_KEY)
        outside = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
        weights = [path.parent / name for name in sorted(outside)]
        if spec_text is not None:
            return ModelSpec.model_validate_json(spec_text), weights
        beside = path.with_suffix(".toml")
        return _spec_from_graph(path, model, window, _given(beside) if beside.is_file() else {}), weights
    except UnetEngineError:
        raise
    except ValidationError as error:
        raise ModelError(f"{path}: its model spec is not valid: {error.errors()[0]['msg']}; export it again") from error
    except Exception as error:  # the parser and shape inference raise what they like, down to UnicodeDecodeError
        raise ModelError(f"{path} is not a readable ONNX file: {first_line(error)}; export it again") from error


def _given(beside: Path) -> dict[str, Any]:
    """What the file beside a foreign network says. Those keys are checked that are used before all become a spec."""
    given = _toml(beside)
    for key, kind, example in (("axes", str, '"zyx"'), ("window", list, "[64, 64, 64]"), ("channels_in", int, "1")):
        if key in given and not isinstance(given[key], kind):
            raise ModelError(f"{beside}: {key} = {given[key]!r} is not understood; write it like {key} = {example}")
    return given


def _spec_from_graph(path: Path, model: Any, window: tuple[int, ...] | None, given: dict[str, Any]) -> ModelSpec:
    """A foreign network: everything its shapes tell, for the one window it has or is given; `given` keys win."""
    inputs = [i for i in model.graph.input if i.name not in {t.name for t in model.graph.initializer}]
    if len(inputs) != 1:
        raise ModelError(f"{path} has {len(inputs)} inputs; one image input is needed")
    sizes = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim]
    axes = given.get("axes") or {4: "yx", 5: "zyx"}.get(len(sizes))
    if axes is None:
        raise ModelError(f"{path}: its input has {len(sizes)} axes; 4 (batch, channel, y, x) or 5 (with z) are needed")
    window = window or tuple(given.get("window", ())) or tuple(sizes[2:])
    if not all(window) or len(window) != len(axes):
        raise ModelError(
            f"{path} says no window for its axes {axes}; use --window, e.g. --window {','.join(['64'] * len(axes))}"
        )
    for axis, size, fixed in zip(axes, window, sizes[2:], strict=True):
        if fixed not in (0, size):
            raise ModelError(f"{path} takes only {fixed} voxels along {axis}, not {size}; leave out --window")
    channels = sizes[1] or given.get("channels_in", 0)
    if not channels:
        raise ModelError(
            f"{path} says no number of input channels; write channels_in to {path.with_suffix('.toml').name}"
        )
    shape, flops = _traced(path, model, inputs[0].name, (1, channels, *window))
    margins = [(size - out) // 2 for size, out in zip(window, shape[2:], strict=True)]
    if any(m < 0 or size - out != 2 * m for m, size, out in zip(margins, window, shape[2:], strict=True)):
        raise ModelError(
            f"{path} turns {times(window)} into {times(shape[2:])}; an output of the same size, or smaller evenly, is needed"
        )
    values = {
        "name": path.stem, "axes": axes, "channels_in": channels, "channels_out": shape[1], "window": window, "window_min": window,
        "window_step": (0,) * len(axes), "margin": margins, "activation": "softmax" if shape[1] > 1 else "sigmoid", "flops": flops,
    }  # fmt: skip
    return _parsed({**values, **given, "window": window, "window_min": window, "window_step": (0,) * len(axes)}, path)


def _traced(path: Path, model: Any, name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Output shape and FLOPs of the graph for one input shape, by ONNX shape inference."""
    import onnx

    graph = model.graph
    for value in graph.input:
        if value.name == name:
            for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
                dim.Clear()
                dim.dim_value = size
    del graph.value_info[:]
    for dim in graph.output[0].type.tensor_type.shape.dim:
        dim.Clear()
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    except Exception as error:
        raise ModelError(
            f"{path} does not take windows of {times(shape[2:])}: {first_line(error)}; "
            "use a --window that its pooling divides, e.g. a multiple of 16 or 32"
        ) from error
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*inferred.value_info, *inferred.output]
    }
    out = shapes[graph.output[0].name]
    if len(out) != len(shape) or not all(out):
        raise ModelError(
            f"{path}: the shape of its output cannot be told; write the spec to {path.with_suffix('.toml').name}"
        )
    shapes |= {t.name: list(t.dims) for t in graph.initializer} | {name: list(shape)}
    return tuple(out), _flops(graph, shapes)


def _flops(graph: Any, shapes: dict[str, list[int]]) -> int:
    """Two per multiply-add of convolutions; a transposed one does its kernel once per input voxel."""
    total = 0
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            kernel = shapes.get(node.input[1], [0])
            voxels = shapes.get(node.output[0] if node.op_type == "Conv" else node.input[0], [0, 0])
            total += 2 * prod(kernel) * prod([voxels[0], *voxels[2:]])
    return total
