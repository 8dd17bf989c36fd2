"""Looking before loading: open volume and model, check that they fit each other and the machine. Cheap, and where most
refusals come from."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel

from unet_engine.backends.known_models import open_known
from unet_engine.errors import InputError, OutputError, SettingsError
from unet_engine.model.file import ModelFile
from unet_engine.model.spec import ModelSpec
from unet_engine.model.verdict import difference
from unet_engine.output import output
from unet_engine.output.header import read_header
from unet_engine.paths import is_local
from unet_engine.pipeline.reduction import Kind
from unet_engine.plan.box import Box
from unet_engine.plan.resampling import AxisResampling
from unet_engine.postprocess.joining import Rules
from unet_engine.postprocess.working import check_named, is_handed_over, said_of
from unet_engine.prepare.augmentation import poses_of, told
from unet_engine.prepare.channels import meant_for
from unet_engine.prepare.crop import region, taken
from unet_engine.prepare.delivery import delivery_of, require_libraries
from unet_engine.prepare.device_choice import running_on
from unet_engine.prepare.fetching import at_hand
from unet_engine.prepare.given import NOTHING, Given
from unet_engine.prepare.notes import fall_back
from unet_engine.prepare.outputs import about_outputs, about_whole_numbers
from unet_engine.prepare.outside import as_measured, fill_of, mask_of
from unet_engine.prepare.places import keep_apart, pick_of
from unet_engine.prepare.precision import Choice, Grounds, chosen
from unet_engine.prepare.resampling import Grids, image_of, on_windows_grid, scaling_seen, seen
from unet_engine.prepare.roi import region_of_interest
from unet_engine.settings.files import CONFIG
from unet_engine.settings.settings import Settings
from unet_engine.settings.text import parse_tiling
from unet_engine.storage import stores
from unet_engine.volumes import samples
from unet_engine.volumes.base import Volume
from unet_engine.volumes.cells import CellMask
from unet_engine.volumes.cropped import Cropped
from unet_engine.volumes.formats import located, open_stored
from unet_engine.volumes.holes import Holes
from unet_engine.volumes.mask import Mask, Masks, validity_of
from unet_engine.volumes.normalize import quantiles
from unet_engine.volumes.pick import Pick
from unet_engine.volumes.resampled import AnyMask, Extremes, Interpolated
from unet_engine.volumes.resampled import on_windows_grid as on_that_grid
from unet_engine.volumes.turn import Turn
from unet_engine.volumes.turned import as_stored, turn_of

Stored = TypeVar("Stored", bound=BaseModel)


@dataclass(frozen=True)
class Survey:
    """What a run will work on and with, before anything heavy is loaded."""

    settings: Settings
    place: str
    """The path of the volume: the input's, or that of what is meant in it."""
    scan: Volume
    """On its own grid; where it lies otherwise than the model says, turned."""
    volume: Volume
    """What windows are cut from: the scan, or that on the grid of the network."""
    grids: Grids | None
    """From one to the other; None where they are the same."""
    mask: Mask | None
    """That of the user, on the grid of the scan."""
    pick: Pick
    """Which time point and channels of the input are read."""
    model: ModelFile
    window: tuple[int, ...]
    """Input size per axis of the model."""
    roi: Box
    """In voxels of the output."""
    devices: tuple[str, ...]
    backend: str
    choice: Choice
    """The precision that runs, the network that stands for it, and why."""
    out: str
    """The Zarr group that blocks are written to."""
    named: str
    """What the user gets: the same, or a file that is made of it."""
    notes: tuple[str, ...]
    """Things the user should know: fallbacks, mismatches."""
    objects: Rules | None = None
    """Which objects are numbered in place of labels; None where labels are wanted."""
    asked: Box | None = None
    """What the output is of, in the same voxels as `roi`, where that is more: it is 0 there."""
    kept: Box | None = None
    """Of `crop`, in its voxels, that outside of which the output is 0, too; None: all of it."""
    image: tuple[AxisResampling, ...] = ()
    """From the scan's voxels to those that windows are cut from; empty where these are the scan's as they are stored."""
    cells: CellMask | None = None
    """Where foreground can be, of the grid of windows; None: everywhere, or that is not known yet."""
    begun: float = field(default_factory=time.time)
    """When the volume was opened, in seconds since the epoch: what is changed later was changed while it was read."""

    def fill(self, kind: Kind, dtype: str) -> tuple[float, ...] | None:
        """What is written outside, see `outside.fill_of`."""
        masked = self.mask is not None or self.cells is not None
        return fill_of(self.settings, self.model.spec, masked=masked, volume=self.scan, kind=kind, dtype=dtype)

    @property
    def back(self) -> tuple[AxisResampling, ...]:
        """From the grid of windows to that of the output; empty where they are the same."""
        return self.grids.back if self.grids and self.settings.grid != "model" else ()

    @cached_property
    def meant(self) -> Masks:
        """All that says which voxels of the scan are meant: the user's mask, and what the volume comes with."""
        return Masks.of(self.mask, validity_of(self.scan))

    @cached_property
    def seen_masks(self) -> tuple[AnyMask, ...]:
        """The same on the grid of windows."""
        return tuple(found for mask in self.meant.masks if (found := on_that_grid(mask, self.image, self.back)))

    @property
    def holes(self) -> Holes | None:
        """Those of the scan that are filled; None: none, or they are not looked for."""
        return self.volume.holes if isinstance(self.volume, Interpolated) else None

    @property
    def extremes(self) -> Extremes | None:
        """What is cut off of interpolated voxels; None: nothing, or where they are clipped."""
        return self.volume.extremes if isinstance(self.volume, Interpolated) else None

    @property
    def crop(self) -> Box | None:
        """What of the volume is taken for all of it, in voxels of all of it, turned; None: all."""
        return self.scan.box if isinstance(self.scan, Cropped) else None

    @property
    def turn(self) -> Turn | None:
        """How the volume is seen; None: as it is stored."""
        return turn_of(self.scan)

    @property
    def windows_roi(self) -> Box:
        """The region of interest on the grid of windows."""
        return on_windows_grid(self.roi, self.grids.image) if self.grids and self.back else self.roi

    @property
    def shared(self) -> tuple[int, ...] | None:
        """Least voxels that neighbours share, per axis of the model, where ``--tiling`` names them."""
        tiling = self.settings.tiling
        return parse_tiling(tiling)[1][-len(self.window) :] if tiling and tiling != "auto" else None

    @property
    def begun_before(self) -> Mapping[str, Any] | None:
        """What the output says of the run that began it, or made it; None where there is none."""
        return _begun(self.out, self.named)

    def chosen_before(self, key: str, kind: type[Stored]) -> Stored | None:
        """What the run that is resumed chose, as its output has it under `key`; None where none is resumed, or it did
        not choose."""
        header = self.begun_before if self.settings.resume else None
        return kind.model_validate(header[key]) if header and header.get(key) else None

    @property
    def precision(self) -> str:
        return self.choice.precision


