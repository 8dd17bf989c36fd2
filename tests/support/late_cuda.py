"""A stand-in for CUDA that does things as late as it may."""

from types import SimpleNamespace

import numpy as np


class LateCuda:
    """Memory and streams of NumPy. What is put on a stream runs only when somebody waits, and then in the worst order allowed."""

    def __init__(self):
        self.memory, self.recording, self.freed = {}, None, []

    def _new(self, count):
        array = np.zeros(max(1, count), np.uint8)
        address = len(self.memory) + 1
        self.memory[address] = array
        return address

    def describe(self):
        return "late"

    def use(self):
        pass

    def pinned(self, shape):
        address = self._new(4 * int(np.prod(shape)))
        return address, self.memory[address].view(np.float32).reshape(shape)

    def allocate(self, count):
        return self._new(count)

    def stream(self):
        return Stream()

    def event(self):
        return SimpleNamespace(at=None)

    def put(self, stream, work):
        if self.recording is not None:
            self.recording.append(work)
        else:
            stream.work.append(work)

    def copy(self, target, source, count, stream):
        self.put(stream, lambda: self.memory[target].__setitem__(slice(count), self.memory[source][:count]))

    def record(self, event, stream):
        event.at = (stream, len(stream.work))

    def wait(self, stream, event):
        at = event.at
        stream.work.append(lambda: self.run(*at))

    def run(self, stream, upto):
        while stream.done < upto:
            stream.done += 1
            stream.work[stream.done - 1]()

    def finish(self, event):
        self.run(*event.at)

    def drain(self, stream):
        self.run(stream, len(stream.work))

    def begin_capture(self, stream):
        self.recording = []

    def end_capture(self, stream):
        graph, self.recording = self.recording, None
        return graph

    def launch(self, graph, stream):
        stream.work.extend(graph)

    def free(self, address):
        self.freed.append(address)

    unpin = free

    def destroy_stream(self, stream):
        pass

    destroy_event = destroy_graph = destroy_stream


class Stream:
    known: list = []  # noqa: RUF012  # streams are numbers to TensorRT

    def __init__(self):
        self.work, self.done = [], 0
        Stream.known.append(self)

    def __int__(self):
        return Stream.known.index(self)
