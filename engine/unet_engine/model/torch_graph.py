"""What a `.pt2` or TorchScript file computes at its end, read from its text: nothing of the file is run or unpickled.

A `.pt2` holds its graph as JSON; a TorchScript holds the code of its modules, in a form of Python that can be parsed.
Both become a list of steps, of which those that matter are told as their ONNX counterparts, so that one reader knows
what bounds outputs.
"""

from __future__ import annotations

import ast
import json
import pickletools
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unet_engine.model import torch_constants
from unet_engine.model.ending import UNPROVED, Ending

_KINDS = {
    "sigmoid": "Sigmoid", "sigmoid_": "Sigmoid", "softmax": "Softmax", "_softmax": "Softmax",
    "log_softmax": "LogSoftmax",
    "_log_softmax": "LogSoftmax", "hardsigmoid": "HardSigmoid", "hardsigmoid_": "HardSigmoid", "clamp": "Clip",
    "clamp_": "Clip",
    "hardtanh": "Clip", "hardtanh_": "Clip",
    "relu": "Relu", "relu_": "Relu", "tanh": "Tanh", "exp": "Exp", "neg": "Neg", "argmax": "ArgMax",
    "special_expit": "Sigmoid",
    "round": "Round", "round_": "Round", "floor": "Floor", "floor_": "Floor", "ceil": "Ceil",
    "gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual", "eq": "Equal", "ne": "Not",
    "logical_not": "Not", "logical_and": "And", "logical_or": "Or", "logical_xor": "Xor",
    "clone": "Identity", "contiguous": "Identity", "detach": "Identity", "to": "Identity", "_to_copy": "Identity",
    "dropout": "Identity",
    "alias": "Identity", "float": "Identity", "double": "Identity", "upsample_nearest2d": "Identity",
    "upsample_nearest3d": "Identity",
    "upsample_bilinear2d": "Identity", "upsample_trilinear3d": "Identity",
    "add": "Add", "add_": "Add", "sub": "Sub", "sub_": "Sub", "rsub": "From", "mul": "Mul", "mul_": "Mul", "div": "Div",
    "div_": "Div", "pow": "Pow", "cat": "Concat", "slice": "Slice", "softplus": "Softplus",
    "abs": "Abs", "erf": "Erf", "sqrt": "Sqrt",
}  # fmt: skip
"""PyTorch's operators, by ONNX's."""
_ALONG = ("Softmax", "LogSoftmax", "Concat")
_OF_TWO = ("Add", "Sub", "Mul", "Div", "Pow")
"""Operators that take two tensors, or a tensor and a number."""
_OF_MANY = (*_OF_TWO, "Other")
_ARGUMENTS = {
    "clamp": ("min", "max"), "hardtanh": ("min_val", "max_val"), "pow": ("exponent",),
    **dict.fromkeys(("add", "sub", "mul", "div", "rsub"), ("other",)),
}  # fmt: skip
"""Arguments that are numbers and count, by operator."""
_DROPOUTS = ("dropout", "dropout_", "feature_dropout", "feature_dropout_", "alpha_dropout", "native_dropout")
_DRAWN = ("bernoulli", "bernoulli_", "rand", "rand_like", "randn", "randn_like", "normal_", "uniform_")
LARGEST = 2**26
"""Bytes of a text in an archive that is read; none of a network is larger."""
MOST_CALLS = 10_000
"""Calls of modules that are followed."""
_DEEPEST = 64
"""Modules inside one another that are followed."""


@dataclass
class Steps:
    """What is computed, in order: ONNX's name of an operator, what goes in, what comes out, its axis or bounds."""

    nodes: list[tuple[str, list[str], str, tuple[Any, ...]]] = field(default_factory=list)
    outputs: list[tuple[str, str, tuple[int, ...]]] = field(default_factory=list)
    """Name by which people ask for an output, its tensor, and its shape where it was saved; empty where it is not
    known."""
    given: tuple[int, ...] = ()
    """Shape of the input that it was saved with."""
    batch: int | None = None
    """The one batch it takes; None where it takes any, or where that is not known."""
    drawn: str = ""
    """An operator that draws random numbers, as a dropout does in training; empty where none is known."""

    def about_chance(self, operator: str, trains: object) -> None:
        """Keep `operator` where it draws numbers: a dropout does where it `trains`."""
        if operator in _DRAWN or (operator in _DROPOUTS and trains is True):
            self.drawn = operator.strip("_")

    def add(self, operator: str, tensors: list[str], numbers: tuple[Any, ...]) -> str:
        name = f"t{len(self.nodes)}"
        kind = _KINDS.get(operator, "Other")
        said = [n for n in numbers if isinstance(n, (int, float))]
        if kind == "Slice" and said and said[0] != 1:  # of the image, not of the channels
            kind = "Identity"
        if (kind in _OF_TWO and len(tensors) + len(said[:1]) != 2) or (kind == "From" and not said):
            kind = "Other"
        self.nodes.append((kind, tensors, name, numbers))
        return name


