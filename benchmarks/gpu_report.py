"""What `gpu_check.py` reports: figures with their targets, and why a part did not run."""

from __future__ import annotations

from dataclasses import dataclass, field

NOT_RUN = 4
TARGETS = {
    "end to end / bare network": (0.95, "at least"),
    "engine / MONAI with AMP": (3.0, "at least"),
    "bare network, FP16, windows/s": (310.0, "at least"),
    "bare network, INT8, windows/s": (438.0, "at least"),
    "16 classes, end to end / bare network": (0.9, "at least"),
    "104 classes, end to end / bare network": (0.7, "at least"),
    "teravoxels an hour": (5.0, "at least"),
    "peak memory, 64 times the volume / 1 time": (1.02, "at most"),
    "peak memory at 100 classes / MONAI's": (0.33, "at most"),
}
BANDWIDTH = 0.8
"""Share of the copy's bandwidth that add, merge, pack and commit must reach."""
NORM_SHARE = 0.5
"""And InstanceNorm, which reads twice and writes once, on the finest level."""


@dataclass
class Row:
    """One figure of one part. `held` is None where there is no target."""

    what: str
    value: float | str
    held: bool | None = None
    target: str = ""

    @classmethod
    def of(cls, what: str, value: float) -> Row:
        if what not in TARGETS:
            return cls(what, value)
        limit, side = TARGETS[what]
        return cls(what, value, value >= limit if side == "at least" else value <= limit, f"{side} {limit:g}")


@dataclass
class Part:
    name: str
    state: str
    """``ran``, ``failed``, ``not run``, or ``left out`` where the machine or an extra is not there for it."""
    why: str = ""
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)


class CannotRun(Exception):
    """What a part lacks on this machine."""


class LeftOut(Exception):
    """What a part has nothing to do with on this machine: a second GPU, a library that is an extra. No failure."""


def table(parts: list[Part]) -> str:
    """Markdown, one line per figure; a part that did not run has a line that says why."""
    lines = ["| part | figure | value | target | held |", "|---|---|---|---|---|"]
    for part in parts:
        for row in part.rows:
            value = row.value if isinstance(row.value, str) else f"{row.value:.4g}"
            held = "" if row.held is None else "yes" if row.held else "**no**"
            lines.append(f"| {part.name} | {row.what} | {value} | {row.target} | {held} |")
        if part.state != "ran":
            lines.append(f"| {part.name} | {part.state} | {part.why.replace('|', '/')} | | |")
    lines.append(
        f"\n{sum(part.seconds for part in parts):.0f} s: "
        + ", ".join(f"{part.name} {part.seconds:.0f}" for part in parts)
    )
    return "\n".join(lines) + "\n"


def exit_code(parts: list[Part]) -> int:
    if any(part.state == "failed" or any(row.held is False for row in part.rows) for part in parts):
        return 1
    return NOT_RUN if any(part.state == "not run" for part in parts) else 0
