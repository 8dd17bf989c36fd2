"""Models of other tools, each in its own predictor and here, on the same real image: labels, time, peak memory.

    python benchmarks/models.py [--shared ../shared] [--work DIR] [--steps 60] [--case NAME]

Networks are trained here for a few steps with the tools' own networks, on real data, and left as those tools leave them;
packages of other people are taken as they are. Each side runs in a process of its own, both one after the other; only the
prediction is timed, model loaded. The table goes to docs/models.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LEAST = 0.999


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    source: str
    """What is imported, for people."""
    make: Callable[[argparse.Namespace, Path], Path]
    """Writes the source, or names it."""
    image: Callable[[argparse.Namespace], Any]
    """The volume (c, [z,] y, x), as it comes."""
    theirs: Callable[[Path, Any], Callable[[], Any]]
    """Loads the source with its own tool; what is returned gives labels ([z,] y, x)."""
    peer: str
    settings: dict[str, Any]
    """Of our run: blending as the peer does it."""


# --- MONAI ---

WINDOW, OVERLAP = (48, 48, 48), 0.25
NETWORK = {
    "_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [16, 32, 64], "strides": [2, 2],
    "num_res_units": 1, "norm": "batch",
}  # fmt: skip


def _monai_net() -> Any:
    from monai.networks.nets import UNet

    return UNet(**{k: v for k, v in NETWORK.items() if not k.startswith("_")})


def _make_monai(options: argparse.Namespace, folder: Path) -> Path:
    import tifffile
    import torch

    data = options.shared / "data" / "em"
    image = tifffile.imread(data / "train_image.tif").astype(np.float32) / 255
    truth = tifffile.imread(data / "train_membrane.tif").astype(np.int64)
    net = _trained(_monai_net(), image[None], truth, WINDOW, 1, options.steps)
    bundle = folder / "bundle"
    for name in ("configs", "models"):
        (bundle / name).mkdir(parents=True, exist_ok=True)
    formats = {"outputs": {"pred": {"num_channels": 2, "channel_def": {"0": "inside", "1": "membrane"}}}}
    (bundle / "configs" / "metadata.json").write_text(json.dumps({"name": "EM", "network_data_format": formats}))
    before = [
        {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 255, "b_min": 0.0, "b_max": 1.0}
    ]
    inferer = {"_target_": "SlidingWindowInferer", "roi_size": list(WINDOW), "overlap": OVERLAP, "mode": "gaussian"}
    config = {
        "network_def": NETWORK, "inferer": inferer, "preprocessing": {"_target_": "Compose", "transforms": before},
        "postprocessing": [{"_target_": "AsDiscreted", "argmax": True}],
    }  # fmt: skip
    (bundle / "configs" / "inference.json").write_text(json.dumps(config))
    torch.save(net.state_dict(), bundle / "models" / "model.pt")
    return bundle


def _trained(net: Any, image: Any, truth: Any, window: tuple[int, ...], batch: int, steps: int) -> Any:
    """A few steps on random crops of one image (c, *space) with labels (*space); 255 counts for nothing."""
    import torch

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    optimizer = torch.optim.Adam(net.train().parameters(), 2e-3)
    for _ in range(steps):
        corners = [
            [int(rng.integers(0, n - w + 1)) for n, w in zip(truth.shape, window, strict=True)] for _ in range(batch)
        ]
        cuts = [tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True)) for corner in corners]
        x = torch.from_numpy(np.stack([image[(slice(None), *cut)] for cut in cuts]))
        y = torch.from_numpy(np.stack([truth[cut] for cut in cuts]))
        loss = torch.nn.functional.cross_entropy(net(x), y, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def _em(options: argparse.Namespace) -> Any:
    import tifffile

    return tifffile.imread(options.shared / "data" / "em" / "volume.tif")[None, :96, :192, :192]


def _by_monai(source: Path, image: Any) -> Callable[[], Any]:
    import torch
    from monai.inferers import sliding_window_inference

    net = _monai_net().eval()
    net.load_state_dict(torch.load(source / "models" / "model.pt", weights_only=True))

    def predict() -> Any:
        x = torch.from_numpy(image.astype(np.float32) / 255)[None]
        with torch.inference_mode():
            y = sliding_window_inference(x, WINDOW, 4, net, overlap=OVERLAP, mode="gaussian")
        return y[0].argmax(0).numpy()

    return predict


# --- segmentation-models-pytorch ---


def _smp_net() -> Any:
    import segmentation_models_pytorch as smp

    return smp.Unet("resnet18", encoder_weights=None, in_channels=3, classes=5)


def _make_smp(options: argparse.Namespace, folder: Path) -> Path:
    import tifffile

    data = options.shared / "data" / "sat"
    image = np.moveaxis(tifffile.imread(data / "mosaic_1_image.tif"), -1, 0).astype(np.float32)
    truth = tifffile.imread(data / "mosaic_1_labels.tif").astype(np.int64)
    net = _trained(_smp_net(), (image - 124) / 58, truth, (128, 128), 4, options.steps)
    net.save_pretrained(folder / "hub")
    return folder / "hub"


def _mosaic(options: argparse.Namespace) -> Any:
    import tifffile

    return np.moveaxis(tifffile.imread(options.shared / "data" / "sat" / "mosaic_2_image.tif")[:512, :512], -1, 0)


def _by_smp(source: Path, image: Any) -> Callable[[], Any]:
    import segmentation_models_pytorch as smp
    import torch

    net = smp.from_pretrained(str(source)).eval()

    def predict() -> Any:
        with torch.inference_mode():
            return net(torch.from_numpy((image.astype(np.float32) - 124) / 58)[None])[0].argmax(0).numpy()

    return predict


# --- bioimage.io ---


def _package(options: argparse.Namespace, folder: Path) -> Path:
    return options.shared / "models" / "bioimageio" / "unet2d_diff_output_shape"


def _its_image(options: argparse.Namespace) -> Any:
    return np.load(_package(options, Path()) / "test_input.npy")[0]


def _by_test_tensor(source: Path, image: Any) -> Callable[[], Any]:
    import torch

    from unet_export.conversion.weights import fill, read_weights
    from unet_export.importers.bioimageio import torch_em

    said = {"depth": 3, "in_channels": 1, "initial_features": 16, "out_channels": 1}
    net = torch_em.built("ResizeUNet", said).eval()
    fill(net, read_weights(source / "weights.pt"), None, lambda _: None)

    def predict() -> Any:
        x = image.astype(np.float64)
        with torch.inference_mode():
            y = net(torch.from_numpy(((x - x.mean()) / (x.std() + 1e-6)).astype(np.float32))[None])
            fine = torch.nn.functional.interpolate(y, scale_factor=2.0, mode="bilinear")[0, 0].numpy()
        expected = np.load(source / "test_output.npy")
        assert np.abs(y.numpy() - expected).max() < 1e-3 * np.abs(expected).max()
        return (fine > 0).astype(np.uint8)

    return predict


CASES = {
    "monai": Case(
        "MONAI bundle, 3D, trained on EM", _make_monai, _em, _by_monai, "sliding_window_inference",
        {"overlap": OVERLAP, "blend": "monai"},
    ),
    "smp": Case(
        "segmentation-models-pytorch Unet on ResNet-18, trained on satellite images", _make_smp, _mosaic, _by_smp,
        "its network, whole image", {"window": (512, 512), "channels": "classes", "normalize": "fixed:mean=124,std=58"},
    ),
    "bioimageio": Case(
        "bioimage.io 0.5, U-Net of torch-em as downloaded, outputs at half the resolution", _package, _its_image, _by_test_tensor,
        "its network, whole test image", {},
    ),
}  # fmt: skip


# --- one side, in a process of its own ---


def side(name: str, which: str, source: Path, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    case = CASES[name]
    image = case.image(options)
    if which == "theirs":
        predict = case.theirs(source, image)
        predict()  # what the library does once, such as choosing algorithms, is not counted on either side
        begun = time.perf_counter()
        labels = predict()
        seconds = time.perf_counter() - begun
    else:
        labels, seconds = _ours(case, image, folder)
    np.save(folder / f"{which}.npy", labels)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak": peak}


def _ours(case: Case, image: Any, folder: Path) -> tuple[Any, float]:
    import zarr

    from unet_engine.api import run

    result = run(
        str(folder / "image.zarr"), model=str(folder / "net.onnx"), out=str(folder / "out.zarr"), device="cpu",
        precision="fp32", overwrite=True, **case.settings,
    )  # fmt: skip
    labels = zarr.open_group(str(folder / "out.zarr"), mode="r")["0"][...]
    return labels, result.seconds


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Source, import, both sides, and how they agree."""
    import zarr

    from unet_engine.model.file import open_model

    case = CASES[name]
    folder = Path(tempfile.mkdtemp(prefix=f"models-{name}-", dir=options.work))
    source = case.make(options, folder)
    image = case.image(options)
    stored = zarr.create_array(
        str(folder / "image.zarr"), shape=image.shape, dtype=image.dtype, chunks=(1, *(min(64, n) for n in image.shape[1:])),
        dimension_names=["c", *"zyx"[4 - image.ndim :]],
    )  # fmt: skip
    stored[...] = image
    command = [sys.executable, "-c", "from unet_engine.commands.cli import main; main()"]
    subprocess.run([*command, "import", str(source), "--out", str(folder / "net.onnx")], check=True)
    sides = {}
    for which in ("theirs", "ours"):
        args = [
            "--side",
            which,
            "--case",
            name,
            "--source",
            str(source),
            "--folder",
            str(folder),
            "--shared",
            str(options.shared),
        ]
        done = subprocess.run([sys.executable, __file__, *args], check=True, stdout=subprocess.PIPE, text=True)
        sides[which] = json.loads(done.stdout.splitlines()[-1])
    theirs, ours = (np.load(folder / f"{which}.npy") for which in ("theirs", "ours"))
    if theirs.min() == theirs.max():
        sys.exit(f"{case.source}: one label everywhere, which proves nothing")
    dice = [
        2 * np.sum((ours == k) & (theirs == k)) / (np.sum(ours == k) + np.sum(theirs == k)) for k in np.unique(theirs)
    ]
    credit = open_model(folder / "net.onnx").credit
    return {
        "source": case.source, "peer": case.peer, "equal": float((ours == theirs).mean()), "dice": float(np.mean(dice)),
        "certificate": [str(c) for c in credit.certificate] if credit else [], **sides,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| source | against | equal labels | mean Dice | time, theirs | ours | peak memory, theirs | ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        a, b = row["theirs"], row["ours"]
        lines.append(
            f"| {row['source']} | {row['peer']} | {row['equal']:.6f} | {row['dice']:.6f} | {a['seconds']:.2f} s | "
            f"{b['seconds']:.2f} s | {a['peak'] / 2**20:.0f} MiB | {b['peak'] / 2**20:.0f} MiB |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--work", default=None)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--side", choices=("theirs", "ours"))
    parser.add_argument("--source", type=Path)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(side(options.case, options.side, options.source, options, options.folder)))
        return
    rows = [measured(name, options) for name in ([options.case] if options.case else CASES)]
    print(table(rows))
    if any(min(row["equal"], row["dice"]) < LEAST for row in rows):
        sys.exit(f"below {LEAST}")


if __name__ == "__main__":
    main()
