"""What there is to try on this machine with a model: ways to compute, windows, batches; and which of it a run would
take."""

from __future__ import annotations

from dataclasses import dataclass

from unet_engine import machine
from unet_engine.backends.base import Setup
from unet_engine.backends.libraries import LIBRARIES, choose_backend, record
from unet_engine.commands.bench.search import Space
from unet_engine.commands.bench.space import Configuration, Field, Group, Window
from unet_engine.errors import BackendError, SettingsError
from unet_engine.model.file import ModelFile
from unet_engine.prepare.precision import Choice, choose

PRECISIONS = ("fp32", "bf16", "fp16", "int8")


@dataclass(frozen=True)
class Wanted:
    """What the user leaves of the sweep. Empty: all there is."""

    devices: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    windows: tuple[Window, ...] = ()
    batches: tuple[int, ...] = ()
    overlap: float = 0.5
    tta: str | None = None
    threads: int | None = None


def devices(wanted: Wanted) -> tuple[str, ...]:
    """The devices of this machine, or those asked for. Raises `BackendError` where one is missing."""
    there = ("cpu", *(f"cuda:{i}" for i in range(machine.gpu_count())))
    for device in wanted.devices:
        if device not in there:
            raise BackendError(f"--devices {device}: this machine has {', '.join(there)}; name some of them")
    return wanted.devices or there


def groups(model: ModelFile, wanted: Wanted) -> tuple[Group, ...]:
    """Every way to compute the model here: what is installed, runs the format and knows the precision, as far as can be
    told unloaded."""
    libraries = [record(name) for name in wanted.backends] or LIBRARIES
    for name in wanted.precisions:
        if name not in PRECISIONS:
            raise SettingsError(f"--precision {name!r} is not known; use some of {', '.join(PRECISIONS)}")
    found = []
    for device in devices(wanted):
        for library in libraries:
            if not library.takes(model.format, device):
                continue
            try:
                choose_backend(model, device, library.name)
            except BackendError:
                if wanted.backends:
                    raise
                continue
            found += [
                Group(device, library.name, p)
                for p in wanted.precisions or PRECISIONS
                if p in library.precisions(device) and (p != "int8" or _attached(model, library.name))
            ]
    if not found:
        raise SettingsError(
            f"nothing is left to measure for {model.path.name} ({model.format}) on {', '.join(devices(wanted))}; "
            "leave out --devices, --backend or --precision"
        )
    return tuple(found)


def _attached(model: ModelFile, backend: str) -> bool:
    return any(v.backend == backend and v.precision == "int8" and v.network for v in model.verdicts)


def choice_of(model: ModelFile, configuration: Configuration) -> Choice:
    """How the configuration is computed. `Choice.proved` says whether a run may, or it is fp32.

    The gate itself is only asked, never passed by.
    """
    group = configuration.group
    try:
        return choose(model, group.backend, group.device, group.precision, configuration.window)
    except BackendError as refused:
        judged = [v for v in model.verdicts if v.backend == group.backend and v.precision == group.precision]
        network, rest = (judged[-1].network, judged[-1].rest) if judged else (None, "fp32")
        return Choice(group.precision, network, rest, str(refused))


def allowed(model: ModelFile, configuration: Configuration) -> bool:
    """Whether `run` takes it as proved."""
    return runnable(configuration) and (
        configuration.group.precision == "fp32" or choice_of(model, configuration).proved is not None
    )


def runnable(configuration: Configuration) -> bool:
    """Whether a run can be told to use its batch: on a CPU a run has none."""
    return configuration.batch == 1 or configuration.group.device != "cpu"


def setup_of(model: ModelFile, wanted: Wanted, configuration: Configuration) -> Setup:
    choice = choice_of(model, configuration)
    threads = 1 if configuration.group.device.startswith("cuda") else wanted.threads or machine.cpu_count()
    setup = Setup(
        model,
        configuration.window,
        configuration.group.device,
        choice.precision,
        choice.network,
        choice.rest,
        threads,
        configuration.batch,
        choice.judged,
    )
    return setup.members[0]  # what one window costs: of several networks the first stands for the others


def space_of(model: ModelFile, where: Field, wanted: Wanted) -> Space:
    """Raises `SettingsError`, `ModelError` or `BackendError` where nothing is left to try."""
    for window in wanted.windows:
        model.spec.check_window(window)
    proved = [v.window for v in model.networks[0].verdicts if v.passed]
    windows = wanted.windows or tuple(dict.fromkeys([*where.ladder(), *filter(where.fits, proved)]))
    # batches help where a window alone leaves a device idle; more would only take memory on a CPU
    batches = wanted.batches or ((1, 4) if all(g.device == "cpu" for g in groups(model, wanted)) else (1, 4, 16))
    return Space(groups(model, wanted), windows, batches, lambda c: allowed(model, c), refine=not wanted.windows)
