"""Who takes part in `benchmarks/tiling.py`: the engine, and the sliding windows of MONAI, nnU-Net and TorchIO around the
same network, those of them that are installed."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import zarr

import unet_engine
from unet_engine.model.file import open_model
from unet_engine.profiling.beginning import WARMING
from unet_engine.volumes import samples
from unet_engine.volumes.formats import open_volume

OVERLAP, BATCH = 0.5, 4


def ours(part: str, options: dict[str, Any]) -> tuple[float, Any]:
    """Seconds of inference and stitching, with reading and writing Zarr, and the labels. Warming up counts: what it
    infers are windows of the run."""
    result = unet_engine.run(part, **options)
    return result.seconds + result.start[WARMING], np.asarray(zarr.open_array(result.out + "/0", mode="r")[...])


def network_of(model: str, base: int, depth: int, norm: str) -> Any:
    """The network of the file `model` in PyTorch; `base`, `depth` and `norm` as ``unet_export.train`` has them."""
    import torch

    from unet_export.train.geometry import UNetConfig
    from unet_export.train.nets import UNet
    from unet_export.train.restart import load_weights

    torch.set_num_threads(2)
    spec = open_model(model).spec
    shape: dict[str, Any] = {"base": base, "depth": depth, "norm": norm}
    config = UNetConfig(dims=len(spec.axes), channels_in=spec.channels_in, classes=spec.channels_out, **shape)
    net = UNet(config).eval()
    if norm == "none":
        load_weights(net, Path(model))
    else:  # nothing is folded, and the file calls weights what PyTorch does
        import onnx

        found = {t.name: np.array(onnx.numpy_helper.to_array(t)) for t in onnx.load(model).graph.initializer}
        net.load_state_dict({name: torch.from_numpy(found[name]) for name in net.state_dict()})
    return net


def normalised(model: str, part: str, image: Any) -> Any:
    """image: (channels, *shape), of which `part` is the Zarr. float32, (1, channels, *shape)."""
    import torch

    volume = open_volume(part)
    scale = samples.scaling_of(volume, open_model(model).spec.normalization)
    found = [scale.normalised(part.astype(np.float32), c) for c, part in enumerate(image)]
    return torch.from_numpy(np.stack(found).astype(np.float32))[None]


def monai(module: Any, x: Any, window: tuple[int, ...], overlap: Any) -> tuple[float, Any]:
    """Seconds from the normalised image in memory to labels, and the labels."""
    import torch
    from monai.inferers import sliding_window_inference

    begun = time.perf_counter()
    with torch.inference_mode():
        batch = BATCH if overlap == OVERLAP else 1
        logits = sliding_window_inference(x, window, batch, module, overlap=overlap, mode="gaussian")
        labels = logits.argmax(1)[0].numpy().astype(np.uint8)
    return time.perf_counter() - begun, labels


def nnunet(module: Any, x: Any, window: tuple[int, ...]) -> tuple[float, Any]:
    """As `monai`, by the windows of nnU-Net's predictor, without mirroring."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from peers import scene

    plans, dataset = scene.nnunet_plans(scene.Case("tiling", window, module.config.classes, {}, ()))
    manager = PlansManager(plans)
    predictor = nnUNetPredictor(
        tile_step_size=1 - OVERLAP, use_gaussian=True, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False
    )
    configuration, weights = manager.get_configuration("fullres"), [module.state_dict()]
    predictor.manual_initialization(module, manager, configuration, weights, dataset, "nnUNetTrainer", None)
    begun = time.perf_counter()
    logits = predictor.predict_sliding_window_return_logits(x[0])
    return time.perf_counter() - begun, logits.argmax(0).numpy().astype(np.uint8)


def torchio(module: Any, x: Any, window: tuple[int, ...]) -> tuple[float, Any]:
    """As `monai`, by TorchIO's sampler and aggregator, which averages."""
    import torch
    import torchio as tio

    flat = len(window) == 2
    size = (1, *window) if flat else window
    begun = time.perf_counter()
    subject = tio.Subject(image=tio.ScalarImage(tensor=x[0][:, None] if flat else x[0]))
    sampler = tio.GridSampler(subject, size, tuple(0 if w == 1 else round(w * OVERLAP) for w in size))
    aggregator = tio.GridAggregator(sampler, overlap_mode="average")
    with torch.inference_mode():
        for batch in tio.SubjectsLoader(sampler, batch_size=BATCH):
            windows = batch["image"][tio.DATA]
            logits = module(windows[:, :, 0])[:, :, None] if flat else module(windows)
            aggregator.add_batch(logits, batch[tio.LOCATION])
    labels = aggregator.get_output_tensor().argmax(0).numpy().astype(np.uint8)
    return time.perf_counter() - begun, labels[0] if flat else labels


def peers(module: Any, x: Any, window: tuple[int, ...]) -> dict[str, Callable[[], tuple[float, Any]]]:
    """Those that are installed, by name, with their habit: this window and half of it shared."""
    found = {"MONAI": partial(monai, module, x, window, OVERLAP)} if find_spec("monai") else {}
    if find_spec("nnunetv2") and len(window) == 3:
        found["nnU-Net"] = partial(nnunet, module, x, window)
    if find_spec("torchio"):
        found["TorchIO"] = partial(torchio, module, x, window)
    return found


def agreement(reference: Any, labels: Any, truth: Any = None) -> dict[str, float]:
    """Voxels with the label of `reference`, and Dice of its rarest; with `truth`, also the mean Dice of the classes but
    the background against that."""
    rarest = int(np.bincount(reference.ravel()).argmin())
    same = float((reference == labels).mean())
    found = {"agreement": same, "dice": _dice(reference == rarest, labels == rarest)}
    if truth is not None:
        present = [label for label in np.unique(truth) if label]
        found["truth"] = float(np.mean([_dice(truth == label, labels == label) for label in present]))
    return found


def _dice(a: Any, b: Any) -> float:
    return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))


def stored(path: Path, image: Any) -> str:
    """image: (channels, *shape)."""
    axes = "zyx"[-image.ndim + 1 :]
    data, names = (image[0], axes) if len(image) == 1 else (image, "c" + axes)
    chunks = [min(n, 64 if axes == "zyx" else 512) for n in data.shape]
    zarr.create_array(str(path), data=data, chunks=chunks, dimension_names=list(names))
    return str(path)
