"""Labels in an image have its levels: as many, of the same factors."""

from __future__ import annotations

from collections.abc import Sequence

from unet_engine.postprocess.base import Crew
from unet_engine.postprocess.into import Place
from unet_engine.postprocess.into_store import StorePlace
from unet_engine.postprocess.levels import Level, levels_like, levels_of
from unet_engine.postprocess.pyramid import Wanted, pyramid
from unet_engine.units import Tell
from unet_engine.volumes.base import Volume
from unet_engine.volumes.collection import levels_in
from unet_engine.volumes.formats import open_stored


def add_levels(place: Place | StorePlace, crew: Crew, *, memory: int, durable: bool, tell: Tell) -> None:
    """Give the labels at `Place.work` the levels of their image. Raises what `pyramid` raises."""
    volume = open_stored(str(place.work))
    levels = _levels(place, volume, tell)
    if levels:
        wanted = Wanted(str(place.work), overwrite=True, durable=durable)
        pyramid(wanted, crew, memory=memory, levels=levels)


def _levels(place: Place | StorePlace, volume: Volume, tell: Tell) -> Sequence[Level]:
    image = levels_in(place.image)
    image = image[_same(volume, image) :]
    shape = volume.stored_shape
    found = levels_like(volume.axes, shape, image)
    if found is not None:
        return found
    tell(f"the levels of {place.image} are no whole number of voxels apart: its labels have levels of their own")
    spacing = dict(zip(volume.spatial, volume.spacing or (), strict=False))
    return levels_of(volume.axes, shape, spacing)[: len(image) - 1]


def _same(volume: Volume, image: Sequence[dict[str, tuple[int, float]]]) -> int:
    """The level of the image that the labels are on the grid of."""
    sizes = dict(zip(volume.spatial, volume.spacing or (), strict=False))
    for number, level in enumerate(image):
        if all(abs(level[a][1] - s) <= 1e-6 * abs(s) for a, s in sizes.items() if a in level):
            return number
    return 0
