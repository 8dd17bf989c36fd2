"""Writing model files: what quantising attaches to one, and one of several networks."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unet_engine.errors import ModelError
from unet_engine.model import attachments
from unet_engine.model import credit as credits
from unet_engine.model.attached import NETWORK, VERDICTS, network_bytes, verdicts_as_text
from unet_engine.model.ensemble import MEMBERS, Listed, as_text, listed
from unet_engine.model.file import ModelFile, attached_network, open_model, together
from unet_engine.model.verdict import Verdict


def with_attachments(model: ModelFile, target: Path, verdicts: Sequence[Verdict], networks: dict[str, bytes]) -> None:
    """Write the model to `target` with these verdicts and, of its networks and `networks` (by hash), those that passed,
    and all its members.

    Networks that no verdict permits to run would only make the file larger.
    """
    members = listed(model.path)
    needed = dict.fromkeys(v.network for v in verdicts if v.network and (v.passed or v.emulated))
    needed |= dict.fromkeys(m.network for m in members if m.network)
    values = {MEMBERS: as_text(members)} if members else {}
    values |= {VERDICTS: verdicts_as_text(verdicts)}
    for sha256 in needed:
        data = networks[sha256] if sha256 in networks else attached_network(model, sha256)
        values[NETWORK + sha256] = base64.b64encode(data)
    if (said := attachments.read(model.path, credits.KEY)) is not None:
        values[credits.KEY] = said
    attachments.attach(model.path, target, values)


def write_members(target: Path, networks: Sequence[tuple[Path, str, float]]) -> ModelFile:
    """Write one model file of several: `networks` are ONNX files of one spec, with the name and the weight of each, in
    the order in which their answers are added. Verdicts are not taken along. Returns the model.

    Raises `ModelError` where they do not fit one another, keep weights in files of their own, or two are called alike,
    and `OutputError` where `target` cannot be written; there is then none.
    """
    opened = [replace(open_model(path), label=name, weight=weight) for path, name, weight in networks]
    names = [network.label for network in opened]
    for network in opened:
        if network.format != "onnx" or network.members or network.outside:
            raise ModelError(f"{network.path} is no ONNX file of a single network, weights and all; export it as one")
        if names.count(network.label) > 1 or not network.label or "," in network.label:
            raise ModelError(
                f"{network.path}: networks that run as one model need file names of their own, without commas, not "
                f"{network.label!r}; rename its file"
            )
    together(opened)
    values, entries = {}, []
    for i, network in enumerate(opened):
        data = network_bytes(network.path, "")
        sha256 = hashlib.sha256(data).hexdigest() if i else ""
        entries.append(Listed(name=network.label, weight=network.weight, network=sha256))
        if sha256:
            values[NETWORK + sha256] = base64.b64encode(data)
    attachments.attach(opened[0].path, target, {MEMBERS: as_text(entries), **values})
    return open_model(target)
