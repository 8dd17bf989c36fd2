"""Blocks that come tube by tube: the same bytes, whatever was written before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unet_engine
from support.volumes import fake_model, make_volume, result_of

IMAGE = np.random.default_rng(4).normal(size=(32, 40, 36)).astype(np.float32)


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Blocks of two windows, so that there are many."""
    monkeypatch.setattr("unet_engine.prepare.draft.default_block", lambda *_: (2, 2, 2))
    return {
        "input": make_volume(str(tmp_path / "v.zarr"), IMAGE),
        "model": fake_model(tmp_path),
        "output": "logits",
    }


def _in_tubes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen = list[Any]()

    def walled(_: object, plan: Any, *__: object) -> Any:
        assert plan.order != (0, 1, 2)
        ends = zip(plan.block_range.lo, plan.block_range.hi, strict=True)
        seen.append(replace(plan, walls=tuple(tuple(range(lo + 1, hi, 2)) for lo, hi in ends)))
        return seen[-1]

    monkeypatch.setattr("unet_engine.prepare.prepare.in_tubes", walled)
    return seen


@pytest.mark.parametrize("roi", [None, "3:29,5:40,2:33"])
def test_the_order_of_blocks_changes_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: dict[str, Any], roi: str | None
) -> None:
    outs = {name: str(tmp_path / f"{name}.zarr") for name in ("plain", "tubes", "parts")}
    plain = unet_engine.run(**case, roi=roi, out=outs["plain"])
    seen = _in_tubes(monkeypatch)
    tubes = unet_engine.run(**case, roi=roi, out=outs["tubes"])
    assert len(list(seen[0].tube_spans(1, seen[0].block_range.lo[1], seen[0].block_range.hi[1]))) > 1
    for part in ("1/3", "3/3", "2/3"):
        unet_engine.run(**case, roi=roi, out=outs["parts"], part=part)
    assert plain.digest == tubes.digest
    assert len({result_of(out).tobytes() for out in outs.values()}) == 1


def test_a_run_goes_on_tube_by_tube_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: dict[str, Any]
) -> None:
    out, stopped = str(tmp_path / "plain.zarr"), str(tmp_path / "stopped.zarr")
    unet_engine.run(**case, out=out)
    unet_engine.run(**case, out=stopped, part="2/3")
    _in_tubes(monkeypatch)
    unet_engine.run(**case, out=stopped, resume=True)
    assert result_of(stopped).tobytes() == result_of(out).tobytes()
