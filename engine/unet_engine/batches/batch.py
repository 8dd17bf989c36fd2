"""One run after the other, with one network: the next volume is surveyed, planned and its first blocks are read while
this one ends. What becomes of each is an `Outcome`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from unet_engine.api import Result, run_volume
from unet_engine.backends.known_models import open_known
from unet_engine.batches.inputs import expanded, with_images
from unet_engine.batches.lists import Item
from unet_engine.batches.outputs import check_apart, check_pattern, out_of, out_of_one
from unet_engine.endings import called, numbered
from unet_engine.errors import InputError, UnetEngineError
from unet_engine.execution.choose import Make, teams
from unet_engine.execution.relay import Relay, Stopped
from unet_engine.execution.team import Team
from unet_engine.model.file import ModelFile
from unet_engine.model.spec import ModelSpec
from unet_engine.prepare.channels import is_numbered, of_own_files
from unet_engine.prepare.fetching import at_hand
from unet_engine.prepare.given import Given
from unet_engine.prepare.prepare import Prepared
from unet_engine.prepare.survey import check_output, survey
from unet_engine.settings.settings import Settings, from_environment
from unet_engine.settings.text import parse_part

Status = Literal["done", "already complete", "failed", "interrupted", "planned"]


@dataclass
class Volume:
    """One volume that is to be run."""

    number: int
    """From 1, among all of the command, of whatever part."""
    of: int
    settings: Settings
    out: str
    """Empty where that is only known once its model is open."""
    model: ModelFile | None = None
    whole: str = ""
    """The output that it becomes a time point of; empty: it is one of its own."""


@dataclass(frozen=True)
class Outcome:
    """What became of one volume."""

    volume: Volume
    status: Status
    begun: float
    """Seconds since the epoch."""
    ended: float
    result: Result | None = None
    error: BaseException | None = None
    notes: tuple[str, ...] = ()


class Observer(Protocol):
    """Who is told what happens, from several threads."""

    def note(self, volume: Volume, text: str) -> None: ...

    def planned(self, volume: Volume, prepared: Prepared, crew: Team) -> None: ...

    def ended(self, outcome: Outcome) -> None: ...


def volumes_of(inputs: Sequence[str], given: Mapping[str, Any], adapt: Callable[[Settings], Settings]) -> list[Volume]:
    """The volumes that `inputs` stand for, with settings and output of each; of a part only its own. `adapt`: what is
    done to the settings of each.

    Raises `SettingsError` where two would be written to one place, and what opening the model raises.
    """
    models: dict[tuple[Any, ...], ModelFile] = {}
    around = from_environment()
    items = expanded(inputs, given.get("axes") or around.get("axes"))
    items = with_images(items, given.get("image") or around.get("image"))
    items = _of_cases(items, lambda item: _model(adapt(Settings.of(**_said(given, item))), models))
    found = []
    for number, item in enumerate(items, 1):
        said = _said(given, item)
        with item.told():
            settings = Settings.of(**said)
            if settings.out is not None and "out" not in item.settings:
                check_pattern(settings.out, len(items))
                settings = Settings.of(
                    **{**said, "out": out_of(settings.out, item.collection or item.input, number, item.image)}
                )
            settings = adapt(settings)
        model = _model(settings, models)
        found.append(Volume(number, len(items), settings, settings.out or _usual(settings, model), model))
    check_apart([(volume.settings.input, volume.out) for volume in found if volume.out])
    part = found[0].settings.part if found else None
    if part is None:
        return found
    first, count = parse_part(part)
    return [
        replace(volume, settings=volume.settings.model_copy(update={"part": None}))
        for volume in found[first - 1 :: count]
    ]


def _said(given: Mapping[str, Any], item: Item) -> dict[str, Any]:
    return {**given, "input": item.input, **item.settings}


def _of_cases(items: Sequence[Item], model_of: Callable[[Item], ModelFile | None]) -> list[Item]:
    """`items`, of which those that are a channel of a case each, as nnU-Net calls their files, are one item for each
    case, where the model takes several channels. `model_of`: that of an item."""
    found: dict[str, Item] = {}
    spec: ModelSpec | None = None
    for item in items:
        files: tuple[str, ...] = ()
        if is_numbered(item.input) and "input_channels" not in item.settings:
            if spec is None:
                with item.told():
                    model = model_of(item)
                if model is None or model.spec.channels_in == 1:
                    _check_alone(items, model)
                    return list(items)
                spec = model.spec
            files = of_own_files(item.input, spec)
        joined = replace(item, input="+".join(files) or item.input)
        if not files or joined.input not in found:
            found[joined.input if files else f"{len(found)} {item.input}"] = joined
    return list(found.values())


def _check_alone(items: Sequence[Item], model: ModelFile | None) -> None:
    """Raise `InputError` where a folder of cases has several channels of one, and the model takes one."""
    wrong = next((i for i in items if i.of_cases and (said := numbered(i.input)) and said[1] > 0), None)
    if wrong and model:
        raise InputError(
            f"{wrong.input} is called as another channel of its case, and the model {model.spec.name} takes one; name those "
            f"that are meant, e.g. --in '{wrong.of_cases}/*_0000.*', or say --axes zyx where they are slices of one volume"
        )


def placed(settings: Settings) -> Settings:
    """Those of the only volume of a command, whose output is named after the case that it is a channel of, where that is
    known with its model alone. Raises what opening the model raises."""
    if settings.out is None or not is_numbered(settings.input):
        return settings
    if out_of_one(settings.out, settings.input) == settings.out:
        return settings
    model, some = opened(settings), settings.input_channels is not None
    files = of_own_files(settings.input, model.spec, every=some) if model else ()
    return settings.model_copy(update={"out": out_of_one(settings.out, "+".join(files) or settings.input)})


def _usual(settings: Settings, model: ModelFile | None) -> str:
    """Where a run writes that is told nothing, without the ending, which depends on what the volume holds."""
    return f"{called(settings.input)}-{model.spec.name}" if model else ""


def opened(settings: Settings) -> ModelFile | None:
    """The model that the settings name, for several runs."""
    return _model(settings, {})


def _model(settings: Settings, models: dict[tuple[Any, ...], ModelFile]) -> ModelFile | None:
    """The model, opened once for all volumes that ask for the same."""
    if settings.model is None:  # refused as the volume is surveyed
        return None
    asked = (settings.model, settings.window, settings.activation, settings.head, settings.folds, settings.weights)
    if asked not in models:
        models[asked] = open_known(at_hand(settings.model), *asked[1:])
    return models[asked]


def run_all(volumes: Sequence[Volume], observer: Observer, *, keep_going: bool) -> list[Outcome]:
    """Run them in order. Returns what became of each that was begun, and tells `observer` as it ends.

    keep_going: run the others where one fails; else those that were begun are stopped, resumable

    Raises `KeyboardInterrupt` after an interruption, some seconds later at most: what is committed stays.
    """
    if not volumes:
        return []
    laps: list[_Lap] = []
    relay = Relay()
    with teams(volumes[0].settings) as make:
        try:
            for volume in volumes:
                relay.let_on()
                laps.append(_Lap(volume, relay, make, observer, keep_going=keep_going))
                laps[-1].start()
            relay.wait(lambda: not relay.legs)
        except Stopped:
            pass
        finally:
            relay.stop()
            for lap in laps:
                lap.join(GRACE if relay.legs else None)
                lap.end()
    relay.close()
    return [lap.outcome for lap in laps if lap.outcome]


def survey_all(volumes: Sequence[Volume], observer: Observer) -> list[Outcome]:
    """What `run_all` would do, as far as it can be told without loading the network; nothing is written."""
    return [_surveyed(volume, observer) for volume in volumes]


def _surveyed(volume: Volume, observer: Observer) -> Outcome:
    begun, error = time.time(), None
    try:
        surveyed = survey(volume.settings, Given(model=volume.model))
        check_output(surveyed)
        volume.out = surveyed.named
        for note in surveyed.notes:
            observer.note(volume, note)
    except UnetEngineError as refused:
        error = refused
    outcome = Outcome(volume, "failed" if error else "planned", begun, time.time(), error=error)
    observer.ended(outcome)
    return outcome


GRACE = 4.0
"""Seconds that a volume has to end in order after an interruption."""


class _Lap(threading.Thread):
    """The run of one volume."""

    def __init__(self, volume: Volume, relay: Relay, make: Make, observer: Observer, *, keep_going: bool) -> None:
        super().__init__(daemon=True, name=f"volume {volume.number}")
        self.outcome: Outcome | None = None
        self._volume, self._relay, self._make, self._observer = volume, relay, make, observer
        self._leg, self._keep_going, self._begun = relay.leg(), keep_going, time.time()
        self._notes: list[str] = []
        self._ending = threading.Lock()

    def run(self) -> None:
        try:
            result = self._ran()
            self.end("already complete" if result.already_complete else "done", result)
        except (Stopped, KeyboardInterrupt):
            self.end()
        except BaseException as error:
            self.end("failed", error=error)
            if not self._keep_going:
                self._relay.stop()
        finally:
            self._leg.end()

    def _ran(self) -> Result:
        volume = self._volume
        crew = self._make(volume.settings, self._tell, Given(model=volume.model), self._leg)
        try:
            prepared = crew.prepare()
            volume.out = prepared.survey.named
            for note in (*crew.notes, *prepared.notes):
                self._tell(note)
            self._observer.planned(volume, prepared, crew)
            return run_volume(crew, prepared, tell=self._tell)
        finally:
            crew.close()

    def _tell(self, note: str) -> None:
        if note not in self._notes:
            self._notes.append(note)
            self._observer.note(self._volume, note)

    def end(
        self, status: Status = "interrupted", result: Result | None = None, error: BaseException | None = None
    ) -> None:
        """It has ended; the first word counts."""
        with self._ending:
            if self.outcome:
                return
            self.outcome = Outcome(self._volume, status, self._begun, time.time(), result, error, tuple(self._notes))
        self._observer.ended(self.outcome)
