"""Boxes of an array that lies in a file as plain numbers, read and written without mapping it: what is mapped counts as
memory of this process, and of a file that is cut off meanwhile, or a disk that is full, the system ends whoever has it
mapped."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_WASTE = 4
"""Rows are read whole, several at once, where that is no more than so many times what is wanted of them."""


def read_box(path: str, offset: int, shape: Sequence[int], dtype: np.dtype[Any], spans: Sequence[range]) -> Array:
    """The numbers in `spans` of an array of `shape` in C order that begins at byte `offset`. Raises `OSError`."""
    out = np.empty([len(span) for span in spans], dtype)
    if not out.size:
        return out
    cut = len(shape)  # the axes from here on are wanted whole
    while cut > 0 and len(spans[cut - 1]) == shape[cut - 1]:
        cut -= 1
    rows = max(0, cut - 1)  # what is wanted of this axis and those after it lies in one piece
    wide = rows > 0 and len(spans[rows]) * _WASTE >= shape[rows]
    lead = rows - 1 if wide else rows
    strides = [prod(shape[i + 1 :]) * dtype.itemsize for i in range(len(shape))]
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        rest = (len(spans[lead]), *shape[lead + 1 :]) if wide else out.shape[lead:]
        buffer = np.empty(rest, dtype) if wide else None
        inner = (slice(None), slice(spans[rows].start, spans[rows].stop)) if wide else ()
        for index in itertools.product(*(enumerate(span) for span in spans[:lead])):
            target = out[tuple(i for i, _ in index)]
            start = offset + sum(n * stride for (_, n), stride in zip(index, strides, strict=False))
            start += spans[lead].start * strides[lead] if lead < len(shape) else 0
            if buffer is None:
                _fill(file.fileno(), target, start)
            else:
                _fill(file.fileno(), buffer, start)
                target[...] = buffer[inner]
    return out


def _fill(descriptor: int, target: Array, start: int) -> None:
    """Read into `target`, which is contiguous."""
    flat: Any = target.reshape(-1).view(np.uint8)
    view = memoryview(flat)
    while view:
        count = os.preadv(descriptor, [view], start)
        if not count:
            raise OSError(f"the file ends at byte {start:,}")
        view, start = view[count:], start + count


def write_box(descriptor: int, offset: int, shape: Sequence[int], spans: Sequence[range], values: Array) -> None:
    """Write `values`, of the type that the file holds, to `spans` of an array of `shape` in C order that begins at byte
    `offset` of an open file. Raises `OSError`."""
    cut = len(shape)  # the axes from here on are written whole
    while cut > 0 and len(spans[cut - 1]) == shape[cut - 1]:
        cut -= 1
    lead = max(0, cut - 1)
    strides = [prod(shape[i + 1 :]) * values.itemsize for i in range(len(shape))]
    for index in itertools.product(*(enumerate(span) for span in spans[:lead])):
        start = offset + sum(n * stride for (_, n), stride in zip(index, strides, strict=False))
        start += spans[lead].start * strides[lead] if lead < len(shape) else 0
        _put(descriptor, np.ascontiguousarray(values[tuple(i for i, _ in index)]), start)


def _put(descriptor: int, values: Array, start: int) -> None:
    flat: Any = values.reshape(-1).view(np.uint8)
    view = memoryview(flat)
    while view:
        count = os.pwrite(descriptor, view, start)
        view, start = view[count:], start + count