def steps_of(path: Path, kind: str) -> Steps:
    """The steps of the file at `path`, a "pt2" or "torchscript"; none where it cannot be followed."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _program(archive) if kind == "pt2" else _Script(archive).steps()
    except Exception:  # files of other versions are written in other ways; nothing is known of them then
        return Steps()


def _text(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > LARGEST:
        raise ValueError(f"{name} is too large")
    return archive.read(name)


def ending_of(steps: Steps, tensor: str, rank: int) -> Ending:
    """What bounds a tensor of the steps, which has `rank` axes."""
    from onnx import helper

    from unet_engine.model.onnx_ending import ending

    if not tensor:
        return UNPROVED
    nodes, weights = [], []
    for operator, given, made, numbers in steps.nodes:
        if operator in _ALONG:
            axis = numbers[0] if numbers and isinstance(numbers[0], int) else 1  # what PyTorch takes of images
            nodes.append(helper.make_node(operator, given, [made], axis=axis % rank))
        elif operator == "Clip":
            bounds = [n if isinstance(n, (int, float)) else None for n in (*numbers, None, None)[:2]]
            names = ["" if b is None else f"{made}.{i}" for i, b in enumerate(bounds)]
            weights += [
                helper.make_tensor(n, 1, [], [float(b)]) for n, b in zip(names, bounds, strict=True) if b is not None
            ]
            nodes.append(helper.make_node("Clip", [*given[:1], *names], [made]))
        elif operator in _OF_TWO and (numbers := tuple(n for n in numbers if isinstance(n, (int, float)))):
            weights.append(helper.make_tensor(f"{made}.0", 1, [], [float(numbers[0])]))
            nodes.append(helper.make_node(operator, [*given[:1], f"{made}.0"], [made]))
        elif operator == "From":  # a number minus a tensor
            weights.append(helper.make_tensor(f"{made}.0", 1, [], [float(numbers[0])]))
            nodes.append(helper.make_node("Sub", [f"{made}.0", *given[:1]], [made]))
        else:
            nodes.append(helper.make_node(operator, given if operator in _OF_MANY else given[:1], [made]))
    graph = helper.make_graph(nodes, "steps", [], [], weights)
    shapes = {made: [0] * rank for _, _, made, _ in steps.nodes}
    return ending(graph, 17, shapes, tensor)


# --- .pt2 ---


def _program(archive: zipfile.ZipFile) -> Steps:
    name = next(n for n in archive.namelist() if n.endswith(("models/model.json", "serialized_exported_program.json")))
    whole = json.loads(_text(archive, name))["graph_module"]
    steps, sizes = Steps(), whole["graph"]["tensor_values"]
    known: dict[str, str] = {}
    for node in whole["graph"]["nodes"]:
        said = {i["name"]: i["arg"] for i in node["inputs"]}
        given = [known.get(t, t) for arg in said.values() for t in _tensors(arg)]
        operator = node["target"].removeprefix("torch.ops.aten.").split(".")[0]
        keys = _ARGUMENTS.get(operator.rstrip("_"), ("dim",))
        numbers = tuple(next(iter(said[k].values())) if k in said else None for k in keys)
        steps.about_chance(operator, (said.get("train") or {}).get("as_bool"))
        if "alpha" in said or "rounding_mode" in said:  # something is scaled or rounded on the way
            operator = ""
        for out in node["outputs"]:
            if (tensor := _tensor(out)) is not None:
                known[tensor] = steps.add(operator, given, numbers)
    asked = [i["user_input"]["arg"] for i in whole["signature"]["input_specs"] if "user_input" in i]
    last = [o["user_output"]["arg"] for o in whole["signature"]["output_specs"] if "user_output" in o]
    tensors = [t for arg in last if (t := _tensor(arg)) is not None]
    shape = json.loads(whole["module_call_graph"][0]["signature"]["out_spec"])
    names = _leaves(shape[1], "")
    steps.outputs = [(n or "0", known.get(t, t), _sizes(sizes[t])) for n, t in zip(names, tensors, strict=True)]
    image = sizes[_tensor(asked[0])]
    steps.given, steps.batch = _sizes(image), image["sizes"][0].get("as_int")
    return steps


def _sizes(tensor: dict[str, Any]) -> tuple[int, ...]:
    """As they were when it was saved; empty where one is not told."""
    found = [s.get("as_int") or ((s.get("as_expr") or {}).get("hint") or {}).get("as_int") for s in tensor["sizes"]]
    known = [n for n in found if isinstance(n, int)]
    return tuple(known) if len(known) == len(found) else ()


def _tensor(argument: dict[str, Any]) -> str | None:
    held = argument.get("as_tensor")
    return held["name"] if isinstance(held, dict) else None


def _tensors(argument: dict[str, Any]) -> list[str]:
    one = _tensor(argument)
    return [one] if one is not None else [t["name"] for t in argument.get("as_tensors") or []]


def _leaves(spec: dict[str, Any], name: str) -> list[str]:
    """Names of the tensors in what a program returns: keys, and places in lists, joined by points."""
    if spec["type"] is None:
        return [name]
    keys = json.loads(spec["context"]) if spec["type"].endswith("dict") else range(len(spec["children_spec"]))
    pairs = zip(keys, spec["children_spec"], strict=True)
    return [leaf for key, child in pairs for leaf in _leaves(child, f"{name}.{key}".lstrip("."))]


# --- TorchScript ---


class _Script:
    """Follows the code of a TorchScript from module to module."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._root = next(n for n in archive.namelist() if n.endswith("/data.pkl")).split("/")[0]
        self._classes: dict[str, ast.ClassDef] = {}
        self._steps, self._calls = Steps(), 0
        self._constants = torch_constants.numbers(archive, self._root)

    def steps(self) -> Steps:
        held = _text(self._archive, f"{self._root}/data.pkl")
        words = next(str(arg) for op, arg, _ in pickletools.genops(held) if op.name == "GLOBAL").split(" ")
        returned = self._forward(".".join(words), ["input"], 0)
        pairs = _named(returned, "")
        self._steps.outputs = [(n or "0", t if isinstance(t, str) else "", ()) for n, t in pairs]
        return self._steps

    def _class(self, name: str) -> ast.ClassDef:
        if name not in self._classes:
            module = name.rpartition(".")[0].replace(".", "/")
            tree = ast.parse(_text(self._archive, f"{self._root}/code/{module}.py"))
            self._classes |= {
                f"{name.rpartition('.')[0]}.{c.name}": c for c in tree.body if isinstance(c, ast.ClassDef)
            }
        return self._classes[name]

    def _forward(self, name: str, given: Sequence[Any], depth: int) -> Any:
        """What ``forward`` of the class returns: a name of a tensor, or tuples, lists and dicts of such."""
        self._calls += 1
        if self._calls > MOST_CALLS:
            raise ValueError("modules call one another without end")
        held = self._class(name)
        modules = dict(_annotations(held))
        method = next(m for m in held.body if isinstance(m, ast.FunctionDef) and m.name == "forward")
        names = [a.arg for a in method.args.args][1:]
        values = {"CONSTANTS": self._constants, **dict(zip(names, given, strict=False))}
        body = _Body(self._steps, modules, values, self._call(depth))
        return body.run(method.body)

    def _call(self, depth: int) -> Callable[[str, Sequence[Any]], Any]:
        def call(name: str, given: Sequence[Any]) -> Any:
            return self._forward(name, given, depth + 1) if depth < _DEEPEST else None

        return call


