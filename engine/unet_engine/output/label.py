"""What OME-Zarr says of an image whose voxels are labels: ``image-label``, with a colour and a name for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unet_engine.output.colours import colour_of

KEY = "image-label"
NEWEST = "0.5"


@dataclass(frozen=True)
class Label:
    """Voxels are labels, or numbers of objects."""

    names: tuple[str, ...] = ()
    """Of labels 0, 1, …; empty where they have none."""
    colours: tuple[str, ...] = ()
    """Of the same, as ``#RRGGBB``; the others get one of their own."""

    def facts(self, version: str = NEWEST, image: str | None = None) -> dict[str, Any]:
        """The metadata. image: where the image lies that they are of, relative to them."""
        colours = [
            {"label-value": i, "rgba": [*colour_of(i, self.colours), 255 * (i > 0)]} for i in range(len(self.names))
        ]
        names = [{"label-value": i, "name": name} for i, name in enumerate(self.names)]
        return {
            "version": version,
            **({"colors": colours, "properties": names} if self.names else {}),
            **({"source": {"image": image}} if image else {}),
        }
