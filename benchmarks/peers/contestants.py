"""The ways to get from a Zarr volume and a network to a Zarr array of labels: ours and the peers'.

The body of each function is what a user has to write; `lines` counts it. All get the same: the volume's path, the
network as ``job.module`` and as ``job.onnx``, the window, and where to write. All read uint8, divide by 255, and write
uint8 labels in chunks of the case.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

THREADS = 2


@dataclass
class Job:
    volume: str
    out: str
    onnx: str
    window: tuple[int, ...]
    chunk: tuple[int, ...]
    spacing: int = 1
    """Voxels of the volume that one voxel of the network spans, along every axis."""
    module: Any = None
    extra: Any = None
    """What `Contestant.prepare` made: plans, a model description."""


def engine_gaussian(job: Job) -> None:
    import unet_engine

    unet_engine.run(job.volume, model=job.onnx, out=job.out, precision="fp32")


def engine_constant(job: Job) -> None:
    import unet_engine

    unet_engine.run(job.volume, model=job.onnx, out=job.out, precision="fp32", blend="constant")


def engine_crop(job: Job) -> None:
    import unet_engine

    unet_engine.run(job.volume, model=job.onnx, out=job.out, precision="fp32", blend="crop")


def engine_in_300_mib(job: Job) -> None:
    import unet_engine

    unet_engine.run(job.volume, model=job.onnx, out=job.out, precision="fp32", memory="300MiB")


def engine_labels_resampled(job: Job) -> None:
    from skimage.transform import resize

    import unet_engine

    image = np.asarray(zarr.open_array(job.volume, mode="r")[...], np.float32)
    small = resize(image, [n // job.spacing for n in image.shape], order=1, mode="edge", anti_aliasing=False)
    zarr.create_array(job.out + ".small", data=small, chunks=job.chunk, dimension_names=list("zyx"))
    unet_engine.run(job.out + ".small", model=job.onnx, out=job.out + ".labels", precision="fp32")
    labels = np.asarray(zarr.open_array(job.out + ".labels/0", mode="r")[...])
    for axis in range(labels.ndim):
        labels = labels.repeat(job.spacing, axis)
    zarr.create_array(job.out, data=labels, chunks=job.chunk)


def engine_logits_resampled(job: Job) -> None:
    import torch
    from skimage.transform import resize

    import unet_engine

    image = np.asarray(zarr.open_array(job.volume, mode="r")[...], np.float32)
    small = resize(image, [n // job.spacing for n in image.shape], order=1, mode="edge", anti_aliasing=False)
    zarr.create_array(job.out + ".small", data=small, chunks=job.chunk, dimension_names=list("zyx"))
    unet_engine.run(job.out + ".small", model=job.onnx, out=job.out + ".logits", precision="fp32", output="logits")
    logits = zarr.open_array(job.out + ".logits/0", mode="r")
    labels = zarr.create_array(job.out, shape=image.shape, dtype="uint8", chunks=job.chunk)
    for z in range(0, small.shape[0], 16):  # with a plane more on either side, and without what that gave
        below, above = min(z, 1), min(small.shape[0] - z - 16, 1)
        slab = torch.from_numpy(np.asarray(logits[:, z - below : z + 16 + above]))[None]
        fine = torch.nn.functional.interpolate(slab, scale_factor=job.spacing, mode="trilinear")[0].argmax(0)
        inside = slice(below * job.spacing, fine.shape[0] - above * job.spacing)
        labels[z * job.spacing : (z + 16) * job.spacing] = fine[inside].numpy().astype(np.uint8)


def monai(job: Job) -> None:
    import torch
    from monai.inferers import SlidingWindowInferer

    image = torch.from_numpy(np.asarray(zarr.open_array(job.volume, mode="r")[...], np.float32) / 255)[None, None]
    infer = SlidingWindowInferer(job.window, sw_batch_size=4, overlap=0.5, mode="gaussian")
    infer.roi_weight_map = job.extra
    with torch.inference_mode():
        labels = infer(image, job.module).argmax(1)[0].numpy().astype(np.uint8)
    zarr.create_array(job.out, data=labels, chunks=job.chunk)


def nnunet(job: Job) -> None:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans, dataset = job.extra
    manager = PlansManager(plans)
    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_gaussian=True, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.manual_initialization(
        job.module,
        manager,
        manager.get_configuration("fullres"),
        [job.module.state_dict()],
        dataset,
        "nnUNetTrainer",
        None,
    )
    image = np.asarray(zarr.open_array(job.volume, mode="r")[...], np.float32)[None] / 255
    labels = predictor.predict_single_npy_array(image, {"spacing": [1 / job.spacing] * len(job.window)})
    zarr.create_array(job.out, data=labels.astype(np.uint8), chunks=job.chunk)


def torchio(job: Job) -> None:
    import torch
    import torchio as tio

    image = torch.from_numpy(np.asarray(zarr.open_array(job.volume, mode="r")[...], np.float32) / 255)
    flat = image.ndim == 2
    window = (1, *job.window) if flat else job.window
    subject = tio.Subject(image=tio.ScalarImage(tensor=image[None, None] if flat else image[None]))
    sampler = tio.GridSampler(subject, window, tuple(0 if w == 1 else w // 2 for w in window))
    aggregator = tio.GridAggregator(sampler, overlap_mode="average")
    with torch.inference_mode():
        for batch in tio.SubjectsLoader(sampler, batch_size=4):
            windows = batch["image"][tio.DATA]
            logits = job.module(windows[:, :, 0])[:, :, None] if flat else job.module(windows)
            aggregator.add_batch(logits, batch[tio.LOCATION])
    labels = aggregator.get_output_tensor().argmax(0).numpy().astype(np.uint8)
    zarr.create_array(job.out, data=labels[0] if flat else labels, chunks=job.chunk)


def bioimageio(job: Job) -> None:
    from bioimageio.core import predict

    axes = "zyx"[-len(job.window) :]
    image = np.asarray(zarr.open_array(job.volume, mode="r")[...], np.float32)[None, None] / 255
    block = {"batch": 1, "channel": 1, **dict(zip(axes, job.window, strict=True))}
    sample = predict(model=job.extra, inputs={"image": image}, input_block_shape={"image": block})
    labels = np.asarray(sample.members["logits"].data)[0].argmax(0).astype(np.uint8)
    zarr.create_array(job.out, data=labels, chunks=job.chunk)


def dask_openvino(job: Job) -> None:
    import dask
    import dask.array as da
    import openvino as ov

    core = ov.Core()
    model = core.read_model(job.onnx)
    model.reshape([1, 1, *job.window])
    config = {"NUM_STREAMS": str(THREADS), "INFERENCE_NUM_THREADS": str(THREADS), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(model, "CPU", config)

    def infer(block):
        if block.shape != job.window:  # what dask shows to learn the type
            return np.zeros(block.shape, np.uint8)
        window = block[None, None].astype(np.float32) / 255
        return compiled.create_infer_request().infer({0: window})[0][0].argmax(0).astype(np.uint8)

    image = da.from_zarr(job.volume).rechunk(tuple(w // 2 for w in job.window))
    depth = tuple(w // 4 for w in job.window)
    labels = image.map_overlap(infer, depth=depth, boundary="reflect", dtype=np.uint8)
    with dask.config.set(scheduler="threads", num_workers=THREADS):
        labels.rechunk(job.chunk).to_zarr(job.out)


@dataclass(frozen=True)
class Contestant:
    name: str
    work: Callable[[Job], None]
    blend: str
    """How it stitches: the engine does the same in the run it is compared with."""
    requirement: str
    imports: tuple[str, ...]
    """What is loaded before the clock starts."""
    module: str | None = None
    """``eager`` or ``compile``: needs the PyTorch module so."""
    axes: tuple[int, ...] = (2, 3)
    classes: int = 10**6
    """Most classes it is asked for."""
    spacing: tuple[bool, ...] = (False,)
    """Whether it takes volumes of another spacing than the network's, the network's own, or both."""


OURS = ("unet_engine.api", "openvino")
CONTESTANTS = {
    c.name: c
    for c in (
        Contestant("engine", engine_gaussian, "gaussian", "", OURS),
        Contestant("engine, constant", engine_constant, "constant", "", OURS),
        Contestant("engine, crop", engine_crop, "crop", "", OURS),
        Contestant("engine, 300 MiB", engine_in_300_mib, "gaussian", "", OURS),
        Contestant(
            "engine, labels resampled",
            engine_labels_resampled,
            "labels resampled",
            "",
            (*OURS, "skimage.transform"),
            spacing=(True,),
        ),
        Contestant(
            "engine, logits resampled",
            engine_logits_resampled,
            "logits resampled",
            "",
            (*OURS, "skimage.transform", "torch"),
            spacing=(True,),
        ),
        Contestant("MONAI", monai, "gaussian", "monai", ("monai.inferers",), "eager"),
        Contestant("MONAI, torch.compile", monai, "gaussian", "monai", ("monai.inferers",), "compile"),
        Contestant(
            "nnU-Net",
            nnunet,
            "gaussian",
            "nnunetv2",
            ("nnunetv2.inference.predict_from_raw_data",),
            "eager",
            (3,),
            spacing=(False, True),
        ),
        Contestant("TorchIO", torchio, "constant", "torchio", ("torchio",), "eager"),
        Contestant("bioimageio.core", bioimageio, "crop", "bioimageio.core", ("bioimageio.core", "onnxruntime")),
        Contestant("dask + OpenVINO", dask_openvino, "crop", "dask", ("dask.array", "openvino")),
    )
}
ENGINES = {"gaussian": "engine", "constant": "engine, constant", "crop": "engine, crop"}
"""The run of ours that stitches alike, for agreement."""


def lines(work: Callable[[Job], None]) -> int:
    """Lines of code in the body of a function: no comments, no blank lines; a statement over several lines counts as
    those it takes."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(work)))
    occupied: set[int] = set()
    for statement in ast.walk(tree.body[0]):
        if isinstance(statement, ast.stmt) and statement is not tree.body[0] and not _is_text(statement):
            last = statement.end_lineno or statement.lineno
            compound = getattr(statement, "body", None)
            occupied |= set(range(statement.lineno, (compound[0].lineno if compound else last + 1)))
    return len(occupied)


def _is_text(statement: ast.stmt) -> bool:
    """Whether it is a docstring."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def prepare(name: str, job: Job, case: Any, folder: Path) -> None:
    """Make what is neither the user's code nor the work: descriptions that trained models come with."""
    import scene

    if name.startswith("MONAI"):
        job.extra = scene.weights(case)
    elif name == "nnU-Net":
        job.extra = scene.nnunet_plans(case)
    elif name == "bioimageio.core":
        job.extra = scene.bioimageio_model(case, job.onnx, min(case.window) // 4, folder)
