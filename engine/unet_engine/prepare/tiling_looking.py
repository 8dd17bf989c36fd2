"""What is asked of volume and network where tilings are tried: which windows there may be, and what the network gives
in them, in the precision of the run or in full."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np

from unet_engine import machine
from unet_engine.backends.base import Array, Backend, Network, Setup
from unet_engine.backends.libraries import record
from unet_engine.backends.opening import as_host, open_network
from unet_engine.backends.out_of_memory import is_out_of_memory
from unet_engine.errors import BackendError, first_line
from unet_engine.model.onnx_reach import reach_of
from unet_engine.pipeline.reduction import REDUCTIONS
from unet_engine.plan.box import Box
from unet_engine.plan.fitting import lattice_of
from unet_engine.prepare.corners import AxisSizes
from unet_engine.prepare.decisions import Decisions, label_dtype
from unet_engine.prepare.draft import Draft
from unet_engine.prepare.precision import choose, proof_key
from unet_engine.prepare.tiling_choice import Point
from unet_engine.prepare.tiling_fit import Fit
from unet_engine.units import Tell, times
from unet_engine.volumes import samples, windows
from unet_engine.volumes.normalize import quantiles

SEED = 0
CONTEXTS = (1.0, 1.5, 2.0)
"""Windows that are looked at, as parts of the model's own."""
BUDGET = 0.03
"""Part of the run that looking may take."""
LARGER = {"int8": 4, "bf16": 2, "fp16": 2}
"""How much more memory fp32 takes, at most."""


class Keeps(Exception):
    """The model's own tiling is kept, for the reason in its text."""


@dataclass(frozen=True)
class Memory:
    """What windows may take."""

    budget: int
    """Bytes for the network, at work on all threads."""
    per_voxel: float
    """Bytes that a window takes per voxel of its input."""
    workers: int = 1
    """Processes that have so much each."""

    def most(self, threads: int) -> int:
        """Voxels of a window of which so many are inferred at once."""
        return int(self.budget / max(self.per_voxel, 1.0) / max(1, threads))


