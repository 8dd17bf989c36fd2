"""The description of a bioimage.io model (``rdf.yaml``), format 0.4 or 0.5, as one kind of value.

https://github.com/bioimage-io/spec-bioimage-io describes both. Nothing is looked up in the net.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from unet_engine.errors import ModelError, first_line
from unet_export.importers.files import Files

NAMES = ("rdf.yaml", "bioimageio.yaml", "model.yaml")
_ENDINGS = (".rdf.yaml", ".bioimageio.yaml", "_rdf.yaml", "_bioimageio.yaml")
_LETTERS = {"b": "batch", "c": "channel", "t": "time", "i": "index"}


_KINDS = ("batch", "channel", "space", "time", "index")


@dataclass(frozen=True)
class Axis:
    """An axis of a tensor, in the order of the array."""

    id: str
    """``z``, ``y`` or ``x`` of space; else its kind, or its name in 0.5."""
    kind: str
    """``batch``, ``channel``, ``space``, ``time`` or ``index``."""
    size: int | None = None
    """Where it is fixed."""
    least: int | None = None
    step: int | None = None
    """Where it is free: least + n * step."""
    like: str | None = None
    """Axis of the input that the size follows, in 0.5."""
    scale: float = 1.0
    """0.4, outputs: size = scale * that of the input's axis + 2 * offset. 0.5: extent of a voxel in `unit`."""
    offset: float = 0.0
    halo: int = 0
    unit: str | None = None
    names: tuple[str, ...] = ()
    """Of channels."""


@dataclass(frozen=True)
class Step:
    """One operation before or behind the network."""

    name: str
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class Tensor:
    id: str
    axes: tuple[Axis, ...]
    dtype: str
    steps: tuple[Step, ...]
    test: str | None
    """File of the test tensor."""
    test_sha256: str | None = None
    classes: tuple[str, ...] = ()
    """Names of what values mean, where the description says."""

    def axis(self, kind: str) -> Axis | None:
        return next((axis for axis in self.axes if axis.kind == kind), None)


@dataclass(frozen=True)
class Entry:
    """One format of the weights."""

    format: str
    source: str
    sha256: str | None
    said: Mapping[str, Any]


@dataclass(frozen=True)
class Description:
    path: str
    """Of the source, for people."""
    format: str
    """Version of the description, e.g. 0.5.4."""
    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    weights: Mapping[str, Entry]
    licence: str = ""
    authors: tuple[str, ...] = ()
    citation: tuple[str, ...] = ()
    version: str = ""
    tolerance: tuple[float, float] | None = None
    """Relative and absolute, of its test tensors."""
    said: Mapping[str, Any] = field(default_factory=dict)


def file_of(names: list[str]) -> str | None:
    """Which of the files describes the model; None where none does."""
    top = [name for name in names if "/" not in name]
    for known in NAMES:
        if known in top:
            return known
    others = [name for name in top if name.lower().endswith(_ENDINGS)]
    return others[0] if len(others) == 1 else None


def described(files: Files, file: str) -> Description:
    """Read the description `file`. Raises `ModelError` naming what is missing or not understood."""
    said = files.mapping(file)
    version = str(said.get("format_version", ""))
    if said.get("type", "model") != "model":
        raise ModelError(f"{files.path} describes a {said.get('type')}, no model; give a package of a model")
    reader = _V5 if version.startswith("0.5.") else _V4 if version.startswith("0.4.") else None
    if reader is None:
        raise ModelError(
            f"{files.path} is of bioimage.io's format {version or 'without a number'}, and 0.4 and 0.5 are read; bring it "
            "up to date with: bioimageio update-format"
        )
    try:
        return reader(files, said).description(version)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelError(
            f"{files.path}: its description {file} is not valid: {_what(error)}; check it with: bioimageio validate-format"
        ) from error


def _what(error: Exception) -> str:
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) and error.args else first_line(error)


class _Reader:
    """What both formats say alike."""

    def __init__(self, files: Files, said: Mapping[str, Any]) -> None:
        self.files, self.said = files, said

    def inputs(self) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def outputs(self) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def description(self, version: str) -> Description:
        said = self.said
        return Description(
            path=str(self.files.path),
            format=version,
            name=str(said["name"]),
            inputs=self.inputs(),
            outputs=self.outputs(),
            weights={str(k): _entry(str(k), v) for k, v in dict(said.get("weights") or {}).items() if v},
            licence=str(said.get("license") or ""),
            authors=tuple(str(a["name"]) for a in said.get("authors") or () if a.get("name")),
            citation=tuple(_cited(c) for c in said.get("cite") or ()),
            version=str(said.get("version") or ""),
            tolerance=_tolerance(said),
            said=said,
        )


def _entry(name: str, said: Mapping[str, Any]) -> Entry:
    return Entry(name, str(said["source"]), said.get("sha256"), said)


def _cited(said: Mapping[str, Any]) -> str:
    where = said.get("doi") or said.get("url") or ""
    return " ".join(" ".join(str(part).split()) for part in (said.get("text"), where) if part)


