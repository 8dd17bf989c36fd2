"""Several networks run as one, against explicit loops over networks, poses and windows."""

from __future__ import annotations

import json
import tempfile
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
from unet_engine.backends.base import Setup
from unet_engine.backends.fake import FakeBackend, FakeDevice, values_of
from unet_engine.backends.opening import as_host, open_network
from unet_engine.errors import ModelError, ResumeError, SettingsError
from unet_engine.model.file import ModelFile, open_model
from unet_engine.prepare.prepare import prepare
from unet_engine.prepare.survey import survey
from unet_engine.settings.settings import Settings

Array = np.ndarray[Any, Any]
FACTOR = {"a": 1.0, "b": -0.5, "c": 3.0, "d": 0.25, "e": 1.75}


def network(window: Array, channels: int, margin: tuple[int, ...], name: str) -> Array:
    """Each network another one, and none the same in a mirrored window."""
    inner = tuple(slice(m, n - m) for m, n in zip(margin, window.shape[1:], strict=True))
    mixed = FACTOR[name] * window + 0.5 * np.roll(window, 1, axis=-1)
    place = np.cos(FACTOR[name] + np.arange(window[0].size, dtype=np.float64)).reshape(window.shape[1:])
    return np.stack([(mixed[k % len(window)] * (1 + 0.1 * k) + place)[inner] for k in range(channels)])


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    def name_of(model: ModelFile) -> str:
        return model.path.name[0]

    def on_host(self: FakeBackend, slot: int) -> Array:
        spec, out = self.setup.model.spec, self._outputs[slot]
        for item, result in zip(self._inputs[slot], out, strict=True):
            result[...] = network(item, spec.channels_out, spec.margin, name_of(self.setup.model))
        return out

    def on_device(self: FakeDevice, stream: int) -> None:
        spec = self.setup.model.spec
        for item, result in zip(values_of(self.input), values_of(self.output), strict=True):
            result[...] = network(item, spec.channels_out, spec.margin, name_of(self.setup.model))

    monkeypatch.setattr(FakeBackend, "_run", on_host)
    monkeypatch.setattr(FakeDevice, "run", on_device)


def models(folder: Path, names: str, **spec: Any) -> str:
    return ",".join(fake_model(folder, name=name, **spec) for name in names)


