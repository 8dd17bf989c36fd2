"""How many windows a CPU infers at once, and with how many threads each: what was chosen, and what is remembered of a
model on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from unet_engine import cores
from unet_engine.backends import engine_cache
from unet_engine.backends.base import Setup
from unet_engine.backends.libraries import record
from unet_engine.errors import BackendError
from unet_engine.model.file import ModelFile
from unet_engine.version import version_of

KIND = "streams"
"""Of what is kept in the user's cache."""
KEPT = 16
"""Windows and precisions that are remembered of a model."""
WORTH = 1.03
"""By how much faster something has to be, to be taken in place of a thread for each window and core."""


class _Frozen(BaseModel):
    model_config = ConfigDict(defer_build=True, frozen=True)


class Timed(_Frozen):
    """So many windows at once with so many threads each, beside one for each core with one thread."""

    threads: int
    """Windows at once, as `Setup` has it."""
    window_threads: int
    same: bool
    """Whether windows get the same bytes; what gives others is not timed."""
    relative: float | None = None
    """Wall time of a window, of what it takes with a thread for each window and core; the median of all rounds."""
    worst: float | None = None
    """The same in the worst round."""

    def lasts(self, windows: int) -> float | None:
        """Time for so many windows, in windows of the default; the last round may leave cores idle. None where it is
        not known, or bytes would be others."""
        if not self.same or self.worst is None:
            return None
        return -(-windows // self.threads) * self.threads * self.worst

    def __str__(self) -> str:
        return f"{self.threads}×{self.window_threads}"


class Measured(_Frozen):
    """Of a network in windows of one size."""

    made: str
    """Which of the model's networks, and its precision."""
    window: tuple[int, ...]
    timed: tuple[Timed, ...]

    @property
    def line(self) -> str:
        """All of it in a sentence."""
        return f"windows of {'×'.join(map(str, self.window))}: {told(self.timed)}"


class StreamsChoice(_Frozen):
    """What a run takes, and on what grounds."""

    threads: int
    window_threads: int
    cores: int
    nodes: int
    """NUMA nodes that these are on."""
    reason: str
    timed: tuple[Timed, ...] = ()
    seconds: float = 0.0
    """That this run took to measure it."""

    @property
    def line(self) -> str:
        """The choice in a sentence."""
        each = "a thread" if self.window_threads == 1 else f"{self.window_threads} threads"
        where = f"{self.cores} core(s)" + (f" on {self.nodes} NUMA nodes" if self.nodes > 1 else "")
        count = "1 window at a time" if self.threads == 1 else f"{self.threads} windows at once"
        return f"{count}, {each} each, on {where}: {self.reason}"


def told(timed: Iterable[Timed]) -> str:
    """What was found, for people: windows at once × threads for each."""
    return ", ".join(
        f"{entry} takes {entry.relative:.2f} of the time"
        if entry.relative is not None
        else f"{entry} would give other bytes"
        for entry in timed
    )


def fastest(timed: Sequence[Timed], default: Timed, windows: int) -> Timed:
    """Of what gives the same bytes, what surely infers so many windows soonest."""
    usual = default.lasts(windows)
    assert usual is not None
    known = [(lasts, n, entry) for n, entry in enumerate(timed) if (lasts := entry.lasts(windows)) is not None]
    lasts, _, best = min(known, default=(usual, 0, default))
    return best if lasts * WORTH <= usual else default


def made_of(setup: Setup) -> str:
    """What of a setup, beside its window, decides how fast it is and what it gives."""
    model = setup.model
    return " ".join(
        filter(None, (setup.precision, setup.network, setup.rest, "features" * model.gives_features,
                      "split" * model.splits))
    )  # fmt: skip


def known(setup: Setup, library: str) -> tuple[Timed, ...] | None:
    """What was measured of this network here; None where nothing was."""
    made = made_of(setup)
    return next((m.timed for m in remembered(setup.model, library) if (m.made, m.window) == (made, setup.window)), None)


def remember(setup: Setup, library: str, timed: Sequence[Timed]) -> None:
    """Keep it for later runs on this machine. A cache that cannot be used is no error: the next run measures again."""
    new = Measured(made=made_of(setup), window=setup.window, timed=tuple(timed))
    others = [m for m in remembered(setup.model, library) if (m.made, m.window) != (new.made, new.window)]
    values = [entry.model_dump(mode="json") for entry in (new, *others)][:KEPT]
    with suppress(BackendError):
        engine_cache.store(KIND, _key(setup.model, library), json.dumps(values).encode())


def remembered(model: ModelFile, library: str) -> list[Measured]:
    """All that is known of a model on this machine as this process may use it, the latest first."""
    with suppress(BackendError, ValueError, TypeError, ValidationError):
        data = engine_cache.load(KIND, _key(model, library))
        return [Measured.model_validate(entry) for entry in json.loads(data or b"[]")]
    return []


def _key(model: ModelFile, library: str) -> dict[str, object]:
    versions = {name: version_of(name) for name in record(library).modules}
    return {"model": model.sha256, "library": [library, versions], "machine": cores.fingerprint(), "version": 1}


def facts(choice: StreamsChoice | None) -> dict[str, Any] | None:
    """The choice as JSON values."""
    return choice.model_dump(mode="json") if choice else None
