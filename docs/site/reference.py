"""The pages of the reference, made from the code's own tables each time the site is built, so that they cannot
drift."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
import tempfile
import types
import typing
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args, get_origin

import click
import numpy as np

import unet_engine
from unet_engine import errors
from unet_engine.commands.cli import app
from unet_engine.commands.farewell import INTERRUPTED
from unet_engine.commands.manual import commands
from unet_engine.settings.files import ENVIRONMENT
from unet_engine.settings.settings import Settings

PACKAGE = Path(unet_engine.__file__).parent
EXPORT = next(
    path for path in (PACKAGE.parent / "unet_export", PACKAGE.parents[1] / "export" / "unet_export") if path.is_dir()
)


def pages() -> dict[str, str]:
    """Markdown by the path of the page."""
    return {
        "reference/cli.md": cli(),
        "reference/settings.md": settings(),
        "reference/api.md": api(),
        "reference/errors.md": messages(),
        "reference/exit-codes.md": exit_codes(),
        "reference/files.md": files(),
    }


# --- command line ---


def cli() -> str:
    parts = [
        "# Command line",
        "What `--help` says, command by command. Every option may be given once, but for those that say so.",
    ]
    for name, command in commands(app):
        context = click.Context(command, info_name=f"unet-engine {name}")
        usage = command.get_usage(context).removeprefix("Usage: ")
        parts += [f"## {name}", _prose(command.help or ""), f"```\n{usage}\n```"]
        records = [record for p in command.params if (record := p.get_help_record(context))]
        rows = [(option, told) for option, told in records if told]  # arguments are in the usage, and told above it
        if rows:
            parts.append("| option | what |\n|---|---|\n" + "\n".join(f"| {_code(o)} | {_cell(h)} |" for o, h in rows))
    return _joined(parts)


# --- settings ---


def _documented(path: Path, name: str) -> dict[str, str]:
    """The text right below each field of a class."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    found: dict[str, str] = {}
    for field, below in itertools.pairwise(body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=called)), ast.Expr(value=ast.Constant(value=str(text))):
                found[called] = inspect.cleandoc(text)
    return found


def settings() -> str:
    options = {p.name: p for p in app.commands["run"].params if isinstance(p, click.Option)}
    told = _documented(PACKAGE / "settings/fields.py", "Fields")
    rows = []
    for name, field in Settings.model_fields.items():
        option = ", ".join(options[name].opts) if name in options else ""
        default = "needed" if field.is_required() else repr(field.default)
        words = told.get(name) or options[name].help or ""
        rows.append(
            f"| `{name}` | {_code(option)} | {_code(_kind(field.annotation))} | {_code(default)} | {_cell(words)} |"
        )
    return _joined([
        "# Settings",
        "One name everywhere: the option of the command line, the keyword of `unet_engine.run`, the key of "
        f"`unet-engine.toml`, and, in capitals behind `{ENVIRONMENT}`, the variable of the environment. Which of them wins: "
        "[batches.md](../batches.md#where-settings-come-from).",
        "| setting | option | type | default | what |\n|---|---|---|---|---|\n" + "\n".join(rows),
    ])  # fmt: skip


def _kind(annotation: object) -> str:
    """A type as people write it: choices by their values, without what it is checked by, nor that it may be None."""
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    if isinstance(annotation, str | int):
        return str(annotation)
    parts = [part for part in get_args(annotation) if part is not type(None)]
    match get_origin(annotation):
        case typing.Annotated:
            return _kind(parts[0])
        case typing.Literal | typing.Union | types.UnionType:
            return " | ".join(map(_kind, parts))
        case origin:
            return f"{getattr(origin, '__name__', origin)} of {_kind(parts[0])}"


# --- Python ---


def api() -> str:
    parts = ["# Python", "What `import unet_engine` offers. How it is used: [python.md](../python.md)."]
    for name in unet_engine.__all__:
        found = getattr(unet_engine, name)
        parts.append(f"## {name}")
        if callable(found) and not inspect.isclass(found):
            parts.append(f"```python\n{name}{_signature(found)}\n```")
        told = inspect.getdoc(found) or ""
        parts.append("" if told.startswith(f"{name}(") else _prose(told))  # what dataclasses say where nobody did
        rows = [f"| `{field}` | {_cell(text)} |" for field, text in _fields(found).items()]
        parts.append("| field | what |\n|---|---|\n" + "\n".join(rows) if rows else "")
    return _joined(parts)