def _begun(out: str, named: str) -> Mapping[str, Any] | None:
    return read_header(out) or (said_of(named) if named != out else None)


def survey(settings: Settings, given: Given = NOTHING) -> Survey:
    """Open and check everything but the network itself. Raises the error of whatever is missing or does not fit."""
    notes = list(settings.notes)
    model, pick, volume, located_at = _opened(settings, given, notes)
    window = checked_window(model.spec, settings.window)
    check_volume(volume, model)
    _check_tiling(settings, model.spec, window)
    if said := told(settings.tta, poses_of(settings.tta, model.spec, window)):
        notes.append(said)
    given_to = taken(volume, model.spec, notes, ignore=settings.ignore_spacing)
    volume, grids = given_to.volume, given_to.grids
    about_whole_numbers(settings, model, volume, notes)
    devices, backend = running_on(settings, model, notes)
    _check_replacement(settings, volume)
    if volume.drawback:
        fall_back(settings, notes, volume.drawback)
    whole_roi = region_of_interest(settings, given_to.whole)
    found = region(volume, whole_roi)
    on_scan = not grids or settings.grid != "model"
    roi, asked = found.roi, found.asked if on_scan else None
    if grids and not on_scan:
        roi = on_windows_grid(roi, grids.image)
    windows_from = seen(volume, grids, model.spec, settings.replace_nonfinite)
    stored, turn = as_stored(volume), turn_of(volume)
    lies = (turn.stored_box(whole_roi) if turn else whole_roi) if on_scan else roi
    delivery = delivery_of(settings, model.spec, located_at, stored if on_scan else windows_from, lies, notes)
    keep_apart(settings, located_at, delivery.named)
    choice = chosen(
        model, backend, devices[0], settings.precision, window,
        Grounds(
            lambda: quantiles(samples.measured(volume), scaling_seen(volume, grids, model.spec)),
            lambda: _begun(delivery.work, delivery.named) if settings.resume else None,
        ),
    )  # fmt: skip
    _about_precision(settings, choice, volume, model, devices[0], notes)
    return Survey(
        settings=settings,
        place=located_at,
        scan=volume,
        volume=windows_from,
        grids=grids,
        mask=mask_of(settings, volume, model.spec),
        pick=pick,
        model=model,
        window=window,
        roi=roi,
        devices=devices,
        backend=backend,
        choice=choice,
        out=delivery.work,
        named=delivery.named,
        notes=tuple(notes),
        objects=delivery.objects,
        asked=asked,
        kept=given_to.kept,
        image=image_of(volume, grids, model.spec.normalization),
    )


