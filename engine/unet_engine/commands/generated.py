"""What `dataclass` generates, and types that are written as text, are compiled once for a user, and not in each process:
of the processor time of a run's imports that was a quarter, for some 1,700 functions of this package's and others'
records, and a fortieth, for 1,150 annotations, most of the same few texts.

The text that is generated is the key, and is there as a whole, so another version of a class gets code of its own. What
was compiled lies in the user's cache, under the same rules as compiled networks: see `engine_cache`.
"""

from __future__ import annotations

import builtins
import dataclasses
import importlib.util
import marshal
import sys
import typing
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import CodeType
from typing import Any

from unet_engine.backends import engine_cache
from unet_engine.errors import BackendError

KIND = "generated"
ALL_THERE = "unet_engine.api"
"""A module of which most others hang."""
MOST = 2**23
"""Bytes that are kept; beyond that, only what this process has used."""


@contextmanager
def known_code() -> Iterator[None]:
    """Inside, `dataclass` and `typing` take what is known of the code that they compile; what is not, is kept."""
    if ALL_THERE in sys.modules:  # nothing is left to import
        yield
        return
    known = _load()
    codes = _Codes(known)
    vars(dataclasses)["exec"] = codes.execute  # in place of the built-in ones
    vars(typing)["compile"] = codes.compiled
    try:
        yield
    finally:
        del vars(dataclasses)["exec"], vars(typing)["compile"]
    if codes.used.keys() - known.keys():
        _store(known | codes.used, codes.used)


class _Codes:
    def __init__(self, known: dict[str, CodeType]) -> None:
        self._known = known
        self.used: dict[str, CodeType] = {}

    def execute(self, text: str, *given: Any) -> None:
        """As the built-in function."""
        builtins.exec(self._code(text, text, "exec"), *given)

    def compiled(self, text: str, file: str, mode: str) -> CodeType:
        """As the built-in function."""
        return self._code(f"\0{mode} {file} {text}", text, mode, file)

    def _code(self, name: str, text: str, mode: str, file: str = "<string>") -> CodeType:
        code = self._known.get(name) or self.used.get(name)
        if code is None:
            code = compile(text, file, mode, dont_inherit=True)
        self.used[name] = code
        return code


def _key() -> engine_cache.Key:
    """All that decides what a text is compiled to."""
    return {
        "python": sys.version, "code": importlib.util.MAGIC_NUMBER.hex(), "optimised": sys.flags.optimize
    }  # fmt: skip


def _load() -> dict[str, CodeType]:
    with suppress(BackendError, ValueError, EOFError, TypeError):
        data = engine_cache.load(KIND, _key())
        found = marshal.loads(data) if data else {}  # from the user's own folder, and its hash fits
        return found if isinstance(found, dict) else {}
    return {}


def _store(everything: dict[str, CodeType], used: dict[str, CodeType]) -> None:
    with suppress(BackendError, ValueError):
        data = marshal.dumps(everything)
        if len(data) > MOST:
            data = marshal.dumps(used)
        engine_cache.store(KIND, _key(), data)
