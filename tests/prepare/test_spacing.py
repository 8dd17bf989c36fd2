"""Voxels of another size than those of training give other labels: that is an error, in whatever units it is said."""

import json

import numpy as np
import pytest

import unet_engine
from support.command_line import cli
from support.volumes import fake_model, make_volume
from unet_engine.commands.bench.command import Request as BenchRequest
from unet_engine.commands.bench.command import bench
from unet_engine.errors import InputError
from unet_engine.model.file import open_model
from unet_engine.prepare.spacing import check_spacing
from unet_engine.volumes.formats import open_volume
from unet_export.quantize.judging import Request
from unet_export.quantize.quantize import quantize


def scan(folder, scale, unit, axes="zyx"):
    shape = (1, *(9,) * len(axes.replace("c", ""))) if "c" in axes else (9,) * len(axes)
    return make_volume(folder / "v.zarr", np.ones(shape, np.uint8), axes=axes, ome="0.5", scale=scale, unit=unit)


SAME = [
    ((8.0, 8.0, 8.0), "nanometer", {"spacing": (0.008, 0.008, 0.008)}),
    ((40.0, 4.0, 4.0), "nanometer", {"spacing": (0.04, 0.004, 0.004)}),
    ((1e-3, 1e-3, 1e-3), "millimeter", {"spacing": (1.0, 1.0, 1.0)}),
    ((1.0, 1.0, 1.0), "um", {"spacing": (1e-3, 1e-3, 1e-3), "spacing_unit": "mm"}),
    ((9.0, 9.0, 7.0), "nm", {"spacing": (8.0, 8.0, 8.0), "spacing_unit": "nanometer"}),
    ((-8.0, 8.0, 8.0), "nm", {"spacing": (8.0, 8.0, 8.0), "spacing_unit": "nm"}),
    ((3.0, 3.0, 3.0), "pixel", {"spacing": (3.0, 3.0, 3.0), "spacing_unit": "pixel"}),
    ((99.0, 8.0, 8.0), "nm", {"axes": "yx", "spacing": (8.0, 8.0), "spacing_unit": "nm"}),
    ((8.0, 8.0, 99.0), "nm", {"spacing": (8.0, 8.0, 0.0), "spacing_unit": "nm"}),
    ((1.0, 2.0, 3.0), "nm", {}),
]
OTHER = [
    ((16.0, 16.0, 16.0), "nanometer", {"spacing": (0.008, 0.008, 0.008)}, "2 times as large along z, 2 times"),
    ((40.0, 8.0, 8.0), "nm", {"spacing": (8.0, 8.0, 8.0), "spacing_unit": "nm"}, ": 5 times as large along z;"),
    (
        (8.0, 8.0, 40.0),
        "nm",
        {"spacing": (40.0, 8.0, 8.0), "spacing_unit": "nm"},
        "0.2 times as large along z, 5 times as large along x",
    ),
    ((8.0, 8.0, 8.0), "micrometer", {"spacing": (8.0, 8.0, 8.0), "spacing_unit": "nanometer"}, "1e+03 times"),
    ((-16.0, 8.0, 8.0), "nm", {"spacing": (8.0, 8.0, 8.0), "spacing_unit": "nm"}, "2 times as large along z"),
    ((8.0, 8.0, 10.0), "nm", {"spacing": (8.0, 8.0, 8.0), "spacing_unit": "nm"}, "1.25 times as large along x"),
    (
        (1.0, 8.0, 16.0),
        "nm",
        {"axes": "yx", "spacing": (8.0, 8.0), "spacing_unit": "nm"},
        ": 2 times as large along x;",
    ),
    ((16.0, 8.0, 99.0), "nm", {"spacing": (8.0, 8.0, 0.0), "spacing_unit": "nm"}, ": 2 times as large along z;"),
    ((2.0, 2.0, 2.0), "pixel", {"spacing": (1.0, 1.0, 1.0), "spacing_unit": "pixel"}, "2 times"),
]


@pytest.mark.parametrize(("scale", "unit", "spec"), SAME)
def test_what_fits_runs_without_a_word(tmp_path, scale, unit, spec):
    said = cli("plan", "--in", scan(tmp_path, scale, unit), "--model", fake_model(tmp_path, **spec))
    assert said.code == 0, said.err
    assert "voxels of" not in said.err


@pytest.mark.parametrize(("scale", "unit", "spec", "words"), OTHER)
def test_another_size_is_an_error_naming_both(tmp_path, scale, unit, spec, words):
    path, model = scan(tmp_path, scale, unit), fake_model(tmp_path, **spec)
    said = cli("run", "--in", path, "--model", model, "--out", tmp_path / "o.zarr")
    assert said.code == InputError.exit_code
    assert words in said.error
    assert f"{path} are " in said.error
    assert "id was trained on " in said.error
    assert "--ignore-spacing" in said.error
    assert not (tmp_path / "o.zarr").exists()
    with pytest.raises(InputError, match="trained on"):
        unet_engine.run(path, model=model, out=str(tmp_path / "o.zarr"))
    with pytest.raises(InputError, match="trained on"):
        unet_engine.make_plan(path, model=model)


