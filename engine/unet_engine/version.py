"""Versions of packages, as installed."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache  # the whole description of a package is parsed for it, and every run asks for several
def version_of(distribution: str) -> str | None:
    """Version of a distribution; None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def our_version() -> str:
    """Version of this package; ``unknown`` when it runs from its sources."""
    return version_of("unet-engine") or "unknown"
