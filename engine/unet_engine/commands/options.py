"""The options of the command line that are settings, with the names of `unet_engine.settings.Settings`; how sizes are
read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import click

from unet_engine.commands.completing import files, words
from unet_engine.errors import SettingsError
from unet_engine.settings_files import ENVIRONMENT
from unet_engine.units import finite


class _Number(click.types.FloatParamType):
    """A finite number: the type of every option that takes one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return finite(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a valid float: give a finite number", param, ctx)


NUMBER = _Number()


class Command(click.Command):
    """A command each of whose options may be given once, but for those that take several values and for flags.

    Of two values click takes the last and says nothing of the others.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.meta.get(_FOR_MACHINES) and not any(arg.partition("=")[0] == "--json" for arg in args):
            args = [*self._as_json(), *args]
        if not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
            for option, times in Counter(order).items():
                if times > 1 and isinstance(option, click.Option) and not (option.multiple or option.is_flag):
                    raise click.UsageError(f"{option.opts[0]} is given {times} times; give it once", ctx)
        return super().parse_args(ctx, args)

    def _as_json(self) -> list[str]:
        """What has the command end with JSON on stdout. One that takes a file writes there to ``-``."""
        option = next((one for one in self.params if "--json" in one.opts), None)
        if not isinstance(option, click.Option):
            return []
        return ["--json"] if option.is_flag else ["--json", "-"]


_FOR_MACHINES = "unet_engine.json"


def for_machines(ctx: click.Context, _option: click.Parameter, given: bool) -> None:  # noqa: FBT001
    """``--json`` before the name of a command means that of the command."""
    ctx.meta[_FOR_MACHINES] = given


def joined(_ctx: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> str | None:
    """Of an option that may be given several times, what it means: a list parted by commas."""
    return ",".join(given) if given else None


IGNORE_SPACING = click.option(
    "--ignore-spacing",
    is_flag=True,
    default=None,
    help="Take voxels of another size than in training, an error otherwise, and the volume as it lies.",
)

COUNT = click.IntRange(1, 2**31 - 1)
OBJECTS: list[Callable[..., Any]] = [
    click.option(
        "--connectivity",
        type=click.Choice(["4", "8", "6", "18", "26"]),
        help="Neighbours that count: 6 (faces; default), 18 (and edges), 26 (and corners); in 2D 4 (default) or 8.",
    ),
    click.option("--min-size", type=COUNT, metavar="N", help="Leave out objects of fewer voxels."),
    click.option("--fill-holes", is_flag=True, default=None, help="First fill background that one class encloses."),
    click.option("--largest", type=COUNT, metavar="K", help="Keep the K largest objects of each class."),
]
"""Which objects there are: with --components, and of the command of that name."""

_ONE = click.option(
    "--in",
    "input",
    metavar="PATH",
    shell_complete=files,
    help="Zarr array or OME-Zarr group (path or URL), or a file: TIFF, HDF5 as scan.h5:/name, .npy …; docs/volumes.md.",
)
_SEVERAL = click.option(
    "--in",
    "input",
    metavar="PATH",
    shell_complete=files,
    multiple=True,
    help="Zarr array or OME-Zarr group (path or URL), or a file: TIFF, HDF5 as scan.h5:/name, .npy …; docs/volumes.md. "
    "Several, a glob, a folder of volumes or a list (.csv, .jsonl) are run one after the other; docs/batches.md.",
)
_SETTINGS = [
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

_CLUSTER = [
    click.option("--workers", type=int, metavar="N", help="Run N worker processes on this machine (Dask)."),
    click.option(
        "--scheduler", metavar="ADDRESS", help="Run on this Dask cluster: tcp://host:port or a scheduler file."
    ),
    click.option(
        "--cluster",
        metavar="FILE",
        shell_complete=files,
        help="Start workers as batch jobs as this YAML file says, e.g. on SLURM.",
    ),
    click.option(
        "--protocol",
        metavar="P",
        shell_complete=words,
        help="How --workers and --gpus send halos: tcp (default) or ucx (pip install 'unet-engine[ucx]').",
    ),
    click.option(
        "--hang-seconds",
        type=NUMBER,
        metavar="S",
        help="A block that takes longer counts as hung; default: from the plan with Dask, else never.",
    ),
    click.option(
        "--tls-ca",
        metavar="FILE",
        shell_complete=files,
        help="PEM file of the authority, for a cluster that speaks TLS.",
    ),
    click.option("--tls-cert", metavar="FILE", shell_complete=files, help="PEM file of our certificate."),
    click.option("--tls-key", metavar="FILE", shell_complete=files, help="PEM file of our key."),
    click.option(
        "--dashboard", metavar="HOST:PORT", help="Where the dashboard listens; default: loopback, any free port."
    ),
    click.option(
        "--dashboard-token",
        metavar="SECRET",
        envvar="UNET_ENGINE_DASHBOARD_TOKEN",
        help="Ask visitors of the dashboard for this.",
    ),
]


_RUNNING = [
    click.option("--keep-going", is_flag=True, help="Of several volumes run the others where one fails; exit code 11."),
    click.option("--dry-run", is_flag=True, help="Say what would be run, and what would be refused; write nothing."),
    click.option(
        "--results",
        metavar="FILE",
        shell_complete=files,
        help="Add a line of JSON for each volume, also of one that fails.",
    ),
    click.option("--log", metavar="FILE", shell_complete=files, help="Add all that is told, with the time."),
    click.option(
        "--log-format", type=click.Choice(["text", "json"]), help="Of --log; json without it: of stderr. Default: text."
    ),
    click.option(
        "--metrics",
        metavar="FILE",
        shell_complete=files,
        help="Counts as Prometheus reads them, written every few seconds.",
    ),
    click.option(
        "--report",
        metavar="FILE.html",
        shell_complete=files,
        help="Write what ran, where time went, what is proved and pictures of places into one file; docs/operations.md.",
    ),
    click.option(
        "--notify",
        metavar="URL",
        help="Post what became of it to this address in the end, as JSON, also where it failed; docs/operations.md.",
    ),
    click.option(
        "--rate",
        metavar="PRICE",
        help="Of an hour of the machines, e.g. 3.20EUR: tells what the run cost, and a teravoxel.",
    ),
    click.option("-v", "--verbose", is_flag=True, help="Of several volumes show the plan and all notes of each."),
    click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors."),
]


class Number(click.FloatRange):
    """A finite number within bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(NUMBER.convert(value, param, ctx), param, ctx)


class Place(click.ParamType):  # type: ignore[type-arg]  # of click 8.2 and before it has none
    """A path or URL that there may be."""

    name = "path"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        return files(ctx, param, incomplete)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from unet_engine.paths import unusable
        from unet_engine.units import brief

        if why := unusable(str(value)):
            self.fail(f"{brief(value)}: {why}", param, ctx)
        return value


PLACE = Place()
THREADS = click.IntRange(1, 1024)

# what export and import both ask
THRESHOLD = click.option(
    "--threshold",
    type=NUMBER,
    metavar="P",
    help="Probability above which a channel on its own is a label; default 0.5.",
)
MIRROR_AXES = click.option(
    "--mirror-axes",
    metavar="AXES",
    shell_complete=words,
    help="Along which runs mirror windows and average, e.g. zyx; none: along none.",
)


MEANT: list[Callable[..., Any]] = [
    click.option("--image", metavar="NAME", help="Of a plate, collection, TIFF or folder of DICOM: an image in it."),
    click.option(
        "--level",
        type=click.IntRange(0),
        metavar="N",
        help="Of a pyramid or overviews; default: 0, the full resolution.",
    ),
    click.option("--timepoint", type=click.IntRange(0), metavar="N", help="The time point, counted from 0."),
    click.option("--input-channels", metavar="C,C", help="Channels the network takes, by name or number from 0."),
]
"""What of the volume is meant, for commands that take no other settings."""


def meant_options(command: Callable[..., Any]) -> Callable[..., Any]:
    return _with(MEANT, command)


def sizes(option: str, text: str | None) -> tuple[int, ...] | None:
    """One size per axis, as in ``64,64,64``; None where the option was left out. Raises `SettingsError` naming the
    option."""
    from unet_engine.settings_text import parse_window
    from unet_engine.units import brief

    if text is None:
        return None
    try:
        return parse_window(text)
    except ValueError as error:
        raise SettingsError(f"{option} {brief(text)}: {error}") from error


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What a run does."""
    return _with([_ONE, *_SETTINGS], command)


def shown_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What a run does whose blocks are computed because somebody looks at them: all of it, by one process."""
    return _with([option for option in _SETTINGS if _name(option) not in _UNSEEN], command)


_UNSEEN = ("part", "profile")


def _name(option: Callable[..., Any]) -> str:
    """What an option gives its command."""
    parameter: click.Option = option(lambda: None).__click_params__[0]
    return str(parameter.name)


def several_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What runs over one volume or more do."""
    return _with([_SEVERAL, *_SETTINGS], command)


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Who does it."""
    return _with(_CLUSTER, command)


def running_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How a run tells what it does, and what it does with several volumes. The environment may say it, too."""
    return _with([_or_around(option) for option in _RUNNING], command)


def _or_around(option: Callable[..., Any]) -> Callable[..., Any]:
    def put(command: Callable[..., Any]) -> Callable[..., Any]:
        command = option(command)
        parameter: click.Option = command.__click_params__[-1]  # type: ignore[attr-defined]
        parameter.envvar = ENVIRONMENT + str(parameter.name).upper()
        return command

    return put


def _with(options: list[Callable[..., Any]], command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command