def _opened(settings: Settings, given: Given, notes: list[str]) -> tuple[ModelFile, Pick, Volume, str]:
    """The model, what of the volume it is given, as what that was picked, and where that lies; `notes` hear what is
    guessed of both."""
    if settings.model is None and given.model is None:
        raise SettingsError(
            f'no model: use --model FILE.onnx, or write model = "FILE.onnx" to {CONFIG} here or beside the input'
        )
    located_at, stored = _volume(settings, given)
    about_model: list[str] = []
    model = _model(settings, about_model, given)
    pick, volume, located_at = meant_for(
        stored, pick_of(settings), model.spec, notes, place=located_at, axes=settings.axes if not given.volume else ""
    )
    if given.volume is None:
        volume.hold(given.hold)
    notes.extend(volume.notes)
    volume = as_measured(settings, volume, notes)
    notes += about_model
    about_outputs(settings, model, notes)
    return model, pick, volume, located_at


def _check_replacement(settings: Settings, volume: Volume) -> None:
    """Refuse a value for NaN and Inf that the type of the voxels makes infinite again."""
    value = settings.replace_nonfinite
    if value is None or volume.dtype.kind != "f" or abs(value) <= np.finfo(volume.dtype).max:
        return
    raise SettingsError(
        f"--replace-nonfinite {value:g} is beyond the largest {volume.dtype}, the type of {volume.path}; "
        "give a value within its range"
    )


def refuse_early(settings: Settings) -> None:
    """What `survey` would refuse of the volume and for want of libraries, while there is no model file yet: making one
    takes a minute. Raises what it raises."""
    require_libraries(settings, _volume(settings, NOTHING)[1])


def _volume(settings: Settings, given: Given) -> tuple[str, Volume]:
    """The path of the volume and the volume, with all that is stored."""
    if given.volume is not None:
        return given.volume.path, given.volume
    located_at = located(settings.input, settings.image, settings.level)
    return located_at, open_stored(located_at, settings.axes)


def _model(settings: Settings, notes: list[str], given: Given) -> ModelFile:
    """What the model promises, once it is known that it may be opened. Raises `ModelError` for one that runs code and
    is not trusted."""
    model = given.model or open_known(
        at_hand(str(settings.model), notes.append),
        settings.window, settings.activation, settings.head, settings.folds, settings.weights,
    )  # fmt: skip
    model = model.normalized(settings.normalize).meant(settings.channels).thresholded(settings.threshold)
    if settings.trust and model.runs_code and not model.trusted:
        model = model.trust()
        notes += [f"{n.path} is trusted from now on; its hash is {n.sha256}" for n in model.networks]
    model.check_trust()
    return model


def _about_precision(
    settings: Settings, choice: Choice, volume: Volume, model: ModelFile, device: str, notes: list[str]
) -> None:
    """Say which precision runs and why, and where the verdict rests on a volume unlike this one."""
    if choice.precision != "fp32" and choice.proved is None:
        fall_back(settings, notes, choice.why)
    elif choice.elsewhere is not None:  # on data of this kind
        notes.append(f"precision {choice.precision}: {choice.why}")
        return
    elif settings.precision == "auto" and (
        model.verdicts or choice.precision != "fp32" or device.startswith("cuda")  # which is faster below fp32
    ):
        notes.append(f"precision {choice.precision}: {choice.why}")
    if choice.proved is not None:
        scale = samples.scaling_of(volume, model.spec.normalization)
        apart = difference(quantiles(samples.measured(volume), scale), choice.proved.calibration.quantiles)
        if apart:
            notes.append(
                f"this volume differs from {choice.proved.calibration.volume}, where {choice.precision} was proved: "
                f"{apart}; quantize on this one, or use --precision fp32"
            )


