"""Codecs: the native pipeline for local arrays, and how many chunks are decoded at once."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import zarr

from unet_engine.paths import is_local

_CONFIG = threading.RLock()
"""zarr's configuration belongs to the process: who changes it for a moment keeps other threads from opening arrays."""


@contextmanager
def own_codecs() -> Iterator[None]:
    """Context in which arrays are opened with zarr's own codecs."""
    with _CONFIG:
        yield


@contextmanager
def fast_codecs(path: str) -> Iterator[None]:
    """Context in which arrays on a local disk are opened with the native codec pipeline; remote stores keep zarr's own.

    An array with a codec that the pipeline lacks is read by zarr's own too. The warning about it tells users nothing
    they could act on.
    """
    if not is_local(path):
        with own_codecs():
            yield
        return
    import zarrs  # noqa: F401  # registers the pipeline

    with _CONFIG, zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Array is unsupported by ZarrsCodecPipeline", UserWarning)
        yield


@contextmanager
def decoding(threads: int | None) -> Iterator[None]:
    """Context to open volumes in that decode so many chunks at once; None leaves it to the codecs, all cores."""
    with zarr.config.set({"codec_pipeline.chunk_concurrent_maximum": threads} if threads else {}):
        yield
