"""Codecs that nobody can keep from unpacking too much, such as those of pictures: run in processes of their own, which
may take only so much memory."""

from __future__ import annotations

import asyncio
import atexit
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine import machine
from unet_engine.errors import first_line
from unet_engine.storage.unpacking import HARMLESS, longest, too_much_at_least
from unet_engine.units import size as in_words

SLACK = 4 * HARMLESS
"""Bytes that a codec may take besides what it unpacks, three times: threads, tables, planes that are converted."""
MOST_PROCESSES = 4


def decoded(codec: Any, packed: Any, size: int) -> npt.NDArray[Any]:
    """What `codec`, which has the interface of numcodecs, decodes of a chunk of `size` bytes, flat. Raises `ValueError`
    where that is more, or takes far more memory, and with the codec's words where it fails."""
    if type(codec).__module__ == "__main__":  # the user's own program, which no other process can import
        return np.asarray(codec.decode(packed)).reshape(-1)
    return _PROCESSES.decode(codec, np.ascontiguousarray(packed), size)


@dataclass(frozen=True)
class OfZarr3:
    """A codec of Zarr v3, for chunks as `spec` has them, with the interface of numcodecs."""

    codec: Any
    spec: Any
    codec_id: str

    def decode(self, packed: npt.NDArray[Any]) -> npt.NDArray[Any]:
        buffer = self.spec.prototype.buffer.from_bytes(packed.tobytes())
        found = asyncio.run(self.codec._decode_single(buffer, self.spec))
        return np.asarray(found.as_ndarray_like() if hasattr(found, "as_ndarray_like") else found.as_numpy_array())


class _Process:
    def __init__(self) -> None:
        paths = os.pathsep.join(p for p in sys.path if p)
        environment = {**os.environ, "PYTHONPATH": paths, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
        )  # fmt: skip

    def ask(self, order: bytes) -> tuple[bool, Any]:
        """Whether it was done, and what came of it. Raises `OSError` or `EOFError` where the process ended."""
        orders: Any = self.process.stdin
        answers: Any = self.process.stdout
        orders.write(len(order).to_bytes(8, "little") + order)
        orders.flush()
        done, value, length = pickle.load(answers)  # our own program's
        if not done:
            return False, value
        found = bytearray(length)
        if answers.readinto(memoryview(found)) != length:
            raise EOFError
        return True, np.frombuffer(found, np.dtype(value))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                if pipe:
                    pipe.close()


class _Processes:
    """Begun as they are needed, and kept."""

    def __init__(self) -> None:
        self._room = threading.BoundedSemaphore(max(1, min(MOST_PROCESSES, machine.cpu_count())))
        self._lock, self._free = threading.Lock(), list[_Process]()

    def decode(self, codec: Any, packed: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
        order = pickle.dumps((codec, packed, size), 5)
        with self._room:
            with self._lock:
                process = self._free.pop() if self._free else None
            process = process or _Process()
            try:
                done, value = process.ask(order)
            except (OSError, EOFError, pickle.UnpicklingError) as error:
                process.end()
                raise ValueError(
                    f"its codec {codec.codec_id} took more than {in_words(_most(packed.nbytes, size))} for a chunk of "
                    f"{in_words(size)}, or failed: it was ended"
                ) from error
            except BaseException:  # a signal: what is still on its way is nobody's
                process.end()
                raise
            with self._lock:
                self._free.append(process)
        if not done:
            raise ValueError(value)
        return np.asarray(value)

    def end(self) -> None:
        with self._lock:
            for process in self._free:
                process.end()
            self._free.clear()


_PROCESSES = _Processes()
atexit.register(_PROCESSES.end)


def _most(packed: int, size: int) -> int:
    return packed + 3 * longest(size) + SLACK


def serve() -> None:
    """Decode as told on stdin until it is closed."""
    orders, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    while head := orders.read(8):
        codec, packed, size = pickle.loads(orders.read(int.from_bytes(head, "little")))
        answer, data = _answer(codec, packed, size)
        answers.write(pickle.dumps(answer))
        answers.write(data)
        answers.flush()


def _answer(codec: Any, packed: npt.NDArray[Any], size: int) -> tuple[tuple[bool, str, int], Any]:
    most = _most(packed.nbytes, size)
    try:
        with _limited(most):
            found = codec.decode(packed)
            flat = found.reshape(-1) if isinstance(found, np.ndarray) else np.frombuffer(found, np.uint8)
        if flat.nbytes > longest(size):
            raise too_much_at_least(longest(size), size)
    except MemoryError:
        said = f"its codec {codec.codec_id} takes more than {in_words(most)} for it, and a chunk has {in_words(size)}"
        return (False, said, 0), b""
    except Exception as error:
        return (False, first_line(error), 0), b""
    return (True, flat.dtype.str, flat.nbytes), flat.view(np.uint8).data


@contextmanager
def _limited(most: int) -> Iterator[None]:
    """Context in which this process may take so many bytes more, where the system can hold it to that."""
    try:
        import resource
    except ImportError:  # on Windows
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = machine.taken_bytes().data + most
    known = [limit for limit in (allowed, *before) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(known), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
