"""Codecs: the native pipeline for local arrays, and how many chunks are decoded at once."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numcodecs.errors
import zarr
import zarr.errors

from unet_engine.paths import is_local

_CONFIG = threading.RLock()
"""zarr's configuration belongs to the process: who changes it for a moment keeps other threads from opening arrays."""


@contextmanager
def own_codecs() -> Iterator[None]:
    """Context in which arrays are opened with zarr's own codecs. The warning about those that Zarr v3 does not name
    tells users nothing they could act on."""
    with _CONFIG, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Numcodecs codecs are not in the Zarr version 3", UserWarning)
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

    with own_codecs(), zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        warnings.filterwarnings("ignore", "Array is unsupported by ZarrsCodecPipeline", UserWarning)
        yield


@contextmanager
def native_codecs() -> Iterator[None]:
    """Context for calls of the native codecs: where they give up (a "panic", which is no `Exception` in Python), that
    is an error like others."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(f"the native codecs gave up: {str(error).strip()}") from None


def is_native(array: zarr.Array) -> bool:
    """Whether the native pipeline decodes the chunks of `array`, rather than zarr's own codecs, alone or inside it."""
    pipeline = array.async_array.codec_pipeline
    return type(pipeline).__name__ == "ZarrsCodecPipeline" and pipeline.impl is not None


def missing_codec(error: BaseException) -> str | None:
    """Which codec `error` says is missing, and what to install for it; None where it says something else."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, numcodecs.errors.UnknownCodecError | zarr.errors.UnknownCodecError):
            named = re.search(r"'([^']+)'", str(cause))
            name = named[1] if named else str(cause)
            return f"its codec {name} is not installed; {_remedy(name)}"
        cause = cause.__cause__ or cause.__context__
    return None


def _remedy(codec: str) -> str:
    """What brings the codec called so: by numcodecs, or by zarr in arrays of v3."""
    plain = codec.removeprefix("numcodecs.")
    if plain in _EXTRAS:
        return f"run: pip install '{_EXTRAS[plain]}'"
    if plain.startswith("imagecodecs_"):
        return "run: pip install imagecodecs-numcodecs imagecodecs-zarr"
    return "install the package that wrote it, or the one that registers this codec with numcodecs or zarr"


_EXTRAS = {
    "zfpy": "numcodecs[zfpy]",
    "pcodec": "numcodecs[pcodec]",
    "crc32c": "numcodecs[crc32c]",
    "msgpack2": "numcodecs[msgpack]",
}


@contextmanager
def decoding(threads: int | None) -> Iterator[None]:
    """Context to open volumes in that decode so many chunks at once; None leaves it to the codecs, all cores."""
    with zarr.config.set({"codec_pipeline.chunk_concurrent_maximum": threads} if threads else {}):
        yield