def _tolerance(said: Mapping[str, Any]) -> tuple[float, float] | None:
    listed = ((said.get("config") or {}).get("bioimageio") or {}).get("reproducibility_tolerance") or ()
    if not isinstance(listed, list) or not listed:
        return None
    first = listed[0]
    return float(first.get("relative_tolerance", 1e-3)), float(first.get("absolute_tolerance", 1e-3))


def _steps(listed: Any, key: str) -> tuple[Step, ...]:
    return tuple(Step(str(s.get(key) or s["name"]), dict(s.get("kwargs") or {})) for s in listed or ())


class _V4(_Reader):
    def inputs(self) -> tuple[Tensor, ...]:
        tests = self.said.get("test_inputs") or ()
        return tuple(
            self._tensor(said, self._input_axes(said), "preprocessing", tests, i)
            for i, said in enumerate(self.said["inputs"])
        )

    def outputs(self) -> tuple[Tensor, ...]:
        tests = self.said.get("test_outputs") or ()
        return tuple(
            self._tensor(said, self._output_axes(said), "postprocessing", tests, i)
            for i, said in enumerate(self.said["outputs"])
        )

    def _tensor(self, said: Mapping[str, Any], axes: tuple[Axis, ...], steps: str, tests: Any, index: int) -> Tensor:
        test = str(tests[index]) if index < len(tests) else None
        return Tensor(
            str(said["name"]), axes, str(said.get("data_type", "float32")), _steps(said.get(steps), "name"), test
        )

    def _input_axes(self, said: Mapping[str, Any]) -> tuple[Axis, ...]:
        letters, shape = str(said["axes"]), said["shape"]
        if isinstance(shape, list):
            return tuple(Axis(a, _kind(a), size=int(n)) for a, n in zip(letters, shape, strict=True))
        free = zip(letters, shape["min"], shape["step"], strict=True)
        return tuple(
            Axis(a, _kind(a), least=int(n), step=int(s)) if s else Axis(a, _kind(a), size=int(n)) for a, n, s in free
        )

    def _output_axes(self, said: Mapping[str, Any]) -> tuple[Axis, ...]:
        letters, shape = str(said["axes"]), said["shape"]
        halo = [int(h) for h in said.get("halo") or [0] * len(letters)]
        if isinstance(shape, list):
            return tuple(Axis(a, _kind(a), size=int(n), halo=h) for a, n, h in zip(letters, shape, halo, strict=True))
        follow = zip(letters, shape["scale"], shape["offset"], halo, strict=True)
        return tuple(
            Axis(a, _kind(a), like=a, scale=float(s), offset=float(o), halo=h) if s
            else Axis(a, _kind(a), size=int(2 * float(o)) or None, halo=h)
            for a, s, o, h in follow
        )  # fmt: skip


def _kind(letter: str) -> str:
    if letter not in "bctizyx":
        raise ValueError(f"the axis {letter!r} is none of bctizyx")
    return _LETTERS.get(letter, "space")


class _V5(_Reader):
    def inputs(self) -> tuple[Tensor, ...]:
        return tuple(self._tensor(said, "preprocessing", "input") for said in self.said["inputs"])

    def outputs(self) -> tuple[Tensor, ...]:
        return tuple(self._tensor(said, "postprocessing", "output") for said in self.said["outputs"])

    def _tensor(self, said: Mapping[str, Any], steps: str, name: str) -> Tensor:
        data = said.get("data") or {}
        kinds = data if isinstance(data, list) else [data]
        test = said.get("test_tensor") or {}
        if isinstance(test, str):
            test = {"source": test}
        return Tensor(
            str(said.get("id") or name),
            tuple(self._axis(axis) for axis in said["axes"]),
            str(kinds[0].get("type") or "float32"),
            _steps(said.get(steps), "id"),
            str(test["source"]) if test.get("source") else None,
            test.get("sha256"),
            tuple(str(v) for v in kinds[0].get("values") or ()),
        )

    def _axis(self, said: Mapping[str, Any]) -> Axis:
        kind = str(said["type"])
        if kind not in _KINDS:
            raise ValueError(f"an axis is of the type {kind[:40]!r}, which is none of {', '.join(_KINDS)}")
        default = {"space": "x"}.get(kind, kind)
        names = tuple(str(n) for n in said.get("channel_names") or ())
        size = said.get("size")
        fixed, least, step, like, offset = None, None, None, None, 0.0
        if kind == "channel":
            fixed = len(names) or None
        elif isinstance(size, int):
            fixed = size
        elif isinstance(size, Mapping) and "step" in size:
            least, step = int(size["min"]), int(size["step"])
        elif isinstance(size, Mapping) and "axis_id" in size:
            like, offset = str(size["axis_id"]), float(size.get("offset") or 0)
        return Axis(
            str(said.get("id") or default), kind, fixed, least, step, like, float(said.get("scale") or 1.0), offset,
            int(said.get("halo") or 0), said.get("unit"), names,
        )  # fmt: skip


def plain(source: str) -> str:
    """The file that a description names, which may be a URL once packed: by its last part."""
    return PurePosixPath(source.split("?", maxsplit=1)[0]).name if re.match(r"https?://", source) else source
