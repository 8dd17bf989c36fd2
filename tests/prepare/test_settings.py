"""What settings take, in whatever way they are given: command line, settings file, Python."""

import json
from pathlib import Path

import numpy as np
import pytest

import unet_engine
from support.command_line import cli
from support.volumes import fake_model, make_volume
from unet_engine.commands import cli as command_line
from unet_engine.errors import SettingsError
from unet_engine.model.spec import ModelSpec, Normalization
from unet_engine.settings.settings import Settings

OTHER_FORMATS = [
    ("seg.h5:/labels", "no places inside of one", "seg.h5"),
    ("seg.NC:labels", "no places inside of one", "seg.NC"),
    ("seg.hdr", "NIfTI", "seg.zarr"),
    ("seg.IMG", "NIfTI", "seg.zarr"),
    ("seg.btf", "TIFF", "seg.zarr"),
    ("seg.ome.tf8", "TIFF", "seg.zarr"),
    ("a.v1.LSM/", "TIFF", "a.v1.zarr"),
    ("out.zip", "archive", "out.zarr"),
    ("out.zarr.zip", "archive", "out.zarr"),
    ("out.tar.gz", "archive", "out.zarr"),
    ("deep/er/out.nc", "HDF5", "out.zarr"),
    ("out.png", "image", "out.zarr"),
    ("out.mhd", "ITK", "out.zarr"),
    ("out.nhdr", "ITK", "out.zarr"),
    ("out.n5", "N5", "out.zarr"),
    ("out.npz", "NumPy", "out.zarr"),
    ("out.mrc", "MRC", "out.zarr"),
    ("out.json", "text", "out.zarr"),
    ("filecache::s3://bucket/x.tif", "TIFF", "x.zarr"),
    ("s3://bucket/x.TIF?versionId=3", "TIFF", "x.zarr"),
    ("simplecache::s3://bucket/x.nii.gz", "NIfTI", "x.zarr"),
]


@pytest.mark.parametrize(("out", "what", "instead"), OTHER_FORMATS)
def test_an_output_called_like_another_format_is_refused(ramp, model, out, what, instead):
    said = cli("run", "--in", ramp[1], "--model", model, "--out", out)
    assert said.code == SettingsError.exit_code
    assert said.error.startswith(f"unet-engine: --out '{out}': ")
    assert what in said.error
    assert f"use {instead}" in said.error
    assert sorted(p.name for p in Path().iterdir()) == ["id.fake.toml", "scan.zarr"]


def test_python_and_settings_files_are_refused_the_same(ramp, model):
    for out in ("seg.hdr", Path("seg.hdr")):
        with pytest.raises(SettingsError, match="NIfTI cannot be written yet"):
            unet_engine.run(ramp[1], model=model, out=out)
    with pytest.raises(SettingsError, match="TIFF"):
        unet_engine.make_plan(ramp[1], model=model, out="seg.btf")
    Path("here").mkdir()
    Path("here/unet-engine.toml").write_text('out = "seg.btf"')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir("here")
        said = cli("plan", "--in", ramp[1], "--model", model)
    assert said.code == SettingsError.exit_code
    assert "unet-engine.toml: out" in said.error
    assert "TIFF" in said.error


@pytest.mark.parametrize(
    "out",
    ["o.zarr", "o.ome.zarr", "o.ZARR", "labels", "v1.2", "run.2024-01-31", "x.tif.zarr", ".tif", "tif", "a.tif/o"],
)
def test_other_names_are_taken(ramp, model, out):
    assert unet_engine.run(ramp[1], model=model, out=out).complete
    assert Path(out, "zarr.json").is_file()


# --- numbers ---


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize(
    "setting", ["level", "timepoint", "threads", "overlap", "memory", "replace_nonfinite", "folds"]
)
def test_true_and_false_are_no_numbers(setting, value):
    with pytest.raises(SettingsError, match=f"{setting.replace('_', '-')}.*switched on and off"):
        Settings.of(input="scan.zarr", **{setting: value})


