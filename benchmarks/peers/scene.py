"""What the contestants work on: volumes of 1, 8 and 64 times some voxels, one network as PyTorch module and as ONNX
file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import zarr

SHARED = Path(__file__).parents[3] / "shared" / "data"


@dataclass(frozen=True)
class Case:
    """A network and the volumes it runs over. Sizes are window + k * stride along every axis, so that all grids are the
    same."""

    name: str
    window: tuple[int, ...]
    classes: int
    counts: dict[int, tuple[int, ...]]
    """Windows along each axis at overlap 0.5, by how many times the voxels (roughly)."""
    chunk: tuple[int, ...]
    kind: str = "unet"
    spacing: int = 1
    """Voxels of the stored volume that one voxel of the network spans, along every axis."""

    @property
    def axes(self) -> str:
        return "zyx"[-len(self.window) :]

    def shape(self, times: int) -> tuple[int, ...]:
        return tuple(
            self.spacing * (w + (n - 1) * w // 2) for w, n in zip(self.window, self.counts[times], strict=True)
        )


CASES = {
    "3D": Case("3D", (64,) * 3, 2, {1: (3, 3, 3), 8: (7, 7, 7), 64: (15, 15, 15)}, (64,) * 3),
    "2D": Case("2D", (512,) * 2, 2, {1: (3, 3), 8: (7, 15), 64: (31, 31)}, (512,) * 2),
    "organs": Case("organs", (64,) * 3, 104, {1: (2, 3, 3), 8: (5, 5, 7), 64: (11, 11, 11)}, (64,) * 3, "nnunet"),
    "scan": Case("scan", (64,) * 3, 104, {1: (2, 3, 3), 8: (5, 5, 7), 64: (11, 11, 11)}, (64,) * 3, "nnunet", 2),
}
TOY = {
    "3D": Case("3D", (16,) * 3, 2, {1: (3, 3, 3), 8: (7, 7, 7), 64: (15, 15, 15)}, (16,) * 3),
    "2D": Case("2D", (32,) * 2, 2, {1: (3, 3), 8: (7, 15), 64: (31, 31)}, (32,) * 2),
    "organs": Case("organs", (16,) * 3, 104, {1: (2, 3, 3), 8: (5, 5, 7), 64: (11, 11, 11)}, (16,) * 3, "nnunet"),
    "scan": Case("scan", (16,) * 3, 104, {1: (2, 3, 3), 8: (5, 5, 7), 64: (11, 11, 11)}, (16,) * 3, "nnunet", 2),
}


def network(case: Case, base: int) -> Any:
    """The module with random weights: logits (batch, classes, *window) of (batch, 1, *window)."""
    import torch

    torch.manual_seed(0)
    return (_nnunet if case.kind == "nnunet" else _unet)(case, base).eval()


def _nnunet(case: Case, base: int) -> Any:
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    stages = 5 if min(case.window) >= 64 else 3
    return PlainConvUNet(
        input_channels=1, num_classes=case.classes, n_stages=stages,
        features_per_stage=[min(320, base * 2**i) for i in range(stages)], strides=(1, *(2,) * (stages - 1)),
        kernel_sizes=3,
        conv_op=torch.nn.Conv3d, conv_bias=True, norm_op=torch.nn.InstanceNorm3d, norm_op_kwargs={"affine": True},
        nonlin=torch.nn.LeakyReLU, n_conv_per_stage=2, n_conv_per_stage_decoder=2, deep_supervision=False,
    )  # fmt: skip


def _unet(case: Case, base: int) -> Any:
    from unet_export.train.geometry import UNetConfig
    from unet_export.train.nets import UNet

    depth = 4 if min(case.window) >= 64 else 2
    return UNet(UNetConfig(dims=len(case.window), classes=case.classes, base=base, depth=depth, norm="batch"))


def save(case: Case, base: int, folder: Path) -> None:
    """The network as ``net.onnx``, which takes windows of the case's size, and its weights as ``net.pt``."""
    import torch

    from unet_engine.model.normalization import Normalization
    from unet_engine.model.spec import ModelSpec
    from unet_export.conversion.onnx_export import export_onnx

    none = (0,) * len(case.window)
    spec = ModelSpec(
        name=case.name, axes=case.axes, channels_in=1, channels_out=case.classes, window=case.window,
        window_min=case.window,
        window_step=none, margin=none, normalization=Normalization(mode="range", low=0, high=255),
    )  # fmt: skip
    module = network(case, base)
    _balance(case, module)
    torch.save(module.state_dict(), folder / "net.pt")
    export_onnx(module, spec, folder / "net.onnx", dynamic=False)


def load(case: Case, base: int, weights: str) -> Any:
    """The module that `save` saved."""
    import torch

    module = network(case, base)
    module.load_state_dict(torch.load(weights))
    return module


def _balance(case: Case, module: Any) -> None:
    """Set the last bias so that no class wins everywhere: else any two outputs would agree."""
    import torch

    image = _tile(len(case.window))[tuple(slice(w) for w in case.window)].astype(np.float32) / 255
    head = [
        m
        for m in module.modules()
        if isinstance(m, (torch.nn.Conv2d, torch.nn.Conv3d)) and m.out_channels == case.classes
    ][-1]
    with torch.no_grad():
        logits = module(torch.from_numpy(image)[None, None])
        head.bias -= logits.mean(dim=(0, *range(2, logits.ndim)))


