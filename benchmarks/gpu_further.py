"""Parts of `gpu_check.py` that run when they are named: many classes against the bare network, and how many voxels an
hour go through with the tiling that is proved."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from gpu_common import Figures, bare_rate, device_name, need, network_of, volume_in
from gpu_runs import watched

CLASSES = (16, 104)


def classes(args: argparse.Namespace) -> Figures:
    """As `end-to-end`, once for each number of classes: bare, engine, bare."""
    need("classes", args)
    import torch
    from gpu_network import flops, save

    is_small = args.quick or args.simulate
    small = ", small" if is_small else ""
    precision, kind = (torch.bfloat16, "fp32") if args.simulate else (torch.float16, "fp16")
    with tempfile.TemporaryDirectory() as name:
        volume = volume_in(Path(name), network_of(args)[2])
        for count in CLASSES:
            network, window, _ = network_of(args, count)
            folder = Path(name) / str(count)
            folder.mkdir()
            model = save(network, folder, window, count, flops(network_of(args, count)[0], window))
            before = bare_rate(network, window, precision, 0.2 if is_small else 2)
            yield f"{count} classes, bare network, windows/s{small}", before
            facts, result, steady = watched(volume, {
                "model": model, "backend": "pytorch", "device": device_name(args), "precision": kind, "overlap": 0.5,
                "out": str(folder / "out.zarr"),
            })  # fmt: skip
            bare = (before + bare_rate(network, window, precision, 0.2 if is_small else 2)) / 2
            yield f"{count} classes, blocks", "x".join(map(str, facts["blocks"]))
            for which in ("needed", "found"):
                yield f"{count} classes, decoding {which}, GB/s", facts["reading"][f"{which}_gb_per_second"]
            yield f"{count} classes, halos that stay, GiB", facts["device_memory"]["kept"] / 2**30
            yield f"{count} classes, halos on the host, GiB", facts["memory"]["halos"] / 2**30
            if steady:
                yield f"{count} classes, steady state / bare network", steady / bare
            yield f"{count} classes, end to end / bare network{small}", result.windows_inferred / result.seconds / bare


def tiling(args: argparse.Namespace) -> Figures:
    """The network for cells that comes with the engine, on tissue, with ``--tiling auto``; from the first window to the
    last, without what was computed to prove it."""
    need("tiling", args)
    is_small = args.quick or args.simulate
    small = ", small" if is_small else ""
    with tempfile.TemporaryDirectory() as name:
        volume, voxels = _tissue(Path(name), 1 if args.simulate else 4 if args.quick else 8)
        from unet_engine.model.shipped import shipped_model

        options: dict[str, Any] = {
            "model": str(shipped_model("cells_3d.onnx")), "device": device_name(args), "tiling": "auto",
            "precision": "fp32" if args.simulate else "fp16", "out": str(Path(name) / "out.zarr"),
            **({"backend": "pytorch"} if args.simulate else {}),
        }  # fmt: skip
        facts, result, _ = watched(volume, options)
        chosen = facts["tiling_choice"]
        yield "library", facts["backend"]
        yield "window", "x".join(map(str, facts["window"]))
        yield "voxels computed for one", chosen["work"]
        yield "with the model's own tiling", chosen["work_of_default"]
        yield "the tiling is", f"the model's own: {chosen['kept']}" if chosen["kept"] else "proved"
        yield "windows/s", result.windows_inferred / result.seconds
        yield f"teravoxels an hour{small}", voxels / result.seconds * 3600 / 1e12


def _tissue(folder: Path, times: int) -> tuple[str, int]:
    """Cells, a piece of them mirrored `times` as often along each axis; its path and voxels."""
    import zarr

    from unet_export.train.tissue import make_tissue

    side = 128 if times > 1 else 48
    piece, _ = make_tissue((side,) * 3, 1)
    path, shape = str(folder / "tissue.zarr"), (side * times,) * 3
    array = zarr.create_array(path, shape=shape, chunks=(side,) * 3, dtype="uint8")
    for at in np.ndindex(*(times,) * 3):
        mirrored = tuple(a for a in range(3) if at[a] % 2)
        array[tuple(slice(side * a, side * (a + 1)) for a in at)] = np.flip(piece, mirrored)
    return path, int(np.prod(shape, dtype=np.int64))
