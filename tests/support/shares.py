"""Which cases of a slow kind are tried each time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def share(cases: Iterable[Any], quick: int = 1) -> list[Any]:
    """The first `quick` cases as they are; the others are slow, and left to ``make slow``."""
    return [case if i < quick else _slow(case) for i, case in enumerate(cases)]


def _slow(case: Any) -> Any:
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
