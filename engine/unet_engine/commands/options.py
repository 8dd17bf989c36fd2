"""What puts options on commands: those that are settings of a run, who does it, how it tells what it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from unet_engine.commands.running_options import CLUSTER, RUNNING
from unet_engine.commands.setting_options import ONE, SETTINGS, SEVERAL
from unet_engine.commands.shared_options import MEANT
from unet_engine.settings.files import ENVIRONMENT


def meant_options(command: Callable[..., Any]) -> Callable[..., Any]:
    return _with(MEANT, command)


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What a run does."""
    return _with([ONE, *SETTINGS], command)


def shown_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What a run does whose blocks are computed because somebody looks at them: all of it, by one process."""
    return _with([option for option in SETTINGS if _name(option) not in _UNSEEN], command)


_UNSEEN = ("part", "profile")


def _name(option: Callable[..., Any]) -> str:
    """What an option gives its command."""
    parameter: click.Option = option(lambda: None).__click_params__[0]
    return str(parameter.name)


def several_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What runs over one volume or more do."""
    return _with([SEVERAL, *SETTINGS], command)


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Who does it."""
    return _with(CLUSTER, command)


def running_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How a run tells what it does, and what it does with several volumes. The environment may say it, too."""
    return _with([_or_around(option) for option in RUNNING], command)


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
