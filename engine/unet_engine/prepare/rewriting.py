"""Networks that are rewritten before a library sees them, where that was asked for and gives the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from unet_engine.backends import second_opinion
from unet_engine.backends.base import Array, Setup
from unet_engine.errors import BackendError, SettingsError
from unet_engine.prepare.survey import Survey


def decided(survey: Survey, windows: Callable[[], Sequence[Array]]) -> Survey:
    """The survey with the networks that run: with sums of convolutions in place of those of concatenated tensors, where
    that is asked for.

    Raises `SettingsError` where it cannot be, `BackendError` where it gives something else on one of these `windows`.
    """
    if not survey.settings.split_concat:
        return survey
    model, choice = survey.model, survey.choice
    reasons = (
        (model.format != "onnx", f"{model.path.name} is no ONNX file"),
        (survey.devices != ("cpu",), "it was measured on CPUs alone"),
        (choice.network or any(choice.judged), f"the network that was quantised for {choice.precision} runs as it is"),
    )
    if why := next((why for holds, why in reasons if holds), ""):
        raise SettingsError(f"--split-concat: {why}; leave it out")
    split = replace(model, splits=True, members=tuple(replace(member, splits=True) for member in model.members))
    setups = Setup(split, survey.window, "cpu", choice.precision, rest=choice.rest).members
    cut = windows()
    for setup in setups if cut else ():
        opinion = second_opinion.of_rewriting(setup, survey.backend, cut[0])
        if opinion.difference is None or opinion.wrong:
            raise BackendError(
                f"--split-concat: {setup.model.named} gives other numbers so, or it could not be tried ({opinion.text}); leave it out"
            )
    return replace(survey, model=split)
