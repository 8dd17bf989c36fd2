"""From a network and the spec that it is to have to its model file: the graph is made, compared with the network on all
sizes that the file promises, and written with those that hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unet_engine.backends import second_opinion
from unet_engine.backends.base import Setup
from unet_engine.backends.libraries import choose_backend
from unet_engine.errors import ModelError
from unet_engine.model.channels import labels_refusal
from unet_engine.model.ending import Ending, applied_again, no_logits, outputs_note, refusal
from unet_engine.model.file import open_model
from unet_engine.model.onnx_ending import ending_for
from unet_engine.model.onnx_shapes import flat
from unet_engine.model.spec import ModelSpec
from unet_engine.prepare.evidence import Outputs, contradiction
from unet_engine.units import Tell, times
from unet_export.conversion.adapt import Adapted, Repeated
from unet_export.conversion.checkpoint import Checkpoint
from unet_export.conversion.empty import empty_of
from unet_export.conversion.exporters import from_module, from_program, from_script
from unet_export.conversion.onnx_export import frozen, write_onnx
from unet_export.conversion.proof import Comparison, proved
from unet_export.conversion.request import Export, options_of, validated
from unet_export.conversion.runners import onnx_runner, second_runner

RUN = dict.fromkeys(("axes", "channels_in", "channels_out", "window", "margin", "flops"), "a window that was run")
_PROVED = "windows that were compared with the network"


def written_with_sizes(
    checkpoint: Checkpoint, network: Any, spec: ModelSpec, wanted: Export, meaning: Meaning
) -> tuple[ModelSpec, float]:
    """As `written`, with the window of `spec` alone where the exporter can do no other and ``--sizes auto`` allows
    it."""
    try:
        return written(checkpoint, network, spec, wanted, meaning)
    except ModelError:
        if wanted.sizes != "auto" or not any(spec.window_step):
            raise
    # what cannot be exported at all fails again, with the reason that matters
    fixed = spec.model_copy(update={"window_min": spec.window, "window_step": (0,) * len(spec.axes)})
    return written(checkpoint, network, fixed, wanted, meaning)


def written(
    checkpoint: Checkpoint, network: Any, spec: ModelSpec, wanted: Export, meaning: Meaning
) -> tuple[ModelSpec, float]:
    """The spec as it was written, and the largest difference: the exported graph has a say in the activation."""
    proto, reference = graph_of(checkpoint, network, spec)
    return finished(proto, reference, meaning.of(proto, spec), wanted, meaning)


def graph_of(checkpoint: Checkpoint, network: Any, spec: ModelSpec) -> tuple[Any, Any]:
    """The ONNX graph of `network`, which is that of `checkpoint`, maybe wrapped; and what it is compared with. Its batch
    is free where the network takes two windows."""
    try:
        return _graph(checkpoint, network, spec, None)
    except ModelError:
        if _takes_two(network, spec):
            raise
    return _graph(checkpoint, network, spec, 1)


def _takes_two(network: Any, spec: ModelSpec) -> bool:
    try:
        with torch.inference_mode():
            network(torch.zeros((2, spec.channels_in, *spec.window)))
    except Exception:  # networks refuse in their own ways
        return False
    return True


def _graph(checkpoint: Checkpoint, network: Any, spec: ModelSpec, rows: int | None) -> tuple[Any, Any]:
    """rows: the batch of the graph; None: any"""
    if checkpoint.kind == "module":
        with frozen(network) as net:
            return from_module(net, spec, rows), net
    if checkpoint.kind == "torchscript":
        example = torch.zeros((1, spec.channels_in, *spec.window))
        script = network if isinstance(network, torch.jit.ScriptModule) else torch.jit.trace(network, example)
        return from_script(script, spec, rows), network
    if isinstance(network, Adapted | Repeated):
        repeated = any(isinstance(module, Repeated) for module in network.modules())
        return from_module(network, spec, 1 if repeated else rows or _rows(checkpoint.program)), network
    return from_program(checkpoint.program, spec.name), network


def _rows(program: Any) -> int | None:
    """The batch that an exported program was saved for; None where it takes any."""
    name = program.graph_signature.user_inputs[0]
    image = next(node for node in program.graph.nodes if node.name == name)
    rows = image.meta["val"].shape[0]
    return rows if isinstance(rows, int) else None


def finished(
    proto: Any, reference: Any, spec: ModelSpec, wanted: Export, meaning: Meaning, origin: str = ""
) -> tuple[ModelSpec, float]:
    """Compare the graph with what it was made of on all sizes that it shall promise, and write it with those that
    hold."""
    data = proto.SerializeToString()
    comparison = Comparison(reference, onnx_runner(data, spec.name), spec, origin or "PyTorch")
    right = proved(comparison, second_runner(data, comparison))
    if right is None:
        raise ModelError(
            f"the exported {spec.name} is right for windows of {times(spec.window)} alone, not for others that the "
            "network takes; use --sizes static, or auto"
        )
    meaning.measured(comparison, right)
    if wanted.empty:
        right = validated({**right.model_dump(), "empty": empty_of(wanted.empty, right, comparison.run)})
        meaning.tell(
            f"note: windows of nothing but {right.background:g} are not inferred: their outputs are {right.empty}"
        )
    facts = meaning.facts | {"window_min": _PROVED, "window_step": _PROVED} | options_of(wanted)
    write_onnx(proto, right, wanted.out, comparison.worst, origin, facts)
    return right, comparison.worst


@dataclass
class Meaning:
    """What the outputs of an exported graph are: what was said of them, else what the graph proves, else a guess by
    their number."""

    source: str
    said: bool
    """Whether the user or a spec names the activation."""
    tell: Tell
    facts: dict[str, str]
    """By field of the spec: what told it."""
    described: bool
    """Whether a spec or the graph describes the channels already."""
    told: str = ""
    asked: bool = False

    def of(self, proto: Any, spec: ModelSpec) -> ModelSpec:
        """`spec` with the activation of the graph's first output, and `unknown` channels where those are neither said
        nor follow. Raises `ModelError` where the activation has to be said."""
        spec = self._activated(proto, spec)
        if self.described or spec.channels or not labels_refusal(spec, described=False):
            return spec
        if not self.asked:
            self.tell(
                f"note: nothing says what the {spec.channels_out} output channels are, and run will ask; say "
                "--output-channels "
                "classes (they exclude one another), multilabel (they may overlap), image or offsets"
            )
        self.asked = True
        return validated({**spec.model_dump(), "channels": "unknown"})

    def _activated(self, proto: Any, spec: ModelSpec) -> ModelSpec:
        end = ending_for(flat(proto), (1, spec.channels_in, *spec.window))
        found, why = end.activation(spec.channels_out)
        if not self.said and found is None:
            raise ModelError(refusal(self.source, why))
        if not self.said and not why:
            return self._numbers(end, spec)
        if not self.said and found is not None:
            self._tell(outputs_note(found, why))
            self.facts |= {"activation": why} if why else {}
            return validated({**spec.model_dump(), "activation": found})
        self._tell(applied_again(end, spec.activation, spec.channels_out))
        return spec

    def _numbers(self, end: Ending, spec: ModelSpec) -> ModelSpec:
        """`spec` with outputs that are mere numbers, where one channel was guessed to be logits and can be none."""
        found = no_logits(end, spec.channels_out) if spec.channels_out == 1 else ""
        if not found:
            return spec
        why = f"the network ends in {end.end}, whose outputs {found}"
        self._tell(
            f"{why}, so they are no logits: activation none (a label is set above 0); --activation says otherwise"
        )
        self.facts |= {"activation": why}
        return validated({**spec.model_dump(), "activation": "none"})

    def measured(self, comparison: Comparison, spec: ModelSpec) -> None:
        """Tell where what the network makes of noise is not what `spec` says of its outputs, and the graph did not."""
        seen = Outputs()
        seen.look(comparison.expected(comparison.noise())[0].numpy())
        reason = contradiction(seen, spec, labels=False)
        if not self.told:
            self._tell(f"of noise, {reason}" if reason else "")

    def _tell(self, text: str) -> None:
        if text and text != self.told:
            self.tell(f"note: {text}")
        self.told = text


def tell_second_opinion(path: str, spec: ModelSpec, tell: Tell) -> None:
    """Tell where the library that a run on this machine's CPU takes computes something else than the file says."""
    model = open_model(path, spec.window)
    noise = np.random.default_rng(0).standard_normal((spec.channels_in, *spec.window), np.float32)
    setup, library = Setup(model, spec.window), choose_backend(model, "cpu")
    opinion = second_opinion.asked(setup, library, noise, "noise")
    if opinion and opinion.wrong == "first":
        other = second_opinion.other_for(model, library, "cpu")
        tell(f"note: of noise, {opinion.text}; a run takes {other.library if other else 'another one'}")
