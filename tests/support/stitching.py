"""Cases of stitching."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    ndim = draw(st.integers(2, 3))
    channels = draw(st.integers(1, 3))
    margin = draw(st.integers(0, 2))
    return {
        "shape": tuple(draw(st.integers(1, 20)) for _ in range(ndim)),
        "window": tuple(draw(st.integers(4, 9)) + 2 * margin for _ in range(ndim)),
        "margin": (margin,) * ndim,
        "axes": "zyx"[-ndim:],
        "channels_in": channels,
        "channels_out": draw(st.integers(1, 4)),
        "overlap": draw(st.sampled_from([0.0, 0.3, 0.5, 0.75])),
        "blend": draw(st.sampled_from(["gaussian", "constant", "crop", "monai", "nnunet"])),
        "block": tuple(draw(st.integers(1, 4)) for _ in range(ndim)),
        "threads": draw(st.integers(1, 3)),
    }
