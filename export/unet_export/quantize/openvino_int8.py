"""INT8 for the CPU: NNCF on the OpenVINO model, with layers left out as the gate asks.

OpenVINO mis-evaluates ONNX graphs with signed symmetric activations, which is all that TensorRT takes. So this form is
OpenVINO's own, and `unet_export.quantize.qdq` makes the other one from the same windows.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.backends.openvino import ov, packed
from unet_engine.errors import ModelError, SettingsError, first_line
from unet_engine.model.file import ModelFile
from unet_engine.model.onnx_network import network_of
from unet_export.quantize.gate import Infer
from unet_export.quantize.metrics import distance

Array = npt.NDArray[Any]
_WEIGHTED = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul")


class OpenVINOInt8:
    """A network quantised for windows of one size. `layers` names what can be quantised, in the order of computation.

    Every choice of layers is calibrated anew: biases are corrected for the error of the layers before, and a
    concatenation shares its scales, so quantised layers cannot be taken out of a finished network.
    """

    def __init__(self, model: ModelFile, window: tuple[int, ...], calibration: Sequence[Array]) -> None:
        """`calibration`: windows (channels, *window) float32. Raises `SettingsError` without NNCF, `ModelError` where
        it fails."""
        if find_spec("nncf") is None:
            raise SettingsError(
                "INT8 for OpenVINO needs nncf, which is not installed; run: pip install 'unet-engine[quantize]'"
            )
        self._path, self._calibration, self._activation = model.path, calibration, model.spec.activation
        self._float = ov.Core().read_model(network_of(model))
        self._float.reshape([1, model.spec.channels_in, *window])
        self._names: dict[str, list[str]] = {}
        for node in _weighted(self._float):  # layers that share weights share a name, and are kept together
            self._names.setdefault(_label(node), []).append(node.get_friendly_name())
        self.layers = tuple(self._names)
        if not self.layers:
            raise ModelError(f"{model.path} has no layer with weights to quantise; use --precision bf16")

    def model(self, kept: Iterable[str] = (), windows: Sequence[Array] | None = None) -> Any:
        """The OpenVINO model with all layers quantised but `kept`; scales from `windows` (default: all of the
        calibration)."""
        import nncf

        nncf.set_log_level("ERROR")
        names = [name for label in kept for name in self._names[label]]
        data = nncf.Dataset([w[None] for w in (self._calibration if windows is None else windows)])
        try:
            # what it prints about its progress is not ours to show
            with contextlib.redirect_stdout(io.StringIO()):
                return nncf.quantize(
                    self._float, data, subset_size=data.get_length(),
                    ignored_scope=nncf.IgnoredScope(names=names, validate=False),
                )  # fmt: skip
        except Exception as error:
            raise ModelError(
                f"{self._path}: NNCF cannot quantise the network: {first_line(error)}; try bf16"
            ) from error

    def network(self, kept: Iterable[str] = ()) -> bytes:
        """That model as it is attached to a model file."""
        return packed(self.model(kept))

    def errors_alone(self, windows: Sequence[Array]) -> dict[str, float]:
        """Per layer the mean `distance` of the output over `windows` when that layer alone is quantised."""
        reference = _run(self._float)
        expected = [reference(w[None])[0] for w in windows]
        errors = {}
        for label in self.layers:
            infer = _run(self.model((other for other in self.layers if other != label), windows))
            apart = [distance(e, infer(w[None])[0], self._activation) for w, e in zip(windows, expected, strict=True)]
            errors[label] = float(np.mean(apart))
        return errors


def _run(model: Any) -> Infer:
    compiled = ov.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def infer(batch: Array) -> Array:
        return np.array(compiled(batch)[0])

    return infer


def _weighted(model: Any) -> list[Any]:
    """Layers with constant weights, in the order of computation."""
    return [op for op in model.get_ordered_ops() if op.get_type_name() in _WEIGHTED and _weights(op) is not None]


def _weights(node: Any) -> Any:
    """The constant behind the second input, through conversions of its type; None where it is computed."""
    source = node.input_value(1).get_node()
    while source.get_type_name() in ("Convert", "Reshape"):
        source = source.input_value(0).get_node()
    return source if source.get_type_name() == "Constant" else None


def _label(node: Any) -> str:
    """The name of the layer in PyTorch, where its weights still have it: ``decoders.0.3`` of
    ``decoders.0.3.weight``."""
    name: str = _weights(node).get_friendly_name()
    own: str = node.get_friendly_name()
    return name.removesuffix(".weight") if "." in name else own.removesuffix("/WithoutBiases")
