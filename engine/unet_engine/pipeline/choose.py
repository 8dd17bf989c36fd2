"""Which pipeline a network goes into: the one line that knows both."""

from __future__ import annotations

from unet_engine.backends.base import Backend, Network
from unet_engine.backends.device import DeviceBackend
from unet_engine.pipeline.base import Pipeline
from unet_engine.pipeline.host import HostPipeline, Watch
from unet_engine.pipeline.job import Job, Tally
from unet_engine.profiling.recorder import Recorder
from unet_engine.volumes.base import Volume


def pipeline_of(job: Job, network: Network, tally: Tally, recorder: Recorder, volume: Volume, watch: Watch) -> Pipeline:
    """The pipeline of one worker. volume: what windows are cut from; watch: is shown what a network on the host
    gives."""
    on_device = [member for member in network.members if isinstance(member, DeviceBackend)]
    if on_device:
        from unet_engine.pipeline.gpu.pipeline import DevicePipeline

        return DevicePipeline(job, on_device, tally, volume, recorder)
    members = [member for member in network.members if isinstance(member, Backend)]
    return HostPipeline(job, members, tally, recorder, watch)
