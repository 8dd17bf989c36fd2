"""Plans that tests draw and make."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from unet_engine.plan.box import Box
from unet_engine.plan.grid import AxisGrid, Blend
from unet_engine.plan.memory import Sizes
from unet_engine.plan.plan import Plan
from unet_engine.plan.sizing import NO_MEMORY, default_block, default_chunk

SIZES = Sizes(raw=1, sums=8, out=1)


def make(axes: tuple[AxisGrid, ...], roi: Box | None = None, block: tuple[int, ...] | None = None) -> Plan:
    whole = Box.of_shape([a.size for a in axes])
    block = block or default_block(axes, 2)
    chunk = default_chunk(axes, block)
    return Plan(
        "zyx"[-len(axes) :],
        axes,
        roi or whole,
        block,
        chunk,
        ((),) * len(axes),
        "reflect",
        NO_MEMORY,
        {"block": list(block)},
    )


def _strided(blend: Blend) -> st.SearchStrategy[AxisGrid]:
    return st.builds(
        AxisGrid.with_overlap, st.integers(1, 30), st.integers(1, 10), st.sampled_from([0, 0.3, 0.5, 0.75]),
        st.integers(0, 2), st.just(blend),
    )  # fmt: skip


@st.composite
def _evenly(draw: st.DrawFn, blend: Blend) -> AxisGrid:
    window = draw(st.integers(1, 10))
    return AxisGrid.evenly(
        draw(st.integers(1, 30)), window, draw(st.integers(0, window - 1)), draw(st.integers(0, 2)), blend,
        draw(st.sampled_from([1, 2, 4])),
    )  # fmt: skip


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Small 2D and 3D plans with odd sizes, blocks, chunks, columns, tubes and regions."""
    ndim = draw(st.integers(2, 3))
    blend = draw(st.sampled_from(["gaussian", "crop", "monai", "nnunet"]))
    even = blend in ("gaussian", "crop") and draw(st.booleans())
    axes = tuple(map(draw, [_evenly(blend) if even else _strided(blend)] * ndim))
    spans = [sorted((draw(st.integers(0, a.size - 1)), draw(st.integers(1, a.size)))) for a in axes]
    roi = Box(tuple(s[0] for s in spans), tuple(max(s[1], s[0] + 1) for s in spans))
    plan = make(axes, roi, tuple(draw(st.integers(1, 4)) for _ in axes))
    plan = replace(plan, chunk=tuple(draw(st.integers(1, 9)) for _ in axes))
    return replace(plan, cuts=draw(_parted(plan)), walls=draw(_parted(plan)) if draw(st.booleans()) else ())


def _parted(plan: Plan) -> st.SearchStrategy[tuple[tuple[int, ...], ...]]:
    """Per axis up to two block indices to part at."""
    inside = [range(lo + 1, hi) for lo, hi in zip(plan.block_range.lo, plan.block_range.hi, strict=True)]
    return st.tuples(
        *(st.sets(st.sampled_from(at), max_size=2).map(lambda found: tuple(sorted(found))) if at else st.just(())
          for at in inside)
    )  # fmt: skip
