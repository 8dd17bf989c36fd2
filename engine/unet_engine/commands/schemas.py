"""JSON schemas of what people and programs write for this engine and read from it, made of the types themselves."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from collections.abc import Callable
from typing import Any

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TEXT = {"type": "string"}
_NULLABLE = {"type": ["string", "null"]}
_TIME = {"type": "string", "format": "date-time"}
_NUMBERS: list[dict[str, Any]] = [
    {"type": "number"},
    {"type": "array", "items": {"type": ["string", "number"]}, "minItems": 1},
]
_ALSO: dict[str, list[dict[str, Any]]] = {
    "memory": [_TEXT],
    "window": [_TEXT],
    "overlap": [_TEXT],
    "model": [{"type": "array", "items": _TEXT}],
    **dict.fromkeys(("outside", "nodata", "image", "folds", "weights", "input_channels"), _NUMBERS),
}
"""Other forms that a setting is read from."""


def settings() -> dict[str, Any]:
    """Of ``unet-engine.toml``. Nothing is required: what a file leaves open the command line or another file says."""
    from unet_engine.settings.settings import Settings

    found = _documented(Settings.model_json_schema(), Settings)
    found.pop("required", None)
    for name, more in _ALSO.items():
        field = found["properties"][name]
        forms = field.pop("anyOf", None) or [{key: field.pop(key) for key in ("type",) if key in field}]
        field["anyOf"] = [*forms, *(form for form in more if form not in forms)]
    return _headed(found, "unet-engine.toml", "Settings of a run, as unet-engine.toml has them.")


def spec() -> dict[str, Any]:
    """Of what a model file says of itself, and of the spec beside one."""
    from unet_engine.model.spec import ModelSpec

    found = _documented(ModelSpec.model_json_schema(), ModelSpec)
    found["properties"]["normalization"] = {
        **found["properties"]["normalization"], "anyOf": [{"$ref": "#/$defs/Normalization"}, _TEXT],
    }  # fmt: skip
    found["properties"]["normalization"].pop("$ref", None)
    return _headed(found, "model spec", "What a model file promises.")


def result() -> dict[str, Any]:
    """Of the line that ``run --json`` ends with. Fields may be added."""
    from pydantic import TypeAdapter

    from unet_engine.api import Result

    found = _documented(TypeAdapter(Result).json_schema(mode="serialization"), Result)
    return _headed({**found, "additionalProperties": True}, "result", "What a run did: the last line of run --json.")


def record() -> dict[str, Any]:
    """Of a line of ``run --results FILE``, and of each volume with ``--json`` where there are several."""
    return _headed(_record(), "record", "What became of one volume: a line of run --results.")


def message() -> dict[str, Any]:
    """Of what ``run --notify URL`` posts. Lists of more than 50 end in a text that says how many more there are."""
    counts = {"type": "object", "additionalProperties": {"type": "integer", "minimum": 1}}
    failed = {"type": "array", "items": {"anyOf": [_record(), _TEXT]}, "maxItems": 51}
    said: dict[str, dict[str, Any]] = {
        "text": {**_TEXT, "description": "What a chat shows: where, what became of the command, how to go on."},
        "status": {"enum": ["done", "failed", "interrupted"]},
        "exit_code": {"enum": sorted({0, *_exit_codes()}), "description": "That of the command."},
        "message": {**_TEXT, "description": "One line: what the command said last."},
        "host": _TEXT, "version": _TEXT, "command": _TEXT, "folder": _TEXT,
        "start": _TIME, "end": _TIME, "seconds": {"type": "number", "minimum": 0},
        "resume": {**_NULLABLE, "description": "The command that goes on; null where there is none."},
    }  # fmt: skip
    several: dict[str, dict[str, Any]] = {
        "volumes": {**counts, "description": "Of several volumes: how many there are by what became of them."},
        "failed": {**failed, "description": "Of several volumes: the records of those that failed."},
    }
    return _headed(
        {
            "type": "object",
            "properties": {**_record()["properties"], **said, **several},
            "required": list(said),
            "dependentRequired": {"volumes": ["failed"], "failed": ["volumes"], "input": ["out", "notes", "error"]},
        },
        "message", "How a command ended: what run --notify sends.",
    )  # fmt: skip


def _record() -> dict[str, Any]:
    count = {"type": "integer", "minimum": 0}
    return {
        "type": "object",
        "properties": {
            "input": _TEXT, "out": _TEXT, "version": _TEXT, "host": _TEXT, "command": _TEXT, "digest": _NULLABLE,
            "status": {"enum": ["done", "already complete", "failed", "interrupted", "planned", "not begun"]},
            "model": {"type": ["object", "null"], "properties": {"file": _TEXT, "sha256": _TEXT, "name": _TEXT}},
            "start": _TIME, "end": _TIME, "seconds": {"type": "number"}, "notes": {"type": "array", "items": _TEXT},
            "error": {"anyOf": [_error(), {"type": "null"}]},
            **dict.fromkeys(("windows_inferred", "windows_skipped", "blocks_written", "voxels"), count),
            **dict.fromkeys(("bytes_read", "bytes_written", "peak_rss_bytes"), count),
            "backend": _TEXT, "device": _TEXT, "precision": _TEXT, "complete": {"type": "boolean"},
        },
        "required": ["input", "out", "status", "version", "start", "end", "seconds", "command", "notes", "error"],
    }  # fmt: skip


def error() -> dict[str, Any]:
    """Of the last line on stdout of a command with ``--json`` that fails."""
    return _headed(
        {"type": "object", "properties": {"error": _error()}, "required": ["error"], "additionalProperties": False},
        "error", "Why a command failed: the last line of any command with --json whose exit code is not 0.",
    )  # fmt: skip


def _error() -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "type": {**_TEXT, "description": "The class of the error, or what ended the command."},
            "message": {**_TEXT, "description": "One line: what is wrong, where, what to do."},
            "exit_code": {"enum": sorted(_exit_codes()), "description": "That of the command."},
        },
        "required": ["type", "message", "exit_code"],
    }


def _exit_codes() -> set[int]:
    """Of commands that do not end well."""
    from unet_engine.errors import UnetEngineError

    return {*_codes(UnetEngineError), 130}


def _codes(kind: Any) -> set[int]:
    return {kind.exit_code}.union(*map(_codes, kind.__subclasses__()))


SCHEMAS: dict[str, Callable[[], dict[str, Any]]] = {
    "settings": settings, "spec": spec, "result": result, "record": record, "message": message,
    "error": error,
}  # fmt: skip
"""By name, what makes it."""


def _headed(schema: dict[str, Any], title: str, about: str) -> dict[str, Any]:
    return {"$schema": DIALECT, **schema, "title": title, "description": about}


def _documented(schema: dict[str, Any], kind: type) -> dict[str, Any]:
    """`schema` with the sentences that stand below the fields in the source."""
    for name, text in _sentences(kind).items():
        if name in schema["properties"]:
            schema["properties"][name]["description"] = text
    for field in schema["properties"].values():
        field.pop("title", None)
    return schema


def _sentences(kind: type) -> dict[str, str]:
    """By field, the text below it, in the class or in what it is made of."""
    own = [one for one in reversed(kind.__mro__) if one.__module__.startswith("unet_engine.")]
    bodies = (ast.parse(textwrap.dedent(inspect.getsource(one))).body[0].body for one in own)  # type: ignore[attr-defined]
    found = {}
    for field, below in itertools.chain.from_iterable(map(itertools.pairwise, bodies)):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            found[field.target.id] = inspect.cleandoc(str(below.value.value)).replace("\n", " ")
    return found
