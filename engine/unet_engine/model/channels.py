"""What a network's output channels are, and what may be asked of them: labels need classes that exclude one another."""

from __future__ import annotations

from unet_engine.model.spec import ModelSpec

_NUMBERS = {"image": "an image", "offsets": "offsets or affinities"}
_HINTS = ("affin", "affs", "offset", "lsds", "flow", "embed", "vector", "displace", "recon", "denois")
"""In names of outputs whose channels are no classes."""
ASK = (
    "say --channels classes (they exclude one another: the largest wins), multilabel (they may overlap: --output "
    "masks or probabilities), image or offsets (--output logits)"
)


def labels_refusal(spec: ModelSpec, *, described: bool, output: str = "") -> str:
    """Why labels mean nothing, or are not known to mean something, and what to do; empty where they do.

    described: whether somebody said what the outputs are, in the file or beside it. output: its name in the graph.
    """
    several = f"its {spec.channels_out} channels" if spec.channels_out > 1 else "its outputs"
    hint = next((h for h in _HINTS if h in output.lower()), "")
    unsaid = spec.channels is None
    cases = (
        (spec.channels in _NUMBERS, f"{several} are {_NUMBERS.get(spec.channels or '')}; {_instead(spec)}"),
        (spec.channels_out == 1 or spec.channels == "classes" or spec.regions is not None, ""),
        (
            spec.channels == "multilabel",
            f"{several} are classes that may overlap; use --output masks (0 or 1 of each class) or probabilities, "
            "or --channels classes to have the largest win",
        ),
        (
            spec.channels == "unknown" or (unsaid and spec.overlaps and not described),
            f"nothing says whether {several} exclude one another; {ASK}",
        ),
        (unsaid and spec.activation == "none", f"nothing says what {several} are, whose activation is none; {ASK}"),
        (
            unsaid and not described and bool(hint),
            f"its output {output!r} is called as no classes are ({hint}…); {ASK}",
        ),
    )
    why = next((text for holds, text in cases if holds), "")
    return f"labels are asked for, and {why}" if why else ""


def other_refusal(spec: ModelSpec, output: str) -> str:
    """Why `output`, which is not labels, cannot be had of such channels, and what to do; empty where it can."""
    if output in ("masks", "probabilities") and spec.channels in _NUMBERS and not _are_between_0_and_1(spec):
        return f"{output} are asked for, and its channels are {_NUMBERS[spec.channels]}; {_instead(spec)}"
    if output == "masks" and spec.channels_out > 1 and not spec.overlaps:
        return (
            f"masks are asked for, and its {spec.channels_out} channels exclude one another; use --output labels, "
            "or --activation sigmoid where they are logits of each class on its own"
        )
    return ""


def guess_note(spec: ModelSpec) -> str:
    """What the user is told where classes were guessed, of a file that says nothing and a graph that proves nothing."""
    if spec.channels or spec.channels_out == 1 or spec.activation != "softmax":
        return ""
    return (
        f"nothing says what its {spec.channels_out} channels are: they are taken for logits of classes that exclude "
        "one another; --channels says otherwise"
    )


def _are_between_0_and_1(spec: ModelSpec) -> bool:
    return spec.activation not in ("none", "softmax")


def _instead(spec: ModelSpec) -> str:
    if spec.activation in ("probabilities", "probabilities_each"):
        return "use --output probabilities (with --dtype float32 as they are)"
    return "use --output logits, which are the numbers themselves"
