"""Candidates for OpenVINO: arithmetic that the library rounds to, and INT8."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from unet_engine.backends.libraries import library
from unet_engine.errors import BackendError
from unet_engine.model.verdict import shortfall
from unet_export.quantize.fallback import Attempt
from unet_export.quantize.gate import Exam, Trial
from unet_export.quantize.judging import SENSITIVITY_WINDOWS, Bench, Found, Outcome, judge, search, verdict_of
from unet_export.quantize.metrics import to_bf16


def candidates(bench: Bench) -> Iterator[Outcome]:
    """BF16 or FP16 where the processor computes in it, and INT8, as the request asks."""
    wanted = bench.request.precision
    from unet_engine.backends.openvino import precisions

    able = precisions("cpu")
    if wanted not in ("auto", *able):
        raise BackendError(
            f"this processor does not compute in {wanted}; use --precision {' or '.join(p for p in able if p != 'fp32')}"
        )
    where = library("openvino", "cpu")
    proved = {
        v.precision for v in bench.model.verdicts if v.passed and v.model == bench.model.sha256 and v.library == where
    }
    for precision in ("bf16", "fp16"):
        if wanted in ("auto", precision) and precision in able:
            outcome = _rounded(precision, bench)
            proved = proved | {precision} if outcome.verdict.passed else proved - {precision}
            yield outcome
    if wanted in ("auto", "int8") and "int8" in able:
        # layers that are not quantised must not bring an error of their own that was not proved to be harmless
        yield _int8(bench, "bf16" if "bf16" in proved else "fp32")


def _rounded(precision: str, bench: Bench) -> Outcome:
    """The file's own network, computed in another arithmetic by the library: all or nothing, no layer can be kept."""
    attempt = judge(Trial(bench.setup("cpu", precision), "openvino", None), (), bench.held)
    if attempt.shortfall and precision == "bf16" and (cause := image_in_bf16(bench)):
        attempt = replace(attempt, shortfall=f"{attempt.shortfall}; {cause}")
    found = Found(attempt)
    return Outcome(verdict_of(found, precision, "openvino", library("openvino", "cpu"), bench), found.attempt)


def image_in_bf16(bench: Bench) -> str:
    """Whether the image itself, rounded to BF16 after normalisation, already fails in fp32; in words.

    BF16 has 8 bits of mantissa: of grey levels from 0 to 1 it merges neighbours above 0.5, of the same centred on 0 none.
    """
    rounded = bench.held.compare(lambda windows: bench.infer(to_bf16(windows)))
    short = shortfall(rounded.figures, bench.held.thresholds["bf16"])
    if not short:
        return ""
    return (
        f"with the image alone rounded to BF16 after {bench.model.spec.normalization} it is no better ({short}): a network trained on "
        "values centred on 0 (--normalize zscore, or range:128,192 for 8-bit images) loses less"
    )


def _int8(bench: Bench, rest: str) -> Outcome:
    from unet_export.quantize.openvino_int8 import OpenVINOInt8

    bench.say("quantising with NNCF")
    network = OpenVINOInt8(bench.model, bench.window, bench.sample.calibration)
    setup = bench.setup("cpu", "int8", rest)

    def attempt(kept: tuple[str, ...], exam: Exam) -> Attempt:
        return judge(Trial(setup, "openvino", network.network(kept)), kept, exam)

    def order() -> tuple[str, ...]:
        bench.say(f"int8: measuring the sensitivity of {len(network.layers)} layers")
        errors = network.errors_alone(bench.sample.calibration[:SENSITIVITY_WINDOWS])
        return tuple(sorted(errors, key=lambda label: -errors[label]))

    found = search("int8", attempt, order, bench)
    return Outcome(verdict_of(found, "int8", "openvino", library("openvino", "cpu"), bench), found.attempt)
