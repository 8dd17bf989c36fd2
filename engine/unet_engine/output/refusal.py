"""What a run that is refused leaves: nothing, where it began its output and committed no block of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from unet_engine.errors import UnetEngineError, writing
from unet_engine.output.header import ARRAY, Header, read_header
from unet_engine.output.locks import hold
from unet_engine.storage import stores


@contextmanager
def nothing_left(path: str, digest: str) -> Iterator[None]:
    """Take the output at `path`, which the run `digest` begins inside, away again where an error ends it before
    anything was committed: its header would refuse the corrected command. Enter while nothing holds the output."""
    try:
        yield
    except UnetEngineError:
        with suppress(Exception):  # the error that ended the run is the one to be told
            _discard(path, digest)
        raise


def _discard(path: str, digest: str) -> None:
    with hold(path):
        header = read_header(path) or {}
        if header.get("digest") != digest or header.get("complete"):
            return
        begun = Header.of(path)
        if any(True for _ in begun.journal.marked()):
            return
        with writing(path, "removing it"):
            begun.journal.remove()
            stores.store_of(path).remove(path, ARRAY)
