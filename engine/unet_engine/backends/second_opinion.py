"""Whether a library computes what the model file says: one window through it and through a second implementation.

Libraries have errors of their own (a rounding mode, the edge of a pooling) that no message tells. So the first run of a
model with a library, its version, a processor and a size of window asks another one, in a process that ends: what it
takes of memory is not the run's. What was found is kept beside the engines. Where the two differ, ONNX's own reference
evaluator says who is right, if it can in `ARBITER_SECONDS`; else it is ONNX Runtime, or PyTorch on the CPU.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from unet_engine import machine
from unet_engine.backends import engine_cache
from unet_engine.backends.base import Array, Setup
from unet_engine.backends.libraries import open_backend, record
from unet_engine.devices.opening import SIMULATED, is_gpu, open_device
from unet_engine.errors import BackendError, first_line
from unet_engine.model.file import ModelFile
from unet_engine.model.onnx_network import network_of
from unet_engine.model.onnx_shapes import are_joint, images_of
from unet_engine.stitching import operations
from unet_engine.version import version_of

FORMAT = 3
KIND = "opinion"
TOLERANCE = 1e-3
"""Of the range of the outputs: libraries round differently, by 1e-6 to 2e-4 of it."""
TOLERANCES = {"fp32": TOLERANCE, "bf16": 3e-2, "fp16": 3e-3}
"""The same where the last layer is computed in another precision than the others."""
SMALL = 2**26
"""Bytes of the outputs of the window that a last layer is tried on, where the network takes one so small."""
LARGEST = 2**22
"""Voxels of the window that libraries are compared on, where the network takes one so small: both hold all of its
layers at once, beside what the run is allowed."""
SECONDS, SECONDS_ON_GPU = 120, 900
"""How long to wait, on a GPU for an engine to be built too."""
ARBITER_SECONDS = 30
_PACKAGES = {"openvino": ("openvino",), "onnxruntime": ("onnxruntime", "onnxruntime-gpu"), "pytorch": ("torch",)}


@dataclass(frozen=True)
class Opinion:
    """What two libraries make of one window."""

    first: str
    second: str
    """Names and versions."""
    difference: float | None = None
    """Largest difference over the range of the second's outputs; of labels, the part of the voxels that have another.
    None where there is none to tell."""
    wrong: Literal["", "first", "second"] = ""
    why: str = ""
    """Who said so, or why nothing was compared."""

    @property
    def text(self) -> str:
        if self.wrong == "first" and self.difference is None:
            return f"{self.first} refuses the network ({self.why}), and {self.second} runs it"
        if self.difference is None:
            return f"{self.first} was not compared with {self.second}: {self.why}"
        if not self.wrong:
            return f"{self.first} agrees with {self.second}, to {self.difference:.1e} of the range of the outputs"
        bad, good = (self.first, self.second) if self.wrong == "first" else (self.second, self.first)
        return (
            f"{bad} computes something else than the file says: its outputs differ from those of {good} by "
            f"{self.difference:.2g} of their range ({self.why})"
        )


@dataclass(frozen=True)
class Other:
    """The second implementation."""

    library: str
    device: str = "cpu"


def other_for(model: ModelFile, library: str, device: str) -> Other | None:
    """Who may be asked about `library` on `device`; None where nobody else is installed, or knows the format."""
    if device == SIMULATED or model.format == "fake":
        return None
    if model.format == "onnx":
        found = [name for name in ("onnxruntime", "openvino") if name != library or is_gpu(device)]
    else:
        found = ["pytorch"] if is_gpu(device) else []
    return next((Other(name) for name in found if record(name).installed), None)


def known(setup: Setup, library: str, on: str = "data") -> Opinion | None:
    """What was found earlier. on: ``data`` of a user, or ``noise``."""
    other = other_for(setup.model, library, setup.device)
    return _stored(_key(_small(setup), library, other, on)) if other else None


def asked(setup: Setup, library: str, window: Array, on: str = "data") -> Opinion | None:
    """What was found earlier, or is found now with `window`, (channels, *sizes) normalised float32, and kept. None
    where nobody can be asked."""
    other = other_for(setup.model, library, setup.device)
    if other is None:
        return None
    setup = _small(setup)
    return _kept(_key(setup, library, other, on), setup, library, other, _middle(window, setup.window))


def of_rewriting(setup: Setup, library: str, window: Array) -> Opinion:
    """Whether the network as it was rewritten (`ModelFile.gives_features`, `splits`) does what it does as it is, both
    run by `library`. Where outputs are many, a part of the window will do."""
    most = min(LARGEST, SMALL // (4 * setup.model.spec.channels_out))
    setup = _shrunk(setup, most)
    other = Other(library, setup.device)
    key = {**_key(setup, library, other, "data"), "last layer": setup.precision}
    if setup.model.splits:
        key |= {"split": True, "features": setup.model.gives_features}
    return _kept(key, setup, library, other, _middle(window, setup.window))


def _small(setup: Setup) -> Setup:
    """The same for the largest window that both libraries are given."""
    return _shrunk(setup, LARGEST)


def _shrunk(setup: Setup, most: int) -> Setup:
    """With a window of at most so many voxels; the smallest that the network takes where none is."""
    size = setup.window
    while prod(size) > most and (smaller := setup.model.spec.smaller_window(size)):
        size = smaller
    return replace(setup, window=size)


def _middle(window: Array, size: tuple[int, ...]) -> Array:
    begins = [(w - s) // 2 for w, s in zip(window.shape[1:], size, strict=True)]
    return window[(slice(None), *(slice(b, b + s) for b, s in zip(begins, size, strict=True)))]


def _kept(key: engine_cache.Key, setup: Setup, library: str, other: Other, window: Array) -> Opinion:
    """What was found earlier under `key`, or is found now and kept."""
    opinion = _stored(key)
    if opinion is None:
        opinion, lasting = _found(setup, library, other, window)
        if lasting:
            with suppress(BackendError):  # no cache: asked again next time
                engine_cache.store(KIND, key, json.dumps(asdict(opinion)).encode())
    return opinion


def _stored(key: engine_cache.Key) -> Opinion | None:
    with suppress(BackendError, ValueError, TypeError):
        text = engine_cache.load(KIND, key)
        return Opinion(**json.loads(text)) if text else None
    return None


def _key(setup: Setup, library: str, other: Other, on: str) -> engine_cache.Key:
    gpu = is_gpu(setup.device)
    return {
        "format": FORMAT,
        "model": setup.model.sha256,
        "spec": [setup.model.spec.channels_in, setup.model.spec.channels_out],
        "libraries": [_version(library), _version(other.library)],
        "processor": open_device(setup.device).describe() if gpu else machine.processor(),
        "window": list(setup.window),
        "on": on,
    }


def _version(library: str) -> str:
    found = (version_of(name) for name in _PACKAGES.get(library, (library,)))
    return f"{library} {next((v for v in found if v), '')}"


# --- the other process ---


def _found(setup: Setup, library: str, other: Other, window: Array) -> tuple[Opinion, bool]:
    """What a process of its own finds, and whether it would find the same again."""
    names = _version(library), _version(other.library)
    limit = SECONDS_ON_GPU if is_gpu(setup.device) else SECONDS
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "window.npy")
        np.save(path, window)
        order = pickle.dumps((replace(setup, threads=1, batch=1), library, other, str(path)))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        try:
            done = subprocess.run(
                [sys.executable, "-m", __name__], input=order, capture_output=True, timeout=limit, env=environment,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Opinion(*names, why=f"it took longer than {limit} s"), True
        except OSError as error:
            return Opinion(*names, why=first_line(error)), False
    for line in reversed(done.stdout.decode(errors="replace").splitlines()):
        with suppress(ValueError, TypeError):
            return Opinion(**json.loads(line)), True
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return Opinion(*names, why=said[-1][:300] if said else f"exit code {done.returncode}"), False


def main() -> None:
    """Compare as told on stdin; the last line on stdout is an `Opinion`."""
    setup, library, other, path = pickle.load(sys.stdin.buffer)
    opinion = compare(setup, library, other, np.load(path))
    print(json.dumps(asdict(opinion)), flush=True)
    os._exit(0)  # an arbiter that takes too long is not waited for, and libraries may fail as they end


def compare(setup: Setup, library: str, other: Other, window: Array) -> Opinion:
    """One window through both, at the same time."""
    names = _version(library), _version(other.library)
    whole = replace(setup.model, gives_features=False, splits=False)
    second = open_backend(other.library, replace(setup, device=other.device, model=whole))
    second.input(0)[...] = window
    second.start(0)
    try:
        first = open_backend(library, setup)
        first.input(0)[...] = window
        first.start(0)
        ours = _outputs(setup.model, np.array(first.result(0)[0], np.float32))
    except Exception as error:  # whatever it says, the other one may do it
        second.result(0)
        return Opinion(*names, wrong="first", why=first_line(error))
    theirs = second.result(0)[0]
    difference = apart(ours, theirs)
    if difference is None:
        return Opinion(*names, why="the outputs are not finite")
    if difference <= TOLERANCES.get(setup.precision, TOLERANCE):
        return Opinion(*names, difference)
    wrong, why = _arbitrated(setup, other, window, ours, theirs)
    return Opinion(*names, difference, wrong, why)


def _outputs(model: ModelFile, given: Array) -> Array:
    """What the network says, of what a library gives: outputs, or the features that they are made of."""
    if model.ahead is None:
        return given
    outputs = np.empty((model.ahead.outputs, *given.shape[1:]), np.float32)
    operations.linear(outputs, given, model.ahead.weights, model.ahead.bias)
    return outputs


def apart(ours: Array, theirs: Array) -> float | None:
    """The measure of `Opinion.difference`, channel by channel; None where outputs are not finite."""
    if ours.shape != theirs.shape:
        return float("inf")
    largest, low, high, other, whole = 0.0, np.inf, -np.inf, 0, True
    for a, b in zip(ours, theirs, strict=True):
        distance = np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32))
        largest = max(largest, float(distance.max()))
        low, high = min(low, float(b.min())), max(high, float(b.max()))
        other += int(np.count_nonzero(distance > 0.5))
        whole = whole and bool((b == np.rint(b)).all())
        if not np.isfinite((largest, low, high)).all() or np.isnan(distance).any():
            return None
    if whole:  # labels: a tie may fall on either side
        return other / max(1, ours.size)
    return largest / max(high - low, 1e-6 * max(abs(low), abs(high)), 1e-30)


def _arbitrated(setup: Setup, other: Other, window: Array, ours: Array, theirs: Array) -> tuple[Any, str]:
    """Who of the two is wrong, and who says so."""
    if setup.model.gives_features or setup.model.splits:
        return "first", "the network as it is says so"
    truth = _reference(setup, window) if setup.model.format == "onnx" else None
    if truth is not None and truth.shape == ours.shape:
        first, second = apart(ours, truth), apart(theirs, truth)
        if first is not None and second is not None and min(first, second) <= TOLERANCE < max(first, second):
            return ("second" if first < second else "first"), "ONNX's reference evaluator says so"
    trusted = other.library == "onnxruntime" or setup.model.format != "onnx"
    return ("first" if trusted else "second"), "which is taken for the reference"


def _reference(setup: Setup, window: Array) -> npt.NDArray[np.float32] | None:
    """The window's output by ONNX's reference evaluator, which is slow; None where that takes too long or fails."""
    found: list[npt.NDArray[np.float32]] = []

    def evaluate() -> None:
        with suppress(Exception):
            import onnx
            from onnx.reference import ReferenceEvaluator

            network = network_of(setup.model)
            model = onnx.load_from_string(network) if isinstance(network, bytes) else onnx.load(network)
            if are_joint(model):  # the evaluator takes them for what later versions made of them
                return
            given = {images_of(model.graph)[0].name: window[None]}
            found.append(np.asarray(ReferenceEvaluator(model).run(None, given)[0][0], np.float32))

    thread = threading.Thread(target=evaluate, daemon=True)
    thread.start()
    thread.join(ARBITER_SECONDS)
    return found[0] if found else None


if __name__ == "__main__":
    main()
