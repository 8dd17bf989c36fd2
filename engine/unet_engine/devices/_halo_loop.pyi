"""The functions of `unet_engine.devices._halo_cuda` on arrays of the host: the same kernels in loops, for tests.
`stream` means nothing."""

from unet_engine.devices._halo_cuda import *  # noqa: F403  # a stub hands on what it names
