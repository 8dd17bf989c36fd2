"""What libraries import and a run does not use stays out of its start, or waits until somebody uses it.

Only for processes of ours: in a program that imports this package, all is as these libraries have it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
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
    later, scanned = _Later(), _Scanned()
    sys.meta_path.insert(0, later)
    importlib.metadata.entry_points = scanned
    try:
        yield
    finally:
        importlib.metadata.entry_points = scanned.over()
        sys.meta_path.remove(later)
        for name in left:
            if sys.modules.get(name, later) is None:
                del sys.modules[name]


def later(name: str, path: Sequence[str] | None, target: Any) -> ModuleSpec | None:
    """What a finder gives for a module that loads itself when something in it is used. Right only for those that are
    imported as a name: ``from x import y`` uses something."""
    spec = PathFinder.find_spec(name, path, target)
    if spec is not None and spec.loader is not None:
        spec.loader = importlib.util.LazyLoader(spec.loader)
    return spec


class _Later:
    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        return later(name, path, target) if name in LATER else None


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
