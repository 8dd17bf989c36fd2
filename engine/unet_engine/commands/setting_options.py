"""The options that are settings of a run, with the names of `unet_engine.settings.settings.Settings`: what is computed, of what."""

from __future__ import annotations

import click

from unet_engine.commands.completing import files, words
from unet_engine.commands.option_kinds import COUNT, NUMBER, joined
from unet_engine.commands.shared_options import IGNORE_SPACING, OBJECTS

ONE = click.option(
    "--in",
    "input",
    metavar="PATH",
    shell_complete=files,
    help="Zarr array or OME-Zarr group (path or URL), or a file: TIFF, HDF5 as scan.h5:/name, .npy …; docs/volumes.md.",
)
SEVERAL = click.option(
    "--in",
    "input",
    metavar="PATH",
    shell_complete=files,
    multiple=True,
    help="Zarr array or OME-Zarr group (path or URL), or a file: TIFF, HDF5 as scan.h5:/name, .npy …; docs/volumes.md. "
    "Several, a glob, a folder of volumes or a list (.csv, .jsonl) are run one after the other; docs/batches.md.",
)
SETTINGS = [
    click.option(
        "--model",
        multiple=True,
        callback=joined,
        metavar="FILE[,FILE]",
        shell_complete=files,
        help=".onnx, .pt2 or .pt, or a model of another tool, see import; of several, or given several times, the mean "
        "is taken; default: from unet-engine.toml, here or beside the input.",
    ),
    click.option(
        "--folds",
        metavar="0,1|all",
        shell_complete=words,
        help="Which networks of a model of several run; default: all.",
    ),
    click.option("--weights", metavar="2,1,…", help="What each of these networks counts; default: as the model says."),
    click.option(
        "--out",
        metavar="PATH",
        shell_complete=files,
        help="Output: NAME.zarr, .nii.gz, .nrrd …, see docs/outputs.md; of several volumes with {stem}, docs/batches.md; "
        "default: beside the input, of its format.",
    ),
    click.option("--gpus", type=int, metavar="N", help="Run on N GPUs."),
    click.option(
        "--device",
        metavar="WHICH",
        shell_complete=words,
        help="cpu, cuda, cuda:0,1 or auto (all GPUs if any, else CPU).",
    ),
    click.option(
        "--backend",
        metavar="NAME",
        shell_complete=words,
        help="openvino, onnxruntime or pytorch; default: the best for the model and device.",
    ),
    click.option(
        "--precision",
        metavar="P",
        shell_complete=words,
        help="fp32, fp16, bf16, int8 or auto (fp32 unless another one was proved).",
    ),
    click.option("--window", metavar="Z,Y,X", help="Window size, e.g. 64,64,64; default: the model's."),
    click.option(
        "--overlap",
        metavar="R",
        shell_complete=words,
        help="Fraction by which windows overlap, 0 to below 1, or auto: the cheapest that agrees with 0.5; "
        "default 0.5.",
    ),
    click.option(
        "--overlap-tolerance", type=NUMBER, metavar="T", help="Agreement and Dice that auto asks for; default 0.999."
    ),
    click.option(
        "--blend",
        metavar="MODE",
        shell_complete=words,
        help="gaussian (default), constant, crop (keep centres only), or monai or nnunet: exactly as these tools do.",
    ),
    click.option(
        "--blend-at",
        metavar="WHAT",
        shell_complete=words,
        help="outputs of the network, or the features before its last layer, which gives the same and moves less; "
        "default: auto, features where classes are many.",
    ),
    click.option(
        "--split-concat",
        is_flag=True,
        default=None,
        help="Compute convolutions of concatenated tensors as sums of convolutions: the same but for rounding, and "
        "faster in fp32 on a CPU; docs/performance.md.",
    ),
    click.option(
        "--tiling",
        metavar="T",
        shell_complete=words,
        help="Windows spread evenly: size, voxels that neighbours share at least, and blend, e.g. "
        "136,144,144:16,16,16:crop; instead of --window, --overlap and --blend. auto: the cheapest that agrees with the "
        "best inference that fits as well as the model's own tiling does.",
    ),
    click.option(
        "--tolerance",
        type=NUMBER,
        metavar="T",
        help="Agreement and Dice that --tiling auto asks for; default: what the model's own tiling reaches.",
    ),
    click.option(
        "--tiling-budget", type=NUMBER, metavar="F", help="Part of a run that --tiling auto may take; default 0.03."
    ),
    click.option(
        "--truth", metavar="PATH", shell_complete=files, help="Labels of the volume, by which --tiling auto decides."
    ),
    click.option(
        "--coarse",
        metavar="auto",
        shell_complete=words,
        help="auto: a coarse pass marks where foreground can be, regions computed in full prove how much it misses, and "
        "windows without any are not computed. For sparse labels.",
    ),
    click.option(
        "--coarse-miss", type=NUMBER, metavar="F", help="Part of the foreground that may be missed; default 0.001."
    ),
    click.option(
        "--coarse-budget", type=NUMBER, metavar="F", help="Part of a run that --coarse auto may take; default 0.1."
    ),
    click.option(
        "--padding",
        metavar="MODE",
        shell_complete=words,
        help="reflect (default), constant (default with monai and nnunet) or edge, where windows stick out.",
    ),
    click.option(
        "--tta",
        metavar="HOW",
        shell_complete=words,
        help="Infer each window several times, mirrored (mirror, mirror:yx) or turned in the plane (turns), and take "
        "the mean; none; default: mirror where the model names axes for it.",
    ),
    click.option(
        "--into",
        is_flag=False,
        flag_value="auto",
        metavar="[NAME]",
        help="Put the labels into the OME-Zarr image that is read, IMAGE/labels/NAME, instead of --out; NAME: called so "
        "(default: after the model), or the path of the image.",
    ),
    click.option(
        "--output",
        metavar="KIND",
        shell_complete=words,
        help="labels (default), masks (of each class), probabilities or logits.",
    ),
    click.option(
        "--components", is_flag=True, default=None, help="Number connected objects in place of labels; docs/objects.md."
    ),
    *OBJECTS,
    click.option(
        "--pyramid",
        is_flag=True,
        default=None,
        help="Add coarser levels to the output: majority of labels, else means.",
    ),
    click.option(
        "--levels", type=COUNT, metavar="N", help="Of --pyramid, with the full resolution; default: until small."
    ),
    click.option(
        "--channels",
        "--output-channels",
        "channels",
        metavar="WHAT",
        shell_complete=words,
        help="What output channels are: classes that exclude one another, multilabel (they may overlap), image or "
        "offsets; default: what the model says.",
    ),
    click.option(
        "--dtype",
        metavar="TYPE",
        shell_complete=words,
        help="Of probabilities (uint8, float16, float32) or logits (float16, float32).",
    ),
    click.option(
        "--roi", metavar="BOX", help="z0:z1,y0:y1,x0:x1 in voxels; the result equals that crop of the full run."
    ),
    click.option("--axes", metavar="AXES", help="Axes of the stored array, e.g. czyx; default: from its metadata."),
    click.option(
        "--image",
        metavar="NAME",
        shell_complete=words,
        help="Of a plate, collection, TIFF or folder of DICOM: an image in it, by name or number; run: all.",
    ),
    click.option("--level", type=int, metavar="N", help="Of a pyramid or overviews; default: 0, the full resolution."),
    click.option(
        "--timepoint",
        metavar="N",
        shell_complete=words,
        help="The time point to run on, counted from 0; all, or a range such as 0:10: each of them, and the output keeps "
        "the time axis.",
    ),
    click.option(
        "--input-channels", metavar="C,C", help="Channels the network takes, in its order, by name or number from 0."
    ),
    click.option(
        "--normalize",
        metavar="HOW",
        shell_complete=words,
        help="none, zscore, minmax, percentile:1,99, range:-1000,400, fixed:mean=M,std=S or imagenet, and behind them "
        "clip, clip=-1024:3071, to=-1:1, foreground (see docs/normalisation.md); default: the model's.",
    ),
    click.option(
        "--activation",
        metavar="A",
        shell_complete=words,
        help="What outputs are: logits (softmax, sigmoid), numbers (none), probabilities, or probabilities_each "
        "channel; default: the model's.",
    ),
    click.option(
        "--threshold",
        type=NUMBER,
        metavar="P",
        help="Probability above which a channel on its own is a label; default: the model's, else 0.5.",
    ),
    click.option("--head", metavar="NAME", help="The output that is wanted, of a network with several."),
    click.option("--replace-nonfinite", type=NUMBER, metavar="V", help="Read NaN and Inf as V instead of stopping."),
    click.option(
        "--grid",
        type=click.Choice(["scan", "model"]),
        help="Where the model brings the volume to its own spacing: the grid of the result; default: the scan's.",
    ),
    click.option(
        "--mask",
        metavar="PATH",
        shell_complete=files,
        help="Volume, also coarser or finer: only voxels where it is not zero are meant.",
    ),
    click.option(
        "--outside",
        metavar="V",
        shell_complete=words,
        help="Written outside the mask and where nothing was measured; default: the background label 0, or what the "
        "model names for empty windows. keep: what windows give there.",
    ),
    click.option(
        "--nodata",
        metavar="V",
        shell_complete=words,
        help="Values of voxels that were not measured, e.g. -9999 or nan, or none; default: what the volume says.",
    ),
    click.option("--memory", metavar="SIZE", help="RAM to stay within, e.g. 8GiB; default: half of what is free."),
    click.option("--batch", type=int, metavar="N", help="Windows a GPU infers at once, at most; default: what fits."),
    click.option(
        "--threads",
        type=int,
        metavar="N",
        help="Windows a process infers at once on the CPU; default: one per core, or what was measured to be faster.",
    ),
    click.option(
        "--window-threads",
        type=int,
        metavar="N",
        help="Threads that infer one window together on the CPU; default: 1, or what was measured to be faster with the "
        "same bytes.",
    ),
    click.option(
        "--part",
        metavar="I/N",
        help="Only the I-th of N parts, for job arrays; the last to end completes the output. Of several volumes every "
        "N-th.",
    ),
    click.option(
        "--profile",
        is_flag=False,
        flag_value="auto",
        metavar="[PATH]",
        shell_complete=files,
        help="Tell where the time went; a trace and a picture go to this folder or NAME.json, without a name to "
        "OUT-profile.",
    ),
    click.option(
        "--trust",
        is_flag=True,
        default=None,
        help="Open a .pt2 or TorchScript, which may run any code; asked once per file.",
    ),
    IGNORE_SPACING,
    click.option("--strict", is_flag=True, default=None, help="Make every fallback an error."),
]
