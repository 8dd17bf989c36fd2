"""The ONNX graph that is handed to whichever library runs it: the file itself, or what it was rewritten to."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from unet_engine.errors import ModelError, first_line
from unet_engine.model.attached import network_bytes
from unet_engine.model.file import ModelFile
from unet_engine.model.onnx_means import has_means, in_steps
from unet_engine.model.onnx_rewrite import LARGEST, Rewriting, rewritten, rows_are_free
from unet_engine.model.onnx_shapes import flat
from unet_engine.model.onnx_split import split


def network_of(model: ModelFile, batch: int = 1) -> Path | bytes:
    """The network of an ONNX model, for `batch` windows at once: its path where the file is run as it is, else the
    bytes of the graph, with its weights. Raises `ModelError` where it cannot be read, or becomes too large."""
    how = model.ahead.rewriting if model.ahead else model.rewriting
    if how is None or (not how.changes and not model.splits and model.saved_batch in (None, batch)):
        return model.path if model.inside is None else network_bytes(model.path, model.inside)
    given = _rewritten(model.path, model.inside, model.sha256, how, batch)
    return _split(given) if model.splits else given


def exact_network_of(model: ModelFile, shape: tuple[int, ...]) -> Path | bytes:
    """The same for an input of one shape (batch, channel, \\*space), in float32 on a processor: its means are taken in
    steps, see `onnx_means`. What cannot be looked into is left to the library."""
    given = network_of(model, shape[0])
    try:
        return _in_steps(given, shape) or given
    except Exception:
        return given


def _in_steps(given: Path | bytes, shape: tuple[int, ...]) -> bytes | None:
    """None where there is nothing to change."""
    import onnx

    if isinstance(given, bytes):
        model = flat(onnx.load_from_string(given))
        if not has_means(model):
            return None
    elif has_means(flat(onnx.load(given, load_external_data=False))):
        model = flat(onnx.load(given))
    else:
        return None
    if not in_steps(model, shape) or model.ByteSize() > LARGEST:
        return None
    model.ir_version = max(model.ir_version, 4)  # a constant need not be an input from there on
    data: bytes = model.SerializeToString()
    return data


def largest_batch(model: ModelFile) -> int | None:
    """How many windows the network takes at once at most; None where it takes any number. Reads the graph."""
    if model.rewriting is None:
        return None
    return None if _free(model.path, model.inside, model.sha256, model.rewriting) else 1


@lru_cache(maxsize=1)  # of several back ends that are tried with one model; by its hash, as the file may be replaced
def _rewritten(path: Path, inside: str | None, sha256: str, how: Rewriting, batch: int) -> bytes:
    import onnx

    try:
        graph = onnx.load(path) if inside is None else onnx.load_from_string(network_bytes(path, inside))
        return rewritten(flat(graph), how, batch, path)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{path}: its graph cannot be read: {first_line(error)}; export it again") from error


def _split(graph: bytes) -> bytes:
    import onnx

    model = onnx.load_from_string(graph)
    split(model)
    data: bytes = model.SerializeToString()
    return data


@lru_cache(maxsize=8)  # by the hash as well: what lies at the path may have been replaced
def _free(path: Path, inside: str | None, sha256: str, how: Rewriting) -> bool:
    import onnx

    try:
        if inside is not None:
            return rows_are_free(flat(onnx.load_from_string(network_bytes(path, inside))), how)
        return rows_are_free(flat(onnx.load(path, load_external_data=False)), how)
    except Exception:  # what cannot be looked into is not proved
        return False