@pytest.mark.parametrize(
    ("setting", "value", "same"),
    [
        ("image", 3, "3"), ("folds", 0, "0"), ("folds", [0, 2], "0,2"), ("weights", (2, 1.5), "2,1.5"),
        ("input_channels", ["DAPI", 2], "DAPI,2"), ("nodata", [0, 255], "0,255"),
    ],
)  # fmt: skip
def test_numbers_and_lists_are_taken_as_on_the_command_line(setting, value, same):
    assert getattr(Settings.of(input="scan.zarr", **{setting: value}), setting) == same


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "NaN", "Infinity"])
@pytest.mark.parametrize("option", ["--replace-nonfinite", "--overlap-tolerance", "--hang-seconds"])
def test_numbers_that_are_none_are_refused(ramp, model, option, value):
    said = cli("run", "--in", ramp[1], "--model", model, "--out", "o.zarr", "--overlap", "auto", f"{option}={value}")
    assert said.code == SettingsError.exit_code
    assert option in said.error
    assert "finite number" in said.error
    assert not Path("o.zarr").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("setting", ["replace_nonfinite", "overlap_tolerance", "hang_seconds", "overlap"])
def test_they_are_refused_from_python_and_from_files(ramp, model, setting, value):
    options = {"overlap": "auto", setting: value} if setting == "overlap_tolerance" else {setting: value}
    with pytest.raises(SettingsError, match="finite number"):
        unet_engine.make_plan(ramp[1], model=model, **options)
    Path("here").mkdir()
    Path("here/unet-engine.toml").write_text(
        "\n".join(f"{k} = {json.dumps(v)}" for k, v in options.items() if v == "auto")
    )
    with Path("here/unet-engine.toml").open("a") as file:
        file.write(f"\n{setting} = {value}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir("here")
        said = cli("plan", "--in", ramp[1], "--model", model)
    assert said.code == SettingsError.exit_code
    assert f"unet-engine.toml: {setting}" in said.error


@pytest.mark.parametrize(
    "args",
    [
        ["bench", "--seconds", "nan"],
        ["bench", "--seconds", "inf"],
        ["bench", "--overlap", "nan"],
        ["quantize", "m.onnx", "--calibrate", "v.zarr", "--min-agreement", "nan"],
        ["quantize", "m.onnx", "--calibrate", "v.zarr", "--max-error", "nan"],
        ["quantize", "m.onnx", "--calibrate", "v.zarr", "--max-error", "inf"],
        ["quantize", "m.onnx", "--calibrate", "v.zarr", "--min-dice", "nan"],
        ["quantize", "m.onnx", "--calibrate", "v.zarr", "--min-dice", "cell=inf"],
        ["export", "m.onnx", "--out", "n.onnx", "--background", "nan"],
        ["export", "m.onnx", "--out", "n.onnx", "--spacing", "1,nan,1"],
        ["export", "m.onnx", "--out", "n.onnx", "--spacing", "1,0,1"],
        ["export", "m.onnx", "--out", "n.onnx", "--channels", "0"],
        ["export", "m.onnx", "--out", "n.onnx", "--window", "0,8,8"],
        ["info", "m.onnx", "--window", "0,8,8"],
    ],
)  # fmt: skip
def test_every_command_refuses_numbers_that_are_none(args):
    said = cli(*args)
    assert said.code == SettingsError.exit_code, said.err
    assert args[-2] in said.error


def test_no_option_takes_numbers_in_another_way():
    """Of all commands: an option of click's own float type would take NaN."""
    import click

    loose = [
        (name, option.name)
        for name, command in command_line.app.commands.items()
        for option in command.params
        if type(option.type) is click.types.FloatParamType or type(option.type) is click.FloatRange
    ]
    assert loose == []


@pytest.mark.parametrize(
    "text", ["range:nan,5", "range:-inf,5", "range:0,inf", "range:0,1e-320", "range:-1e308,1e308", "percentile:nan,99"]
)
def test_bounds_of_a_normalisation_are_finite_and_so_is_what_follows(text):
    with pytest.raises(SettingsError, match="is not understood"):
        Normalization.parse(text)


def test_no_spec_holds_nan():
    sizes = {"window": (8, 8), "window_min": (8, 8), "window_step": (8, 8), "margin": (0, 0)}
    spec = {"name": "a", "axes": "yx", "channels_in": 1, "channels_out": 2, **sizes}
    ModelSpec.model_validate(spec)
    for key, value in (("background", float("nan")), ("spacing", (1.0, float("inf"))), ("empty", (0.0, float("nan")))):
        with pytest.raises(ValueError, match="finite number"):
            ModelSpec.model_validate({**spec, key: value})


@pytest.mark.parametrize(
    ("dtype", "value", "taken"),
    [("f2", "1e5", False), ("f4", "1e39", False), ("f4", "-1e38", True), ("u1", "1e39", True)],
)
def test_what_replaces_nan_is_finite_in_the_type_of_the_voxels(tmp_path, model, dtype, value, taken):
    path = make_volume(tmp_path / "v.zarr", np.ones((8, 8, 8), dtype))
    said = cli("plan", "--in", path, "--model", model, f"--replace-nonfinite={value}")
    assert said.code == (0 if taken else SettingsError.exit_code)
    assert taken or "--replace-nonfinite" in said.error


# --- once ---


@pytest.mark.parametrize(
    ("args", "option"),
    [
        (["plan", "--in", "b.zarr"], "--in"),
        (["plan", "--in=b.zarr"], "--in"),
        (["plan", "--device", "cpu", "--device", "cpu"], "--device"),
        (["run", "--out", "a.zarr", "--out", "b.zarr"], "--out"),
        (["plan", "--profile", "--profile", "a"], "--profile"),
        (["run", "--overlap", "0.5", "--overlap", "0"], "--overlap"),
    ],
)
def test_an_option_with_one_value_is_given_once(ramp, model, args, option):
    said = cli(*args, "--in", ramp[1], "--model", model)
    assert said.code == SettingsError.exit_code
    assert f"{option} is given 2 times; give it once" in said.error
    assert not list(Path().glob("?.zarr"))


@pytest.mark.parametrize("second", [["--in", "b.zarr"], ["--in=b.zarr"]])
def test_two_volumes_do_not_go_to_one_place(ramp, model, second):
    said = cli("run", *second, "--in", ramp[1], "--model", model, "--out", "x.zarr")
    assert said.code == SettingsError.exit_code
    assert "--out x.zarr is one place for 2 volumes; name it after each" in said.error
    assert not list(Path().glob("?.zarr"))


@pytest.mark.parametrize(
    "args",
    [["quantize", "m.onnx", "--calibrate", "a", "--calibrate", "b"], ["bench", "--seconds", "60", "--seconds", "70"],
             ["export", "m.pth", "--out", "a.onnx", "--out", "b.onnx"],
             ["info", "m.onnx", "--axes", "zyx", "--axes", "xyz"]],
)  # fmt: skip
def test_so_it_is_in_every_command(args):
    said = cli(*args)
    assert said.code == SettingsError.exit_code
    assert f"{args[-2]} is given 2 times" in said.error


def test_flags_and_options_of_several_values_may_be_repeated(ramp, tmp_path):
    said = cli("plan", "--in", ramp[1], "--model", fake_model(tmp_path), "--strict", "--strict", "--json", "--json")
    assert said.code == 0
    several = ["--min-dice", "a=0.9", "--min-dice", "0.5"]
    assert "times" not in cli("quantize", "gone.onnx", "--calibrate", ramp[1], *several).error
