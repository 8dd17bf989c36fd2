"""Which devices a network runs on, and by which library."""

from __future__ import annotations

import re

from unet_engine import machine
from unet_engine.backends.libraries import about_choice, choose_backend, record, runs_on_gpu
from unet_engine.backends.opening import place_of
from unet_engine.devices.opening import SIMULATED
from unet_engine.errors import BackendError, SettingsError
from unet_engine.model.file import ModelFile
from unet_engine.prepare.notes import fall_back
from unet_engine.settings.settings import Settings
from unet_engine.stitching import operations

_NO_GPU = "this machine shows no NVIDIA GPU; leave out --gpus and --device to run on the CPU"


def running_on(settings: Settings, model: ModelFile, notes: list[str]) -> tuple[tuple[str, ...], str]:
    """Devices and the library that runs the model on all of them. `notes` hear of what is slower than it could be; raises
    `BackendError` where there is none, `SettingsError` for options that do not go with it."""
    devices = _devices(settings, model, notes)
    place = place_of(devices[0])
    if place.note:
        fall_back(settings, notes, place.note)
    if settings.batch and not place.takes_batches:
        raise SettingsError(
            f"--batch is for GPUs: windows go to {devices[0]} one by one here, --threads at once; leave it out"
        )
    backend = _backend(settings, model, devices, notes)
    if operations.IMPLEMENTATION != "native":
        fall_back(
            settings, notes, "stitching runs in NumPy, the native extension is missing; reinstall with a C++ compiler"
        )
    return devices, backend


def _devices(settings: Settings, model: ModelFile, notes: list[str]) -> tuple[str, ...]:
    """``cpu`` once, or every GPU asked for."""
    wanted, found = settings.device, machine.gpu_count()
    if settings.gpus:
        if settings.gpus > found:
            raise BackendError(
                f"--gpus {settings.gpus}: this machine shows {found}; use --gpus {found}" if found else _NO_GPU
            )
        return tuple(f"cuda:{i}" for i in range(settings.gpus))
    if wanted in ("cpu", SIMULATED):  # the latter for tests
        return (wanted,)
    if model.format == "fake":
        return ("cpu",) if not wanted.startswith("fake") else tuple(wanted.split(","))
    if wanted == "auto":
        asked = record(settings.backend).runs_on("cuda") if settings.backend else True
        usable = found > 0 and asked and runs_on_gpu(model)
        if found and not usable:
            fall_back(
                settings,
                notes,
                f"{found} GPU(s) found, but no installed back end runs {model.path.name} there: running on the CPU",
            )
        if not usable:
            return ("cpu",)
        return tuple(f"cuda:{i}" for i in range(found))
    kind, _, numbers = wanted.partition(":")
    if kind != "cuda" or not re.fullmatch(r"([0-9]{1,4}(,[0-9]{1,4})*)?", numbers):
        raise SettingsError(f"--device {wanted!r} is not understood; use cpu, cuda, cuda:0,1 or auto")
    chosen = [int(n) for n in numbers.split(",")] if numbers else list(range(found))
    if not found or max(chosen) >= found:
        raise BackendError(
            f"--device {wanted}: this machine shows {found} GPU(s); count them from 0" if found else _NO_GPU
        )
    return tuple(f"cuda:{i}" for i in chosen)


def _backend(settings: Settings, model: ModelFile, devices: tuple[str, ...], notes: list[str]) -> str:
    """One that runs the model on all of the devices."""
    together = ",".join([devices[0], *(name.partition(":")[2] for name in devices[1:])])
    chosen = choose_backend(model, together, settings.backend)
    if settings.backend is None:
        notes += about_choice(model, together, chosen)
    return chosen