def _signature(function: Callable[..., object]) -> str:
    """Settings of a run are left to their own page: there are dozens."""
    shown = ("input", "model", "out")
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.name not in Settings.model_fields or p.name in shown]
    parts = [str(p.replace(annotation=_Unquoted(p.annotation))) for p in own]
    if named := [p.kind for p in own].count(inspect.Parameter.KEYWORD_ONLY):
        parts.insert(len(own) - named, "*")
    if len(own) < len(signature.parameters):
        parts.append("**settings")
    line = f"({', '.join(parts)})"
    return line if len(line) < 100 else "(\n    " + ",\n    ".join(parts) + ",\n)"


class _Unquoted(str):
    """An annotation that is shown as it stands in the source."""

    __slots__ = ()
    __repr__ = str.__str__


def _fields(found: object) -> dict[str, str]:
    if not inspect.isclass(found) or issubclass(found, BaseException):
        return {}
    path = Path(inspect.getsourcefile(found) or "")
    return _documented(path, found.__name__)


# --- errors ---


def _said() -> Iterator[tuple[str, str, str]]:
    """Every message that the code raises: class, text with its blanks, module."""
    known = {
        name
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, errors.UnetEngineError)
    }
    for root in (PACKAGE, EXPORT):
        for path in sorted(root.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                call = node.exc if isinstance(node, ast.Raise) else None
                if (
                    isinstance(call, ast.Call)
                    and isinstance(call.func, ast.Name)
                    and call.func.id in known
                    and call.args
                ):
                    text = _template(call.args[0])
                    if text:
                        yield call.func.id, text, path.relative_to(root.parent).as_posix()


def _template(node: ast.expr) -> str:
    """A text of the source, with what is filled in as ‹what›."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            _template(part) if isinstance(part, ast.Constant) else f"‹{_blank(part)}›" for part in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _template(node.left) + (_template(node.right) or "…")
    return ""


_AROUND = {"first_line", "brief", "times", "size", "str", "len", "join", "sorted", "map", "self"}
"""Functions around what is filled in."""


def _blank(part: ast.expr) -> str:
    """What is filled in, as a word: the first name in it."""
    found = [n for n in ast.walk(part) if isinstance(n, ast.Attribute | ast.Name)]
    names = [n.attr if isinstance(n, ast.Attribute) else n.id for n in found]
    return next((name.strip("_").replace("_", " ") for name in names if name not in _AROUND), "…")


def messages() -> str:
    by_class: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for kind, text, _ in _said():
        by_class[kind].add(_parted(" ".join(text.split())))
    parts = [
        "# Errors",
        "Every message that can end a command, as it stands in the code: what is wrong, and what to do. What is filled in "
        "is in ‹brackets›. The exit code goes with the class: [exit codes](exit-codes.md).",
    ]
    for kind in sorted(by_class, key=lambda name: getattr(errors, name).exit_code):
        rows = "\n".join(f"| {_cell(problem)} | {_cell(remedy)} |" for problem, remedy in sorted(by_class[kind]))
        parts.append(
            f"## {kind}, exit code {getattr(errors, kind).exit_code}\n\n| what is wrong | what to do |\n|---|---|\n{rows}"
        )
    return _joined(parts)


_REMEDY = re.compile(r"(?:; |[:,] (?=(?:or )?(?:give|use|repeat|write|pip install|restore|run)\b))")


def _parted(text: str) -> tuple[str, str]:
    """What is wrong, and what to do: behind the last semicolon, else where a sentence turns to the reader."""
    problem, _, remedy = text.rpartition("; ")
    if not problem and (turn := _REMEDY.search(text)):
        problem, remedy = text[: turn.start()], text[turn.end() :]
    return (problem, remedy.removeprefix("or ")) if problem else (remedy, "")


def _classes() -> list[type[errors.UnetEngineError]]:
    found = [k for k in vars(errors).values() if inspect.isclass(k) and issubclass(k, errors.UnetEngineError)]
    return sorted(found, key=lambda kind: kind.exit_code)


def exit_codes() -> str:
    text = re.sub(r"\n\n", " |", errors.__doc__ or "")  # behind the table comes what is of no class
    text = " ".join(text.split())
    rows = ["| 0 |  | done |"]
    for kind in _classes():
        match = re.search(rf"\b{kind.__name__}\s+{kind.exit_code}\s+(.*?)(?=\s*[|+])", text)
        rows.append(
            f"| {kind.exit_code} | `{kind.__name__}` | {_cell(match[1] if match else inspect.getdoc(kind) or '')} |"
        )
    rows.append(
        f"| {INTERRUPTED} | `KeyboardInterrupt` | interrupted by a signal: what is committed stays, run again with --resume |"
    )
    return _joined([
        "# Exit codes",
        "Every command ends with one of these, and in Python the class is raised. 1, 6, 8, 10 and 130 may pass "
        "by themselves (a device, a disk or a scheduler that was busy): try again with `--resume`. The others need a person.",
        "| code | class | what |\n|---|---|---|\n" + "\n".join(rows),
    ])  # fmt: skip


# --- files ---


def files() -> str:
    """What lies in an output, from a run that is made for this page."""
    import zarr

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        scan = zarr.create_array(root / "scan.zarr", shape=(16, 16, 16), chunks=(8, 8, 8), dtype="uint8")
        scan[...] = np.random.default_rng(0).integers(0, 255, (16, 16, 16))
        (root / "net.fake.toml").write_text(_IDENTITY)
        unet_engine.run(str(root / "scan.zarr"), model=str(root / "net.fake.toml"), out=str(root / "labels.zarr"))
        out = root / "labels.zarr"
        listed = "\n".join(sorted(path.relative_to(root).as_posix() for path in out.rglob("*") if path.is_file())[:12])
        attributes = json.loads((out / "zarr.json").read_text())["attributes"]
        shown = _brief(json.dumps(_bare(attributes, folder), indent=1))
    return _joined([
        "# Files",
        "An output is an OME-Zarr 0.5 group (Zarr v3) with the result in the array `0`, further resolutions in `1`, `2`, … "
        "where `--pyramid` made them. While it is written, `0/.journal/` holds a marker for each block that is committed; "
        "it goes when all are there, and `complete` becomes true. Other formats: [outputs.md](../outputs.md).",
        f"```\n{listed}\n```",
        "`zarr.json` of the group says what it is and how it came about. This is that of a run made for this page:",
        f"```json\n{shown}\n```",
        "`identity` is all that decides the bytes; the digest of it names the run, and a resume compares it.",
    ])  # fmt: skip


_IDENTITY = """latency_ms = 0
[spec]
name = "identity"
axes = "zyx"
channels_in = 1
channels_out = 1
activation = "none"
window = [8, 8, 8]
window_min = [4, 4, 4]
window_step = [4, 4, 4]
margin = [0, 0, 0]
"""


def _brief(text: str) -> str:
    """JSON with short lists in one line, and long texts cut."""
    while (shorter := re.sub(r"\[\s*([^][{}]{1,200}?)\s*\]", _in_one_line, text)) != text:
        text = shorter
    return re.sub(r"^(.{110}).+$", r"\1…", text, flags=re.M).replace("\x00", "[").replace("\x01", "]")


def _in_one_line(match: re.Match[str]) -> str:
    return f"\x00{' '.join(match[1].split())}\x01"


def _bare(value: object, folder: str) -> object:
    """Without what is of this machine alone."""
    if isinstance(value, dict):
        return {key: _bare(part, folder) for key, part in value.items()}
    if isinstance(value, list):
        return [_bare(part, folder) for part in value]
    return value.replace(f"{folder}/", "") if isinstance(value, str) else value


# --- Markdown ---


def _joined(parts: list[str]) -> str:
    return "\n\n".join(part for part in parts if part.strip()) + "\n"


def _prose(text: str) -> str:
    """A docstring as Markdown: a paragraph that click keeps as it is becomes a block of code."""
    found = []
    for part in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if part.startswith("\b"):
            found.append("```\n" + inspect.cleandoc(part.removeprefix("\b").strip("\n")) + "\n```")
        else:
            found.append(_escaped(part))
    return "\n\n".join(found)


def _escaped(text: str) -> str:
    return (
        text.replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
        if "`" not in text
        else text.replace("<", "&lt;")
    )


def _cell(text: str) -> str:
    return _escaped(" ".join(text.split())).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{text}`" if text else ""  # a bar within code parts no cells
