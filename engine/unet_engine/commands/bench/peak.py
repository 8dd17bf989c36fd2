"""What the machine can do at best: the rate of large matrix products in each precision, and of copying memory.

The products run in the library that runs the networks on that kind of device, one per thread at a time as windows do,
since that is the peak that a network could reach there. OpenVINO on the CPU has several kernels for them, so the best
counts of a product as such, of the same product as a convolution of 1 × 1 (the kernels of networks, and the faster ones
in fp32), and in fp32 of NumPy's. PyTorch on a GPU.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

SIDE = 1024
"""Of the square matrices: 2.1 GFLOP, and larger than what caches of a core hold."""
SECONDS = 0.4
"""How long each rate is measured, after a warm-up; the best of `ROUNDS` counts, as a peak is meant."""
ROUNDS = 2
COPIED = 2**26
"""Bytes that each thread copies at once: more than caches hold."""


def product_rate(device: str, precision: str, threads: int) -> float | None:
    """Floating point (or integer) operations per second of matrix products, two per multiply-add; None where no library
    here does it."""
    runs = _on_gpu(device, precision) if device.startswith("cuda") else _on_cpu(precision, threads)
    for run in runs:
        run()
    return max((_rate(run) for _ in range(ROUNDS) for run in runs), default=None)


def _in_numpy() -> int:
    """On all cores, one product at a time."""
    np.matmul(_SQUARE, _SQUARE, out=_PRODUCT)
    return 2 * SIDE**3


_SQUARE = np.full((SIDE, SIDE), 0.5, np.float32)
_PRODUCT = np.empty((SIDE, SIDE), np.float32)


def _rate(run: Callable[[], int]) -> float:
    """Operations per second over `SECONDS`; `run` does some and says how many."""
    done, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < SECONDS / ROUNDS or not done:
        done += run()
    return done / spent


def _on_cpu(precision: str, threads: int) -> list[Callable[[], int]]:
    from unet_engine.backends.openvino import ov, precisions

    if precision not in precisions("cpu"):
        return []
    hint = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}[precision]

    def runner(model: Any) -> Callable[[], int]:
        compiled = ov.Core().compile_model(model, "CPU", {
            "NUM_STREAMS": str(threads), "INFERENCE_NUM_THREADS": str(threads), "INFERENCE_PRECISION_HINT": hint,
            "ENABLE_CPU_PINNING": False,
        })  # fmt: skip
        requests = [compiled.create_infer_request() for _ in range(threads)]

        def run() -> int:
            for request in requests:
                request.start_async()
            for request in requests:
                request.wait()
            return 2 * SIDE**3 * threads

        return run

    quantized = precision == "int8"
    runs = [runner(_product(quantized=quantized)), runner(_convolution(quantized=quantized))]
    return [*runs, _in_numpy] if precision == "fp32" else runs


def _product(*, quantized: bool) -> Any:
    """Input times a constant matrix, which is how a network uses its weights."""
    from unet_engine.backends.openvino import ov

    left = ov.opset13.parameter([SIDE, SIDE], np.float32)
    product = ov.opset13.matmul(*_quantized(left, [SIDE, SIDE], quantized), False, False)  # noqa: FBT003
    return ov.Model([product], [left])


def _convolution(*, quantized: bool) -> Any:
    """The same product as a convolution of 1 × 1: as many channels in and out, and pixels, as the matrices have
    rows."""
    from unet_engine.backends.openvino import ov

    edge = round(SIDE**0.5)
    left = ov.opset13.parameter([1, SIDE, edge, edge], np.float32)
    sides = _quantized(left, [SIDE, SIDE, 1, 1], quantized)
    return ov.Model([ov.opset13.convolution(*sides, [1, 1], [0, 0], [0, 0], [1, 1])], [left])


def _quantized(left: Any, shape: list[int], quantized: bool) -> tuple[Any, Any]:  # noqa: FBT001
    """`left` and random weights of `shape`; quantised as the networks of `quantize` are."""
    from unet_engine.backends.openvino import ov

    right = ov.opset13.constant(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    if not quantized:
        return left, right
    scale = [np.float32(v) for v in (-4, 4)]
    return ov.opset13.fake_quantize(left, *scale, *scale, 256), ov.opset13.fake_quantize(right, *scale, *scale, 255)


def _on_gpu(device: str, precision: str) -> list[Callable[[], int]]:
    try:
        import torch
    except ImportError:
        return []
    kinds = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if precision not in kinds or not torch.cuda.is_available():
        return []
    a = torch.randn(8 * SIDE, 8 * SIDE, device=device, dtype=kinds[precision])

    def run() -> int:
        torch.matmul(a, a)
        torch.cuda.synchronize(device)
        return 2 * int(a.shape[0]) ** 3

    return [run]


def copy_rate(threads: int) -> float:
    """Bytes of main memory per second that `threads` copies at once read and write together."""
    pairs = [(np.ones(COPIED, np.uint8), np.empty(COPIED, np.uint8)) for _ in range(threads)]

    def run() -> int:
        workers = [threading.Thread(target=np.copyto, args=(target, source)) for source, target in pairs]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return 2 * COPIED * threads

    run()
    return max(_rate(run) for _ in range(ROUNDS))
