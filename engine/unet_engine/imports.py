"""What libraries import and a run does not use stays out of its start, or waits until somebody uses it.

Only for processes of ours: in a program that imports this package, all is as these libraries have it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

WITHOUT = ("fsspec",)
"""Packages that zarr looks for to know maps of theirs where it is handed one, which is never done here. Whoever needs
them imports them later."""
LATER = frozenset({"yaml"})
"""Modules that are imported as a name alone, and loaded with the first use of something in them."""


@contextmanager
def lean() -> Iterator[None]:
    """Inside, imports are of what a run uses."""
    left = [name for name in WITHOUT if name not in sys.modules]
    sys.modules.update(dict.fromkeys(left))  # type: ignore[arg-type]  # None there: not to be found
    waiting, scanned = _Later(), _Scanned()
    sys.meta_path.insert(0, waiting)  # type: ignore[arg-type]
    importlib.metadata.entry_points = scanned
    try:
        yield
    finally:
        importlib.metadata.entry_points = scanned.over()
        sys.meta_path.remove(waiting)
        forget_waiting()
        for name in left:
            if sys.modules.get(name, waiting) is None:
                del sys.modules[name]


_USED: set[str] = set()
"""Modules that wait no longer."""


class Later(ModuleType):
    """Stands for a module where that was imported as a name, and imports it when something in it is used."""

    def __getattr__(self, name: str) -> Any:
        if not vars(self).get("_stands"):  # Python is making it
            raise AttributeError(name)
        _USED.add(self.__name__)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)

    def __dir__(self) -> list[str]:
        return list(self.__getattr__("__dict__"))


class _Standing:
    """A loader of what stands for modules."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Later(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is in it."""
        vars(module)["_stands"] = True


def later(name: str) -> ModuleSpec | None:
    """What a finder gives for a module that waits until it is used; None where it was."""
    return None if name in _USED else ModuleSpec(name, _Standing())  # type: ignore[arg-type]


def forget_waiting() -> None:
    """Whoever imports these modules from now on gets them themselves."""
    for name in [name for name, module in list(sys.modules.items()) if type(module) is Later]:
        del sys.modules[name]


class _Later:
    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        return later(name) if name in LATER else None


class _Scanned:
    """In place of `importlib.metadata.entry_points`: files of all that is installed are read once, and not for each
    library that looks for what extends it."""

    def __init__(self) -> None:
        self._scan = importlib.metadata.entry_points
        self._found: Any = None
        self._over = False

    def __call__(self, **wanted: Any) -> Any:
        """As that function."""
        if self._over:
            return self._scan(**wanted)
        if self._found is None:
            self._found = self._scan()
        return self._found.select(**wanted) if wanted else self._found

    def over(self) -> Any:
        """What was replaced. Whoever imported it by name has this object, which scans again from now on."""
        self._over, self._found = True, None
        return self._scan
