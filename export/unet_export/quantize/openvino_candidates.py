"""Candidates for OpenVINO: arithmetic that the library rounds to, and INT8."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from unet_engine.backends.libraries import library
from unet_engine.errors import BackendError
from unet_engine.model.verdict import shortfall
from unet_export.quantize.fallback import Attempt
from unet_export.quantize.gate import Candidate, Exam
from unet_export.quantize.judging import (
    SENSITIVITY_WINDOWS,
    Chosen,
    Judging,
    Outcome,
    by_error,
    judge,
    outcome_of,
    search,
)
from unet_export.quantize.metrics import to_bf16


def candidates(judging: Judging) -> Iterator[Outcome]:
    """BF16 or FP16 where the processor computes in it, and INT8, as the request asks."""
    from unet_engine.backends.openvino import precisions

    wanted = judging.request.precision
    able = precisions("cpu")
    if wanted not in ("auto", *able):
        raise BackendError(
            f"this processor does not compute in {wanted}; use --precision "
            f"{' or '.join(p for p in able if p != 'fp32')}"
        )
    where = library("openvino", "cpu")
    proved = {
        v.precision
        for v in judging.model.verdicts
        if v.passed and v.model == judging.model.sha256 and v.library == where
    }
    for precision in ("bf16", "fp16"):
        if wanted in ("auto", precision) and precision in able:
            outcome = _rounded(precision, judging)
            proved = proved | {precision} if outcome.verdict.passed else proved - {precision}
            yield outcome
    if wanted in ("auto", "int8") and "int8" in able:
        # layers that are not quantised must not bring an error of their own that was not proved to be harmless
        yield _int8(judging, "bf16" if "bf16" in proved else "fp32")


def _rounded(precision: str, judging: Judging) -> Outcome:
    """The file's own network, computed in another arithmetic by the library: all or nothing, no layer can be kept."""
    attempt = judge(Candidate(judging.setup("cpu", precision), "openvino", None), (), judging.held)
    if attempt.shortfall and precision == "bf16" and (cause := image_in_bf16(judging)):
        attempt = replace(attempt, shortfall=f"{attempt.shortfall}; {cause}")
    return outcome_of(Chosen(attempt), precision, "openvino", library("openvino", "cpu"), judging)


def image_in_bf16(judging: Judging) -> str:
    """Whether the image itself, rounded to BF16 after normalisation, already fails in fp32; in words.

    BF16 has 8 bits of mantissa: of grey levels from 0 to 1 it merges neighbours above 0.5, of the same centred on 0
    none.
    """
    rounded = judging.held.compare(lambda windows: judging.infer(to_bf16(windows)))
    short = shortfall(rounded.figures, judging.held.thresholds["bf16"])
    if not short:
        return ""
    return (
        f"with the image alone rounded to BF16 after {judging.model.spec.normalization} it is no better ({short}): a "
        "network trained on values centred on 0 (--normalize zscore, or range:128,192 for 8-bit images) loses less"
    )


def _int8(judging: Judging, rest: str) -> Outcome:
    from unet_export.quantize.openvino_int8 import OpenVINOInt8

    judging.tell("quantising with NNCF")
    network = OpenVINOInt8(judging.model, judging.window, judging.sample.calibration)
    setup = judging.setup("cpu", "int8", rest)

    def attempt(kept: tuple[str, ...], exam: Exam) -> Attempt:
        return judge(Candidate(setup, "openvino", network.network(kept)), kept, exam)

    def order() -> tuple[str, ...]:
        judging.tell(f"int8: measuring the sensitivity of {len(network.layers)} layers")
        return by_error(network.errors_alone(judging.sample.calibration[:SENSITIVITY_WINDOWS]))

    chosen = search("int8", attempt, order, judging)
    return outcome_of(chosen, "int8", "openvino", library("openvino", "cpu"), judging)