def check_output(survey: Survey) -> None:
    """Refuse an output that exists unless the settings say what to do with it. Raises `OutputError`."""
    settings = survey.settings
    if survey.objects and not is_handed_over(survey.named):
        check_objects(survey.named, resume=settings.resume, overwrite=settings.overwrite)
    elif survey.named != survey.out:
        check_named(survey.named, resume=settings.resume, overwrite=settings.overwrite)
    if not stores.exists(survey.out):
        check_place(survey.named)
        return
    if settings.resume or settings.overwrite:
        return
    if survey.named != survey.out:
        raise OutputError(
            f"{survey.named} was begun by an earlier run; use --resume to continue it, --overwrite to begin again, or "
            "another --out"
        )
    if not output.is_ours(survey.out):
        raise OutputError(f"{survey.out} exists and is not an output of unet-engine; choose another --out")
    raise OutputError(f"{survey.out} exists; use --resume to continue it, --overwrite to replace it, or another --out")


def check_place(named: str) -> None:
    """Refuse an output whose folder takes none, before anything is read or loaded. Raises `OutputError`."""
    if not is_local(named):
        return
    folder = next(path for path in Path(named).absolute().parents if path.exists())
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{named} cannot be written: {folder} takes no files of yours; choose another --out")


def check_objects(named: str, *, resume: bool, overwrite: bool) -> None:
    """Refuse a group of objects that exists unless the settings say what to do with it. Raises `OutputError`."""
    if not stores.exists(named):
        return
    if not output.is_ours(named):
        raise OutputError(f"{named} exists and is not an output of unet-engine; choose another --out")
    if not (resume or overwrite):
        raise OutputError(f"{named} exists; use --resume to continue it, --overwrite to replace it, or another --out")


# --- model and volume ---


def checked_window(spec: ModelSpec, window: tuple[int, ...] | None) -> tuple[int, ...]:
    """The window asked for, or the model's own. Raises `ModelError` where the model does not take it."""
    window = window or spec.window
    if len(window) == len(spec.axes) + 1 and window[0] == 1:
        window = window[1:]  # a 2D network over a 3D volume, its window given with the one plane it has
    spec.check_window(window)
    return window


def _check_tiling(settings: Settings, spec: ModelSpec, window: tuple[int, ...]) -> None:
    """Refuse windows of which neighbours would share all that the network gives."""
    if settings.tiling in (None, "auto"):
        return
    shared = parse_tiling(str(settings.tiling))[1][-len(window) :]
    for axis, size, margin, least in zip(spec.axes, window, spec.margin, shared, strict=True):
        if least >= size - 2 * margin:
            raise SettingsError(
                f"--tiling {settings.tiling}: the network gives {size - 2 * margin} voxels along {axis} of windows of "
                f"{size}, and neighbours cannot share {least} of them; let them share less"
            )


def check_volume(volume: Volume, model: ModelFile) -> None:
    """Raise `InputError` for a volume whose axes or channels the model does not take."""
    spec = model.spec
    if not set(spec.axes) <= set(volume.spatial):
        raise InputError(
            f"{volume.path} has the axes {volume.axes}, the model {spec.name} needs {spec.axes}; use a 2D model, or "
            "--axes"
        )
    if volume.alpha is None and volume.channels in (2, 4) and volume.channels == spec.channels_in + 1:
        kept = ",".join(map(str, range(spec.channels_in)))
        raise InputError(
            f"{volume.path} has {volume.channels} channels and the model {spec.name} takes {spec.channels_in}: if the "
            f"last one is alpha, leave it out with --input-channels {kept}; else pick others, or use another model"
        )
    beside = "" if volume.alpha is None else " beside alpha"
    if volume.channels != spec.channels_in:
        raise InputError(
            f"{volume.path} has {volume.channels} channel{'s' * (volume.channels != 1)}{beside} and the model {spec.name} "
            f"takes {spec.channels_in}; pick some with --input-channels, name those in files of their own with --in A+B, use "
            "another model, or name the channel axis with --axes, e.g. czyx"
        )
