"""Calls on a stack that need not grow. CPython keeps frames in pieces of 16 KiB, and asks the system for each: a loop at the
end of a piece asks for the next with every call that it makes, and gives it back. Imports nest so deep that a start
did so 3,400 times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SLOTS = 2**16
"""Of eight bytes. A frame that does not fit a piece gets one of twice its size, the rest of which is for all that is
called from there. Nobody writes to the frame's part, so that no memory is taken for it."""


def roomy(call: Callable[[], T]) -> T:
    """What `call` returns."""
    return call()


roomy.__code__ = roomy.__code__.replace(co_stacksize=SLOTS)
