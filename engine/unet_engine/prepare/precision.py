"""Which precision runs: the one asked for if it was proved, or the fastest that was. Verdicts come from the model file;
of windows that none speaks of, a run may have proved a verdict's precision on the user's data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from unet_engine.backends.libraries import library, record
from unet_engine.errors import BackendError
from unet_engine.model.file import ModelFile
from unet_engine.model.spec import ARE_PROBABILITIES
from unet_engine.model.verdict import Quantiles, Verdict, difference
from unet_engine.prepare.precision_proof import Proof, known_proofs, stored_proofs
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
    elsewhere: Proof | None = None
    """By a run, where `proved` is of windows of another size."""


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
    verdict, objection = next((found for found in reversed(judged) if not found[1]), judged[-1])
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


# --- what runs proved ---


@dataclass(frozen=True)
class Grounds:
    """What is known of the volume, and of the output that is resumed."""

    quantiles: Callable[[], Quantiles]
    """Of the volume's normalised voxels."""
    begun: Callable[[], Mapping[str, Any] | None]
    """Gives the header of that output; None: a new one."""


def chosen(
    model: ModelFile, backend: str, device: str, asked: str, window: tuple[int, ...], grounds: Grounds
) -> Choice:
    """As `choose`, and where no verdict speaks of these windows, what an earlier run proved in them on data of this kind.
    A run that is resumed goes on with what it was begun by. Raises `BackendError` as `choose` does."""
    try:
        choice, refused = choose(model, backend, device, asked, window), None
    except BackendError as error:
        choice, refused = None, error
    if choice is not None and choice.proved is not None:
        return choice
    apart = []
    for other in _in_other_windows(model, backend, device, asked, window):
        proof, why_not = _proof_of(other, window, proof_key(model, backend, device, other), grounds)
        if proof is not None:
            return replace(other, why=_by_a_run(asked, proof), elsewhere=proof)
        apart += [why_not] if why_not else []
    said = "; ".join(apart)
    if refused is not None:
        raise BackendError(f"{said}; {refused}") if said else refused
    assert choice is not None
    return replace(choice, why=f"{choice.why}; {said}") if said else choice


def proof_key(model: ModelFile, backend: str, device: str, choice: Choice) -> dict[str, object]:
    """What a proof of this choice in windows of any size is kept under: all that its verdict is bound to, what labels are
    made by, and what was asked for."""
    verdict = choice.proved
    return {
        "model": model.sha256,
        "library": library(backend, device),
        "device": device.partition(":")[0],
        "precision": [choice.precision, choice.network, choice.rest, list(choice.judged)],
        "normalization": str(model.spec.normalization),
        "labels": [model.spec.activation, model.spec.threshold],
        "asked": verdict.thresholds.model_dump() if verdict else None,
    }


def _in_other_windows(model: ModelFile, backend: str, device: str, asked: str, window: tuple[int, ...]) -> list[Choice]:
    """What is proved in windows of other sizes, and was not judged in these; the fastest first. None of a library that
    builds an engine for each size: it chooses its arithmetic anew."""
    verdicts = [v for n in model.networks for v in n.verdicts if v.backend == backend and v.model == n.sha256]
    if asked == "fp32" or record(backend).typed or not verdicts:
        return []
    here = library(backend, device)
    judged = {v.precision for v in verdicts if v.window == window and v.library == here}
    found = []
    for precision in PROVABLE if asked == "auto" else (asked,):
        for other in dict.fromkeys(v.window for v in verdicts if v.precision == precision not in judged):
            try:
                choice = choose(model, backend, device, precision, other)
            except BackendError:
                continue
            if choice.proved is not None and (asked != "auto" or _speedup(choice) > 1):
                found.append(choice)
    return sorted(found, key=_speedup, reverse=True)


def _proof_of(
    choice: Choice, window: tuple[int, ...], key: Mapping[str, object], grounds: Grounds
) -> tuple[Proof | None, str]:
    """The proof that `choice` holds in these windows; else None, and why one that there is does not count."""
    begun = grounds.begun()
    if begun is not None:
        stored = [proof for proof in stored_proofs(begun) if proof.window == window]
        identity = begun.get("identity") or {}
        return (stored[0] if stored and identity.get("precision") == choice.precision else None), ""
    apart = ""
    for proof in known_proofs(key, window):
        apart = difference(grounds.quantiles(), proof.quantiles)
        if not apart and proof.reason:
            return None, f"{choice.precision} failed in these windows: {proof.reason}"
        if not apart:
            return proof, ""
    words = f"{choice.precision} was proved in these windows on data of another kind, {apart}"
    return None, words if apart else ""


def _by_a_run(asked: str, proof: Proof) -> str:
    dice = "" if proof.least_dice is None else f", least Dice against fp32 {proof.least_dice:.4f}"
    return (
        f"{'' if asked == 'auto' else 'asked for, '}proved in windows of {times(proof.window)} by an earlier run on "
        f"{proof.volume}, {proof.regions} regions{dice}"
    )


def _speedup(choice: Choice) -> float:
    return (choice.proved.speedup if choice.proved else None) or 0.0