def test_the_message_shows_lengths_axes_and_units(tmp_path):
    path = scan(tmp_path, (40.0, 4.0, 4.0), "nanometer")
    model = fake_model(tmp_path, spacing=(0.008, 0.008, 0.008))
    said = cli("plan", "--in", path, "--model", model)
    assert "are z 40, y 4, x 4 nanometer, id was trained on z 0.008, y 0.008, x 0.008 micrometer: " in said.error


def test_it_may_be_ignored_and_then_is_a_note(tmp_path):
    path = scan(tmp_path, (16.0, 16.0, 16.0), "nm")
    model = fake_model(tmp_path, spacing=(8.0, 8.0, 8.0), spacing_unit="nm")
    said = cli("run", "--in", path, "--model", model, "--out", "o.zarr", "--ignore-spacing", "--strict")
    assert said.code == 0, said.err
    assert "note: voxels of" in said.err
    assert "2 times as large along z" in said.err
    assert unet_engine.run(path, model=model, out="p.zarr", ignore_spacing=True).complete
    (tmp_path / "here").mkdir()
    (tmp_path / "here/unet-engine.toml").write_text("ignore_spacing = true")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "here")
        assert cli("plan", "--in", path, "--model", model).code == 0


@pytest.mark.parametrize(
    ("scale", "unit", "spec", "words"),
    [
        ((1.0, 1.0, 1.0), None, {}, "are z 1, y 1, x 1 in no unit"),
        ((1.0, 1.0, 1.0), "parsec", {}, "x 1 parsec"),
        ((1.0, 1.0, 1.0), "nm", {"spacing_unit": "pixel"}, "cannot be compared"),
        ((1.0, 1.0, 1.0), "nm", {"spacing": (0.0, 0.0, 0.0)}, "cannot be compared"),
    ],
)
def test_what_cannot_be_compared_is_told(tmp_path, scale, unit, spec, words):
    model = fake_model(tmp_path, **{"spacing": (8.0, 8.0, 8.0), **spec})
    said = cli("plan", "--in", scan(tmp_path, scale, unit), "--model", model)
    assert said.code == 0
    assert words in said.err
    assert "these units cannot be compared" in said.err


def test_a_volume_that_says_nothing_is_told(tmp_path):
    path = make_volume(tmp_path / "v.zarr", np.ones((9, 9, 9), np.uint8))
    said = cli("plan", "--in", path, "--model", fake_model(tmp_path, spacing=(1.0, 2.0, 3.0)))
    assert said.code == 0
    assert "note: " in said.err
    assert "does not say how large its voxels are; id was trained on z 1, y 2, x 3 micrometer" in said.err


def test_axes_in_another_order_are_compared_by_name(tmp_path):
    path = scan(tmp_path, (4.0, 8.0, 40.0), "nm", axes="xyz")
    volume = open_volume(path)
    notes = []
    fits = open_model(fake_model(tmp_path, name="fits", spacing=(40.0, 8.0, 4.0), spacing_unit="nm"))
    check_spacing(volume, fits.spec, notes, ignore=False)
    assert notes == []
    other = open_model(fake_model(tmp_path, name="other", spacing=(4.0, 8.0, 40.0), spacing_unit="nm"))
    with pytest.raises(InputError, match=r"10 times as large along z, 0\.1 times as large along x"):
        check_spacing(volume, other.spec, notes, ignore=False)


# --- the other commands ---


def with_spacing(path, spacing):
    """The ONNX file at `path`, whose spec now says this spacing, in nanometres."""
    onnx = pytest.importorskip("onnx")
    proto = onnx.load(path)
    entry = next(e for e in proto.metadata_props if e.key == "unet_engine.spec")
    entry.value = json.dumps(json.loads(entry.value) | {"spacing": spacing, "spacing_unit": "nanometer"})
    target = str(path).replace("tiny", "spaced")
    onnx.save(proto, target)
    return target


def test_quantize_and_bench_refuse_it_too(tmp_path, tiny_onnx):
    path, model = scan(tmp_path, (16.0, 8.0, 8.0), "nm"), with_spacing(tiny_onnx, [8.0, 8.0, 8.0])
    for args in (["quantize", model, "--calibrate", path], ["bench", "--in", path, "--model", model]):
        said = cli(*args)
        assert said.code == InputError.exit_code, said.err
        assert "2 times as large along z; " in said.error
    with pytest.raises(InputError, match="trained on"):
        quantize(Request(model, path), lambda line: None)
    with pytest.raises(InputError, match="trained on"):
        bench(BenchRequest(model, path), lambda line: None)


def test_they_take_it_when_told_to(tmp_path, tiny_onnx, monkeypatch):
    path, model = scan(tmp_path, (16.0, 8.0, 8.0), "nm"), with_spacing(tiny_onnx, [8.0, 8.0, 8.0])
    # the volume is smaller than the window: what comes after the check refuses that
    said = cli("quantize", model, "--calibrate", path, "--ignore-spacing")
    assert "note: voxels of" in said.err
    assert "trained on" not in said.error
    from unet_engine.commands.bench import command

    subject = command.own_subject(BenchRequest(model, path, ignore_spacing=True), lambda line: None)
    assert "--ignore-spacing" in subject.options
