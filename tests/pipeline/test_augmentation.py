"""Test-time augmentation against explicit loops over poses and windows, which share no code with the engine."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import unet_engine
from support.brute_force import Tiling, stitched
from support.command_line import cli
from support.stations import run_by_a_station
from support.stitching import cases
from support.volumes import fake_model, make_volume, result_of
from unet_engine.backends.fake import FakeBackend, FakeDevice, values_of
from unet_engine.errors import ResumeError, SettingsError
from unet_engine.prepare.prepare import prepare
from unet_engine.prepare.survey import survey
from unet_engine.settings.settings import Settings
from unet_engine.settings.text import parse_tta

Array = np.ndarray[Any, Any]


def network(window: Array, channels: int, margin: tuple[int, ...]) -> Array:
    """Not the same in any two poses: neighbours are mixed along each axis by another weight, and each place has a
    value of its own."""
    mixed = window.copy()
    for axis in range(len(margin)):
        mixed += (0.3 + 0.2 * axis) * np.roll(window, 1, axis=1 + axis)
    place = np.cos(np.arange(mixed[0].size, dtype=np.float64)).reshape(mixed.shape[1:])
    inner = tuple(slice(m, n - m) for m, n in zip(margin, window.shape[1:], strict=True))
    outputs = [mixed[k % len(window)] * (1 + 0.1 * k) + place for k in range(channels)]
    return np.stack([o[inner] for o in outputs])


@pytest.fixture(autouse=True)
def _network(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_host(self: FakeBackend, slot: int) -> Array:
        spec, out = self.setup.model.spec, self._outputs[slot]
        for item, result in zip(self._inputs[slot], out, strict=True):
            result[...] = network(item, spec.channels_out, spec.margin)
        return out

    def on_device(self: FakeDevice, stream: int) -> None:
        spec = self.setup.model.spec
        for item, result in zip(values_of(self.input), values_of(self.output), strict=True):
            result[...] = network(item, spec.channels_out, spec.margin)

    monkeypatch.setattr(FakeBackend, "_run", on_host)
    monkeypatch.setattr(FakeDevice, "run", on_device)


def averaged(infer: Callable[[Array], Array], axes: tuple[int, ...], *, turns: bool) -> Callable[[Array], Array]:
    """The mean over all mirrors along `axes` (counted from the end), and over right angles in the last two."""

    def mean(window: Array) -> Array:
        found: dict[bytes, Array] = {}
        marks = np.arange(window[0].size).reshape(window[0].shape)  # tells poses that are the same
        for mirrored in product((False, True), repeat=len(axes)):
            along = tuple(a for a, on in zip(axes, mirrored, strict=True) if on)
            for quarter in range(4 if turns else 1):
                held = np.rot90(np.flip(window, along), quarter, (-2, -1))
                key = np.rot90(np.flip(marks, along), quarter, (-2, -1)).tobytes()
                found[key] = np.flip(np.rot90(infer(held), -quarter, (-2, -1)), along)
        return sum(found.values()) / len(found)

    return mean


def expected(image: Array, case: dict[str, Any], mirrors: str, *, turns: bool) -> Array:
    tiling = Tiling(case["window"], case["margin"], case["overlap"], case["blend"], "reflect")
    axes = tuple("zyx".index(name) - 3 for name in mirrors)

    def infer(window: Array) -> Array:
        return network(window, case["channels_out"], case["margin"])

    return stitched(image, averaged(infer, axes, turns=turns), tiling, case["channels_out"])


@pytest.mark.slow
@given(cases(), st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_mean_over_poses_is_that_of_explicit_loops(blocks: Any, case: dict[str, Any], data: st.DataObject) -> None:
    """Any axes, margins, overlaps, blends and blocks; both pipelines, and both with the same bytes."""
    mirrors = "".join(sorted(data.draw(st.sets(st.sampled_from(case["axes"]))), key="zyx".index))
    turns = data.draw(st.booleans())
    if turns:
        case["window"] = (*case["window"][:-1], case["window"][-2])
    blocks(case["block"])
    rng = np.random.default_rng(5)
    image = rng.random((case["channels_in"], *case["shape"])).astype(np.float32)
    asked = "+".join([*([f"mirror:{mirrors}"] if mirrors else []), *(["turns"] if turns else [])]) or "none"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        volume = make_volume(folder / "scan.zarr", image, axes="c" + case["axes"])
        model = fake_model(
            folder, axes=case["axes"], window=case["window"], margin=case["margin"], channels_in=case["channels_in"],
            channels_out=case["channels_out"], window_min=(1,) * len(case["axes"]),
            window_step=(1,) * len(case["axes"]),
        )  # fmt: skip
        found = [
            result_of(
                unet_engine.run(
                    volume, model=model, out=str(folder / f"{device}.zarr"), device=device, overlap=case["overlap"],
                    blend=case["blend"], padding="reflect", output="logits", normalize="none", tta=asked,
                    **more,
                ).out
            )
            for device, more in (("cpu", {"threads": case["threads"]}), ("simulated", {"batch": case["threads"]}))
        ]  # fmt: skip
        np.testing.assert_array_equal(found[0].view(np.uint8), found[1].view(np.uint8))
        wanted = expected(image.astype(np.float64), case, mirrors, turns=turns)
        np.testing.assert_allclose(found[0], wanted, rtol=0, atol=2e-5 * max(1, np.abs(wanted).max()))


# --- one small run, and what must not change its bytes ---

CASE = {"window": (8, 8, 8), "margin": (0, 0, 0), "overlap": 0.5, "blend": "gaussian", "channels_out": 2}


@pytest.fixture
def scan(tmp_path: Path) -> tuple[str, str, Array]:
    """A volume with an empty corner, a network of windows of 8³, and the voxels."""
    image = np.random.default_rng(2).random((12, 20, 24)).astype(np.float32)
    image[:, :, 14:] = 0
    volume = make_volume(tmp_path / "scan.zarr", image)
    return volume, fake_model(tmp_path, channels_out=2, activation="softmax", mirror_axes="yx"), image


def logits(scan: tuple[str, str, Array], out: Path, **options: Any) -> Any:
    return unet_engine.run(scan[0], model=scan[1], out=str(out), output="logits", normalize="none", **options)


def test_a_model_that_names_mirrors_is_mirrored_unless_it_is_said(scan: Any, tmp_path: Path) -> None:
    by_itself, asked, none = (
        logits(scan, tmp_path / f"{i}.zarr", **more) for i, more in enumerate(({}, {"tta": "mirror"}, {"tta": "none"}))
    )
    np.testing.assert_array_equal(result_of(by_itself.out), result_of(asked.out))
    wanted = expected(scan[2][None].astype(np.float64), CASE, "yx", turns=False)
    np.testing.assert_allclose(result_of(by_itself.out), wanted, atol=1e-4)
    assert by_itself.windows_planned == by_itself.windows_inferred == 4 * none.windows_inferred
    assert by_itself.digest == asked.digest != none.digest
    stored = dict(zarr.open_group(by_itself.out, mode="r").attrs["unet_engine"])
    assert stored["poses"] == ["upright", "mirrored along y", "mirrored along x", "mirrored along yx"]
    assert "poses" not in zarr.open_group(none.out, mode="r").attrs["unet_engine"]


def test_a_model_that_names_none_is_run_once_and_keeps_its_digest(scan: Any, tmp_path: Path) -> None:
    bare = fake_model(tmp_path, channels_out=2, activation="softmax", name="bare")
    plain = unet_engine.make_plan(scan[0], model=bare)
    assert "poses" not in plain.identity
    assert plain.call_count == plain.window_count
    assert unet_engine.make_plan(scan[0], model=bare, tta="none").digest == plain.digest
    mirrored = unet_engine.make_plan(scan[0], model=bare, tta="mirror")
    assert (mirrored.calls, mirrored.call_count) == (8, 8 * plain.window_count)
    assert unet_engine.make_plan(scan[0], model=bare, tta="mirror:x+turns").calls == 8
    assert unet_engine.make_plan(scan[0], model=bare, tta="turns").calls == 4


def test_blocks_workers_parts_and_regions_change_no_byte(scan: Any, tmp_path: Path, blocks: Any) -> None:
    blocks((2, 2, 2))
    whole = result_of(logits(scan, tmp_path / "whole.zarr", tta="mirror+turns").out)
    for part in ("1/3", "3/3", "2/3"):
        parts = logits(scan, tmp_path / "parts.zarr", tta="mirror+turns", part=part)
    np.testing.assert_array_equal(result_of(parts.out), whole)
    region = logits(scan, tmp_path / "roi.zarr", tta="mirror+turns", roi="2:11,3:19,5:21", threads=2)
    np.testing.assert_array_equal(result_of(region.out), whole[:, 2:11, 3:19, 5:21])


def test_a_station_of_a_cluster_gives_the_same_bytes(scan: Any, tmp_path: Path, blocks: Any) -> None:
    blocks((2, 2, 2))
    whole = logits(scan, tmp_path / "whole.zarr", tta="mirror")
    options = {"model": scan[1], "out": str(tmp_path / "station.zarr"), "output": "logits", "normalize": "none"}
    found = prepare(survey(Settings.of(input=scan[0], tta="mirror", **options)))
    assert found.network is not None
    counted = run_by_a_station(found)
    assert counted.inferred == found.job.plan.call_count == whole.windows_inferred
    np.testing.assert_array_equal(result_of(found.job.out), result_of(whole.out))


def test_a_run_is_resumed_only_with_the_same_poses(scan: Any, tmp_path: Path, blocks: Any) -> None:
    blocks((2, 2, 2))
    whole = result_of(logits(scan, tmp_path / "whole.zarr").out)
    logits(scan, tmp_path / "o.zarr", part="1/2")
    with pytest.raises(ResumeError, match="poses"):
        logits(scan, tmp_path / "o.zarr", resume=True, tta="mirror:x")
    np.testing.assert_array_equal(result_of(logits(scan, tmp_path / "o.zarr", resume=True).out), whole)


@pytest.mark.parametrize("device", ["cpu", "simulated"])
def test_a_window_of_nothing_counts_once_whatever_the_poses(scan: Any, tmp_path: Path, device: str) -> None:
    """Its constant is added with the weight of the whole window."""
    empty = fake_model(
        tmp_path, channels_out=2, activation="softmax", name="empty", empty=[3.0, -1.0], mirror_axes="zyx"
    )
    found = logits((scan[0], empty, None), tmp_path / "o.zarr", device=device)
    values = result_of(found.out)
    np.testing.assert_allclose(values[0][..., 22:], 3.0, atol=1e-6)
    np.testing.assert_allclose(values[1][..., 22:], -1.0, atol=1e-6)
    assert found.windows_skipped > 0
    assert found.windows_skipped % 8 == found.windows_inferred % 8 == 0
    assert found.windows_skipped + found.windows_inferred == found.windows_planned


def test_a_plane_of_a_2d_network_is_turned_in_its_own_axes(tmp_path: Path) -> None:
    image = np.random.default_rng(4).random((3, 18, 21)).astype(np.float32)
    volume = make_volume(tmp_path / "scan.zarr", image)
    model = fake_model(tmp_path, axes="yx", channels_out=2, activation="softmax")
    found = [
        result_of(logits((volume, model, None), tmp_path / f"{d}.zarr", device=d, tta="mirror+turns").out)
        for d in ("cpu", "simulated")
    ]
    np.testing.assert_array_equal(*found)
    case = {"window": (8, 8), "margin": (0, 0), "overlap": 0.5, "blend": "gaussian", "channels_out": 2}
    for z, plane in enumerate(image.astype(np.float64)):
        np.testing.assert_allclose(found[0][:, z], expected(plane[None], case, "yx", turns=True), atol=1e-4)


# --- what is refused ---


@pytest.mark.parametrize(
    ("spec", "window", "asked", "words"),
    [
        ({"mirror_axes": ""}, None, "mirror", "trained without mirrors"),
        ({"axes": "yx"}, None, "mirror:z", "has the axes yx, not z"),
        ({"channels": "offsets"}, None, "mirror", "offsets or affinities"),
        ({}, (8, 8, 12), "turns", "not square in the plane yx"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    tmp_path: Path, spec: dict[str, Any], window: Any, asked: str, words: str
) -> None:
    volume = make_volume(tmp_path / "scan.zarr", np.zeros((12, 20, 24), np.float32))
    model = fake_model(tmp_path, channels_out=2, **spec)
    with pytest.raises(SettingsError, match=words):
        unet_engine.make_plan(volume, model=model, window=window, tta=asked)


def test_offsets_are_not_mirrored_by_themselves(tmp_path: Path) -> None:
    volume = make_volume(tmp_path / "scan.zarr", np.zeros((12, 20, 24), np.float32))
    model = fake_model(tmp_path, channels_out=2, channels="offsets", mirror_axes="yx")
    assert unet_engine.make_plan(volume, model=model, output="logits").calls == 1


@pytest.mark.parametrize(
    "text", ["", "mirrors", "mirror:", "mirror:xx", "mirror:t", "turnsmirror", "mirror,turns", "+"]
)
def test_what_is_no_augmentation_is_refused_by_its_option(text: str) -> None:
    with pytest.raises(SettingsError, match="--tta"):
        Settings.of(input="scan.zarr", tta=text)


def test_how_it_is_written() -> None:
    said = {
        "none": ("", False), "mirror": (None, False), "mirror:zx": ("zx", False), "turns": ("", True),
        "mirror+turns": (None, True), "mirror:z+turns": ("z", True),
    }  # fmt: skip
    assert {text: parse_tta(text) for text in said} == said


def test_the_plan_says_how_often_and_why(scan: Any) -> None:
    said = cli("plan", "--in", scan[0], "--model", scan[1], "--json")
    assert len(said.json["poses"]) == 4
    assert said.json["windows_planned"] == 4 * np.prod(said.json["windows"])
    assert any("--tta none" in note for note in said.json["notes"])
    shown = cli("plan", "--in", scan[0], "--model", scan[1])
    assert "each window 4 times and the mean taken: upright, mirrored along y" in " ".join(shown.out.split())
    json.dumps(said.json)
