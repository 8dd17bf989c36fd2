"""Small volumes and the identity network."""

import json
from pathlib import Path

import numpy as np
import zarr

from unet_engine.volumes.formats import located, open_volume


def make_volume(
    path, array, *, axes=None, zarr_format=3, chunks=None, ome=None, scale=None, translation=None, unit=None, **options
):
    """Write `array` as a Zarr array at `path`, or, with `ome` "0.4" or "0.5", as an OME-Zarr group with it at ``0``.

    `axes` are stored as dimension names (v3) or in the multiscales; `options` go to `zarr.create_array`. Returns the
    path as text.
    """
    array = np.asarray(array)
    options = {
        "chunks": chunks or tuple(min(8, n) for n in array.shape),
        "dtype": array.dtype,
        "shape": array.shape,
        **options,
    }
    if ome is None:
        names = list(axes) if axes and zarr_format == 3 else None
        stored = zarr.create_array(path, zarr_format=zarr_format, dimension_names=names, **options)
    else:
        group = zarr.create_group(
            path, zarr_format=2 if ome == "0.4" else 3, attributes=_multiscales(ome, axes, scale, translation, unit)
        )
        stored = group.create_array("0", dimension_names=list(axes) if ome == "0.5" else None, **options)
    stored[...] = array
    return str(path)


def _multiscales(version, axes, scale, translation, unit):
    kinds = {"t": "time", "c": "channel"}
    named = [
        {"name": a, "type": kinds.get(a, "space"), **({"unit": unit} if unit and a in "zyx" else {})} for a in axes
    ]
    moves = [{"type": "scale", "scale": list(scale or (1.0,) * len(axes))}]
    if translation:
        moves.append({"type": "translation", "translation": list(translation)})
    scales = [{"name": "scan", "axes": named, "datasets": [{"path": "0", "coordinateTransformations": moves}]}]
    return (
        {"multiscales": [{**scales[0], "version": "0.4"}]}
        if version == "0.4"
        else {"ome": {"version": "0.5", "multiscales": scales}}
    )


def fake_model(folder, *, latency_ms=0, fail_at=0, kill_at=0, out_of_memory_above=0, hang_once="", name="id", **spec):
    """A model file of the identity network (see `unet_engine.backends.fake`): 3D, 8 voxels wide, taking 4 + 4 k."""
    behaviour = {
        "latency_ms": latency_ms, "fail_at": fail_at, "kill_at": kill_at, "out_of_memory_above": out_of_memory_above,
        "hang_once": str(hang_once),
    }  # fmt: skip
    axes = spec.get("axes", "zyx")
    n = len(axes)
    spec = {
        "name": name, "axes": axes, "channels_in": 1, "channels_out": 1, "activation": "none",
        "window": (8,) * n, "window_min": (4,) * n, "window_step": (4,) * n, "margin": (0,) * n, **spec,
    }  # fmt: skip
    lines = [*(f"{key} = {json.dumps(value)}" for key, value in behaviour.items()), "[spec]"]
    tables = {key: value for key, value in spec.items() if isinstance(value, dict)}
    lines += [f"{key} = {json.dumps(value)}" for key, value in spec.items() if key not in tables]
    for key, table in tables.items():
        lines += [f"[spec.{key}]", *(f"{name} = {json.dumps(value)}" for name, value in table.items())]
    path = Path(folder) / f"{name}.fake.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def result_of(out):
    """The voxels of an output, all read at once."""
    return np.asarray(zarr.open_array(Path(out) / "0", mode="r")[...])


def identity(volume, folder, **options):
    """What the identity network makes of `volume`: windows cut at their middle, so that nothing is rounded twice."""
    import unet_engine

    if "model" not in options:
        options["model"] = fake_model(folder)
    options = {"out": str(Path(folder) / "out.zarr"), "blend": "crop", "output": "logits", **options}
    return result_of(unet_engine.run(volume, **options).out)


def open_meant(path, axes, meant):
    """The volume that is `meant` at `path`, and only what is read of it."""
    return open_volume(located(path, meant.image, meant.level), axes, meant.pick)
