"""What a command says is said once, whatever comes between."""

import io
import os
import sys
from pathlib import Path

import pytest

from unet_engine.commands import streams


@pytest.mark.parametrize("calls", range(1, 4))
def test_what_an_interruption_falls_into_is_not_said_twice(calls):
    """Signals raise their exception in Python code, as after any of the calls within a write."""
    reading, writing = os.pipe()
    left = [calls]

    def interrupt(frame, event, _):
        if frame.f_code is streams._Patient.write.__code__ and event == "c_return":
            left[0] -= 1
            if left[0] == 0:
                sys.setprofile(None)
                raise KeyboardInterrupt

    with os.fdopen(reading) as reader, os.fdopen(writing, "w") as old:
        stream, _ = streams._stream(old)
        sys.setprofile(interrupt)
        try:
            stream.write("first\n")
            stream.flush()
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        stream.write("second\n")
        stream.flush()
        old.close()
        assert reader.read() == "first\nsecond\n"


def test_a_stream_that_takes_nothing_keeps_the_error():
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        stream, raw = streams._stream(full)
        assert isinstance(stream, io.TextIOWrapper)
        for _ in range(2):
            stream.write("x" * 10)
            stream.flush()
        assert raw.error.strerror == "No space left on device"
