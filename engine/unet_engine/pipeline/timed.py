"""What a worker calls, plain or timed. Plain they are the functions themselves, so a run that is not profiled pays nothing at all."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any, cast

from unet_engine.backends.base import Backend
from unet_engine.pipeline.job import Halo
from unet_engine.profiling import stages
from unet_engine.profiling.stages import Stages
from unet_engine.stitching import operations


def _result(future: Future[Any]) -> Any:
    return future.result()


def _taken(queue: SimpleQueue[Any]) -> Any:
    return queue.get()


@dataclass(frozen=True)
class Tools:
    """The functions whose time is told apart; arguments as those of `unet_engine.stitching.operations` and the classes they come from."""

    gather: Callable[..., None] = operations.gather
    add: Callable[..., None] = operations.add
    add_constant: Callable[..., None] = operations.add_constant
    merge: Callable[..., None] = operations.merge
    labels: Callable[..., None] = operations.labels
    probabilities: Callable[..., None] = operations.probabilities
    logits: Callable[..., None] = operations.logits
    keep: Callable[[Halo], Halo] = Halo.copied
    wait: Callable[[Future[Any]], Any] = _result
    take: Callable[[SimpleQueue[Any]], Any] = _taken


PLAIN = Tools()


def tools(recorder: Stages | None) -> Tools:
    """Those of a run that is profiled by `recorder`, or the plain ones."""
    if recorder is None:
        return PLAIN
    kinds = {
        "gather": stages.GATHER, "add": stages.ADD, "add_constant": stages.ADD, "merge": stages.MERGE, "labels": stages.ACTIVATION,
        "probabilities": stages.ACTIVATION, "logits": stages.ACTIVATION, "keep": stages.MERGE, "wait": stages.WAITING, "take": stages.WAITING,
    }  # fmt: skip
    changed: dict[str, Any] = {name: recorder.timed(stage, getattr(PLAIN, name)) for name, stage in kinds.items()}
    return replace(PLAIN, **changed)


class _TimedBackend:
    """A back end whose `start` and `result` are spans; everything else is its own."""

    def __init__(self, backend: Backend, recorder: Stages) -> None:
        self._backend = backend
        self.input, self.slots = backend.input, backend.slots
        self.start = recorder.timed(stages.COPY, backend.start)
        self.result = recorder.timed(stages.NETWORK, backend.result)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def timed_backend(backend: Backend, recorder: Stages | None) -> Backend:
    return backend if recorder is None else cast(Backend, _TimedBackend(backend, recorder))
