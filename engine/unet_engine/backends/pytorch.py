"""PyTorch: ``.pt2`` (torch.export) and TorchScript, on CPU or CUDA. Imported only where it is used."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from unet_engine.backends.base import Array, Setup, ThreadedBackend
from unet_engine.errors import BackendError, ModelError, first_line

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class PyTorchBackend(ThreadedBackend):
    name = "pytorch"

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.version = f"torch {torch.__version__}"
        self._device = torch.device(setup.device)
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise BackendError(f"this PyTorch sees no GPU for {setup.device}; use --device cpu")
        self._refuse_precision("fp32", "bf16", *(["fp16"] if self._device.type == "cuda" else []))
        self._network = loaded(setup).to(self._device)
        super().__init__(setup)
        pinned = self._device.type == "cuda"
        self._host_in = [torch.zeros(setup.input_shape, pin_memory=pinned) for _ in range(self.slots)]
        self._host_out = [torch.zeros(setup.output_shape, pin_memory=pinned) for _ in range(self.slots)]
        self._inputs = [t.numpy() for t in self._host_in]
        try:
            with torch.inference_mode():
                shape = tuple(self._network(self._host_in[0].to(self._device)).shape)
        except Exception as error:
            self.close()
            raise ModelError(
                f"{setup.model.path} does not take windows of {setup.window}: {first_line(error)}"
            ) from error
        self._check_output(shape)

    def _thread_setup(self) -> None:
        # One thread per window, several windows at once: see `Setup.threads`. Intra-op threads are set per calling thread.
        torch.set_num_threads(1)

    def _run(self, slot: int) -> Array:
        kind = self._device.type
        dtype = _AUTOCAST.get(self.setup.precision)
        with torch.inference_mode(), torch.autocast(kind, dtype) if dtype else nullcontext():
            window = self._host_in[slot].to(self._device, non_blocking=True)
            self._host_out[slot].copy_(self._network(window))
        out: Array = self._host_out[slot].numpy()
        return np.asarray(out)


def loaded(setup: Setup) -> Any:
    """The network, on the CPU. Raises `ModelError` where PyTorch cannot load the file."""
    path = setup.model.path
    try:
        if setup.model.format == "pt2":
            return torch.export.load(path).module()
        return torch.jit.load(str(path), map_location="cpu").eval()
    except Exception as error:
        raise ModelError(f"{path}: PyTorch cannot load it: {first_line(error)}; export it again") from error
