"""Bytes that the plan counts for what says which voxels are meant, against what looking takes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.volumes import fake_model, make_volume
from unet_engine.pipeline.worker import Worker
from unet_engine.plan.box import Box
from unet_engine.prepare.draft import Draft
from unet_engine.prepare.prepare import prepare
from unet_engine.prepare.survey import survey
from unet_engine.settings.settings import Settings

SHAPE = (48, 40, 56)
BOX = Box((8, 0, 8), (48, 40, 48))


def _peak(doing: Callable[[], object]) -> float:
    """Bytes per voxel of `BOX` that Python's and NumPy's memory grew by meanwhile."""
    tracemalloc.start()
    try:
        doing()
        return (tracemalloc.get_traced_memory()[1] - 2**16) / BOX.size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("channels", "dtype", "nodata", "mask"),
    [(4, "float32", "0", None), (1, "uint8", "0,255", None), (3, "uint8", "7", 1.0), (1, "uint8", None, 1.0),
     (1, "uint8", None, 2.0), (1, "uint16", None, 0.5)],
)  # fmt: skip
def test_what_is_looked_at_is_counted(
    tmp_path: Path, channels: int, dtype: str, nodata: str | None, mask: float | None
) -> None:
    """With the raw voxels, and once more as a block is written. What is counted is at most twice what is taken."""
    image = np.random.default_rng(0).integers(0, 3, (channels, *SHAPE)).astype(dtype)
    options = {
        "input": make_volume(str(tmp_path / "v.zarr"), image, axes="czyx", chunks=(1, 32, 32, 32)),
        "axes": "czyx",
        "nodata": nodata,
    }
    if mask:
        inside = np.random.default_rng(1).integers(0, 2, [int(n * mask) for n in SHAPE]).astype(np.uint8)
        options["mask"] = make_volume(str(tmp_path / "m.zarr"), inside, chunks=(32, 32, 32))
    model = fake_model(tmp_path, channels_in=channels)
    prepared = prepare(survey(Settings.of(model=model, out=str(tmp_path / "o.zarr"), **options)))
    draft = Draft(prepared.survey, prepared.network, prepared.job.scaling, "")
    sizes, worker = draft.sizes(prepared.job, 0), Worker(prepared.job)
    worker.volume.read(BOX)  # what opening takes is not its business
    presence = worker.presence

    def read() -> None:
        inside = worker.mask.read(BOX) if worker.mask else None
        presence.without_unmeasured(worker.volume.read(BOX), BOX, inside, None, worker.recorder)

    taken = _peak(read) if nodata else _peak(lambda: (worker.mask.read(BOX), worker.volume.read(BOX)))
    counted = sizes.raw + sizes.meant + sizes.looking
    assert taken <= counted <= 2 * taken + 2
    written = _peak(lambda: presence.outside(BOX, worker.recorder))
    assert written <= sizes.outside <= 2 * written + 2
