"""Files that break off or whose bytes are others: whoever opens them is refused in one line, or reads something."""

import numpy as np

from unet_engine.errors import InputError
from unet_engine.plan.box import Box
from unet_engine.volumes.formats import open_volume

HEAD = 2048
"""Bytes in which headers are: spoiled more often than the rest."""


def variants(data, count, seed=0):
    """`count` spoiled copies of `data`: cut off, or with bytes and numbers of the header replaced."""
    rng = np.random.default_rng(seed)
    for n in range(count):
        if n % 4 == 0:
            yield data[: int(rng.integers(0, len(data)))]
            continue
        spoiled = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(0, min(len(spoiled), HEAD if n % 3 else len(spoiled))))
            width = int(rng.choice([1, 2, 4, 8]))
            value = [b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7, rng.bytes(8)][int(rng.integers(4))]
            spoiled[at : at + width] = value[:width]
        yield bytes(spoiled[: len(data)])


def check_refused(path, data, count=120, *, seed=0, largest=2**24):
    """Open and read spoiled copies of `data` at `path`: every one gives voxels or one line of ours."""
    found = [_said(path, spoiled, largest) for spoiled in variants(data, count, seed)]
    assert any(found)
    assert [text for text in found if text and ("\n" in text or str(path) not in text)] == []


def _said(path, data, largest):
    """How `data` is refused; None where voxels come of it. Whatever is raised that is no `InputError` goes on."""
    path.write_bytes(data)
    try:
        volume = open_volume(str(path))
        if np.prod([float(n) for n in volume.shape]) <= largest:
            volume.read(Box.of_shape(volume.shape))
    except InputError as error:
        return str(error)
    return None