@pytest.mark.slow
@given(cases(), st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_mean_over_networks_and_poses_is_that_of_explicit_loops(
    blocks: Any, case: dict[str, Any], data: st.DataObject
) -> None:
    """Any geometry, weights and mirrors; both pipelines, and both with the same bytes."""
    names = data.draw(st.sampled_from(["ab", "cab", "abcde"]))
    weights = [data.draw(st.sampled_from([1.0, 0.5, 2.0, 7.0])) for _ in names]
    mirror = data.draw(st.sampled_from(["", case["axes"][-1]]))
    blocks(case["block"])
    image = np.random.default_rng(5).random((case["channels_in"], *case["shape"])).astype(np.float32)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        volume = make_volume(folder / "scan.zarr", image, axes="c" + case["axes"])
        model = models(
            folder, names, axes=case["axes"], window=case["window"], margin=case["margin"],
            channels_in=case["channels_in"], channels_out=case["channels_out"],
            window_min=(1,) * len(case["axes"]), window_step=(1,) * len(case["axes"]),
        )  # fmt: skip
        found = [
            result_of(
                unet_engine.run(
                    volume, model=model, out=str(folder / f"{device}.zarr"), device=device, overlap=case["overlap"],
                    blend=case["blend"], padding="reflect", output="logits", normalize="none",
                    weights=",".join(map(str, weights)),
                    tta=f"mirror:{mirror}" if mirror else "none", **more,
                ).out
            )
            for device, more in (("cpu", {"threads": case["threads"]}), ("simulated", {"batch": case["threads"]}))
        ]  # fmt: skip
    np.testing.assert_array_equal(found[0].view(np.uint8), found[1].view(np.uint8))

    def mean(window: Array) -> Array:
        total = np.zeros(())
        for name, weight in zip(names, weights, strict=True):
            answer = network(window, case["channels_out"], case["margin"], name)
            if mirror:
                held = network(np.flip(window, -1), case["channels_out"], case["margin"], name)
                answer = (answer + np.flip(held, -1)) / 2
            total = total + weight * answer
        return total / sum(weights)

    tiling = Tiling(case["window"], case["margin"], case["overlap"], case["blend"], "reflect")
    wanted = stitched(image.astype(np.float64), mean, tiling, case["channels_out"])
    np.testing.assert_allclose(found[0], wanted, rtol=0, atol=2e-5 * max(1, np.abs(wanted).max()))


# --- one small run ---


@pytest.fixture
def scan(tmp_path: Path) -> str:
    image = np.random.default_rng(2).random((12, 20, 24)).astype(np.float32)
    image[:, :, 14:] = 0
    return make_volume(tmp_path / "scan.zarr", image)


SPEC = {"channels_out": 2, "activation": "softmax"}


def logits(scan: str, model: Any, out: Path, **options: Any) -> Any:
    return unet_engine.run(scan, model=model, out=str(out), output="logits", normalize="none", **options)


def test_blocks_parts_regions_and_threads_change_no_byte(scan: str, tmp_path: Path, blocks: Any) -> None:
    model = models(tmp_path, "abc", **SPEC)
    blocks((2, 2, 2))
    whole = result_of(logits(scan, model, tmp_path / "whole.zarr", tta="mirror:x").out)
    for part in ("1/3", "3/3", "2/3"):
        parts = logits(scan, model, tmp_path / "parts.zarr", tta="mirror:x", part=part)
    np.testing.assert_array_equal(result_of(parts.out), whole)
    region = logits(scan, model, tmp_path / "roi.zarr", tta="mirror:x", roi="2:11,3:19,5:21", threads=2)
    np.testing.assert_array_equal(result_of(region.out), whole[:, 2:11, 3:19, 5:21])


def test_a_station_of_a_cluster_gives_the_same_bytes(scan: str, tmp_path: Path, blocks: Any) -> None:
    model = models(tmp_path, "ab", **SPEC)
    blocks((2, 2, 2))
    whole = logits(scan, model, tmp_path / "whole.zarr")
    options = {"model": model, "out": str(tmp_path / "station.zarr"), "output": "logits", "normalize": "none"}
    found = prepare(survey(Settings.of(input=scan, **options)))
    assert found.network is not None
    counted = run_by_a_station(found)
    assert counted.inferred == found.job.plan.call_count == whole.windows_inferred
    np.testing.assert_array_equal(result_of(found.job.out), result_of(whole.out))


def test_a_run_is_resumed_only_with_the_same_networks_and_weights(scan: str, tmp_path: Path, blocks: Any) -> None:
    blocks((2, 2, 2))
    model = models(tmp_path, "ab", **SPEC)
    logits(scan, model, tmp_path / "o.zarr", part="1/2")
    for other in ({"weights": "2,1"}, {"folds": "a.fake"}):
        with pytest.raises(ResumeError, match="model"):
            logits(scan, model, tmp_path / "o.zarr", resume=True, **other)
    swapped = ",".join(reversed(model.split(",")))
    with pytest.raises(ResumeError, match="model"):
        logits(scan, swapped, tmp_path / "o.zarr", resume=True)
    done = logits(scan, model, tmp_path / "o.zarr", resume=True)
    np.testing.assert_array_equal(result_of(done.out), result_of(logits(scan, model, tmp_path / "p.zarr").out))


@pytest.mark.parametrize("device", ["cpu", "simulated"])
def test_a_window_of_nothing_is_the_mean_of_what_each_gives(scan: str, tmp_path: Path, device: str) -> None:
    first = fake_model(tmp_path, name="a", empty=[4.0, -1.0], **SPEC)
    second = fake_model(tmp_path, name="b", empty=[1.0, 2.0], **SPEC)
    found = logits(scan, [first, second], tmp_path / "o.zarr", weights="2,1", device=device)
    values = result_of(found.out)
    np.testing.assert_allclose(values[0][..., 22:], 3.0, atol=1e-5)
    np.testing.assert_allclose(values[1][..., 22:], 0.0, atol=1e-5)
    assert found.windows_skipped > 0
    assert found.windows_skipped + found.windows_inferred == found.windows_planned


def test_one_network_alone_is_what_it_is_without_the_others(scan: str, tmp_path: Path) -> None:
    model = models(tmp_path, "ab", **SPEC)
    alone = logits(scan, model.split(",")[1], tmp_path / "alone.zarr")
    picked = logits(scan, model, tmp_path / "picked.zarr", folds="b.fake")
    assert picked.digest == alone.digest
    np.testing.assert_array_equal(result_of(picked.out), result_of(alone.out))


def test_plan_and_output_say_what_ran(scan: str, tmp_path: Path) -> None:
    model = models(tmp_path, "abc", **SPEC)
    said = cli("plan", "--in", scan, "--model", model, "--weights", "2,1,1", "--json")
    assert [m["share"] for m in said.json["members"]] == [0.5, 0.25, 0.25]
    assert said.json["windows_planned"] == 3 * np.prod(said.json["windows"])
    shown = " ".join(cli("plan", "--in", scan, "--model", model).out.split())
    assert "3 networks: a.fake (33.3 %), b.fake (33.3 %)" in shown
    done = logits(scan, model, tmp_path / "o.zarr")
    stored = zarr.open_group(done.out, mode="r").attrs["unet_engine"]["model"]
    assert [m["sha256"] for m in stored["members"]] == [m.sha256 for m in open_model(model).networks]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"channels_out": 3}, "channels_out is 2 and 3"),
        ({"spacing": [1, 1, 2]}, "spacing is not said and"),
        ({"normalization": "zscore"}, "normalization is"),
        ({"activation": "sigmoid"}, "activation is softmax and sigmoid"),
        ({"window": [12] * 3, "window_min": [12] * 3, "window_step": [0] * 3}, "runs windows of 8×8×8"),
        ({"margin": [1, 1, 1]}, "margin is"),
        ({"classes": ["x", "y"]}, "name other classes"),
    ],
)
def test_networks_that_do_not_fit_one_another_are_refused_by_name(
    scan: str, tmp_path: Path, other: dict[str, Any], words: str
) -> None:
    first = fake_model(tmp_path, name="a", **SPEC, classes=["u", "v"])
    second = fake_model(tmp_path, name="b", **{**SPEC, **other})
    with pytest.raises(ModelError, match=words) as error:
        unet_engine.make_plan(scan, model=[first, second])
    assert "b.fake.toml" in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"folds": "2"}, "there is no '2'"),
        ({"folds": "a.fake,x"}, "there is no 'x'"),
        ({"weights": "1"}, "1 numbers for 2"),
        ({"weights": "1,0"}, "positive"),
        ({"weights": "1,nan"}, "positive"),
        ({"weights": "1,b"}, "positive"),
    ],
)
def test_members_that_are_not_there_and_weights_that_are_none(
    scan: str, tmp_path: Path, options: dict[str, str], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        unet_engine.make_plan(scan, model=models(tmp_path, "ab", **SPEC), **options)


def test_members_are_chosen_by_number_too(scan: str, tmp_path: Path) -> None:
    model = models(tmp_path, "abc", **SPEC)
    numbers, names = (unet_engine.make_plan(scan, model=model, folds=f) for f in ("0,2", "c.fake,a.fake"))
    assert numbers.digest == names.digest
    assert numbers.calls == 2


def test_the_option_given_several_times_is_a_list(scan: str, tmp_path: Path) -> None:
    """Of run, plan and bench; what does not fit together is refused by name."""
    files = [fake_model(tmp_path, name=name, channels_out=2) for name in "ab"]
    several = [text for file in files for text in ("--model", file)]
    listed = cli("plan", "--in", scan, "--model", ",".join(files), "--json")
    given = cli("plan", "--in", scan, *several, "--json")
    assert (given.code, json.loads(given.out)["digest"]) == (0, json.loads(listed.out)["digest"]), given.err
    other = fake_model(tmp_path, name="c", channels_out=2, normalization="zscore")
    said = cli("run", "--in", scan, *several, "--model", other, "--out", tmp_path / "o.zarr")
    assert said.code == 5
    assert "normalization" in said.error


def test_a_missing_file_is_named(scan: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.onnx does not exist"):
        unet_engine.make_plan(scan, model=f"{fake_model(tmp_path, name='a', **SPEC)},{tmp_path}/nowhere.onnx")


@pytest.mark.parametrize("device", ["cpu", "simulated"])
def test_single_windows_are_asked_of_all_networks(tmp_path: Path, device: str) -> None:
    """As the search for an overlap does."""
    model = open_model(models(tmp_path, "abc", **SPEC), weights="2,1,1")
    window = np.random.default_rng(0).random((1, 1, 8, 8, 8)).astype(np.float32)
    opened = open_network("fake", Setup(model, (8, 8, 8), device))
    assert len(opened.members) == 3
    with as_host(opened) as host:
        found = host.infer(window)[0]
    opened.close()
    wanted = sum(w * network(window[0], 2, (0, 0, 0), name) for name, w in (("a", 0.5), ("b", 0.25), ("c", 0.25)))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_what_was_opened_is_closed_where_a_later_member_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, init = [], FakeBackend.__init__

    def refusing(self: FakeBackend, setup: Setup) -> None:
        if setup.model.path.name.startswith("c"):
            raise ModelError("refused")
        init(self, setup)

    monkeypatch.setattr(FakeBackend, "__init__", refusing)
    monkeypatch.setattr(FakeBackend, "close", lambda self: closed.append(self.setup.model.path.name[0]))
    with pytest.raises(ModelError, match="refused"):
        open_network("fake", Setup(open_model(models(tmp_path, "abc", **SPEC)), (8, 8, 8)))
    assert closed == ["b", "a"]
