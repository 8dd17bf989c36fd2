"""Weights in several files, which an index beside them names, as Hugging Face's libraries write large ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unet_engine.errors import ModelError, first_line
from unet_engine.paths import check_file
from unet_engine.units import parse_bytes

SUFFIX = ".index.json"
_PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.\w+$)")
_LONGEST = parse_bytes("16MiB")


def is_index(path: Path) -> bool:
    return path.name.lower().endswith((f".safetensors{SUFFIX}", f".bin{SUFFIX}"))


def check_alone(path: Path) -> None:
    """Raise `ModelError` where the file at `path` is one of several parts."""
    part = _PART.search(path.name)
    if part and int(part[2]) > 1:
        raise ModelError(
            f"{path} is one of {int(part[2])} parts of weights; give the file that names them all, "
            f"{_PART.sub('', path.name)}{SUFFIX}"
        )


def parts_of(path: Path) -> dict[str, list[str]]:
    """The names of tensors by the file beside the index at `path` that holds them. Raises `ModelError`."""
    try:
        check_file(path, _LONGEST)
        said = json.loads(path.read_text("utf-8"))
        places = said["weight_map"]
        found: dict[str, list[str]] = {}
        for tensor, name in places.items():
            found.setdefault(str(name), []).append(str(tensor))
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path} is no index of weights with a weight_map: {first_line(error)}; download it again"
        ) from error
    for name in found:
        if Path(name).name != name or name.endswith(SUFFIX):
            raise ModelError(f"{path} names the file {name!r}, which is none beside it; correct its weight_map")
        if not (path.parent / name).is_file():
            raise ModelError(f"{path} names {name}, which is not beside it; download that file, too")
    return found


def tensors_of(path: Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    """The tensors of all files that the index at `path` names; `read` gives what is in one of them. Raises
    `ModelError` where one that is named is not there."""
    tensors: dict[str, Any] = {}
    for name, named in parts_of(path).items():
        held = read(path.parent / name)
        lacking = [tensor for tensor in named if not isinstance(held, Mapping) or tensor not in held]
        if lacking:
            raise ModelError(f"{path.parent / name} lacks {lacking[0]}, which {path.name} says is in it; download both")
        tensors |= {tensor: held[tensor] for tensor in named}
    return tensors
