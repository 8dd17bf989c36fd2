"""What is attached to an ONNX file: verdicts of the gate, networks that were judged, and further members."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from unet_engine.errors import ModelError
from unet_engine.model import attachments
from unet_engine.model.verdict import Verdict

VERDICTS = "verdicts"
NETWORK = "network."
"""Keys of attachments: all verdicts as JSON, and per attached network this with its SHA-256, in base64."""
_VERDICTS = TypeAdapter(tuple[Verdict, ...], config=ConfigDict(defer_build=True))


def verdicts(path: Path) -> tuple[Verdict, ...]:
    """Those in the file; none where another version of the engine wrote them, which then is as if nothing had been
    judged."""
    text = attachments.read(path, VERDICTS)
    try:
        return _VERDICTS.validate_json(text) if text else ()
    except ValidationError:
        return ()


def verdicts_as_text(found: Sequence[Verdict]) -> bytes:
    """Verdicts as they are attached."""
    return _VERDICTS.dump_json(tuple(found))


def judged_network(path: Path, sha256: str) -> bytes:
    """The attached network of that hash. Raises `ModelError` where it is missing or not what was judged."""
    return _attached(path, sha256, "that was judged", "run unet-engine quantize again")


def network_bytes(path: Path, inside: str) -> bytes:
    """One network of an ONNX file of several, as a file of its own: `inside` is as `ModelFile` has it. Raises
    `ModelError` where it is missing or damaged."""
    if not inside:
        return b"".join(attachments.own_bytes(path))
    return _attached(path, inside, "of its members", "import it again")


def _attached(path: Path, sha256: str, what: str, remedy: str) -> bytes:
    text = attachments.read(path, NETWORK + sha256)
    try:
        data = base64.b64decode(text) if text else b""
    except binascii.Error:
        data = b""
    if hashlib.sha256(data).hexdigest() != sha256:
        state = "is damaged" if text else "is missing"
        raise ModelError(f"{path}: the network {sha256[:12]} {what} {state}; {remedy}")
    return data
