"""Candidates for PyTorch on GPUs, where no TensorRT runs: FP16 and BF16 are its own arithmetic on the file's own network;
INT8 is a graph with QuantizeLinear and DequantizeLinear around the convolutions that our own kernel takes, the rest in
FP16. All are judged on the GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from unet_engine.backends.libraries import library
from unet_engine.errors import ModelError
from unet_engine.model.onnx_layers import Graph
from unet_engine.model.onnx_network import network_of
from unet_export.quantize.fallback import Attempt
from unet_export.quantize.gate import Candidate, Exam
from unet_export.quantize.judging import Chosen, Judging, Outcome, by_error, judge, outcome_of, search
from unet_export.quantize.qdq import quantizable, thresholds, to_qdq
from unet_export.quantize.tensorrt_candidates import error_alone


def candidates(device: str, judging: Judging) -> Iterator[Outcome]:
    """FP16, BF16 and INT8, as the request asks; of ``auto``, FP16 and INT8. device: as `Setup` names it."""
    wanted = judging.request.precision
    for precision in ("fp16", "bf16"):
        if wanted == precision or (wanted == "auto" and precision == "fp16"):
            yield _own_network(precision, device, judging)
    if wanted not in ("auto", "int8"):
        return
    form = Int8(judging)
    if form.layers:
        yield _int8(device, judging, form)
    elif wanted == "int8":
        raise ModelError(
            f"{judging.model.path} has no convolution that PyTorch runs in INT8 here (3x3x3, of 32 channels or a multiple); "
            "use --precision fp16"
        )
    else:
        judging.tell("int8: no convolution that PyTorch runs in INT8 here")


def _own_network(precision: str, device: str, judging: Judging) -> Outcome:
    attempt = judge(Candidate(judging.setup(device, precision), "pytorch", None), (), judging.held)
    return outcome_of(Chosen(attempt), precision, "pytorch", library("pytorch", device), judging)


def _int8(device: str, judging: Judging, form: Int8) -> Outcome:
    setup = judging.setup(device, "int8", "fp16")

    def attempt(kept: tuple[str, ...], exam: Exam) -> Attempt:
        data = form.emulation(kept).SerializeToString(deterministic=True)
        return judge(Candidate(setup, "pytorch", data), kept, exam)

    def order() -> tuple[str, ...]:
        judging.tell(f"int8: measuring the sensitivity of {len(form.layers)} layers")
        # one layer has to stay quantised: with none of them the network is the FP16 candidate
        return by_error({label: error_alone(form, label, judging) for label in form.layers})[:-1]

    chosen = search("int8", attempt, order, judging)
    return outcome_of(chosen, "int8", "pytorch", library("pytorch", device), judging)


class Int8:
    """Convolutions in INT8 that the kernel takes; the others, and layers kept, are left as they are."""

    def __init__(self, judging: Judging) -> None:
        import onnx
        from onnx import helper

        from unet_engine.backends.int8_convolution import takes

        network = network_of(judging.model)
        proto = onnx.load_from_string(network) if isinstance(network, bytes) else onnx.load(network)
        del proto.metadata_props[:]
        self._graph = graph = Graph(proto)

        def attributes(node: Any) -> dict[str, Any]:
            found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}

        nodes = quantizable(graph)
        taken = [n for n in nodes if takes(graph.values(n.input[1]).shape, attributes(n))]
        self.layers: Sequence[str] = tuple(dict.fromkeys(graph.label(n) for n in taken))
        made = {n.output[0] for n in taken}
        self._others = tuple(dict.fromkeys(graph.label(n) for n in nodes if n.output[0] not in made))
        self._limits = thresholds(graph, [n.input[0] for n in taken], judging.sample.calibration) if taken else {}

    def emulation(self, kept: Sequence[str]) -> Any:
        """The graph itself: it says where it is rounded."""
        return to_qdq(self._graph, self._limits, (*self._others, *kept))
