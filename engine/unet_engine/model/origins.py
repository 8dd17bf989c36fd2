"""Where each fact of a model file's spec came from, as people are told."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping

from unet_engine.errors import ModelError
from unet_engine.model.file import ModelFile
from unet_engine.model.spec import EXPORT_KEY, METADATA_KEY, ModelSpec, read_toml

SPEC = "the spec in the file"
SHAPES = ("channels_in", "channels_out", "window", "window_min", "window_step", "margin", "axes", "flops")
"""Fields that a foreign graph tells."""


def origins(model: ModelFile, options: Mapping[str, str] | None = None) -> dict[str, str]:
    """Field by field of `ModelSpec`, who said it: the file (or what its export noted), another one beside it, its
    graph, or nobody.

    options: fields that the user named, with the option that does.
    """
    fields = ModelSpec.model_fields
    if _holds_spec(model):
        return dict.fromkeys(fields, SPEC) | _noted(model) | dict(options or {})
    found = dict.fromkeys(fields, "default")
    if model.format == "onnx":
        found |= dict.fromkeys(SHAPES, "graph") | {"name": "name of the file"}
        if model.ran:
            found |= dict.fromkeys(("channels_out", "margin"), "a window that was run")
        found["activation"] = "graph" if model.ends_in else "guess by the number of channels"
    found |= dict(options or {})
    beside = model.path.with_suffix(".toml")
    written = read_toml(beside) if beside.is_file() else {}
    wins = {field: beside.name for field in written if field in fields and field not in (options or {})}
    return found | wins


def said_beside(model: ModelFile, field: str) -> bool:
    """Whether the TOML beside a file without a spec of its own names `field`."""
    beside = model.path.with_suffix(".toml")
    try:
        return beside.is_file() and not _holds_spec(model) and field in read_toml(beside)
    except ModelError:
        return False


def told_by(model: ModelFile) -> str:
    """The same, for people: what told which fields. What nobody said, and what the file says without more, is left
    out."""
    fields: dict[str, list[str]] = {}
    for field, origin in origins(model).items():
        if origin not in (SPEC, "default"):
            fields.setdefault(origin, []).append(field)
    return "; ".join(f"{origin}: {', '.join(names)}" for origin, names in fields.items())


def _noted(model: ModelFile) -> dict[str, str]:
    """What an export noted in an ONNX file of where its facts came from."""
    if model.format != "onnx":
        return {}
    import onnx

    proto = onnx.load(model.path, load_external_data=False)
    notes = {entry.key: entry.value for entry in proto.metadata_props}
    try:
        facts = json.loads(notes.get(EXPORT_KEY, "{}")).get("facts", {})
        return {field: str(facts[field]) for field in ModelSpec.model_fields if field in facts}
    except (ValueError, AttributeError, TypeError):  # somebody else wrote that entry
        return {}


def _holds_spec(model: ModelFile) -> bool:
    if model.format == "fake":
        return True
    if model.format == "onnx":
        import onnx

        proto = onnx.load(model.path, load_external_data=False)
        return any(entry.key == METADATA_KEY for entry in proto.metadata_props)
    with zipfile.ZipFile(model.path) as archive:
        return any(name.split("/", 1)[-1] == f"extra/{METADATA_KEY}" for name in archive.namelist())
