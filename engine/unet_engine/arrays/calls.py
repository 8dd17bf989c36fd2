"""`predict`, `run`, `make_plan` and `open_volume`, as Python calls them."""

from __future__ import annotations

import inspect
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Unpack

from unet_engine.api import Result, run_volume
from unet_engine.arrays.options import Options
from unet_engine.arrays.progress import bar
from unet_engine.arrays.results import ArraySink, maker, wrapped
from unet_engine.arrays.volume import PLACE, Source, source_of
from unet_engine.batches.times import UNSEEN, are_several, run_times
from unet_engine.errors import SettingsError, UnetEngineError, UnetEngineWarning, reworded
from unet_engine.execution.choose import team
from unet_engine.execution.local import LocalTeam
from unet_engine.model.file import ModelFile
from unet_engine.plan.plan import Plan
from unet_engine.prepare.given import Given
from unet_engine.prepare.prepare import prepare
from unet_engine.prepare.survey import survey
from unet_engine.settings.settings import Settings
from unet_engine.volumes.base import Volume

if TYPE_CHECKING:
    import torch

    Model: TypeAlias = str | Path | Sequence[str | Path] | ModelFile | torch.nn.Module

F = TypeVar("F", bound=Callable[..., Any])
NOT_OF_ARRAYS = (
    "resume", "verify", "overwrite", "durable", "part", "profile", "components", "connectivity", "min_size", "fill_holes",
    "largest", "pyramid", "levels", "into", "workers", "scheduler", "cluster", "protocol", "tls_ca", "tls_cert", "tls_key", "dashboard",
    "dashboard_token",
)  # fmt: skip
"""Settings of runs that leave an output in a store."""


def _signed(leave_out: Sequence[str] = ()) -> Callable[[F], F]:
    """Give a function the signature that its settings come to, for help and notebooks; they are the keywords of
    `Options`."""

    def sign(function: F) -> F:
        own = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
        names = [name for name in Options.__annotations__ if name not in leave_out]
        fields = Settings.model_fields
        more = [
            inspect.Parameter(
                n, inspect.Parameter.KEYWORD_ONLY, default=fields[n].default, annotation=fields[n].annotation
            )
            for n in names
        ]
        function.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]
        return function

    return sign


def open_volume(
    volume: Any, axes: str | None = None, *, spacing: Sequence[float] | None = None, unit: str | None = None
) -> Volume:
    """The volume that a path or URL names, or that an array is, see `unet_engine.arrays.volume.source_of`: its axes,
    shape, spacing, and ``read(box)``, shape (channels, *box.shape). Raises `InputError`."""
    with _named("volume"):
        return source_of(volume, axes, spacing, unit).volume


@_signed(leave_out=NOT_OF_ARRAYS)
def predict(
    array: Any,
    model: Model | None = None,
    *,
    out: Any = None,
    spacing: Sequence[float] | None = None,
    unit: str | None = None,
    progress: bool | None = None,
    **settings: Unpack[Options],
) -> Any:
    """Run a U-Net over an array and return the result as an array: the same voxels as `run` writes, by the same plan.

    array: an array of NumPy, Zarr, dask or xarray, with axes yx, zyx, czyx or tczyx unless it or `axes` says otherwise;
        a Zarr group or store with an OME-Zarr image; or a path. It is read by block.
    model: a path or URL, several, what `unet_engine.open_model` gives, or a torch module (which is exported first;
        `window` says for which size)
    out: an array to write into, of the result's shape and type, none of whose voxels are those of `array` or the mask; default: one
        is made
    spacing, unit: distance of voxels along z, y, x as far as present, where the array does not say it
    progress: show a bar; default: on terminals and in notebooks

    Returns what `array` is: NumPy for NumPy, a compressed Zarr array in memory for Zarr and paths, a dask array on top
    of such for dask, a DataArray with the voxels' coordinates for xarray. Its axes are those of space in the order of
    `array`, with the classes first for probabilities, logits and masks. What users should know is warned of
    (`UnetEngineWarning`). Raises subclasses of `UnetEngineError`, which name arguments.
    """
    if others := [name for name in NOT_OF_ARRAYS if name in settings]:
        raise SettingsError(f"{others[0]} is for outputs in a store; use unet_engine.run, or leave it out")
    with _named("array"), ExitStack() as stack:
        place, source = _source(array, settings, spacing, unit)
        source = source and source.written_into(out)
        given, asked = _opened(source, model, settings, stack)
        crew = LocalTeam(Settings.of(input=place, **asked), given=given)
        sink = crew.sink = ArraySink(maker(source.result_kind if source else "zarr", out), out)
        stack.callback(crew.close)
        prepared = crew.prepare()
        with bar(prepared.job.plan.call_count, crew) if progress is not False else nullcontext():
            crew.execute(prepared, lambda _: True)
        _warn((*crew.notes, *prepared.notes))
        if out is not None or source is None:
            return sink.array
        return wrapped(source, sink.array, prepared.job.layout)


