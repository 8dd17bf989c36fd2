"""Which precision runs: the one asked for if it was proved, or the fastest that was. Verdicts come from the model
file."""

from __future__ import annotations

from dataclasses import dataclass

from unet_engine.backends.libraries import library, record
from unet_engine.errors import BackendError
from unet_engine.model.file import ModelFile
from unet_engine.model.spec import ARE_PROBABILITIES
from unet_engine.model.verdict import Verdict
from unet_engine.units import times

PROVABLE = ("int8", "fp16", "bf16")


@dataclass(frozen=True)
class Choice:
    """What runs, and why in words."""

    precision: str
    network: str | None
    rest: str
    why: str
    proved: Verdict | None = None
    judged: tuple[str | None, ...] = ()
    """Of a model of several, the network that stands for each member."""


def choose(model: ModelFile, backend: str, device: str, asked: str, window: tuple[int, ...]) -> Choice:
    """The precision to run `model` with in windows of `window`, for a user who asked for `asked`. All members of a
    model run in one, which is proved where it is proved for each.

    Raises `BackendError` where that precision was judged and failed, or needs to be judged first.
    """
    choices = [_choose(network, backend, device, asked, window) for network in model.networks]
    first = choices[0]
    if len(choices) == 1:
        return first
    if len({(choice.precision, choice.rest) for choice in choices}) > 1:
        apart = ", ".join(f"{n.named} {c.precision}" for n, c in zip(model.networks, choices, strict=True))
        return Choice("fp32", None, "fp32", f"no precision is proved for all members: {apart}")
    unproved = next((choice for choice in choices if choice.proved is None), None)
    if unproved is not None:
        return Choice(first.precision, None, first.rest, unproved.why, judged=tuple(c.network for c in choices))
    worst = min(choices, key=_least_dice)
    return Choice(
        worst.precision, None, worst.rest, f"{worst.why} (the least of {len(choices)} members)", worst.proved,
        tuple(choice.network for choice in choices),
    )  # fmt: skip


def _least_dice(choice: Choice) -> float:
    dice = choice.proved.figures.worst_dice if choice.proved else None
    return 1.0 if dice is None else dice


def _choose(model: ModelFile, backend: str, device: str, asked: str, window: tuple[int, ...]) -> Choice:
    """The same for one network."""
    if asked == "fp32":
        return Choice("fp32", None, "fp32", "asked for")
    if not model.verdicts:
        return _unproved(model, backend, asked, "nothing was proved for this model")
    here = library(backend, device)
    state = [(v, _objection(v, model, backend, here, window)) for v in model.verdicts if v.backend == backend]
    if asked == "auto":
        return _fastest([v for v, objection in state if not objection], [(v, o) for v, o in state if o])
    judged = [(v, objection) for v, objection in state if v.precision == asked]
    if not judged:
        return _unproved(model, backend, asked, f"{asked} was not judged on {backend}")
    verdict, objection = judged[-1]
    if objection and not verdict.passed and verdict.model == model.sha256:
        raise BackendError(f"{model.named} in {asked} {objection}; use --precision fp32 or auto")
    if objection:
        return _unproved(model, backend, asked, f"its {asked} {objection}")
    return _chosen(verdict, f"asked for, proved on {verdict.calibration.volume}")


def _objection(verdict: Verdict, model: ModelFile, backend: str, here: str, window: tuple[int, ...]) -> str:
    """Why the verdict permits nothing here, empty if it does."""
    reasons = (
        (verdict.model != model.sha256, "was judged for other weights or another spec"),
        (verdict.library != here, f"was judged with {verdict.library}, and here is {here}"),
        (verdict.emulated, f"was only emulated, not run on {backend}"),
        (not verdict.passed, f"failed the accuracy gate: {verdict.reason}"),
        (verdict.window != window, f"was judged for windows of {times(verdict.window)}, not {times(window)}"),
        (
            verdict.normalization != str(model.spec.normalization),
            f"was judged for --normalize {verdict.normalization}, not {model.spec.normalization}",
        ),
        (
            model.spec.activation != verdict.activation
            and (verdict.activation is not None or model.spec.activation in ARE_PROBABILITIES),
            f"was judged for outputs of another --activation than {model.spec.activation}",
        ),
    )
    return next((text for holds, text in reasons if holds), "")


def _unproved(model: ModelFile, backend: str, asked: str, what: str) -> Choice:
    if asked == "auto":
        return Choice("fp32", None, "fp32", f"{what}; unet-engine quantize may find a faster precision")
    if asked == "int8" or record(backend).typed:
        raise BackendError(
            f"{what}, so {asked} is refused; run: unet-engine quantize {model.path} --calibrate SCAN.zarr --precision "
            f"{asked}{' --backend pytorch' if backend == 'pytorch' else ''}"
        )
    return Choice(asked, None, "fp32", f"{what}: {asked} runs unproved; unet-engine quantize proves it on your data")


def _fastest(holding: list[Verdict], others: list[tuple[Verdict, str]]) -> Choice:
    faster = [v for v in holding if (v.speedup or 0) > 1]
    if not faster:
        reasons = "; ".join(f"{v.precision} {objection}" for v, objection in others)
        return Choice("fp32", None, "fp32", reasons or "no proved precision is faster than fp32")
    best = max(faster, key=lambda v: v.speedup or 0)
    dice = best.figures.worst_dice
    figures = "" if dice is None else f", least Dice against fp32 {dice:.4f}"
    return _chosen(
        best, f"fastest of those proved: {best.speedup:.2f} times fp32 on {best.calibration.volume}{figures}"
    )


def _chosen(verdict: Verdict, why: str) -> Choice:
    return Choice(verdict.precision, verdict.network, verdict.rest, why, verdict)
