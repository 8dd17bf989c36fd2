"""The gate's report: one HTML file with a table, and per candidate an error map (PNG), a histogram and Dice per class
(SVG). No network access, no scripts: it can be archived beside the model."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.errors import OutputError
from unet_engine.model.file import ModelFile
from unet_engine.model.verdict import Verdict
from unet_engine.units import times
from unet_export.quantize.judging import Outcome
from unet_export.quantize.metrics import EXPONENTS, Comparison, Worst

Array = npt.NDArray[Any]
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#1c2330}
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.3rem .8rem;border-bottom:1px solid #d5dae2;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}.passed{color:#12733b}.failed{color:#b3261e}
img{image-rendering:pixelated;max-width:100%}figure{margin:1rem 0}figcaption{color:#5a6474}"""
_COLOURS = np.array(
    [[20, 22, 30], [90, 160, 220], [250, 200, 60], [220, 90, 90],
     [110, 190, 110], [170, 120, 210], [240, 150, 60], [130, 200, 200]],
    np.uint8,
)  # fmt: skip


def write_report(path: Path, model: ModelFile, outcomes: Sequence[Outcome]) -> None:
    """Raises `OutputError` where it cannot be written."""
    verdicts = [o.verdict for o in outcomes]
    calibration = verdicts[0].calibration
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{_text(model.path.name)}: accuracy "
        f"gate</title><style>{_STYLE}</style>",
        f"<h1>{_text(model.path.name)}: accuracy gate</h1>",
        f"<p>Each candidate against fp32 on {calibration.held_out} windows of {times(verdicts[0].window)} voxels held "
        f"out from <code>{_text(calibration.volume)}</code>; scales were measured on {calibration.windows} others "
        f"(seed {calibration.seed}), and layers to leave in full precision chosen on "
        f"{max(v.calibration.choosing for v in verdicts) or 'none, none were needed'}. Model {model.sha256[:16]}.</p>",
        _table(verdicts),
        *(_candidate(o.verdict, o.attempt.comparison) for o in outcomes),
    ]
    try:
        path.write_text("\n".join(parts), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another --report") from error


def _table(verdicts: Sequence[Verdict]) -> str:
    head = "<tr><th>precision<th>back end<th>verdict<th>times fp32<th>least Dice<th>labels agree"
    head += "<th>largest error<th>mean error<th>NaN, Inf</tr>"
    rows = []
    for v in verdicts:
        f, state = v.figures, "passed" if v.passed else "failed"
        dice = "–" if f.worst_dice is None else f"{f.worst_dice:.5f}"
        speed = "–" if v.speedup is None else f"{v.speedup:.2f}"
        state_text = state + (" (emulated)" if v.emulated else "")
        rows.append(
            f"<tr><td>{v.precision}<td>{_text(v.library)}<td class={state}>{state_text}<td class=n>{speed}<td "
            f"class=n>{dice}<td class=n>{f.agreement:.5f}<td class=n>{f.max_error:.2e}<td "
            f"class=n>{f.mean_error:.2e}<td class=n>{f.nonfinite:,}</tr>"
        )
    return f"<table>{head}{''.join(rows)}</table>"


def _candidate(verdict: Verdict, compared: Comparison) -> str:
    parts = [f"<h2>{verdict.precision} on {verdict.backend}</h2><p>{_text(verdict.reason)}</p>"]
    if verdict.kept:
        parts.append(f"<p>In full precision: <code>{_text(', '.join(verdict.kept))}</code></p>")
    if compared.worst is not None:
        image = base64.b64encode(error_map(compared.worst)).decode()
        parts.append(
            f'<figure><img alt="error map" src="data:image/png;base64,{image}">'
            "<figcaption>The held-out window in which most labels differ, middle plane: image, labels in fp32, "
            "labels of the candidate, error of the logits (white is the largest), voxels with another "
            "label</figcaption></figure>"
        )
    parts.append(_histogram(compared))
    parts.append(_dice(verdict))
    return "\n".join(parts)


def error_map(worst: Worst) -> bytes:
    """A PNG of five panels side by side: image, labels of fp32, of the candidate, error of the logits, labels that
    differ."""
    from PIL import Image

    height, width = worst.reference.shape
    inner = [slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(worst.image.shape, (height, width), strict=True)]
    panels = [
        _grey(worst.image[tuple(inner)]),
        _COLOURS[worst.reference % len(_COLOURS)],
        _COLOURS[worst.candidate % len(_COLOURS)],
        _grey(worst.error),
        _grey(worst.reference != worst.candidate),
    ]
    gap = np.full((height, 3, 3), 255, np.uint8)
    row = np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)
    zoom = max(1, 200 // width)
    buffer = io.BytesIO()
    Image.fromarray(row).resize((row.shape[1] * zoom, row.shape[0] * zoom), Image.Resampling.NEAREST).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def _grey(values: Array) -> Array:
    """(y, x) from least to largest as (y, x, 3) uint8."""
    x = np.nan_to_num(np.asarray(values, np.float32))
    low, high = float(x.min()), float(x.max())
    scaled = ((x - low) / (high - low) * 255 if high > low else np.zeros_like(x)).astype(np.uint8)
    return np.repeat(scaled[..., None], 3, axis=-1)


def _histogram(compared: Comparison) -> str:
    counts, first = compared.histogram, int(np.argmax(compared.histogram > 0))
    last = len(counts) - int(np.argmax(counts[::-1] > 0))
    heights = np.log10(1 + counts[first:last])
    bars = []
    for i, height in enumerate(heights):
        h = 120 * float(height) / max(1e-9, float(heights.max()))
        bars.append(f'<rect x="{40 + 18 * i}" y="{130 - h:.1f}" width="16" height="{h:.1f}" fill="#5aa0dc"/>')
        if (first + i) % 4 == 0:
            bars.append(f'<text x="{40 + 18 * i}" y="146" font-size="11">1e{EXPONENTS[first + i]:.0f}</text>')
    return (
        f'<figure><svg viewBox="0 0 {60 + 18 * len(heights)} 152" height="170" role="img" aria-label="histogram">'
        f"{''.join(bars)}</svg>"
        "<figcaption>Absolute errors of the logits; heights are logarithms of counts</figcaption></figure>"
    )


def _dice(verdict: Verdict) -> str:
    rows = []
    for i, (name, dice) in enumerate(zip(verdict.figures.classes, verdict.figures.dice, strict=True)):
        y, least = 24 * i, verdict.thresholds.of(name)
        if dice is None:
            rows.append(
                f'<text x="0" y="{y + 15}" font-size="12">'
                f"{_text(name)}: in no held-out window, nothing is proved</text>"
            )
            continue
        colour = "#12733b" if dice >= least else "#b3261e"
        rows.append(
            f'<text x="0" y="{y + 15}" font-size="12">{_text(name)}</text>'
            f'<rect x="130" y="{y + 3}" width="{400 * dice:.1f}" height="16" '
            f'fill="{colour}"/><text x="540" y="{y + 15}" font-size="12">{dice:.5f} (needs {least:g})</text>'
        )
    return (
        f'<figure><svg viewBox="0 0 700 {24 * len(rows)}" width="700" role="img" aria-label="Dice per class">'
        f"{''.join(rows)}</svg>"
        "<figcaption>Dice per class against fp32</figcaption></figure>"
    )


def _text(text: str) -> str:
    return html.escape(text)