class Looking:
    """Everything that is asked of volume and network."""

    def __init__(self, draft: Draft, decisions: Decisions, memory: Memory, tell: Tell) -> None:
        self.draft, self.decisions, self.memory, self.tell = draft, decisions, memory, tell
        self.survey, self.spec = draft.survey, draft.survey.model.spec
        self.window = decisions.tiling.window
        self.planes = len(self.survey.volume.shape) - len(self.spec.axes)
        self.threads = draft.network.setup.threads
        self.quantiles = quantiles(samples.measured(self.survey.scan), draft.scale)
        self.reduced = REDUCTIONS["labels"](
            self.spec.activation, label_dtype(self.spec), self.spec.regions, self.spec.threshold,
            last=self.survey.model.ahead, kept=self.spec.kept_labels,
        )  # fmt: skip
        settings, setup = self.survey.settings, draft.network.setup
        on_cpu = setup.device == "cpu"
        threads = (settings.threads or machine.cpu_count()) if on_cpu else 1
        # of all workers, so that those of a machine choose what one process would choose there
        self.fit = Fit(self.survey, decisions, self.run(), self.admits, threads * memory.workers)
        self.computed = 0.0
        """Voxels of input so far; those in fp32 count for as many as they last longer."""
        verdict = self.survey.choice.proved
        self.dearer = max(1.0, (verdict.speedup or 1.0) if verdict else 1.0)
        """How much longer fp32 takes than the precision of the run."""
        self.larger = LARGER.get(setup.precision, 1)
        """How much more memory it takes, at most."""
        self.key = {
            "model": self.survey.model.sha256,
            "library": draft.network.version,
            "device": setup.device.partition(":")[0],
            "precision": [setup.precision, setup.network, setup.rest, list(setup.judged)],
            "window": list(self.window),
            "fixed": settings.window is not None,
            "normalization": str(self.spec.normalization),
            "tolerance": settings.tolerance,
            "version": 4,
        }
        if self.spec.kept_labels is not None:
            self.key["kept"] = list(self.spec.kept_labels)
        self.made = {key: self.key[key] for key in ("model", "library", "device", "precision", "normalization")}
        """Of what windows of any size are timed."""
        self.asked = proof_key(self.survey.model, self.survey.backend, setup.device, self.survey.choice)

    # --- what there is to choose from ---

    def admits(self, window: tuple[int, ...]) -> bool:
        """Whether a run may have these windows: in its precision, and in its poses."""
        survey, choice = self.survey, self.survey.choice
        if survey.settings.window and window != self.window:
            return False
        if any(pose.swaps for pose in self.decisions.poses) and window[-1] != window[-2]:
            return False
        if window == self.window or choice.precision == "fp32":
            return True
        return self.provable or self.is_judged(window)  # asking the library takes milliseconds, of thousands

    def is_judged(self, window: tuple[int, ...]) -> bool:
        """Whether verdicts speak of these windows as they do of the model's own."""
        survey, choice = self.survey, self.survey.choice
        try:
            other = choose(survey.model, survey.backend, survey.devices[0], survey.settings.precision, window)
        except BackendError:  # asked for, and refused without a verdict
            return False
        alike = (other.precision, other.network, other.judged) == (choice.precision, choice.network, choice.judged)
        return alike and (other.proved is None) == (choice.proved is None)

    @property
    def provable(self) -> bool:
        """Whether the precision of the run may be proved in other windows here. Libraries that build an engine for each
        size choose its arithmetic anew."""
        return self.survey.choice.proved is not None and not record(self.survey.backend).typed

    @cached_property
    def reach(self) -> tuple[int, ...] | None:
        """How far the network sees beyond what it loses, per axis of the model, as its graph tells it, else its
        spec."""
        told = reach_of(self.survey.model) or self.spec.context
        return told and tuple(max(0, r - m) for r, m in zip(told, self.spec.margin, strict=True))

    @property
    def most(self) -> int:
        """Voxels that a window may have."""
        most = self.memory.most(self.threads)
        return most if self.larger == 1 else min(most, self.memory.most(1) // self.larger)

    def full(self) -> list[Point]:
        """Tilings of which every voxel has all its context. Where labels decide, that is no reason."""
        if self.reach is None or self.survey.settings.truth:
            return []
        return self.fit.full(self.reach, self.most)

    def axes(self) -> list[AxisSizes]:
        """Per axis of the volume; one that the model does not have is walked plane by plane."""
        return [
            AxisSizes(size, 1, 0, 1) if a < self.planes else self._sizes(a - self.planes, size)
            for a, size in enumerate(self.survey.volume.shape)
        ]

    def _sizes(self, a: int, size: int) -> AxisSizes:
        spec = self.spec
        margin, step = spec.margin[a], spec.window_step[a]
        least = (spec.window_min[a] if step else self.window[a]) - 2 * margin
        while least < 1:
            least += step
        return AxisSizes(size, least, step, lattice_of(step, self.window[a]), margin)

    def contexts(self) -> list[tuple[int, ...]]:
        """Sizes of the output of windows to look at, per axis of the volume, the model's own first."""
        found = []
        for factor in CONTEXTS:
            sizes = [
                1 if a < self.planes else axis.at_least(round(factor * self.own[a]))
                for a, axis in enumerate(self.axes())
            ]
            if None not in sizes and self.admits(self.inputs(sizes)):
                found.append(tuple(int(s or 0) for s in sizes))
        if not found:
            raise Keeps(f"{self.survey.volume.path} is smaller than a window")
        return list(dict.fromkeys(found))

    @property
    def own(self) -> tuple[int, ...]:
        """Output of the model's own window, per axis of the volume."""
        return (1,) * self.planes + tuple(w - 2 * m for w, m in zip(self.window, self.spec.margin, strict=True))

    def inputs(self, lengths: Sequence[int | None]) -> tuple[int, ...]:
        """The window with this output, per axis of the model."""
        return tuple(int(n or 0) + 2 * m for n, m in zip(lengths[self.planes :], self.spec.margin, strict=True))

    # --- what a run computes ---

    def run(self) -> int:
        """Voxels that a run with the model's own tiling computes."""
        whole = Box.of_shape(self.survey.volume.shape)
        return self._windows(whole) * prod(self.window)

    def _windows(self, region: Box) -> int:
        decisions = self.decisions.labels_of(self.spec, region, self.decisions.tiling)
        return self.draft.plan(decisions).window_range.size

    @property
    def budget(self) -> float:
        """Voxels that all of this may compute."""
        return (self.survey.settings.tiling_budget or BUDGET) * self.run()

    # --- the network ---

    def inferred(self, lengths: Sequence[int], boxes: Sequence[Box]) -> Iterator[Array]:
        """Labels of each box (*box.shape), in order, in the precision of the run; all have the output of one size of
        window."""
        window = self.inputs(lengths)
        self.computed += prod(window) * len(boxes)
        with self.opened(window) as host:
            yield from self.labels(host, boxes)

    def labels(self, host: Backend, boxes: Sequence[Box]) -> Iterator[Array]:
        inputs = (self.cut(box, host.setup.window) for box in boxes)
        for box, logits in zip(boxes, _through(host, inputs), strict=True):
            found = np.asarray(self.reduced.on_host(np.ascontiguousarray(logits, np.float32)))
            yield found.reshape(box.shape)

    def cut(self, box: Box, window: tuple[int, ...]) -> Array:
        """The window whose output is `box`, normalised. What lies beyond the volume is reflected."""
        margin = (0,) * self.planes + self.spec.margin
        inside = box.grow(margin) & Box.of_shape(self.survey.volume.shape)
        return windows.cut(self.survey.volume, self.draft.scale, inside, window)

    @contextmanager
    def opened(self, window: tuple[int, ...]) -> Iterator[Backend]:
        """The network for windows of this size as the run would have it, on as many threads as memory allows."""
        if window == self.window:
            with as_host(self.draft.network) as host:
                yield host
            return
        threads = min(self.threads, max(1, self.memory.most(1) // prod(window)))
        with self._anew(replace(self.draft.network.setup, window=window, threads=threads, batch=1)) as host:
            yield host

    @contextmanager
    def in_fp32(self, window: tuple[int, ...]) -> Iterator[Backend]:
        """The same in full precision."""
        setup = self.draft.network.setup
        if setup.precision == "fp32":
            with self.opened(window) as host:
                yield host
            return
        threads = min(self.threads, max(1, self.memory.most(1) // self.larger // prod(window)))
        plain = replace(setup, precision="fp32", network=None, rest="fp32", judged=())
        with self._anew(replace(plain, window=window, threads=threads, batch=1)) as host:
            yield host

    @contextmanager
    def network(self, window: tuple[int, ...]) -> Iterator[Network]:
        """The same as a run has it, of another size than the model's own."""
        threads = min(self.threads, max(1, self.memory.most(1) // prod(window)))
        with self._open(replace(self.draft.network.setup, window=window, threads=threads, batch=1)) as network:
            yield network

    @contextmanager
    def _anew(self, setup: Setup) -> Iterator[Backend]:
        with self._open(setup) as network, as_host(network) as host:
            yield host

    @contextmanager
    def _open(self, setup: Setup) -> Iterator[Network]:
        network = None
        try:
            network = open_network(self.survey.backend, setup)
            yield network
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise Keeps(f"windows of {times(setup.window)} do not fit the memory ({first_line(error)})") from error
        finally:
            if network is not None:
                network.close()


def _through(host: Backend, inputs: Iterable[Array]) -> Iterator[Array]:
    """What the network makes of each input, in order, as many at once as it has threads. Valid until the next one is
    asked for."""
    slots = min(host.slots, max(1, host.setup.threads))
    waiting: deque[int] = deque()
    for number, window in enumerate(inputs):
        slot = number % slots
        if len(waiting) == slots:
            yield host.result(waiting.popleft())[0]
        host.input(slot)[...] = window
        host.start(slot)
        waiting.append(slot)
    while waiting:
        yield host.result(waiting.popleft())[0]
