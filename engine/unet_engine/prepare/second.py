"""Another library is taken where the one that would run computes something else than the model file says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from unet_engine.backends import second_opinion
from unet_engine.backends.base import Array, Setup
from unet_engine.backends.libraries import record, sees_gpu
from unet_engine.backends.second_opinion import Opinion
from unet_engine.devices.opening import is_gpu
from unet_engine.prepare.notes import fall_back
from unet_engine.prepare.precision import choose
from unet_engine.prepare.survey import Survey


def compared(survey: Survey, windows: Callable[[], Sequence[Array]], notes: list[str]) -> Survey:
    """The survey with the back end that runs: the other one where the first is wrong on one of these `windows` (there
    may be none), which are cut where that is not known. One that the user named stays, which is told.

    Lower precisions are left alone: the gate judged them. Raises `BackendError` under ``--strict``.
    """
    settings, device = survey.settings, survey.devices[0]
    if survey.precision != "fp32" or _known_right(survey) or not (cut := windows()):
        return survey
    opinion = _wrong(survey, cut[0])
    if opinion is None:
        return survey
    other = second_opinion.other_for(survey.model, survey.backend, device)
    assert other is not None  # it was asked
    if opinion.difference is None and settings.backend is not None:
        return survey  # it says itself why it refuses the network
    there = record(other.library)
    fits = other.library != survey.backend and there.runs_on(device) and (not is_gpu(device) or sees_gpu(there))
    if settings.backend is not None or not fits:
        remedy = f"use --backend {other.library}" if fits else f"use --device {other.device}"
        fall_back(settings, notes, f"{_told(survey, opinion)}; {remedy}")
        return survey
    fall_back(
        settings, notes, f"{_told(survey, opinion)}: running with {other.library}, as --backend {other.library} does"
    )
    return replace(
        survey,
        backend=other.library,
        choice=choose(survey.model, other.library, device, settings.precision, survey.window),
    )


def _known_right(survey: Survey) -> bool:
    """Whether it was found earlier that the library computes all networks of the model rightly."""
    setups = Setup(survey.model, survey.window, survey.devices[0]).members
    return all((o := second_opinion.known(setup, survey.backend)) and o.wrong != "first" for setup in setups)


def _wrong(survey: Survey, window: Array) -> Opinion | None:
    """What is said of the first of its networks that the library computes wrongly; None where it does none."""
    for setup in Setup(survey.model, survey.window, survey.devices[0]).members:
        opinion = second_opinion.asked(setup, survey.backend, window)
        if opinion is not None and opinion.wrong == "first":
            return opinion
    return None


def _told(survey: Survey, opinion: Opinion) -> str:
    return f"{survey.model.path.name}: {opinion.text}"
