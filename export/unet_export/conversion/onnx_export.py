"""Model files: ONNX, `.pt2` and TorchScript, each with its `ModelSpec` inside and each checked against PyTorch."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from unet_engine.errors import ModelError, OutputError, SettingsError, first_line
from unet_engine.model.file import hash_of
from unet_engine.model.spec import EXPORT_KEY, METADATA_KEY, ModelSpec
from unet_engine.model.trust import trust
from unet_export.conversion.exporters import dynamic_shapes, example_sizes, from_module
from unet_export.conversion.proof import Comparison, two_sizes
from unet_export.conversion.runners import onnx_runner


def export_onnx(model: Any, spec: ModelSpec, path: str | Path, *, dynamic: bool = True) -> float:
    """Write the module `model` with `spec` as one ONNX file (opset 20, weights inside, names "input" and "output").

    The batch size is free. With `dynamic` the spatial sizes are too, on the lattice of `spec.window_min` and
    `spec.window_step`; without, the file takes `spec.window` alone, and the spec inside says so.
    Returns the largest relative difference from PyTorch, seen through ONNX Runtime on two window sizes (one if fixed).

    The file appears under its name only once it has passed. Raises `ModelError` if it differs by more than
    `TOLERANCE`, `SettingsError` if the spec is not that of the network, `OutputError` if it cannot be written.
    """
    spec = _spec_of_file(model, spec, dynamic=dynamic)
    with frozen(model) as net:
        proto = from_module(net, spec)
        error = compare(net, spec, _onnx_runner(proto.SerializeToString()))
        write_onnx(proto, spec, path, error)
    return error


def write_onnx(
    proto: Any,
    spec: ModelSpec,
    path: str | Path,
    error: float,
    origin: str = "",
    facts: Mapping[str, str] | None = None,
) -> None:
    """Put `spec` into the graph, and write it. Raises `ModelError` where the graph is none, `OutputError` where it
    cannot be written.

    The file remembers the largest difference `error` from what it was made of: `origin`, by default this PyTorch; and
    in `facts`, field by field of the spec, what told it.
    """
    import onnx

    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as problem:
        raise ModelError(f"{spec.name} is no valid ONNX graph: {first_line(problem)}; export it again") from problem
    _note(proto, METADATA_KEY, spec.model_dump_json())
    origin = origin or f"PyTorch {torch.__version__.split('+')[0]}"
    note = {"origin": origin, "largest_difference": float(f"{error:.1e}")} | ({"facts": dict(facts)} if facts else {})
    _note(proto, EXPORT_KEY, json.dumps(note))
    with _atomic(path) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))


def _note(proto: Any, key: str, value: str) -> None:
    entry = proto.metadata_props.add()
    entry.key, entry.value = key, value


def export_torch(model: Any, spec: ModelSpec, path: str | Path) -> float:
    """Write `model` with `spec` for the PyTorch backend: `torch.export` to ``.pt2``, TorchScript to ``.pt`` or ``.ts``.

    Both carry the spec's JSON as the extra file `METADATA_KEY`; batch and spatial sizes are free as in `export_onnx`.
    The file is trusted from now on by whoever runs this. Returns the largest relative difference from the network.
    Errors as in `export_onnx`.
    """
    path = Path(path)
    spec = _spec_of_file(model, spec, dynamic=True)
    extra = {METADATA_KEY: spec.model_dump_json()}
    with frozen(model) as net, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = torch.zeros((2, spec.channels_in, *example_sizes(spec)))
        if path.suffix == ".pt2":
            program = torch.export.export(net, (example,), dynamic_shapes=dynamic_shapes(spec))
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # names the author's folders
            error = compare(net, spec, program.module())
            with _atomic(path) as temporary:
                torch.export.save(program, temporary, extra_files=extra)
        elif path.suffix in (".pt", ".ts"):
            script = torch.jit.trace(net, example)
            error = compare(net, spec, script)
            with _atomic(path) as temporary:
                torch.jit.save(script, str(temporary), _extra_files=extra)
        else:
            raise SettingsError(f"{path.name} names no PyTorch format; use .pt2, or .pt or .ts for TorchScript")
    trust(path, hash_of(path))
    return error


def _spec_of_file(model: Any, spec: ModelSpec, *, dynamic: bool) -> ModelSpec:
    """The spec that the file can keep; raises `SettingsError` where it is not that of a network whose layout is
    known."""
    ours = getattr(model, "unet_layout", None)  # networks of our own say what they are
    if ours is not None:
        theirs = (spec.axes, spec.channels_in, spec.channels_out)
        if theirs != ours:
            raise SettingsError(f"the spec says axes, channels in, out {theirs}, not {ours}; use spec_for(config)")
    if dynamic:
        return spec
    return spec.model_copy(update={"window_min": spec.window, "window_step": (0,) * len(spec.axes)})


def compare(net: Any, spec: ModelSpec, run: Any) -> float:
    """Largest relative difference of `run` from `net` on two sizes, one the default; raises `ModelError` above what
    `Comparison.limit` allows."""
    comparison = Comparison(net, run, spec)
    other, own = two_sizes(spec)
    comparison.difference(other, _batch(net, spec))
    comparison.difference(own)
    return comparison.worst


def _batch(net: Any, spec: ModelSpec) -> int:
    """2, or 1 for a network that was saved for single windows."""
    try:
        with torch.inference_mode():
            net(torch.zeros((2, spec.channels_in, *spec.window)))
    except Exception:
        return 1
    return 2


def _onnx_runner(data: bytes) -> Any:
    return onnx_runner(data, "the exported network")


@contextlib.contextmanager
def frozen(model: Any) -> Iterator[Any]:
    """A float32 copy in inference mode: exporting leaves the caller's network as it is."""
    net = copy.deepcopy(model).float().cpu().eval()
    for parameter in net.parameters():
        parameter.requires_grad_(requires_grad=False)
        # Training may have left channels-last weights; files hold plain ones.
        parameter.data = parameter.data.contiguous()
    yield net


@contextlib.contextmanager
def _atomic(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its name when the block ends without an error."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix stays, since torch.export.save looks at it.
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose a folder that can be written") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose a folder that can be written") from error
    finally:
        temporary.unlink(missing_ok=True)
