"""What a tiling costs and how near it comes to whole-volume inference: ours, `--tiling auto`, and MONAI.

    python benchmarks/tiling.py --model em.onnx --image volume.tif --base 8 --depth 3 [--box 128,256,256] [--rounds 3]
        [--budget 0.12] [--json FILE]

The model is what `python -m unet_export.train` wrote, of that base and depth, with norms folded; the image is a volume
of which a box at the origin is taken, in memory for MONAI and as Zarr for us. ``auto`` looks on the whole image first
(not timed; its cost is told), as it does once for a model and a kind of data. In every round each contestant runs once,
in turn. Seconds are those of inference and stitching to labels: ours with reading and writing Zarr and without start and
planning, MONAI's with softmax left out. Agreement and Dice (of the rarest label) are with the box in a single window.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

import unet_engine
from unet_engine.model.file import open_model
from unet_engine.settings import parse_tiling
from unet_engine.volumes import samples
from unet_engine.volumes.formats import open_volume

WINDOW, OVERLAP, BATCH = (64, 64, 64), 0.5, 4


def main() -> None:
    args = _arguments()
    box = tuple(map(int, args.box.split(",")))
    with tempfile.TemporaryDirectory(dir=".") as folder:
        root = Path(folder)
        whole = open_volume(args.image)
        image = np.asarray(whole.read(_box(box))[0])
        part = _stored(root / "part.zarr", image)
        common = {"model": args.model, "precision": "fp32", "overwrite": True, "out": str(root / "out.zarr")}
        looked = _looked(args, root, common)
        tiling = _fitted(part, args, common)
        reference = _ours(part, {**common, "tiling": ",".join(map(str, box)) + ":0,0,0:crop"})[1]
        runs: dict[str, Callable[[], tuple[float, Any]]] = {
            "ours, 64³, 0.5": lambda: _ours(part, common | {"window": WINDOW}),
            f"ours, auto: {tiling}": lambda: _ours(part, common | {"tiling": tiling}),
        }
        if not args.no_monai:
            module, x = _module(args), _normalised(args, part, image)
            runs["MONAI, 64³, 0.5"] = lambda: _monai(module, x, WINDOW, OVERLAP)
            window, shared, _ = parse_tiling(tiling)
            overlap = tuple(s / w for s, w in zip(shared, window, strict=True))
            runs[f"MONAI, {'×'.join(map(str, window))}, as much shared"] = lambda: _monai(module, x, window, overlap)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        figures = {}
        for number in range(args.rounds):
            for name, run in runs.items():
                took, labels = run()
                seconds[name].append(took)
                figures[name] = _agreement(reference, labels)
                print(f"round {number + 1}: {name}: {took:.1f} s, {figures[name]}", flush=True)
    base = "MONAI, 64³, 0.5" if "MONAI, 64³, 0.5" in runs else "ours, 64³, 0.5"
    rows = [_row(name, base, seconds, figures) for name in runs]
    print(
        f"\nlooking took {looked} of a run over the whole image\n| | agreement | Dice | throughput, of {base} |\n|---|---|---|---|"
    )
    for row in rows:
        least, middle, most = row["ratio"]
        print(
            f"| {row['name']} | {row['agreement']:.5f} | {row['dice']:.5f} | {middle:.2f} ({least:.2f} to {most:.2f}) |"
        )
    if args.json:
        Path(args.json).write_text(json.dumps({"box": box, "looked": looked, "rows": rows}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--base", type=int, required=True)
    parser.add_argument("--depth", type=int, required=True)
    parser.add_argument("--box", default="128,256,256")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=0.03)
    parser.add_argument("--no-monai", action="store_true")
    parser.add_argument("--json")
    return parser.parse_args()


def _box(shape: tuple[int, ...]) -> Any:
    from unet_engine.plan.box import Box

    return Box.of_shape(shape)


def _stored(path: Path, image: Any) -> str:
    zarr.create_array(str(path), data=image, chunks=(64, 64, 64), dimension_names=list("zyx"))
    return str(path)


def _looked(args: argparse.Namespace, root: Path, common: dict[str, Any]) -> str:
    """Have ``auto`` look at the whole image, where it does not know data of its kind; what that took."""
    from unet_engine.prepare.prepare import prepare
    from unet_engine.prepare.survey import survey
    from unet_engine.settings import Settings

    settings = Settings.of(input=args.image, **common, tiling="auto", tiling_budget=args.budget, ignore_spacing=True)
    prepared = prepare(survey(settings))
    assert prepared.network is not None
    prepared.network.close()
    assert prepared.tiling is not None
    print(prepared.tiling.line, *prepared.tiling.table, sep="\n", flush=True)
    return "nothing" if prepared.tiling.learnt is None else f"{prepared.tiling.learnt.share:.1%}"


def _fitted(part: str, args: argparse.Namespace, common: dict[str, Any]) -> str:
    """The tiling that ``auto`` takes for the part, as ``--tiling`` names it."""
    identity = unet_engine.make_plan(part, **common, tiling="auto").identity
    if "shared" not in identity:
        raise SystemExit("auto keeps the model's own tiling; give more --budget")
    window, shared = (",".join(map(str, identity[key])) for key in ("window", "shared"))
    return f"{window}:{shared}:{identity['blend']}"


def _ours(part: str, options: dict[str, Any]) -> tuple[float, Any]:
    result = unet_engine.run(part, **options)
    return result.seconds, np.asarray(zarr.open_array(result.out + "/0", mode="r")[...])


def _module(args: argparse.Namespace) -> Any:
    import torch

    from unet_export.train.geometry import UNetConfig
    from unet_export.train.nets import UNet
    from unet_export.train.restart import load_weights

    torch.set_num_threads(2)
    net = UNet(UNetConfig(dims=3, classes=2, base=args.base, depth=args.depth, norm="none")).eval()
    load_weights(net, Path(args.model))
    return net


def _normalised(args: argparse.Namespace, part: str, image: Any) -> Any:
    import torch

    volume = open_volume(part)
    scale = samples.scaling_of(volume, open_model(args.model).spec.normalization)
    return torch.from_numpy(scale.normalised(image.astype(np.float32), 0).astype(np.float32))[None, None]


def _monai(module: Any, x: Any, window: tuple[int, ...], overlap: Any) -> tuple[float, Any]:
    import torch
    from monai.inferers import sliding_window_inference

    begun = time.perf_counter()
    with torch.inference_mode():
        batch = BATCH if window == WINDOW else 1
        logits = sliding_window_inference(x, window, batch, module, overlap=overlap, mode="gaussian")
        labels = logits.argmax(1)[0].numpy().astype(np.uint8)
    return time.perf_counter() - begun, labels


def _agreement(reference: Any, labels: Any) -> dict[str, float]:
    rarest = int(np.bincount(reference.ravel()).argmin())
    a, b = reference == rarest, labels == rarest
    return {"agreement": float((reference == labels).mean()), "dice": float(2 * (a & b).sum() / (a.sum() + b.sum()))}


def _row(name: str, base: str, seconds: dict[str, list[float]], figures: dict[str, Any]) -> dict[str, Any]:
    ratios = sorted(b / s for b, s in zip(seconds[base], seconds[name], strict=True))
    return {
        "name": name,
        "seconds": seconds[name],
        "ratio": [ratios[0], statistics.median(ratios), ratios[-1]],
        **figures[name],
    }


if __name__ == "__main__":
    main()
