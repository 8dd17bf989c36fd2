"""Where settings were said that nobody typed: variables of the environment and settings files, told in notes and
errors."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from unet_engine.errors import SettingsError, reworded
from unet_engine.settings.files import ENVIRONMENT, SettingsFile
from unet_engine.units import brief

_OPTIONS = {"input": "in"}
"""Options that are not called like the setting."""
_OTHERS = frozenset(
    {
        "keep_going", "dry_run", "results", "log", "log_format", "metrics", "report", "notify", "rate", "verbose", "quiet",
        "json", "cache", "store_cache", "store_seconds", "store_stalled", "traceback", "workers_beside", "gpus_per_job",
        "faults", "loop", "complete", "cuda", "werror", "seeds",
    }
)  # fmt: skip
"""What else variables may say: options of `run` beside its settings, and what is told in docs/."""


def variables(settings: Collection[str]) -> dict[str, str]:
    """What the environment says of `settings`, by their names. An empty value says nothing."""
    options = {ENVIRONMENT + option.upper(): name for name, option in _OPTIONS.items()}
    named = options | {ENVIRONMENT + name.upper(): name for name in settings}
    return {name: os.environ[key] for key, name in named.items() if os.environ.get(key, "").strip()}


@dataclass(frozen=True)
class Sources:
    """Of the settings that were taken from elsewhere than the command line: by name, in `around` what the environment
    says, in `files` the file that says it."""

    around: Mapping[str, str]
    files: Mapping[str, SettingsFile]

    def notes(self, settings: Collection[str]) -> tuple[str, ...]:
        """What was taken, and which variables are called like ours and say none of `settings`: slips of the
        keyboard."""
        names = ", ".join(sorted(set(self.around) - {"dashboard_token"}))
        taken = [f"from the environment: {names}"] if names else []
        known = _OTHERS | set(settings) | set(_OPTIONS.values())
        strange = sorted(
            key for key in os.environ if key.startswith(ENVIRONMENT) and key[len(ENVIRONMENT) :].lower() not in known
        )
        keys: dict[Path, list[str]] = {}
        for key, file in self.files.items():
            keys.setdefault(file.path, []).append(key)
        return (
            *taken,
            *(f"{key} is in the environment and no setting: ignored" for key in strange),
            *(f"from {path}: {', '.join(names)}" for path, names in keys.items()),
        )

    def told(self, error: SettingsError) -> SettingsError:
        """The same error, which names options, with where those were said."""
        text = str(error)
        places = {name: str(file.path) for name, file in self.files.items()}
        places |= {name: ENVIRONMENT + name.upper() for name in self.around}
        said = [
            f"{_option(name)} is said by {place}"
            for name, place in places.items()
            if re.search(rf"{_option(name)}(?![a-z-])", text)
        ]
        return cast("SettingsError", reworded(error, f"{text} ({'; '.join(said)})")) if said else error

    def explained(self, error: ValidationError) -> str:
        """What is wrong, under the name by which the user gave it: an option, a variable, or the key of a file."""
        first = error.errors()[0]
        name = str(first["loc"][0])
        shown = f"{self.files[name].path}: {name}" if name in self.files else _option(name)
        shown = ENVIRONMENT + name.upper() if name in self.around else shown
        if first["type"] == "extra_forbidden":
            return f"{shown} is not a setting; see unet-engine run --help"
        if first["type"] == "missing":
            return f"{shown} is missing; see unet-engine run --help"
        why = _plain(first["msg"].removeprefix("Value error, "))
        return f"{shown} {brief(first.get('input'))}: {why}; see unet-engine run --help"


_PLAIN = {
    "Input should be ": "give ",
    "give greater than or equal to ": "give at least ",
    "give less than or equal to ": "give at most ",
    "give greater than ": "give more than ",
}
"""How pydantic words a limit, and how a person is told what to give."""


def _plain(why: str) -> str:
    for theirs, ours in _PLAIN.items():
        if why.startswith(theirs):
            why = ours + why.removeprefix(theirs)
    return why


def _option(setting: str) -> str:
    return "--" + _OPTIONS.get(setting, setting).replace("_", "-")
