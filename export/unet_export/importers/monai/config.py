"""The configuration of a MONAI bundle: references, macros and expressions, without running any code.

Expressions (``$…``) of literals, references, arithmetic and a few harmless functions are computed here; all others need
the user's trust, and are then Python. https://docs.monai.io/en/stable/config_syntax.html
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from unet_engine.errors import ModelError, first_line

_REFERENCE = re.compile(r"@((?:#|::)*\w+(?:(?:#|::)\w+)*)")
_DEEPEST = 60
_MOST_VALUES = 100_000
"""That one value may be made of."""
_MOST = 10**12
"""Largest number, and longest list, that an expression may make."""
_BINARY: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
_COMPARED: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.Is: operator.is_, ast.IsNot: operator.is_not, ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "len": len, "int": int, "float": float, "str": str, "bool": bool, "min": min, "max": max, "round": round, "abs": abs,
    "list": list, "tuple": tuple, "dict": dict, "sum": sum, "torch.device": lambda name, *_: str(name),
    "torch.cuda.is_available": lambda: False, "math.sqrt": lambda x: x**0.5,
}  # fmt: skip
_CONSTANT = re.compile(r"(?:monai\.networks\.layers\.)?(?:factories\.)?(?:Norm|Act|Pool|Conv|Dropout)\.([A-Z0-9_]+)")
"""Names of layers, which stand for the same words in lower case."""


@dataclass(frozen=True)
class Above:
    """``lambda x: x > limit``."""

    limit: float

    def __call__(self, x: Any) -> Any:
        return x > self.limit


class NeedsTrust(Exception):
    """An expression that is Python and would have to be run. Its text is the expression."""


class Config:
    """What the files of a configuration say together; later ones win."""

    def __init__(self, path: str, said: Mapping[str, Any], *, trusted: bool) -> None:
        self.path, self.said, self._trusted = path, said, trusted
        self._left = _MOST_VALUES

    def __contains__(self, name: str) -> bool:
        return name in self.said

    def names(self) -> list[str]:
        return list(self.said)

    def value(self, name: str) -> Any:
        """The value at `name`, ids joined by ``::``, all in it resolved; dictionaries with ``_target_`` stay what they
        are. Raises `NeedsTrust` for what would be code, `ModelError` for what is not there."""
        self._left = _MOST_VALUES
        try:
            return self._resolved(self._raw(name), 0)
        except RecursionError as error:
            raise self._circle() from error

    def _raw(self, name: str) -> Any:
        found: Any = self.said
        for part in re.split(r"::|#", name):
            try:
                found = found[int(part)] if isinstance(found, list) else found[part]
            except (KeyError, IndexError, ValueError, TypeError) as error:
                raise ModelError(
                    f"{self.path}: its configuration names @{name}, which is not there; get the bundle again"
                ) from error
            if isinstance(found, str) and found[:1] in ("@", "%") and _whole(found):
                found = self._raw(found[1:])
        return found

    def _resolved(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if depth > _DEEPEST or self._left < 0:
            raise self._circle()
        if isinstance(value, Mapping):
            return {key: self._resolved(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._resolved(inner, depth + 1) for inner in value]
        if not isinstance(value, str):
            return value
        if value.startswith("$"):
            return self._computed(value[1:], depth)
        if value[:1] in ("@", "%") and _whole(value):
            return self._resolved(self._raw(value[1:]), depth + 1)
        return value

    def _circle(self) -> ModelError:
        return ModelError(
            f"{self.path}: its configuration refers to itself in a circle, or says more than one does; get the bundle again"
        )

    # --- expressions ---

    def _computed(self, text: str, depth: int) -> Any:
        names: dict[str, str] = {}

        def named(match: re.Match[str]) -> str:
            return names.setdefault(match[1], f"_reference_{len(names)}")

        code = _REFERENCE.sub(named, text).strip()
        by_name = {variable: name for name, variable in names.items()}

        def look(variable: str) -> Any:
            return self._resolved(self._raw(by_name[variable]), depth + 1)

        try:
            tree = ast.parse(code, mode="eval")
            return _Evaluator(text, look, by_name).value(tree.body)
        except NeedsTrust:
            if self._trusted:
                return self._run(code, {variable: look(variable) for variable in by_name})
            raise
        except (
            SyntaxError,
            TypeError,
            ValueError,
            ArithmeticError,
            KeyError,
            IndexError,
            RecursionError,
            MemoryError,
        ) as e:
            raise ModelError(f"{self.path}: ${text[:100]} cannot be computed: {first_line(e)}; correct it") from e

    def _run(self, code: str, names: Mapping[str, Any]) -> Any:
        """Python, which the user trusts."""
        import monai
        import numpy
        import torch

        known = {"monai": monai, "torch": torch, "np": numpy, "numpy": numpy, **names}
        try:
            return eval(code, known)
        except Exception as error:
            raise ModelError(f"{self.path}: ${code[:100]} fails: {first_line(error)}; correct it") from error


def _whole(text: str) -> bool:
    return re.fullmatch(r"[@%](?:#|::)*\w+(?:(?:#|::)\w+)*", text) is not None


class _Evaluator:
    """Values of syntax trees that do nothing but compute."""

    def __init__(self, text: str, look: Callable[[str], Any], names: Mapping[str, str]) -> None:
        self._text, self._look, self._names = text, look, names

    def value(self, node: ast.AST) -> Any:
        kind = getattr(self, "_" + type(node).__name__.lower(), None)
        if kind is None:
            raise NeedsTrust(self._text)
        return self._bounded(kind(node))

    def _bounded(self, value: Any) -> Any:
        large = isinstance(value, int | float) and abs(value) > _MOST
        if large or (isinstance(value, str | list | tuple) and len(value) > 10_000):
            raise ValueError("it is too large")
        return value

    def _constant(self, node: ast.Constant) -> Any:
        return node.value

    def _tuple(self, node: ast.Tuple) -> Any:
        return tuple(self.value(n) for n in node.elts)

    def _list(self, node: ast.List) -> Any:
        return [self.value(n) for n in node.elts]

    def _dict(self, node: ast.Dict) -> Any:
        if None in node.keys:
            raise NeedsTrust(self._text)
        return {self.value(k): self.value(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}

    def _name(self, node: ast.Name) -> Any:
        if node.id not in self._names:
            raise NeedsTrust(self._text)
        return self._look(node.id)

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        value = self.value(node.operand)
        if isinstance(node.op, ast.Not):
            return not value
        return -value if isinstance(node.op, ast.USub) else +value

    def _binop(self, node: ast.BinOp) -> Any:
        left, right = self.value(node.left), self.value(node.right)
        if type(node.op) not in _BINARY:
            if isinstance(node.op, ast.Pow) and isinstance(right, int | float) and abs(right) <= 64:
                return left**right
            raise NeedsTrust(self._text)
        many = isinstance(node.op, ast.Mult) and any(isinstance(v, str | list | tuple) for v in (left, right))
        if many and any(isinstance(v, int) and v > 10_000 for v in (left, right)):
            raise ValueError("it is too large")
        if isinstance(node.op, ast.Mod) and isinstance(left, str):
            raise NeedsTrust(self._text)  # a width in a format may be anything
        return _BINARY[type(node.op)](left, right)

    def _lambda(self, node: ast.Lambda) -> Any:
        """What a threshold is told as; nothing else of functions is known."""
        names, body = [a.arg for a in node.args.args], node.body
        if not isinstance(body, ast.Compare) or len(names) != 1 or node.args.defaults:
            raise NeedsTrust(self._text)
        if len(body.ops) != 1 or not isinstance(body.ops[0], ast.Gt) or ast.unparse(body.left) != names[0]:
            raise NeedsTrust(self._text)
        limit = self.value(body.comparators[0])
        if not isinstance(limit, int | float):
            raise NeedsTrust(self._text)
        return Above(float(limit))

    def _boolop(self, node: ast.BoolOp) -> Any:
        value: Any = None
        for inner in node.values:
            value = self.value(inner)
            if bool(value) != isinstance(node.op, ast.And):
                return value
        return value

    def _compare(self, node: ast.Compare) -> Any:
        left = self.value(node.left)
        for kind, inner in zip(node.ops, node.comparators, strict=True):
            right = self.value(inner)
            if not _COMPARED[type(kind)](left, right):
                return False
            left = right
        return True

    def _ifexp(self, node: ast.IfExp) -> Any:
        return self.value(node.body if self.value(node.test) else node.orelse)

    def _subscript(self, node: ast.Subscript) -> Any:
        held = self.value(node.value)
        if isinstance(node.slice, ast.Slice):
            ends = [None if n is None else self.value(n) for n in (node.slice.lower, node.slice.upper, node.slice.step)]
            return held[slice(*ends)]
        return held[self.value(node.slice)]

    def _attribute(self, node: ast.Attribute) -> Any:
        constant = _CONSTANT.fullmatch(ast.unparse(node))
        if constant is None:
            raise NeedsTrust(self._text)
        return constant[1].lower()

    def _call(self, node: ast.Call) -> Any:
        function = _FUNCTIONS.get(ast.unparse(node.func))
        if function is None or node.keywords or any(isinstance(a, ast.Starred) for a in node.args):
            raise NeedsTrust(self._text)
        return function(*(self.value(a) for a in node.args))
