"""What is blended: the outputs of the network, or the features that its last layer makes them of, which gives the same
(`unet_engine.model.last_layer`) and moves less where classes are many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from unet_engine.backends import second_opinion
from unet_engine.backends.base import Array, Setup
from unet_engine.errors import BackendError, SettingsError
from unet_engine.model.last_layer import LastLayer
from unet_engine.prepare.notes import fall_back
from unet_engine.prepare.survey import Survey
from unet_engine.stitching import operations

KEY = "blended"
"""Of what names a run: there where it is features."""
LOOKED_AT = 2**23
"""Outputs that are made to be looked at."""


def decided(survey: Survey, windows: Callable[[], Sequence[Array]], notes: list[str]) -> Survey:
    """The survey with the network that runs: without its last layer where that is asked for; or where it can be left
    for the end, pays, and gives the same on one of these `windows`. An output that was begun stays with what it was
    begun with.

    Raises `SettingsError` where features are asked for and there are none, `BackendError` where they give something
    else.
    """
    asked, begun = survey.settings.blend_at, _begun(survey)
    wanted = asked if asked != "auto" else begun or "auto"
    if wanted == "outputs":
        return survey
    last, why = survey.model.last, _refusal(survey)
    if last is None or why:
        if wanted == "features":
            raise SettingsError(f"--blend-at features: {why}; leave it out")
        return survey
    if wanted == "auto" and not (last.pays and windows()):
        return survey
    model = replace(survey.model, gives_features=True)
    if doubt := _doubt(replace(survey, model=model), windows()):
        if wanted == "features":
            raise BackendError(f"--blend-at features: {doubt}; use --blend-at outputs")
        fall_back(survey.settings, notes, f"outputs are blended, and not the features that they are made of: {doubt}")
        return survey
    return replace(survey, model=model)


def _begun(survey: Survey) -> Literal["features", "outputs"] | None:
    """What the output that is resumed was begun with."""
    header = survey.begun_before if survey.settings.resume else None
    identity = header.get("identity") if header else None
    return ("features" if KEY in identity else "outputs") if isinstance(identity, dict) else None


def _refusal(survey: Survey) -> str:
    """Why only outputs can be blended; empty where features can."""
    model, how = survey.model, survey.model.spec.resampling
    reasons = (
        (survey.devices != ("cpu",), "features are blended on the CPU alone"),
        (len(model.members) > 1, "the model has several networks, each with a last layer of its own"),
        (survey.choice.network, f"the network that was quantised for {survey.precision} gives outputs alone"),
        (model.last is None, f"{model.path.name} does not end in a convolution of one voxel in float32"),
        (model.spec.empty is not None, "the model says what empty windows stand for, in outputs"),
        (how and how.of == "probabilities" and survey.back, "the model wants probabilities resampled"),
    )
    return next((why for holds, why in reasons if holds), "")


def _doubt(survey: Survey, windows: Sequence[Array]) -> str:
    """What speaks against the features of `survey`, by one of the windows; empty where nothing does."""
    if not windows:
        return ""
    choice = survey.choice
    setup = Setup(survey.model, survey.window, survey.devices[0], choice.precision, rest=choice.rest)
    opinion = second_opinion.of_rewriting(setup, survey.backend, windows[0])
    if opinion.difference is None:
        return f"they could not be compared ({opinion.why})"
    if opinion.wrong:
        return f"they give outputs that differ by {opinion.difference:.2g} of their range"
    return ""


def through(last: LastLayer | None, look: Callable[[Array], None]) -> Callable[[Array], None]:
    """Takes what a network gives for a window, and has `look` at the outputs; of features, at those of some layers."""
    if last is None:
        return look

    def at_outputs(features: Array) -> None:
        step = -(-last.outputs * features[0].size // LOOKED_AT)
        look(outputs_of(last, np.ascontiguousarray(features[:, ::step], np.float32)))

    return at_outputs


def outputs_of(last: LastLayer, features: Array) -> Array:
    """(outputs, *sizes) for features (features, *sizes), both float32."""
    outputs = np.empty((last.outputs, *features.shape[1:]), np.float32)
    operations.linear(outputs, features, last.weights, last.bias)
    return outputs