def volume(case: Case, times: int, path: Path) -> None:
    """The shared EM volume or satellite mosaic mirrored to the size, noise where there is none; written slab by
    slab."""
    shape = case.shape(times)
    tile = _tile(len(shape))
    array = zarr.create_array(
        str(path), shape=shape, chunks=case.chunk, dtype="uint8", dimension_names=list(case.axes), overwrite=True
    )
    places = [
        np.abs((np.arange(n) + s - 1) % (2 * s - 2 or 1) - (s - 1)) for n, s in zip(shape, tile.shape, strict=True)
    ]
    step = case.chunk[0]
    for start in range(0, shape[0], step):
        rows = places[0][start : start + step]
        array[start : start + step] = tile[np.ix_(rows, *places[1:])]


def _tile(ndim: int) -> np.ndarray:
    source = SHARED / ("em/volume.tif" if ndim == 3 else "sat/mosaic_4_image.tif")
    if source.exists():
        image = _image(source)
        return image[..., 0] if image.ndim > ndim else image
    print(f"{source} is not there: using noise", file=sys.stderr)
    side = (64,) * 3 if ndim == 3 else (512,) * 2
    return np.random.default_rng(0).integers(0, 255, side, dtype=np.uint8)


def _image(path: Path) -> np.ndarray:
    """A TIFF, whole: (z, y, x) or (y, x, channels) uint8. Pillow decodes what tifffile needs another package for,
    tifffile reads stacks."""
    import tifffile
    from PIL import Image

    try:
        return np.asarray(tifffile.imread(path))
    except ValueError:
        return np.asarray(Image.open(path))


# --- what some peers need besides, and no user code is ---


def weights(case: Case) -> Any:
    """The Gaussian of a window with the floor that the engine gives each axis; MONAI's own has one floor for their
    product."""
    import torch

    from unet_engine.stitching.weights import profile

    return torch.from_numpy(reduce(np.multiply.outer, [profile(n, "gaussian") for n in case.window])).float()


def nnunet_plans(case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """The plans and the dataset description that nnU-Net's predictor asks for: the network at spacing 1, nothing
    normalised."""
    resample = {
        f"resampling_fn_{what}{suffix}": value
        for what in ("data", "seg", "probabilities")
        for suffix, value in (
            ("", "resample_data_or_seg_to_shape"),
            ("_kwargs", {"is_seg": what == "seg", "order": 1, "order_z": 0, "force_separate_z": None}),
        )
    }
    configuration = {
        "patch_size": list(case.window), "spacing": [1.0] * len(case.window), "batch_size": 2,
        "preprocessor_name": "DefaultPreprocessor",
        "normalization_schemes": ["NoNormalization"], "use_mask_for_norm": [False], **resample,
        "architecture": {"network_class_name": "none", "arch_kwargs": {}, "_kw_requires_import": []},
    }  # fmt: skip
    plans = {
        "dataset_name": "Dataset001_Bench", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "configurations": {"fullres": configuration},
        "foreground_intensity_properties_per_channel": {"0": {}},
    }  # fmt: skip
    labels = {"background": 0, **{f"class {k}": k for k in range(1, case.classes)}}
    return plans, {"channel_names": {"0": "image"}, "labels": labels, "file_ending": ".nii.gz"}


def bioimageio_model(case: Case, onnx: str, halo: int, folder: Path) -> Any:
    """The description of the ONNX file as bioimage.io writes it, with halo on every axis."""
    from bioimageio.spec.model import v0_5 as spec

    sizes = dict(zip(case.axes, case.window, strict=True))
    np.save(folder / "in.npy", np.ones((1, 1, *case.window), np.float32))
    np.save(folder / "out.npy", np.ones((1, case.classes, *case.window), np.float32))
    inputs = [spec.SpaceInputAxis(id=spec.AxisId(a), size=n) for a, n in sizes.items()]
    outputs = [
        spec.SpaceOutputAxisWithHalo(
            id=spec.AxisId(a),
            halo=halo,
            size=spec.SizeReference(tensor_id=spec.TensorId("image"), axis_id=spec.AxisId(a)),
        )
        for a in sizes
    ]
    channel = [spec.Identifier(f"c{k}") for k in range(case.classes)]
    return spec.ModelDescr(
        name="network of this benchmark", description="random weights", authors=[spec.Author(name="benchmark")],
        cite=[spec.CiteEntry(text="none", url=spec.HttpUrl("https://bioimage.io"))], license=spec.LicenseId("MIT"),
        inputs=[spec.InputTensorDescr(
            id=spec.TensorId("image"), test_tensor=spec.FileDescr(source=folder / "in.npy"),
            axes=[spec.BatchAxis(), spec.ChannelAxis(channel_names=[spec.Identifier("image")]), *inputs],
        )],
        outputs=[spec.OutputTensorDescr(
            id=spec.TensorId("logits"), test_tensor=spec.FileDescr(source=folder / "out.npy"),
            axes=[spec.BatchAxis(), spec.ChannelAxis(channel_names=channel), *outputs],
        )],
        weights=spec.WeightsDescr(onnx=spec.OnnxWeightsDescr(source=Path(onnx), opset_version=20)),
    )  # fmt: skip
