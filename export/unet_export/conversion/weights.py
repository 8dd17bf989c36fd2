"""The weights of a network in whatever a training framework saved: read without running what is in the file, found
under any key and any prefix, put into the network all of them or not at all."""

from __future__ import annotations

import copy
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unet_engine.errors import ModelError, first_line
from unet_engine.units import Tell, times
from unet_export.conversion import safetensors_file, sharded

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What compiling and sharding put into names, at any depth."""
_PLAIN = frozenset({"state", "dict", "model", "network", "net", "weights", "params", "module"})
"""Words of the keys and prefixes under which frameworks keep the one network they trained."""
_STATISTICS = ("running_mean", "running_var")
"""Buffers that training fills: a factory's are not those of the network that was trained."""
_COUNTER = "num_batches_tracked"
"""A buffer that no output depends on."""
_UNKNOWN = re.compile(r"Unsupported global: GLOBAL (\S+) was not")
_BLOCKED = re.compile(r"unsupported GLOBAL (\S+) whose module")
_MOST_UNKNOWN = 200
_DICTIONARIES = (".AttributeDict", ".DotDict", ".Munch", ".AttrDict")
"""Ends of classes that are dictionaries."""


class _Inert:
    """Stands for an object of a class that the reader does not know: it keeps what the file says of it and does
    nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


@dataclass(frozen=True)
class Weights:
    """The tensors of a file by the path to them, keys joined by dots."""

    path: Path
    tensors: dict[str, Tensor]
    holders: dict[str, str]
    """By tensor: the path of the dictionary it lies in."""
    module: str = ""
    """Class of the network, where one was pickled whole."""


def read_weights(path: Path) -> Weights:
    """What the file at `path` holds. No code in it runs: objects of unknown classes are passed over.

    Raises `ModelError` where it is no PyTorch file, or has no tensor with a name.
    """
    return weights_in(path, read_plain(path))


def weights_in(path: Path, held: Any) -> Weights:
    """The tensors in `held`, which the file at `path` holds. Raises `ModelError` where it has none with a name."""
    weights = Weights(path, {}, {}, type(held).__name__.rpartition(".")[2] if isinstance(held, _Inert) else "")
    within = {str(i): one for i, one in enumerate(held)} if isinstance(held, list | tuple) else held
    _collect(within, "", "", weights, frozenset())
    if not weights.tensors:
        keys = ", ".join(map(str, held)) if isinstance(held, Mapping) else f"a {type(held).__name__}"
        raise ModelError(f"{path} holds no weights by name, only {keys or 'nothing'}; save net.state_dict()")
    return weights


def read_data(path: Path) -> Any:
    """What the file at `path` holds beside its tensors: dictionaries, lists and plain values, where objects of other
    classes were pickled what they said of themselves. No code in it runs. Raises `ModelError` as `read_weights`."""
    return _plain(read_plain(path), _DEEPEST)


_DEEPEST = 40


def _plain(held: Any, depth: int) -> Any:
    if depth == 0:
        return None
    if isinstance(held, _Inert):
        inside = vars(held)
        # omegaconf keeps values in nodes
        return _plain(inside.get("_content", inside.get("_val", inside)), depth - 1)
    if isinstance(held, Mapping):
        return {key: _plain(value, depth - 1) for key, value in held.items() if isinstance(key, str)}
    if isinstance(held, list | tuple):
        return [_plain(value, depth - 1) for value in held]
    return held


def read_plain(path: Path) -> Any:
    """What the file at `path` holds: tensors, plain values, numbers of NumPy, and inert objects in place of all others.

    Raises `ModelError` where it is no PyTorch file, or one of several parts of weights; their index stands for all."""
    if sharded.is_index(path):
        return sharded.tensors_of(path, _read_one)
    sharded.check_alone(path)
    return _read_one(path)


def _read_one(path: Path) -> Any:
    if path.suffix.lower() == ".safetensors":
        return safetensors_file.tensors_of(path)
    known: list[Any] = _numpy_types()
    for _ in range(_MOST_UNKNOWN):
        try:
            with torch.serialization.safe_globals(known), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            unknown = _UNKNOWN.search(str(error))
            if unknown is None:
                raise ModelError(f"{path} cannot be read as plain weights: {_why(path, error)}") from error
            name = unknown[1] if "." in unknown[1] else f"builtins.{unknown[1]}"
            kind = dict if name.endswith(_DICTIONARIES) else type(name, (_Inert,), {})
            known.append((kind, name))
    raise ModelError(f"{path} cannot be read as plain weights: too much else is in it; save net.state_dict() alone")


_NO_WEIGHTS = {
    b"version https://git-lfs": "it is a pointer of Git LFS; fetch the file itself, e.g. with git lfs pull",
    b"<": "it is a web page or XML; download the file itself",
    b"{": "it is JSON; give the file of the weights that lies beside it",
    b"\x80": "it is a plain pickle or cut short; save net.state_dict() with torch.save",
}
"""What a file is that begins so, and what to do."""


def _why(path: Path, error: Exception) -> str:
    """Why PyTorch cannot read the file; its own advice is to run what is in it."""
    with path.open("rb") as file:
        start = file.read(64)
    if start[:2] == b"PK":
        blocked = _BLOCKED.search(str(error))
        why = f"{blocked[1]} in it is code that would run, and is not" if blocked else first_line(error)
        return f"{why}; save net.state_dict() alone"
    if not start:
        return "it is empty; download or save it again"
    other = "it is no file of torch.save; save net.state_dict() with it"
    return next((what for begins, what in _NO_WEIGHTS.items() if start.startswith(begins)), other)


def _numpy_types() -> list[Any]:
    """What numbers and arrays of NumPy are pickled with: it makes arrays and nothing else."""
    scalar, rebuild = np._core.multiarray.scalar, np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    homes = ("numpy.core.multiarray", "numpy._core.multiarray")
    functions = [(f, f"{home}.{f.__name__}") for f in (scalar, rebuild) for home in homes]
    kinds = [(type(np.dtype(code)), f"numpy.dtypes.{type(np.dtype(code)).__name__}") for code in "?bBhHiIlLqQefdUS"]
    return [*functions, (np.dtype, "numpy.dtype"), (np.ndarray, "numpy.ndarray"), *kinds]


def _collect(held: Any, at: str, holder: str, weights: Weights, around: frozenset[int]) -> None:
    """Add every tensor in `held`, which lies at the path `at`, in the dictionary or the module `holder`, and in what is
    `around` it, which it may name again: nodes of omegaconf know what they lie in."""
    if id(held) in around:
        return
    around |= {id(held)}
    module = isinstance(held, _Inert) and isinstance(vars(held).get("_modules"), Mapping)
    for key, value in _items(held):
        path = _WRAPPERS.sub("", f"{at}{key}")
        array = torch.from_numpy(value) if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" else value
        if isinstance(array, Tensor):
            weights.tensors[path], weights.holders[path] = array, holder
        else:
            inside = _WRAPPERS.sub("", f"{path}.")
            _collect(value, inside, holder if module else inside, weights, around)


def _items(held: Any) -> list[tuple[str, Any]]:
    """What is in a dictionary, or in an object; of a module its parameters, buffers and parts."""
    if isinstance(held, Mapping):
        return [(key, value) for key, value in held.items() if isinstance(key, str)]
    inside = vars(held) if isinstance(held, _Inert) else {}
    parts = [inside[kind] for kind in ("_parameters", "_buffers", "_modules") if isinstance(inside.get(kind), Mapping)]
    return [item for part in parts for item in part.items()] if parts else list(inside.items())


# --- into the network ---


def fill(
    network: nn.Module,
    weights: Weights,
    key: str | None = None,
    tell: Tell = print,
    check: str = "--arguments and --factory",
) -> None:
    """Put the tensors of `weights` into `network`, all that it has; `key` names those that are meant (a key of the file
    or a prefix of names) where several fit. What was decided is told. `check`: what built the network, to be looked at
    where nothing fits.

    Raises `ModelError` naming what is missing, left over or of another shape, and where several sets fit.
    """
    wanted = _Wanted(network)
    counts = wanted.prefixes(weights.tensors)
    whole = [prefix for prefix, count in counts.items() if count == len(wanted.required)]
    if not whole:
        if _by_its_own_rules(network, weights):
            return
        raise ModelError(_lacking(weights, wanted, counts, check))
    prefix = _chosen(weights, wanted, whole, key, tell)
    given = {name: weights.tensors[prefix + name] for name in wanted.names if prefix + name in weights.tensors}
    _check(weights, wanted, given, prefix, check)
    beside = _beside(weights, given, prefix)
    if beside and not (_is_plain(prefix) or key):
        raise ModelError(
            f"{weights.path}: the network fits what lies under {prefix[:-1]}, but {_some(beside)} beside it would be "
            f"left out; check {check}, or say --weights {prefix[:-1]}"
        )
    if beside:
        tell(f"note: {weights.path}: left out is what is no part of the network: {_some(beside)}")
    made = [name for name in wanted.names if name not in given and not name.endswith(_COUNTER)]
    if made:
        tell(f"note: {weights.path} lacks the buffers {_some(made)}: those that the factory makes are kept")
    state = network.state_dict()
    _tell_types(weights, given, tell)
    network.load_state_dict(
        {wanted.names[name]: _numbers(weights, prefix + name, state[wanted.names[name]]) for name in given},
        strict=False,
    )


def _tell_types(weights: Weights, given: Mapping[str, Tensor], tell: Tell) -> None:
    """Which types of the weights are not those that the network computes with."""
    kinds = {str(t.dtype).removeprefix("torch.") for t in given.values() if t.is_floating_point()} - {"float32"}
    if kinds:
        tell(
            f"note: {weights.path}: weights of {', '.join(sorted(kinds))} become float32, in which the network computes"
        )


def _numbers(weights: Weights, path: str, own: Tensor) -> Tensor:
    """The weights at `path` for those of the network, `own`, as they are multiplied with. Raises `ModelError` for what
    would be loaded without a word and is not what was trained: quantised numbers without their scale, NaN, nothing."""
    tensor = weights.tensors[path]
    if tensor.is_meta:
        raise ModelError(f"{weights.path}: {path} has a shape and no values (device meta); save weights from the CPU")
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if not own.is_floating_point():
        return tensor
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ModelError(
            f"{weights.path}: {path} is of {kind}, as quantised weights are, whose scale is not known here; save the weights as "
            "they were before that, in floating point"
        )
    if own.dim() and path.endswith((".weight", ".bias", *_STATISTICS)) and not tensor.float().isfinite().all():
        raise ModelError(
            f"{weights.path}: {path} holds NaN or infinity, as of a training that failed; take another checkpoint"
        )
    return tensor


class _Wanted:
    """The names that a network needs weights for."""

    def __init__(self, network: nn.Module) -> None:
        state = network.state_dict()
        parameters = {_WRAPPERS.sub("", name) for name, _ in network.named_parameters(remove_duplicate=False)}
        names = {_WRAPPERS.sub("", name): name for name in state}
        shared = _shared(list(names))
        self.names = {name.removeprefix(shared): own for name, own in names.items()}
        """Their own names by those that files may use: what wraps the whole network is no part of them."""
        self.shapes = {name: tuple(state[own].shape) for name, own in self.names.items()}
        self.required = [n for n in self.names if shared + n in parameters or n.endswith(_STATISTICS)]

    def prefixes(self, found: Mapping[str, Tensor]) -> Counter[str]:
        """How many of the required names are there, by what lies before them."""
        counts: Counter[str] = Counter()
        ends: dict[str, list[str]] = {}
        for path in found:
            ends.setdefault(path.rpartition(".")[2], []).append(path)
        for name in self.required:
            for path in ends.get(name.rpartition(".")[2], ()):
                before = path.removesuffix(name)
                if path.endswith(name) and (not before or before.endswith(".")):
                    counts[before] += 1
        return counts


def _shared(names: Sequence[str]) -> str:
    """What a wrapper (data parallel, a Lightning module) puts before all names of a network."""
    shared = ""
    while names and all(n.removeprefix(shared).startswith(("module.", "model.", "net.", "network.")) for n in names):
        first = names[0].removeprefix(shared).partition(".")[0] + "."
        if not all(n.startswith(shared + first) for n in names):
            break
        shared += first
    return shared


def _is_plain(prefix: str) -> bool:
    return frozenset(re.findall(r"[a-z]+", prefix.lower())) <= _PLAIN


def _chosen(weights: Weights, wanted: _Wanted, whole: list[str], key: str | None, tell: Tell) -> str:
    """The prefix of the weights that are meant."""
    fitting = [
        p for p in whole if all(tuple(weights.tensors[p + n].shape) == wanted.shapes[n] for n in wanted.required)
    ]
    whole = fitting or whole
    if key is not None:
        named = [p for p in whole if key in (p[:-1], p) or p.startswith(f"{key}.") or p.endswith(f".{key}.")]
        if len(named) != 1:
            raise ModelError(
                f"{weights.path}: --weights {key} names none of what fits the network: {_places(whole)}; give one of these"
            )
        return named[0]
    if len(whole) == 1:
        return whole[0]
    plain = [prefix for prefix in whole if _is_plain(prefix)]
    if len(plain) != 1:
        raise ModelError(
            f"{weights.path} holds several sets of weights that fit the network: {_places(whole)}; name one with "
            "--weights"
        )
    others = _places([prefix for prefix in whole if prefix != plain[0]])
    tell(f"note: {weights.path}: {_places(plain)} is taken, not {others}, which fits too; --weights takes another")
    return plain[0]


def _places(prefixes: Sequence[str]) -> str:
    return ", ".join(prefix[:-1] or "the file itself" for prefix in prefixes)


def _check(weights: Weights, wanted: _Wanted, given: Mapping[str, Tensor], prefix: str, check: str) -> None:
    """Whether shapes agree and nothing under the prefix is left over."""
    unlike = [name for name, tensor in given.items() if tuple(tensor.shape) != wanted.shapes[name]]
    if unlike:
        name, more = unlike[0], f" (and {len(unlike) - 1} more)" if len(unlike) > 1 else ""
        raise ModelError(
            f"{weights.path}: {name} is {tuple(given[name].shape)}, the network has {wanted.shapes[name]}{more}; "
            f"check {check}"
        )
    homes = {weights.holders[prefix + name] for name in given}
    # without a prefix, other dictionaries of the file, such as an optimizer's, are no weights
    under = [p for p, home in weights.holders.items() if p.startswith(prefix) and (prefix or home in homes)]
    names = [path.removeprefix(prefix) for path in under]
    left = [name for name in names if name not in given and not name.endswith(_COUNTER)]
    if left:
        raise ModelError(
            f"{weights.path} holds {_some(left)} that the network lacks: {_told(weights, wanted)}; check {check}"
        )


def _beside(weights: Weights, given: Mapping[str, Tensor], prefix: str) -> list[str]:
    """What lies in the same dictionary under other names; single numbers count something, such as averages."""
    homes = {weights.holders[prefix + name] for name in given} - {prefix}
    return [
        path
        for path, home in weights.holders.items()
        if home in homes and not path.startswith(prefix) and weights.tensors[path].dim()
    ]


def _by_its_own_rules(network: nn.Module, weights: Weights) -> bool:
    """Networks may rename old weights while they load them; what they take without a word about a key is whole."""
    for holder in dict.fromkeys(weights.holders.values()):
        own = {p.removeprefix(holder): t for p, t in weights.tensors.items() if weights.holders[p] == holder}
        shared = _shared(list(own))
        if any(t.is_quantized or not t.is_floating_point() for name, t in own.items() if name.endswith(".weight")):
            continue  # numbers without their scale would be taken as they are
        state = {name.removeprefix(shared): tensor for name, tensor in own.items()}
        try:
            copy.deepcopy(network).load_state_dict(dict(state), strict=True)
        except Exception:  # their own code says no in its own ways
            continue
        network.load_state_dict(dict(state), strict=True)
        return True
    return False


# --- what is said where nothing fits ---


def _lacking(weights: Weights, wanted: _Wanted, counts: Counter[str], check: str) -> str:
    prefix = counts.most_common(1)[0][0] if counts else ""
    missing = [name for name in wanted.required if prefix + name not in weights.tensors]
    return f"{weights.path} lacks {_some(missing)} of the network: {_told(weights, wanted)}; check {check}"


def _told(weights: Weights, wanted: _Wanted) -> str:
    shapes = {path: tuple(tensor.shape) for path, tensor in weights.tensors.items()}
    return f"the file holds {_shaped(shapes)}, the network expects {_shaped(wanted.shapes)}"


def _shaped(shapes: Mapping[str, tuple[int, ...]]) -> str:
    shown = ", ".join(f"{name} ({times(shape) or 'one number'})" for name, shape in list(shapes.items())[:2])
    return f"{len(shapes)} tensors such as {shown}"


def summary(weights: Weights) -> str:
    """What a file holds, in a few words."""
    what = f"a pickled {weights.module}, " if weights.module else ""
    return what + _shaped({path: tuple(tensor.shape) for path, tensor in weights.tensors.items()})


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
