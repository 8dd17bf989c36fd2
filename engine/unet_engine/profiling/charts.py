"""Charts as SVG text: stacked bars and lines. No scripts, no fonts, nothing loaded, so that they can be archived and
mailed."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COLOURS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44aa99", "#882255", "#999933",
    "#332288", "#ddcc77",
)  # fmt: skip
"""Told apart by most people with any kind of colour vision (after P. Tol)."""
QUIET = {"waiting": "#e3e6ec", "other": "#b4bac6"}
_FONT = 'font-family="system-ui,sans-serif" font-size="12" fill="#1c2330"'


def colour(name: str, names: Sequence[str]) -> str:
    """That of the `name` among `names`: the same in every chart that is given the same names."""
    return QUIET.get(name) or COLOURS[[n for n in names if n not in QUIET].index(name) % len(COLOURS)]


def stacked(rows: Mapping[str, Mapping[str, float]], names: Sequence[str], unit: str) -> str:
    """One horizontal bar per row, as wide as the row's sum to that of the largest; parts in the order of `names`, which
    the legend shows.

    rows: name of the row to the amounts of its parts, none negative
    unit: follows the amounts in the texts that a pointer brings up
    """
    width, height, gap = 560, 26, 12
    left = 24 + round(7.2 * max((len(label) for label in rows), default=0))
    present = [name for name in names if any(row.get(name) for row in rows.values())]
    longest = max((sum(row.values()) for row in rows.values()), default=0) or 1
    marks, y = [], 6.0
    for label, row in rows.items():
        total, x = sum(row.values()), float(left)
        marks.append(f'<text x="{left - 8}" y="{y + 17:.0f}" text-anchor="end" {_FONT}>{html.escape(label)}</text>')
        for name in present:
            if not (amount := row.get(name, 0.0)):
                continue
            w = width * amount / longest
            said = f"{name}: {amount:.3g} {unit}, {amount / total:.1%}"
            marks.append(
                f'<rect x="{x:.2f}" y="{y:.0f}" width="{max(0.1, w):.2f}" height="{height}" '
                f'fill="{colour(name, names)}">'
                f"<title>{html.escape(said)}</title></rect>"
            )
            if w > 44:
                marks.append(f'<text x="{x + 4:.1f}" y="{y + 17:.0f}" {_FONT}>{amount / total:.0%}</text>')
            x += w
        marks.append(f'<text x="{x + 6:.1f}" y="{y + 17:.0f}" {_FONT}>{total:.3g} {html.escape(unit)}</text>')
        y += height + gap
    legend, x = [], 10.0
    for name in present:
        w = 26 + 7.0 * len(name)
        if x + w > left + width + 80:
            x, y = 10.0, y + 22
        legend.append(
            f'<rect x="{x:.0f}" y="{y + 4:.0f}" width="14" height="14" fill="{colour(name, names)}"/>'
            f'<text x="{x + 19:.0f}" y="{y + 16:.0f}" {_FONT}>{html.escape(name)}</text>'
        )
        x += w + 8
    return _svg(left + width + 100, y + 28, [*marks, *legend])


@dataclass(frozen=True)
class Line:
    """Points joined by a line, or left alone; each with the least and the most that was seen upwards (`spread`) and
    across (`across`), where that is known."""

    name: str
    points: Sequence[tuple[float, float]]
    spread: Sequence[tuple[float, float]] = ()
    across: Sequence[tuple[float, float]] = ()
    joined: bool = True
    dashed: bool = False
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Axes:
    x: str
    y: str
    log_x: bool = False
    log_y: bool = False
    title: str = ""


def lines(found: Sequence[Line], axes: Axes) -> str:
    """Lines over one pair of axes, with a legend. The vertical axis begins at zero unless it is logarithmic."""
    left, top, width, height = 70, 34 if axes.title else 14, 520, 260
    xs = [x for line in found for x, _ in line.points] + [x for line in found for pair in line.across for x in pair]
    ys = [y for line in found for _, y in line.points] + [y for line in found for pair in line.spread for y in pair]
    if not xs:
        return _svg(300, 40, [f'<text x="10" y="24" {_FONT}>nothing was measured</text>'])
    across = _Scale.over(xs, left, left + width, log=axes.log_x)
    up = _Scale.over(ys if axes.log_y else [0.0, *ys], top + height, top, log=axes.log_y)
    marks = [*_frame(axes, across, up, left, top, width, height)]
    for i, line in enumerate(found):
        stroke = COLOURS[i % len(COLOURS)]
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        places = [(across.at(x), up.at(y)) for x, y in line.points]
        if line.joined and len(places) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            marks.append(f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="1.8"{dash}/>')
        for (x, _), (low, high) in zip(places, line.spread, strict=False):
            marks.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{up.at(low):.1f}" y2="{up.at(high):.1f}" stroke="{stroke}"/>'
            )
        for (_, y), (low, high) in zip(places, line.across, strict=False):
            marks.append(
                f'<line x1="{across.at(low):.1f}" x2="{across.at(high):.1f}" y1="{y:.1f}" y2="{y:.1f}" '
                f'stroke="{stroke}"/>'
            )
        if not line.dashed and len(places) <= 60:
            for k, ((x, y), point) in enumerate(zip(places, line.points, strict=True)):
                said = f"{line.name}: {point[0]:.4g}, {point[1]:.4g}"
                marks.append(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{stroke}">'
                    f"<title>{html.escape(said)}</title></circle>"
                )
                if k < len(line.labels):
                    anchor, place = ("end", x - 6) if x > left + 0.7 * width else ("start", x + 6)
                    marks.append(
                        f'<text x="{place:.1f}" y="{y - 7:.1f}" text-anchor="{anchor}" {_FONT}>'
                        f"{html.escape(line.labels[k])}</text>"
                    )
        y0 = top + 10 + 18 * i
        marks.append(
            f'<line x1="{left + width + 12}" x2="{left + width + 34}" y1="{y0}" y2="{y0}" '
            f'stroke="{stroke}" stroke-width="3"'
            f"{dash}/>"
            f'<text x="{left + width + 40}" y="{y0 + 4}" {_FONT}>{html.escape(line.name)}</text>'
        )
    longest = max(len(line.name) for line in found)
    return _svg(left + width + 60 + 7 * longest, max(top + height + 46, top + 24 + 18 * len(found)), marks)


@dataclass(frozen=True)
class _Scale:
    """Values to places along one axis of the page."""

    low: float
    high: float
    begin: float
    end: float
    log: bool

    @classmethod
    def over(cls, values: Sequence[float], begin: float, end: float, *, log: bool) -> _Scale:
        if log:
            values = [v for v in values if v > 0] or [1.0]
            # the nearest 1, 2 or 5 beyond, with room for a mark
            low = max(v for v in _round_numbers(min(values) / 10, min(values)) if v <= min(values) / 1.05)
            high = min(v for v in _round_numbers(max(values), max(values) * 10) if v >= max(values) * 1.05)
            return cls(low, high, begin, end, log)
        low, high = min(values), max(values)
        room = (high - low or abs(high) or 1.0) * 0.06
        return cls(low if low == 0 else low - room, high + room, begin, end, log)

    def at(self, value: float) -> float:
        if self.log:
            part = (math.log10(max(value, self.low)) - math.log10(self.low)) / math.log10(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.begin + (self.end - self.begin) * part

    def ticks(self) -> list[float]:
        if self.log:
            found = _round_numbers(self.low, self.high)
            tens = [v for v in found if f"{v:e}".startswith("1.0")]
            return found if len(found) <= 9 else tens
        step = 10 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next(f for f in (1, 2, 5, 10) if (self.high - self.low) / (step * f) <= 6)
        return [step * k for k in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _round_numbers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from `low` to `high`."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    found = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
    return [v for v in found if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]


def _frame(axes: Axes, across: _Scale, up: _Scale, left: int, top: int, width: int, height: int) -> list[str]:
    bottom, right = top + height, left + width
    marks = []
    for value in across.ticks():
        x = across.at(value)
        marks.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="#e3e6ec"/>')
        marks.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" {_FONT}>{value:.4g}</text>')
    for value in up.ticks():
        y = up.at(value)
        marks.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e6ec"/>')
        marks.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" {_FONT}>{value:.4g}</text>')
    marks.append(f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#8a93a3"/>')
    if axes.title:
        marks.append(f'<text x="{left}" y="{top - 14}" {_FONT}>{html.escape(axes.title)}</text>')
    marks.append(
        f'<text x="{left + width / 2:.0f}" y="{bottom + 36}" text-anchor="middle" {_FONT}>{html.escape(axes.x)}</text>'
        f'<text x="16" y="{top + height / 2:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 16 {top + height / 2:.0f})" '
        f"{_FONT}>{html.escape(axes.y)}</text>"
    )
    return marks


def _svg(width: float, height: float, marks: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" '
        f'role="img"><rect width="100%" height="100%" fill="#ffffff"/>{"".join(marks)}</svg>'
    )
