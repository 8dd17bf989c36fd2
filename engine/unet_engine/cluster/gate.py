"""The old name of `unet_engine.cluster.token_gate`, which people's schedulers preload."""

from unet_engine.cluster.token_gate import dask_setup

__all__ = ["dask_setup"]
