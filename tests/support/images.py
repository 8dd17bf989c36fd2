"""OME-Zarr images as other tools write them: with channels, levels, several time points."""

import numpy as np
import zarr

RNG = np.random.default_rng(5)
SCAN = RNG.normal(0, 1, (1, 9, 21, 18)).astype("f4")
V2, V3 = "0.4", "0.5"


def image(path, version=V3, factors=(1, 2, 2), levels=3, scan=SCAN, *, consolidated=False, rounds_up=True):
    """An OME-Zarr image as other tools write it, with channels and a pyramid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    root = zarr.create_group(str(path), zarr_format=2 if version == V2 else 3)
    said = []
    for level in range(levels):
        steps = [f**level for f in (1, *factors)]
        values = scan[tuple(slice(None, None, s) for s in steps)]
        if not rounds_up:
            values = values[tuple(slice(max(1, n // s)) for n, s in zip(scan.shape, steps, strict=True))]
        names = {} if version == V2 else {"dimension_names": list("czyx")}
        root.create_array(str(level), data=values, chunks=(1, 4, 8, 8), **names)
        move = {"type": "scale", "scale": [1.0, *(s * v for s, v in zip(steps[1:], (2.0, 0.5, 0.5), strict=True))]}
        said.append({"path": str(level), "coordinateTransformations": [move]})
    axes = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space", "unit": "micrometer"} for a in "zyx")]
    scales = [{"name": "raw", "axes": axes, "datasets": said}]
    if version == V2:
        root.attrs["multiscales"] = [{**scales[0], "version": V2}]
    else:
        root.attrs["ome"] = {"version": V3, "multiscales": scales}
    if consolidated:
        zarr.consolidate_metadata(str(path))
    return path


SERIES = np.random.default_rng(8).normal(0, 1, (4, 2, 6, 17, 14)).astype("f4")


def series(path, scan=SERIES, axes="tczyx", levels=1):
    root = zarr.create_group(str(path), zarr_format=3)
    said = []
    for k in range(levels):
        steps = [2**k if a in "yx" else 1 for a in axes]
        root.create_array(
            str(k), data=scan[tuple(slice(None, None, s) for s in steps)], chunks=[1 if a in "tc" else 8 for a in axes],
            dimension_names=list(axes),
        )  # fmt: skip
        sizes = {"t": 2.5, "c": 1.0, "z": 2.0}
        move = {"type": "scale", "scale": [sizes.get(a, 0.5 * s) for a, s in zip(axes, steps, strict=True)]}
        said.append({"path": str(k), "coordinateTransformations": [move]})
    kinds = {"t": {"type": "time", "unit": "second"}, "c": {"type": "channel"}}
    names = [{"name": a, **kinds.get(a, {"type": "space", "unit": "micrometer"})} for a in axes]
    root.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": names, "datasets": said}]}
    return str(path)
