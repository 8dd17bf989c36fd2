"""The command line of `unet_export.train`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from unet_engine.errors import SettingsError, UnetEngineError
from unet_engine.model.normalization import Normalization
from unet_engine.volumes.normalize import quantiles, scaling
from unet_export.conversion.onnx_export import export_onnx, export_torch
from unet_export.train.augment import Augmentation
from unet_export.train.data import LabelledVolume, load
from unet_export.train.geometry import UNetConfig
from unet_export.train.loss import show_dice
from unet_export.train.specs import spec_for
from unet_export.train.training import TrainSettings, train

TISSUE_CLASSES = ("outside", "cell", "membrane")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (0, or that of the error, see `unet_engine.errors`)."""
    options = parser().parse_args(arguments)
    try:
        run(options)
    except UnetEngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m unet_export.train", description="Train a U-Net to a model file.")
    data = p.add_argument_group("data")
    data.add_argument("--image", type=Path, help="TIFF, .npy or Zarr array")
    data.add_argument("--labels", type=Path, help="class ids on the same grid")
    data.add_argument("--axes", default="zyx", help="of the image, in array order: zyx, yx, yxc (default %(default)s)")
    data.add_argument("--synthetic", type=_sizes, metavar="Z,Y,X", help="train on made tissue of this shape instead")
    data.add_argument("--classes", type=lambda text: tuple(text.split(",")), help="names of labels 0, 1, …: a,b")
    data.add_argument("--ignore", type=int, help="label of voxels that do not count")
    data.add_argument("--holdout", type=int, default=16, help="last slices kept to measure Dice (default %(default)s)")
    data.add_argument("--normalize", default="range:0,255", help="none, zscore, minmax, percentile:l,h or range:l,h")
    data.add_argument("--anisotropic", action="store_true", help="do not mix z with y and x in augmentation")
    net = p.add_argument_group("network")
    net.add_argument("--dims", type=int, choices=(2, 3), default=3)
    net.add_argument("--base", type=int, default=16, help="channels of the first level (default %(default)s)")
    net.add_argument("--depth", type=int, default=4, help="number of poolings (default %(default)s)")
    net.add_argument("--norm", choices=("none", "batch", "instance"), default="batch")
    net.add_argument("--padding", choices=("same", "valid"), default="same")
    how = p.add_argument_group("training")
    how.add_argument("--steps", type=int, default=1000)
    how.add_argument("--batch", type=int, default=2)
    how.add_argument("--window", type=_sizes, help="input sizes of one training window (default 64,64,64 or 256,256)")
    how.add_argument("--lr", type=float, default=3e-3)
    how.add_argument("--seed", type=int, default=0)
    how.add_argument("--bf16", action="store_true", help="train in bfloat16 (autocast, channels last)")
    how.add_argument(
        "--start", type=Path, metavar="ONNX", help="resume from this file of an earlier training (with --norm none)"
    )
    how.add_argument(
        "--weights", choices=("fp32", "bf16"), default="fp32", help="bf16: weights that lose nothing in BF16"
    )
    out = p.add_argument_group("model file")
    out.add_argument("--out", type=Path, required=True, help=".onnx, or .pt2, .pt, .ts for the PyTorch backend")
    out.add_argument("--name", help="of the model (default: that of the file)")
    out.add_argument("--default-window", type=_sizes, help="window that the file proposes (default: --window)")
    out.add_argument("--spacing", type=_lengths, help="size of a voxel per axis")
    out.add_argument("--spacing-unit", default="micrometer")
    out.add_argument("--background", type=float, default=0.0, help="raw value of nothing (default %(default)s)")
    out.add_argument("--empty", action="store_true", help="store the output of an all-background window, to skip such")
    return p


def run(options: argparse.Namespace) -> None:
    if options.out.suffix not in (".onnx", ".pt2", ".pt", ".ts"):
        raise SettingsError(f"--out {options.out} names no model format; use .onnx, .pt2, .pt or .ts")
    volume, classes = _volume(options)
    config = UNetConfig(
        dims=options.dims,
        channels_in=volume.image.shape[0],
        classes=len(classes),
        base=options.base,
        depth=options.depth,
        norm=options.norm,
        padding=options.padding,
    )
    window = options.window or ((256, 256) if config.dims == 2 else (64, 64, 64))
    settings = TrainSettings(
        window=window,
        steps=options.steps,
        batch=options.batch,
        lr=options.lr,
        seed=options.seed,
        bf16=options.bf16,
        start=options.start,
        weights=options.weights,
        holdout=options.holdout,
        normalization=Normalization.parse(options.normalize),
        augmentation=Augmentation(isotropic=not options.anisotropic),
    )
    promise = {
        "name": options.name or options.out.stem,
        "classes": classes,
        "window": options.default_window or window,
        "normalization": settings.normalization,
        "spacing": options.spacing,
        "spacing_unit": options.spacing_unit,
        "background": options.background,
    }
    spec_for(config, **promise)  # refuses what the file could not say before the time is spent
    _tell(f"{config}")
    trained = train(config, volume, settings, tell=_tell)
    _tell(f"loss {trained.loss:.4f}; held-out Dice: {show_dice(classes, trained.dice)}")
    spec = spec_for(config, **promise, empty_from=trained.model if options.empty else None)
    # what a scan of another modality is told apart by, before anything is calibrated on it
    scale = scaling(settings.normalization, list(volume.image))
    spec = spec.model_copy(update={"input_quantiles": quantiles(list(volume.image), scale)})
    export = export_onnx if options.out.suffix == ".onnx" else export_torch
    error = export(trained.model, spec, options.out)
    _tell(f"wrote {options.out} ({options.out.stat().st_size / 1e6:.2f} MB), {error:.1e} from PyTorch")


def _volume(options: argparse.Namespace) -> tuple[LabelledVolume, tuple[str, ...]]:
    if options.synthetic:
        from unet_export.train.tissue import make_tissue

        if len(options.synthetic) != 3:
            raise SettingsError("--synthetic takes three sizes z,y,x; give e.g. 96,96,96")
        image, labels = make_tissue(options.synthetic, options.seed)
        return LabelledVolume(image[None], labels), options.classes or TISSUE_CLASSES
    if options.image is None or options.labels is None or options.classes is None:
        raise SettingsError("give --image, --labels and --classes, or --synthetic Z,Y,X")
    return load(options.image, options.labels, axes=options.axes, ignore=options.ignore), options.classes


def _tell(line: str) -> None:
    print(line, flush=True)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _lengths(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