@dataclass(frozen=True)
class _Module:
    type: str


@dataclass(frozen=True)
class _Function:
    name: str


@dataclass(frozen=True)
class _Text:
    """A string, which is no name of a tensor."""

    text: str


class _Body:
    """The statements of one ``forward``. What it does not know gives None, as a tensor of which nothing is known."""

    def __init__(
        self, steps: Steps, modules: dict[str, str], values: dict[str, Any], call: Callable[[str, Sequence[Any]], Any]
    ) -> None:
        self._steps, self._modules, self._values, self._call = steps, modules, values, call

    def run(self, statements: Sequence[ast.stmt]) -> Any:
        """What is returned; None where nothing is, or where it is not known."""
        return self._through(statements)[1]

    def _through(self, statements: Sequence[ast.stmt]) -> tuple[bool, Any]:
        """Whether something was returned, and what."""
        for s in statements:
            if isinstance(s, ast.Return):
                return True, self._value(s.value)
            if isinstance(s, (ast.Assign, ast.AnnAssign)) and s.value is not None:
                found = self._value(s.value)
                for target in s.targets if isinstance(s, ast.Assign) else [s.target]:
                    self._keep(target, found)
            elif isinstance(s, ast.If) and isinstance(decided := self._value(s.test), bool):
                done = self._through(s.body if decided else s.orelse)
                if done[0]:
                    return done
            elif self._forget(s):
                return True, None
        return False, None

    def _forget(self, statement: ast.stmt) -> bool:
        """What is set in a branch or a loop may be anything afterwards; says whether one may return there."""
        inside = list(ast.walk(statement))
        self._values |= {n.id: None for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        return any(isinstance(n, ast.Return) for n in inside)

    def _keep(self, target: ast.expr, found: Any) -> None:
        if isinstance(target, ast.Name):
            self._values[target.id] = found
        elif isinstance(target, (ast.Tuple, ast.List)):
            parts = (
                found
                if isinstance(found, (tuple, list)) and len(found) == len(target.elts)
                else [None] * len(target.elts)
            )
            for one, part in zip(target.elts, parts, strict=True):
                self._keep(one, part)

    def _value(self, node: ast.expr | None) -> Any:
        rule = getattr(self, f"_of_{type(node).__name__.lower()}", None)
        return rule(node) if rule else None

    def _of_name(self, node: ast.Name) -> Any:
        return self._values.get(node.id)

    def _of_constant(self, node: ast.Constant) -> Any:
        return node.value if isinstance(node.value, (int, float)) else _Text(str(node.value)) if node.value else None

    def _of_unaryop(self, node: ast.UnaryOp) -> Any:
        found = self._value(node.operand)
        return -found if isinstance(node.op, ast.USub) and isinstance(found, (int, float)) else None

    def _of_tuple(self, node: ast.Tuple | ast.List) -> Any:
        return [self._value(e) for e in node.elts]

    _of_list = _of_tuple

    def _of_dict(self, node: ast.Dict) -> Any:
        keys = [str(k.value) if isinstance(k, ast.Constant) else "" for k in node.keys]
        return dict(zip(keys, map(self._value, node.values), strict=True))

    def _of_attribute(self, node: ast.Attribute) -> Any:
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            return self._member(node.attr)
        if isinstance(node.value, ast.Name) and node.value.id == "CONSTANTS":
            return self._values["CONSTANTS"].get(node.attr)
        return _Function(node.attr) if _is_torch(node.value) else None

    def _member(self, name: str) -> Any:
        """Networks run in eval mode."""
        return False if name == "training" else _Module(self._modules.get(name, ""))

    def _of_call(self, node: ast.Call) -> Any:
        return self._called(node)

    def _called(self, node: ast.Call) -> Any:
        function = node.func
        given = [self._value(a) for a in node.args]
        found = self._value(function)
        if isinstance(found, _Function):
            changed = any(k.arg in ("alpha", "rounding_mode") for k in node.keywords)
            return self._computed("" if changed else found.name, given)
        if isinstance(function, ast.Name):
            return self._builtin(function.id, node, given)
        owner = self._value(function.value) if isinstance(function, ast.Attribute) else None
        runs = isinstance(function, ast.Attribute) and function.attr == "forward"
        return self._call(owner.type, given) if runs and isinstance(owner, _Module) else None

    def _computed(self, operator: str, given: list[Any]) -> Any:
        if operator == "__not__":
            return not given[0] if isinstance(given[0], bool) else None
        first, *others = given
        self._steps.about_chance(operator, others[1] if len(others) > 1 else None)
        held = first if isinstance(first, list) else [first, *(v for v in others if isinstance(v, str))]
        tensors = [v if isinstance(v, str) else "" for v in held]
        numbers = tuple(v for v in others if v is None or isinstance(v, (int, float)))
        return self._steps.add(operator, tensors, numbers)

    def _builtin(self, name: str, node: ast.Call, given: list[Any]) -> Any:
        if name == "getattr" and isinstance(member := node.args[1], ast.Constant):
            return self._member(str(member.value))
        return (
            given[-1]
            if name in ("annotate", "unchecked_cast") or (name == "bool" and isinstance(given[0], bool))
            else None
        )


def _is_torch(node: ast.expr) -> bool:
    """Whether functions there are PyTorch's: operators, or those of ``torch.nn.functional`` written out."""
    written = ast.unparse(node)
    return written == "torch" or written.startswith("__torch__.torch.nn.functional")


def _annotations(held: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Names of modules in a class, and their types: ``name : type``, or where it is no name ``__annotations__["0"] =
    type``."""
    for s in held.body:
        if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name):
            yield s.target.id, ast.unparse(s.annotation)
        elif (
            isinstance(s, ast.Assign)
            and isinstance(t := s.targets[0], ast.Subscript)
            and isinstance(t.slice, ast.Constant)
        ):
            yield str(t.slice.value), ast.unparse(s.value)


def _named(found: Any, name: str) -> list[tuple[str, Any]]:
    if isinstance(found, (list, tuple)):
        return [pair for i, v in enumerate(found) for pair in _named(v, f"{name}.{i}".lstrip("."))]
    if isinstance(found, dict):
        return [pair for k, v in found.items() for pair in _named(v, f"{name}.{k}".lstrip("."))]
    return [(name, found)]
