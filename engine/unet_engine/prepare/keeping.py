"""What is kept of a volume behind a network, or of one that is unpacked in large pieces, and in which order blocks come
for that."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from unet_engine.plan.dealing import dealing
from unet_engine.plan.fetching import MOST, Fetching
from unet_engine.plan.memory import Sizes, predict_memory
from unet_engine.plan.plan import Plan
from unet_engine.plan.tubes import counted, tubes
from unet_engine.storage.kept import allowed
from unet_engine.units import size, times
from unet_engine.volumes.base import Volume
from unet_engine.volumes.files import KEPT_BYTES
from unet_engine.volumes.mask import Mask


def to_keep(scan: Volume, plan: Plan, free: int, workers: int = 0) -> int:
    """Bytes to keep of what is fetched over a network: as many as spare any request, or, where that is not wanted, as
    keep requests few; but a quarter of what is free at most, as blocks are what memory is for. workers: of a cluster,
    the bytes being those of each."""
    if scan.units is None:
        return 0
    each = _unpacked(scan, scan.units)
    found = _reads(scan, plan, scan.units)
    shares = dealing(plan, workers)
    parts = [shares.reads(found, (n, n + 1)) for n in range(workers)] if shares else [found]
    most = max(allowed(MOST), min(MOST, max(part.enough(each) for part in parts)))
    return max(0, min(max(part.wanted(each, most) for part in parts), free // 4))


def to_keep_unpacked(scan: Volume, plan: Plan, free: int) -> int:
    """Bytes to keep of pieces of files that are unpacked: as many as spare unpacking, of those that a plan leaves free."""
    if scan.units is not None or scan.pieces is None or free <= 0:
        return 0
    each = _piece_bytes(scan, scan.pieces)
    return _reads(scan, plan, scan.pieces).again(free / each)[0] * each


def steps_to_keep(scan: Volume, plan: Plan) -> list[int]:
    """Bytes from which on keeping pieces of files that are unpacked spares more of that."""
    if scan.pieces is None:
        return []
    return [step * _piece_bytes(scan, scan.pieces) for step in _reads(scan, plan, scan.pieces).steps()]


def unpacked_bytes(scan: Volume, plan: Plan, kept: int) -> float:
    """Bytes that a run unpacks of a volume in such pieces, of which so many are kept."""
    if scan.pieces is None:
        return 0.0
    reads, each = _reads(scan, plan, scan.pieces), _piece_bytes(scan, scan.pieces)
    return reads.again(kept / each)[1] * reads.chunks * each


def to_keep_of_mask(mask: Mask | None, free: int) -> int:
    """Bytes to keep of what a mask fetches or unpacks: all of it where that is little, but a quarter of what is free at
    most. None of one that is read in place."""
    if mask is None or (mask.volume.units is None and mask.volume.pieces is None):
        return 0
    volume = mask.volume
    whole = prod(volume.stored_shape) // volume.timepoints * volume.dtype.itemsize
    return max(0, min(KEPT_BYTES, whole, free // 4))


def in_tubes(scan: Volume, plan: Plan, sizes: Sizes, base: int, budget: int, kept: int) -> Plan:
    """The plan tube by tube, where so many bytes are too few to keep for layer by layer, and halos that wait longer
    fit; else as it is."""
    if scan.units is None or not kept:
        return plan
    for found in tubes(plan, _reads(scan, plan, scan.units), _chunks(scan, scan.units, kept)):
        memory = predict_memory(found, sizes, base, 1, ending=plan.memory.under_way)
        if memory.total <= budget:
            return replace(found, memory=memory)
    return plan


def fetch_factor(
    scan: Volume, plan: Plan, kept: int, workers: int = 0, samples: int = 0, abreast: int = 1
) -> float | None:
    """How often each chunk of a volume behind a network is fetched, in the mean; None of one that lies elsewhere. By
    `workers` of a cluster, with so many chunks that were fetched for `samples`: as blocks are dealt, or at most where
    they are not. abreast: columns that share what is kept."""
    if scan.units is None:
        return None
    reads = _reads(scan, plan, scan.units)
    if workers < 2:
        return counted(reads, _chunks(scan, scan.units, kept) / abreast) + workers * samples / max(1, reads.chunks)
    shares = dealing(plan, workers)
    if shares is None:
        return fetched_at_most(scan, plan, kept, workers, samples)
    return shares.fetches(reads, _chunks(scan, scan.units, kept)) + samples / max(1, reads.chunks)


def fetched_at_most(scan: Volume, plan: Plan, kept: int, workers: int, samples: int) -> float | None:
    """The same whichever worker does a block, and in whatever order."""
    if scan.units is None:
        return None
    reads = _reads(scan, plan, scan.units)
    room = _chunks(scan, scan.units, kept) >= reads.chunks  # so that nothing has to go
    often = reads.by_each(workers) if room else reads.fetches(0) / max(1, reads.chunks)
    return often + samples / max(1, reads.chunks)


def unpack_factor(scan: Volume, plan: Plan, kept: int) -> float | None:
    """How often each piece of a volume that is unpacked piece by piece is unpacked, in the mean; None of others."""
    if scan.units is not None or scan.pieces is None:
        return None
    return _reads(scan, plan, scan.pieces).again(kept / _piece_bytes(scan, scan.pieces))[1]


def unpacked_often(scan: Volume, plan: Plan, kept: int) -> str | None:
    """What people are told of a volume whose pieces are unpacked again and again, as too little is free to keep them."""
    factor = unpack_factor(scan, plan, kept)
    if factor is None or scan.pieces is None or factor < OFTEN:
        return None
    each = _piece_bytes(scan, scan.pieces)
    enough = _reads(scan, plan, scan.pieces).again(_EVERYTHING)[0] * each
    return (
        f"{scan.path}: each piece of {times(scan.pieces)} voxels is unpacked {factor:.1f} times, as --memory leaves "
        f"{size(kept)} to keep them and {size(enough)} would do; give more, or have unet-engine convert store it in chunks"
    )


OFTEN = 2
"""Times that a piece is unpacked in the mean from which on it is told."""
_EVERYTHING = 2**62


def _piece_bytes(scan: Volume, pieces: tuple[int, ...]) -> int:
    """With all channels that are stored: they may lie side by side."""
    channels = scan.stored_shape[scan.axes.index("c")] if "c" in scan.axes else 1
    return prod(pieces) * scan.dtype.itemsize * channels


def _reads(scan: Volume, plan: Plan, pieces: tuple[int, ...]) -> Fetching:
    return Fetching.of(plan, pieces, scan.begins(pieces))


def _chunks(scan: Volume, units: tuple[int, ...], kept: int) -> float:
    """Chunks that so many bytes hold, packed as those that were seen."""
    return kept / (_unpacked(scan, units) * scan.packed)


def _unpacked(scan: Volume, units: tuple[int, ...]) -> int:
    return prod(units) * scan.dtype.itemsize * scan.channels
