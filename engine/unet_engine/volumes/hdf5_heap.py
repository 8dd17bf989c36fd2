"""Text and lists of any length in HDF5, looked at before its library reads them: of damaged ones that takes gigabytes, or
never ends. What an attribute holds of them is their length and where they lie in a global heap: HDF5 File Format
Specification 3.0, III.E and IV.A."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

_ELEMENT = struct.Struct("<IQI")
"""Length, address of the heap, and number in it."""
_OBJECT = struct.Struct("<HH4xQ")
_ATTRIBUTE, _ATTRIBUTES, _CONTINUED, _SHARED = 0x0C, 0x15, 0x10, 0x02
_MOST_BLOCKS = 64
"""Of one object's header."""
_LONGEST = 2**22
"""Bytes of a block of it, or of a heap."""
_NOWHERE = 2**64 - 1


def is_sound(item: Any, key: str) -> bool:
    """Whether the attribute `key` of a dataset or group can be read: its elements of any length lie in a heap that is
    whole. Where an attribute is neither in the object's header nor in the heap of its attributes, as where several
    objects share one, HDF5 is believed."""
    import h5py

    attribute = item.attrs.get_id(key)
    kind = attribute.get_type()
    each = _each(kind, h5py)
    if each is None:
        return not kind.detect_class(h5py.h5t.VLEN)  # inside of a compound, of which nothing is read here
    if not each:
        return True
    with Path(item.file.filename).open("rb") as file:
        reader = _Reader(file.fileno(), item.file.userblock_size)
        found = reader.attribute(h5py.h5o.get_info(item.id).addr, key.encode(), attribute.get_storage_size())
        return found is None or (bool(found) and all(reader.holds(raw, each) for raw in found))


def is_sound_text(data: Any) -> bool:
    """The same of a dataset that is one text."""
    import h5py

    each, offset = _each(data.id.get_type(), h5py), data.id.get_offset()
    if not each or offset is None or data.shape != ():
        return True
    with Path(data.file.filename).open("rb") as file:
        reader = _Reader(file.fileno(), data.file.userblock_size)
        return reader.holds(os.pread(file.fileno(), _ELEMENT.size, offset), each)


def _each(kind: Any, h5py: Any) -> int | None:
    """Bytes of one of the parts of an element of any length; 0 for types of one length, None for types of several."""
    if isinstance(kind, h5py.h5t.TypeStringID):
        return int(kind.is_variable_str())
    if isinstance(kind, h5py.h5t.TypeVlenID):
        return int(kind.get_super().get_size())
    return None if isinstance(kind, h5py.h5t.TypeCompoundID | h5py.h5t.TypeArrayID) else 0


