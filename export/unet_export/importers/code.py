"""Code that comes with a source: run only where the user trusts it, once per file, as `unet_engine.model.trust`
keeps."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unet_engine.errors import ModelError, first_line
from unet_engine.model import trust as trusting
from unet_engine.model.file import hash_of


def check_trust(source: Path, file: Path, what: str, *, given: bool) -> None:
    """Raise `ModelError` unless the user trusts `file` of `source`, now (`given`) or since earlier. what: what it is
    and does."""
    sha256 = hash_of(file)
    if given:
        trusting.trust(source / file.name, sha256)
    if not trusting.is_trusted(sha256):
        raise ModelError(f"{source}: {what}; use --trust, once, if you trust who made it")


def from_file(file: Path, name: str) -> Callable[..., Any]:
    """The callable `name` of the Python file, which may import files beside it. Raises `ModelError`."""
    module_name = f"unet_engine_imported_{hash_of(file)[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise ModelError(f"{file} is no Python file; get the source again")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # as data classes and pickles of it ask
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
        return _callable(module, name)
    except ModelError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"{file} cannot be imported: {first_line(error)}; install what it needs") from error
    finally:
        sys.path.remove(str(file.parent))


def from_library(module: str, name: str) -> Callable[..., Any]:
    """The callable `name` of an installed module. Raises `ModelError`."""
    try:
        return _callable(importlib.import_module(module), name)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ModelError(f"the network {module}.{name} is not here: {first_line(error)}; install {package}") from error


def _callable(module: Any, name: str) -> Callable[..., Any]:
    found = getattr(module, name, None)
    if not callable(found):
        raise ModelError(f"{module.__name__} has no {name}, which builds the network; get the source again")
    return found  # type: ignore[no-any-return]


def built(make: Callable[..., Any], keywords: Mapping[str, Any], where: str) -> Any:
    """The network that `make` returns for `keywords`, in inference mode. Raises `ModelError`."""
    from torch import nn

    try:
        network = make(**keywords)
    except Exception as error:
        raise ModelError(f"{where}: its network cannot be built: {first_line(error)}; check its arguments") from error
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"{where}: what builds its network returns a {type(network).__name__}, no torch.nn.Module; correct it"
        )
    return network.float().cpu().eval()
