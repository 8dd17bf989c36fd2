"""Waiting for what is to come, however slow the machine is."""

import time

PATIENCE = 120.0
"""Seconds, that a test which waits in vain ends, and says where: many times what anything takes on a busy machine."""


def wait_until(true, seconds=PATIENCE, told=lambda: "waited in vain"):
    """Look until `true()` is, and return what it is. No test may depend on how long that takes."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, told()
        time.sleep(0.01)
    return found
