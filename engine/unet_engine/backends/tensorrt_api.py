"""One face for TensorRT 10.16, TensorRT 11 and TensorRT-RTX: parse an ONNX graph, build an engine from it. None of this
needs a GPU.

Networks are strongly typed: the graph says what is computed in which type. TensorRT 11 has no other kind and no flag
for it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

from unet_engine.backends.gpu_choice import BUILDS, Capability, shown
from unet_engine.errors import BackendError, ModelError, first_line
from unet_engine.model.onnx_shapes import images_of
from unet_engine.units import times

MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
"""Where the API may be found; the last is the wheel of bare bindings."""
LARGEST_TENSOR = 2**31 - 1
"""Elements that a tensor may have in TensorRT, whose volumes are 32-bit in places."""
Progress = Callable[[str, float], None]
"""Called with the phase of a build and how much of it is done, 0 to 1."""


@cache
def module() -> ModuleType:
    """Raises `BackendError` where none of `MODULES` can be imported."""
    said = "it is not installed"
    for name in MODULES:
        if find_spec(name) is None:
            continue
        try:
            return import_module(name)
        except Exception as error:  # a missing driver library shows as an OSError or a RuntimeError
            said = first_line(error)
    raise BackendError(
        f"TensorRT cannot be loaded: {said}; run: pip install 'unet-engine[tensorrt]', or use --device cpu"
    )


def version() -> str:
    trt = module()
    return f"{'tensorrt_rtx' if 'rtx' in trt.__name__ else 'tensorrt'} {trt.__version__}"


def refuses(gpu: Capability | None) -> str:
    """Why what can be loaded here does not run on a GPU of that compute capability; empty where it does."""
    name = "tensorrt_rtx" if "rtx" in module().__name__ else "tensorrt"
    build = next(b for b in BUILDS if b.name == name)
    if gpu is None or build.is_for(gpu):
        return ""
    return f"{build.called} is not made for compute capability {shown(gpu)}; install TensorRT itself, or use --backend pytorch"


@dataclass(frozen=True)
class Shapes:
    """Input shapes (batch, channels, *window) that an engine takes, and the one it is tuned for."""

    least: tuple[int, ...]
    best: tuple[int, ...]
    most: tuple[int, ...]


class Cancelled(Exception):
    """The build was given up because the user asked for it."""


def check_sizes(path: Path, network: bytes, shape: tuple[int, ...]) -> None:
    """Raise `ModelError` where a tensor inside has 2³¹ or more elements for an input of `shape`; the message names
    it."""
    import onnx

    model = onnx.load_from_string(network)
    for dim, size in zip(images_of(model.graph)[0].type.tensor_type.shape.dim, shape, strict=True):
        dim.Clear()
        dim.dim_value = size
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    for value in [*inferred.input, *inferred.value_info]:
        sizes = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if prod(sizes) > LARGEST_TENSOR:
            raise ModelError(
                f"{path}: with windows of {times(shape[2:])} the result {value.name} inside the network has {prod(sizes):,} elements, "
                "and TensorRT takes fewer than 2^31; use a smaller --window"
            )


def build(
    network: bytes,
    shapes: Shapes,
    *,
    target: str | None = None,
    timing: bytes = b"",
    progress: Progress | None = None,
    enter: Callable[[], None] = lambda: None,
) -> tuple[bytes, bytes]:
    """Engine and timing cache from an ONNX graph. `target` (TensorRT-RTX alone): ``SM80`` etc., for another GPU than
    the one here. `enter` is called first in the thread that builds: it makes the GPU current there.

    Ctrl-C ends the build at its next step. Raises `ModelError` naming the operator that TensorRT refuses,
    `BackendError` where building fails.
    """
    job = _Build(network, shapes, target, timing, progress or (lambda phase, done: None), enter)
    thread = threading.Thread(target=job.run, name="build engine", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.1)
    except KeyboardInterrupt:
        job.cancel()
        thread.join()
        raise
    if job.error is not None:
        raise job.error
    return job.engine, job.timing


class _Build:
    """One build on a thread of its own, so that signals reach the main thread while it runs."""

    def __init__(
        self, network: bytes, shapes: Shapes, target: str | None, timing: bytes, progress: Progress,
        enter: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._network, self._shapes, self._target, self._progress = network, shapes, target, progress
        self._enter = enter
        self._cancelled = threading.Event()
        self.engine, self.timing = b"", timing
        self.error: BaseException | None = None

    def cancel(self) -> None:
        self._cancelled.set()

    def run(self) -> None:
        try:
            self._enter()
            self._build()
        except BaseException as error:  # handed to the thread that waits
            self.error = error

    def _build(self) -> None:
        trt = module()
        logger = _logger_of(trt)
        builder = trt.Builder(logger)
        network = builder.create_network(_flags(trt))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(self._network):
            raise _refused(parser)
        config = builder.create_builder_config()
        _configure(trt, config, self._target)
        s, given = self._shapes, network.get_input(0)
        if s.least == s.most:
            given.shape = s.best  # kernels for this one shape; there is no profile then
        else:
            profile = builder.create_optimization_profile()
            profile.set_shape(given.name, s.least, s.best, s.most)
            config.add_optimization_profile(profile)
        cache = config.create_timing_cache(self.timing)
        if cache is not None:
            config.set_timing_cache(cache, ignore_mismatch=False)
        config.progress_monitor = _monitor(trt, self._progress, self._cancelled)
        engine = builder.build_serialized_network(network, config)
        if self._cancelled.is_set():
            raise Cancelled
        if engine is None:
            raise BackendError(
                f"TensorRT cannot build the engine: {logger.said()}; use a smaller --window, or --precision fp32"
            )
        self.engine = bytes(engine)
        if cache is not None:
            self.timing = bytes(cache.serialize())


def _flags(trt: ModuleType) -> int:
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _configure(trt: ModuleType, config: Any, target: str | None) -> None:
    # fp32 means fp32: TF32 keeps ten bits, fewer than the gate assumes of its reference
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)
    # nothing is allocated as it runs, which would end the recording of a graph
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if target is None:
        return
    if not hasattr(trt, "ComputeCapability"):
        raise BackendError(f"{version()} builds for the GPU it runs on alone, not for {target}; use TensorRT-RTX")
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)


def context_of(engine: Any, kernels: bytes) -> tuple[Any, Any]:
    """An execution context whose scratch memory is ours, and what holds the kernels that it compiles as it runs;
    `kernels` is what an earlier one held. None in TensorRT itself, which compiles while it builds."""
    trt = module()
    ours = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if "rtx" not in trt.__name__:
        return engine.create_execution_context(ours), None
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(ours)
    # all kernels before the first batch: one that is compiled later could not be in a recorded graph
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    held = config.create_runtime_cache()
    if kernels:
        held.deserialize(kernels)
    config.set_runtime_cache(held)
    return engine.create_execution_context(config), held


def _refused(parser: Any) -> ModelError:
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    if not errors:
        return ModelError("TensorRT cannot read the network; export it again")
    error = errors[-1]
    operator = getattr(error, "node_operator", lambda: "")() or "an operator"
    node = getattr(error, "node_name", lambda: "")() or "without a name"
    return ModelError(
        f"TensorRT refuses {operator} ({node}): {first_line(Exception(error.desc()))}; replace it in the network"
    )


def logger() -> Any:
    """A logger that keeps errors; ``said()`` is the last of them. It must live as long as what was made with it."""
    return _logger_of(module())


def _logger_of(trt: ModuleType) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        """Keeps errors for our own message; the rest is not for users."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self._errors.append(message)

        def said(self) -> str:
            return self._errors[-1].splitlines()[0][:300] if self._errors else "it gives no reason"

    return Logger()


def _monitor(trt: ModuleType, progress: Progress, cancelled: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Tells how far each phase is, and says no to the next step once the user has had enough."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress(phase_name, (step + 1) / max(1, self._steps.get(phase_name, 1)))
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            progress(phase_name, 1.0)

    return Monitor()


class Printer:
    """Progress on stderr: one line when building begins, one every ten seconds."""

    def __init__(self, what: str) -> None:
        self._begun = self._last = time.monotonic()
        print(f"building an engine for {what}; it is kept for the next run", file=sys.stderr)

    def __call__(self, phase: str, done: float) -> None:
        now = time.monotonic()
        if now - self._last > 10:
            self._last = now
            print(f"building for {now - self._begun:.0f} s: {phase} {done:.0%}", file=sys.stderr)