@_signed()
def run(
    input: Any,
    model: Model | None = None,
    out: str | Path | None = None,
    *,
    progress: bool = False,
    **settings: Unpack[Options],
) -> Result:
    """Run a U-Net over a volume and write the result to `out`. Settings are those of
    `unet_engine.settings.settings.Settings`.

    input: path or URL of a volume, or an array as `predict` takes it, where `out` has to be given
    model: as `predict` takes it
    out: an OME-Zarr 0.5 group with the result at ``0``, or a file of another format; default: beside the input
    progress: show a bar, on terminals and in notebooks

    What users should know is warned of (`UnetEngineWarning`), and in the result's notes. Raises subclasses of
    `UnetEngineError`: those of the command line, with a note that names the arguments.
    """
    with _explained(), ExitStack() as stack:
        place, source = _source(input, settings)
        if source and out is None:
            raise SettingsError("out is needed where input is an array; give the path of a group, e.g. labels.zarr")
        given, asked = _opened(source, model, settings, stack)
        wanted = Settings.of(input=place, out=out, **asked)
        if are_several(wanted) and source is None and given.model is None:
            heard: list[str] = []
            result = run_times(wanted, UNSEEN, heard.append)
            _warn((*heard, *result.notes))
            return result
        crew = stack.enter_context(team(wanted, given=given))
        prepared = crew.prepare()
        result = run_volume(crew, prepared, (lambda p, c: bar(p.job.plan.call_count, c)) if progress else None)
        planned = () if result.already_complete else (*crew.notes, *prepared.notes)
        notes = tuple(dict.fromkeys((*planned, *result.notes)))
        _warn(notes)
        return replace(result, notes=notes)


@_signed()
def make_plan(
    input: Any, model: Model | None = None, out: str | Path | None = None, **settings: Unpack[Options]
) -> Plan:
    """The plan that `run` with the same arguments would execute; nothing is written."""
    with _explained(), ExitStack() as stack:
        place, source = _source(input, settings)
        given, asked = _opened(source, model, settings, stack)
        prepared = prepare(survey(Settings.of(input=place, out=out, **asked), given))
        if prepared.network:
            prepared.network.close()
        return prepared.job.plan


def _source(
    array: Any, settings: Options, spacing: Sequence[float] | None = None, unit: str | None = None
) -> tuple[Any, Source | None]:
    """What the input is called, and the volume where it is open. What a path names is opened by the run."""
    if isinstance(array, str | Path):
        if spacing is not None or unit is not None:
            raise SettingsError("spacing and unit are for arrays; leave them out, or give what open_volume gives")
        return array, None
    source = source_of(array, settings.pop("axes", None), spacing, unit)
    return source.volume.path, source


def _opened(source: Source | None, model: Any, settings: Any, stack: ExitStack) -> tuple[Given, dict[str, Any]]:
    """What is open already, and the other settings. A torch module is exported to a file that `stack` removes."""
    asked, volume = dict(settings), source.volume if source else None
    if isinstance(model, ModelFile):
        for name in ("head", "folds", "weights"):
            if asked.get(name) is not None:
                raise SettingsError(f"{name} is chosen as a model is opened; give it to open_model")
        return Given(volume, model.activated(asked.get("activation"))), asked
    if _is_module(model):
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="unet-engine-"))
        model = _exported(model, folder, volume, asked)
    return Given(volume), asked if model is None else {**asked, "model": model}


def _is_module(model: Any) -> bool:
    return any(kind.__module__.startswith("torch.nn") and kind.__name__ == "Module" for kind in type(model).__mro__)


def _exported(module: Any, folder: str, volume: Volume | None, asked: dict[str, Any]) -> str:
    """The file of a torch module, compared with it. Settings that say what it gives go into the file."""
    from unet_export.conversion.export import Export, export_module

    window = asked.get("window")
    if window is None:
        raise SettingsError(
            "window is needed where model is a torch module; give a size per axis, e.g. window=(64, 64, 64)"
        )
    sizes = Settings.of(input=PLACE + "numpy", window=window).window
    wanted = Export(
        checkpoint=type(module).__name__, out=str(Path(folder, f"{type(module).__name__.lower()}.onnx")), window=sizes,
        channels=volume.channels if volume else None, activation=asked.get("activation"), head=asked.pop("head", None),
        output_channels=asked.get("channels"), normalize=asked.get("normalize"),
    )  # fmt: skip
    export_module(module, wanted, lambda _: None)
    return wanted.out


def _warn(notes: Sequence[str]) -> None:
    for note in dict.fromkeys(notes):
        warnings.warn(note, UnetEngineWarning, stacklevel=3)


_OPTION = re.compile(r"--([a-z][a-z0-9-]*)")


@contextmanager
def _named(first: str) -> Iterator[None]:
    """Errors name arguments; `first` is what the volume is called."""
    try:
        yield
    except UnetEngineError as error:
        text = re.sub(r"--in\b", first, str(error))
        text = _OPTION.sub(lambda found: found[1].replace("-", "_"), text)
        raise reworded(error, text.replace("unet-engine run help", "help(unet_engine.run)")) from error


@contextmanager
def _explained() -> Iterator[None]:
    """Errors are those of the command line, with a note of what its options are called here."""
    try:
        yield
    except UnetEngineError as error:
        names = dict.fromkeys(_OPTION.findall(str(error)))
        called = {f"--{n}": "input" if n == "in" else n.replace("-", "_") for n in names if n != "help"}
        if called:
            error.add_note("arguments: " + ", ".join(f"{name} for {option}" for option, name in called.items()))
        raise