def _named(data: bytes, name: bytes, length: int) -> bytes | None:
    """What the message of an attribute holds, `length` bytes, if it is called so."""
    if len(data) <= 9:
        return None
    version, (of_name, of_type, of_space) = data[0], struct.unpack_from("<3H", data, 2)
    start = 8 + (version == 3)
    padded = [-(-n // 8) * 8 if version == 1 else n for n in (of_name, of_type, of_space)]
    found = data[start + sum(padded) :][:length]
    return found if data[start : start + of_name].rstrip(b"\0") == name and len(found) == length else None


def _all_named(block: bytes, name: bytes, length: int) -> Iterator[bytes]:
    """The same of all messages in a block of a heap."""
    at = block.find(name + b"\0")
    while at >= 0:
        for version, start in ((2, 8), (3, 9), (1, 8)):
            message = block[max(0, at - start) :]
            if at >= start and message[0] == version and (found := _named(message, name, length)) is not None:
                yield found
        at = block.find(name + b"\0", at + 1)


class _Reader:
    """Of an open file, whose addresses count from `base`. Sizes and addresses of eight bytes, as all that anyone writes."""

    def __init__(self, file: int, base: int) -> None:
        self._file, self._base = file, base
        self._heap = lru_cache(maxsize=8)(self._objects)

    def _read(self, address: int, length: int) -> bytes:
        if not 0 < length <= _LONGEST or address >= 2**62:
            return b""
        return os.pread(self._file, length, self._base + address)

    def holds(self, elements: bytes, each: int) -> bool:
        """Whether all of these lie in heaps, whose parts take `each` bytes."""
        for length, address, index in _ELEMENT.iter_unpack(elements):
            if address not in (0, _NOWHERE):  # the heap is read for an element of no parts, too
                sizes = self._heap(address)
                if sizes is None or (length and length * each > sizes.get(index, -1)):
                    return False
        return True

    def _objects(self, address: int) -> dict[int, int] | None:
        """The sizes of what lies in a global heap, by their numbers; None for one that is damaged."""
        head = self._read(address, 16)
        if head[:5] != b"GCOL\x01":
            return None
        size = int.from_bytes(head[8:16], "little")
        heap = self._read(address, size)
        if len(heap) != size:
            return None
        found, at = dict[int, int](), 16
        while at + _OBJECT.size <= size:
            index, _, length = _OBJECT.unpack_from(heap, at)
            at += _OBJECT.size + -(-length // 8) * 8 if index else length
            free_of_no_size = not index and not length  # at which HDF5 stays for ever
            if at > size or index in found or free_of_no_size:
                return None
            if index:
                found[index] = length
        return found

    def attribute(self, address: int, name: bytes, length: int) -> list[bytes] | None:
        """What the attribute of this name holds, `length` bytes: in the object's header, else in the heap that its
        attributes lie in where they are many. There it is looked for by its name, and all that may be it is given; none
        where the heap is damaged. None where the object has no such heap."""
        heap = None
        for kind, flags, data in self._messages(address):
            if kind == _ATTRIBUTE and not flags & _SHARED and (found := _named(data, name, length)):
                return [found]
            if kind == _ATTRIBUTES and len(data) >= 18:
                (heap,) = struct.unpack_from("<Q", data, 2 + 2 * (data[1] & 1))
        if heap in (None, _NOWHERE):
            return None
        return [raw for block in self._blocks(heap) for raw in _all_named(block, name, length)]

    def _blocks(self, address: int) -> Iterator[bytes]:
        """The blocks of a fractal heap: HDF5 File Format Specification 3.0, III.G."""
        head = self._read(address, 142)
        if head[:5] != b"FRHP\0" or len(head) < 142 or head[7:9] != bytes(2):  # such as are packed are not looked into
            return
        width, first, longest, bits = struct.unpack_from("<HQQH", head, 110)
        root, rows = struct.unpack_from("<QH", head, 132)
        if not 0 < width <= _MOST_BLOCKS or not 0 < first <= longest <= _LONGEST or bits > 64:
            return
        before, direct = 13 + -(-bits // 8), (longest // first).bit_length() + 1
        left, blocks = _LONGEST, [(root, first, rows)]
        for at, size, of_rows in blocks:
            if at == _NOWHERE or left <= 0:
                continue
            count = width * of_rows
            block = self._read(at, before + 8 * count if of_rows else size)
            left -= len(block)
            if not of_rows and block[:4] == b"FHDB":
                yield block
            if of_rows and block[:4] == b"FHIB" and len(block) == before + 8 * count:
                for number, child in enumerate(struct.unpack_from(f"<{count}Q", block, before)):
                    row = number // width
                    each = first << max(0, row - 1)
                    deeper = 0 if row < direct else max(1, (each // (first * width)).bit_length())
                    blocks.append((child, each, deeper))

    def _messages(self, address: int) -> Iterator[tuple[int, int, bytes]]:
        """Kind, flags and content of what is in the header of an object."""
        head = self._read(address, 64)
        if head[:4] == b"OHDR":
            ordered, width = bool(head[5] & 0x04), 1 << (head[5] & 3)
            start = 6 + (16 if head[5] & 0x20 else 0) + (4 if head[5] & 0x10 else 0)
            begun = address + start + width, int.from_bytes(head[start : start + width], "little")
            layout, frame = struct.Struct("<BHB2x" if ordered else "<BHB"), (4, 4)  # OCHK before, a checksum behind
        elif head[:1] == b"\x01":
            begun = address + 16, int.from_bytes(head[8:12], "little")
            layout, frame = struct.Struct("<HHB3x"), (0, 0)
        else:
            return
        blocks = [begun]
        for at, size in blocks:
            block, place = self._read(at, size), 0
            while place + layout.size <= len(block):
                kind, length, flags = layout.unpack_from(block, place)
                place += layout.size
                data = block[place : place + length]
                place += length
                if kind == _CONTINUED and len(data) >= 16 and len(blocks) < _MOST_BLOCKS:
                    other, long = struct.unpack_from("<2Q", data)
                    blocks.append((other + frame[0], long - sum(frame)))
                yield kind, flags, data
