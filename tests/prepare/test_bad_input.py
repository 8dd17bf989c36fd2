"""What cannot work is refused in one line that names the place and the remedy, with the documented exit code, and
nothing is lost."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from support.command_line import cli
from support.volumes import fake_model, make_volume, result_of
from unet_engine import machine
from unet_engine.backends.fake import FakeBackend
from unet_engine.errors import (
    BackendError,
    DataError,
    InputError,
    ModelError,
    OutputError,
    PlanError,
    ResumeError,
    SettingsError,
)


def refused(said, kind, *words, lines=1):
    """`said` is the refusal of `kind`: `lines` lines on stderr (None: the plan before it), the last one with all
    `words` in it."""
    assert said.code == kind.exit_code, said.err
    assert "Traceback" not in said.err
    assert "Warning" not in said.err
    assert said.error.startswith("unet-engine: ")
    if lines is not None:
        assert len(said.err.strip().splitlines()) == lines, said.err
    for word in words:
        assert str(word) in said.error
    assert ";" in said.error or " use " in said.error, f"no remedy: {said.error}"


@pytest.fixture
def run(ramp, model):
    """Run the command line on the small volume with the identity network; options given replace these."""

    def run(*flags, **options):
        options = {"in": ramp[1], "model": model, "out": "out.zarr", **options}
        return cli("run", *flags, *(f"--{k.replace('_', '-')}={v}" for k, v in options.items() if v is not None))

    return run


# --- options ---


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("overlap", "abc", "give a fraction from 0 to below 1, or auto"),
        ("overlap", "1", "less than 1"),
        ("overlap", "-0.1", "give at least 0"),
        ("overlap", "nan", "--overlap"),
        ("blend", "linear", "'gaussian', 'constant', 'crop', 'monai' or 'nnunet'"),
        ("padding", "wrap", "'reflect', 'constant' or 'edge'"),
        ("output", "mask", "'labels', 'probabilities' or 'logits'"),
        ("dtype", "int8", "'uint8', 'float16' or 'float32'"),
        ("dtype", "uint8", "labels take the smallest"),
        ("precision", "fp8", "'fp16', 'bf16' or 'int8'"),
        ("normalize", "unit", "zscore"),
        ("normalize", "percentile:99", "percentile:1,99"),
        ("normalize", "range:5,5", "range:-1000,400"),
        ("window", "abc", "64,64,64"),
        ("window", "8", "one per axis"),
        ("window", "0,8,8", "positive"),
        ("window", "-8,8,8", "64,64,64"),
        ("window", "8,,8", "64,64,64"),
        ("window", "", "64,64,64"),
        ("threads", "0", "give at least 1"),
        ("workers", "0", "give at least 1"),
        ("workers", "two", "not a valid integer"),
        ("part", "0/4", "1/4 to 4/4"),
        ("part", "5/4", "1/4 to 4/4"),
        ("part", "2", "1/4 to 4/4"),
        ("hang_seconds", "0", "give more than 0"),
        ("gpus", "0", "give at least 1"),
        ("memory", "lots", "8GiB"),
        ("memory", "0", "8GiB"),
        ("memory", "-5GiB", "8GiB"),
        ("memory", "1.2.3GiB", "8GiB"),
        ("memory", "1e999", "8GiB"),
        ("memory", "", "8GiB"),
        ("replace_nonfinite", "x", "not a valid float"),
        ("roi", "", "empty"),
        ("roi", "3", "start:stop"),
        ("roi", "0:8", "zyx"),
        ("roi", "0:8,0:8,0:8,0:8", "zyx"),
        ("roi", "a:b,:,:", "start:stop"),
        ("roi", "-4:8,:,:", "start:stop"),
        ("roi", "8:4,:,:", "along z"),
        ("roi", ":,4:4,:", "along y"),
        ("roi", ":,:,0:25", "0:24"),
        ("out", "", "empty"),
        ("model", "", "empty"),
        ("axes", "", "empty"),
        ("axe", "zyx", "No such option"),
    ],
)
def test_options_that_make_no_sense(run, option, value, word):
    refused(run(**{option: value}), SettingsError, f"--{option.replace('_', '-')}", word)
    assert not Path("out.zarr").exists()


def test_options_that_exclude_each_other(run):
    refused(run("--resume", "--overwrite"), SettingsError, "--resume", "--overwrite")
    refused(run(gpus=1, device="cpu"), SettingsError, "--gpus", "--device")
    refused(run(output="logits", dtype="uint8"), SettingsError, "float32")
    refused(run(workers=2, scheduler="tcp://127.0.0.1:1"), SettingsError, "--workers", "--scheduler")
    refused(run(gpus=2, workers=2), SettingsError, "--gpus", "--workers")
    refused(run("--overwrite", part="1/2"), SettingsError, "--overwrite", "--part")
    refused(run(tls_ca="ca.pem"), SettingsError, "--tls-ca", "--tls-cert", "--tls-key")


def test_usage(run, ramp):
    refused(cli("run"), SettingsError, "--in")
    refused(cli("walk"), SettingsError, "walk", "--help")
    refused(cli("info"), SettingsError, "PATH")
    refused(cli("run", "--in", ramp[1], "stray"), SettingsError, "stray")
    refused(cli("run", "--in"), SettingsError, "--in")


def test_no_model(run):
    refused(run(model=None), SettingsError, "--model", "unet-engine.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model =", ["not valid TOML"]),
        (b"\xff", ["not valid TOML"]),
        ("colour = 1", ["colour", "not a setting"]),
        ("overlap = 'half'", ["overlap", "half"]),
        ("model = 3", ["model", "3"]),
        ("resume = true\noverwrite = true", ["exclude"]),
    ],
)
def test_settings_files(run, text, words):
    Path("unet-engine.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(run(model=None), SettingsError, *words, *([] if "exclude" in words else ["unet-engine.toml"]))


# --- devices ---


def test_gpus_where_there_is_none(run, tiny_onnx, monkeypatch):
    monkeypatch.setattr(machine, "gpu_count", lambda: 0)
    refused(run(gpus=1, model=tiny_onnx), BackendError, "no NVIDIA GPU", "--gpus")
    refused(run(device="cuda", model=tiny_onnx), BackendError, "no NVIDIA GPU")
    refused(run(device="cuda:0,1", model=tiny_onnx), BackendError, "no NVIDIA GPU")


def test_more_gpus_than_there_are(run, tiny_onnx, monkeypatch):
    monkeypatch.setattr(machine, "gpu_count", lambda: 1)
    refused(run(gpus=2, model=tiny_onnx), BackendError, "--gpus 1")
    refused(run(device="cuda:1", model=tiny_onnx), BackendError, "1 GPU", "from 0")


def test_unknown_devices_and_back_ends(run, tiny_onnx):
    refused(run(device="tpu", model=tiny_onnx), SettingsError, "tpu", "cuda:0,1")
    refused(run(device="cuda:x", model=tiny_onnx), SettingsError, "cuda:x")
    refused(run(backend="caffe", model=tiny_onnx), BackendError, "caffe", "openvino")
    refused(run(backend="pytorch", model=tiny_onnx), BackendError, "tiny.onnx", "openvino")
    refused(run(precision="int8", model=tiny_onnx), BackendError, "int8 is refused", "unet-engine quantize")


# --- input ---


def test_no_input_there(run):
    refused(run(**{"in": "nosuch.zarr"}), InputError, "nosuch.zarr does not exist")


def test_inputs_that_are_no_zarr(run, tmp_path):
    (tmp_path / "scan.tif").write_bytes(b"II*\0")
    refused(run(**{"in": "scan.tif"}), InputError, "scan.tif", "no readable TIFF")
    (tmp_path / "scan.bin").write_bytes(b"II*\0")
    refused(run(**{"in": "scan.bin"}), InputError, "scan.bin", "convert it to Zarr")
    (tmp_path / "planes").mkdir()
    (tmp_path / "planes/0001.tif").write_bytes(b"II*\0")
    refused(run(**{"in": "planes"}), InputError, "planes/0001.tif", "no readable TIFF")
    (tmp_path / "empty").mkdir()
    refused(run(**{"in": "empty"}), InputError, "empty", "no zarr.json")


def test_metadata_that_cannot_be_read(run, ramp):
    Path(ramp[1], "zarr.json").write_text('{"zarr_format": 3,')
    refused(run(), InputError, ramp[1])


def test_url_that_nothing_can_open(run):
    refused(run(**{"in": "nosuch://bucket/scan.zarr"}), InputError, "nosuch")
    refused(run(out="nosuch://bucket/out.zarr"), OutputError, "nosuch", lines=None)


def test_groups_without_multiscales(run, tmp_path):
    group = zarr.create_group(tmp_path / "group.zarr")
    group.create_array("raw", shape=(3, 3, 3), dtype="u1")
    group.create_group("more")
    (tmp_path / "group.zarr/notes").mkdir()
    (tmp_path / "group.zarr/notes/a.txt").write_text("x")
    refused(run(**{"in": "group.zarr"}), InputError, "without OME multiscales", "raw", "group.zarr/NAME")


@pytest.mark.parametrize(
    "multiscales",
    [
        [{}],
        [{"datasets": []}],
        "all",
        {"a": 1},
        [{"datasets": [{"path": "9"}]}],
        [{"axes": [1, 2, 3], "datasets": [{"path": "0"}]}],
        [{"axes": ["z"], "datasets": [{"path": "0"}]}],
        [{"datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 2]}]}]}],
        [{"datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": "big"}]}]}],
    ],
)
def test_multiscales_that_are_not_valid(run, tmp_path, multiscales):
    group = zarr.create_group(tmp_path / "g.zarr", attributes={"ome": {"multiscales": multiscales}})
    group.create_array("0", shape=(3, 3, 3), dtype="u1")
    refused(run(**{"in": "g.zarr"}), InputError, "g.zarr")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("shape", "dtype", "word"),
    [
        ((4, 4, 4), "complex64", "complex64"),
        ((4, 4, 4), "S3", "S3"),
        ((4, 4, 4), "datetime64[s]", "datetime64"),
        ((0, 4, 4), "uint8", "empty"),
        ((4,), "uint8", "1 axes"),
        ((), "uint8", "0 axes"),
        ((1,) * 6, "uint8", "6 axes"),
        ((2, 1, 4, 4, 4), "uint8", "2 time points"),
        ((9, 9), "uint8", "2D model"),
        ((2, 4, 4, 4), "uint8", "2 channels"),
    ],
)
def test_arrays_of_the_wrong_kind(run, tmp_path, shape, dtype, word):
    zarr.create_array(tmp_path / "v.zarr", shape=shape, dtype=dtype, chunks=tuple(max(1, n) for n in shape))
    refused(run(**{"in": "v.zarr"}), InputError, "v.zarr", word)


@pytest.mark.parametrize("axes", ["foo", "zy", "zyxc", "zzyx", "zxx", "abc"])
def test_axes_that_do_not_fit(run, axes):
    refused(run(axes=axes), InputError, axes)


def test_two_channel_model_on_one_channel(run, tmp_path):
    refused(run(model=fake_model(tmp_path, channels_in=2)), InputError, "1 channel and", "takes 2", "--axes")


def test_masks_that_do_not_fit(run, tmp_path, ramp):
    model = fake_model(tmp_path, name="skips", empty=[0.0])
    refused(run(mask="nosuch.zarr", model=model), InputError, "nosuch.zarr")
    make_volume(tmp_path / "mask.zarr", np.ones((20, 22, 23), bool))
    refused(run(mask="mask.zarr", model=model), InputError, "--mask", "mask.zarr")
    refused(run(mask=ramp[1], outside="keep"), ModelError, "--mask", "empty")


# --- voxels ---


@pytest.mark.parametrize(("value", "place"), [(np.nan, (0, 0, 0)), (np.inf, (13, 3, 19)), (-np.inf, (19, 21, 23))])
def test_nonfinite_voxels_are_named(run, tmp_path, value, place):
    array = np.zeros((20, 22, 24), np.float32)
    array[place] = value
    make_volume(tmp_path / "v.zarr", array)
    said = run(**{"in": "v.zarr"})
    refused(said, DataError, "NaN or Inf", "block", "z={} y={} x={}".format(*place), "--replace-nonfinite", lines=None)
    assert run("--overwrite", **{"in": "v.zarr", "replace_nonfinite": "0"}).code == 0


@pytest.mark.parametrize("damage", ["truncated", "empty", "junk"])
def test_damaged_chunks_are_named(run, ramp, damage):
    chunk = Path(ramp[1], "c/1/0/2")
    whole = chunk.read_bytes()
    chunk.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "junk": b"junk" * 100}[damage])
    refused(run(), DataError, ramp[1], "z=1 y=0 x=2", "restore", lines=None)
    chunk.write_bytes(whole)
    assert run("--overwrite").code == 0


def test_truncated_shard(run, tmp_path):
    make_volume(
        tmp_path / "v.zarr",
        np.random.default_rng(0).integers(0, 255, (16, 16, 16)).astype("u1"),
        shards=(16, 16, 16),
        chunks=(8, 8, 8),
    )
    shard = tmp_path / "v.zarr/c/0/0/0"
    shard.write_bytes(shard.read_bytes()[:200])
    refused(run(**{"in": "v.zarr"}), DataError, "v.zarr", "chunk", lines=None)


def test_truncated_chunk_of_zarr_v2_in_fortran_order(run, tmp_path):
    make_volume(tmp_path / "v.zarr", np.ones((16, 16, 16), ">u2"), zarr_format=2, order="F")
    (tmp_path / "v.zarr/1.0.1").write_bytes(b"x")
    refused(run(**{"in": "v.zarr"}), DataError, "z=1 y=0 x=1", lines=None)


def test_a_chunk_damaged_during_the_run_loses_nothing_that_was_written(run, tmp_path, monkeypatch):
    """The run stops at it; once the chunk is restored, a resume redoes no committed block and gives the undisturbed
    bytes. The volume is one that is not held as a whole."""
    monkeypatch.setattr("unet_engine.execution.local.MOST", 0)
    long = make_volume(tmp_path / "long.zarr", np.random.default_rng(0).integers(1, 200, (96, 8, 8), np.uint8))
    assert run(out="whole.zarr", **{"in": long}).code == 0
    chunk = Path(long, "c/11/0/0")
    whole, start, calls = chunk.read_bytes(), FakeBackend.start, []

    def damaging(self, slot):
        calls.append(slot)
        if len(calls) == 2 * self.slots:  # after warming up
            chunk.write_bytes(whole[:9])
        start(self, slot)

    with monkeypatch.context() as patch:
        patch.setattr(FakeBackend, "start", damaging)
        refused(run(**{"in": long}), DataError, "z=11 y=0 x=0", lines=None)
    chunk.write_bytes(whole)
    done = run("--resume", "--json", **{"in": long})
    assert done.code == 0
    assert done.json["blocks_written"] < done.json["blocks_planned"]
    np.testing.assert_array_equal(result_of("out.zarr"), result_of("whole.zarr"))


def test_constant_volume_has_no_statistics(run, tmp_path):
    make_volume(tmp_path / "v.zarr", np.full((9, 9, 9), 5, np.uint8))
    refused(run(**{"in": "v.zarr", "normalize": "zscore"}), DataError, "zscore", "range:LOW,HIGH")


def test_all_voxels_nonfinite(run, tmp_path):
    make_volume(tmp_path / "v.zarr", np.full((9, 9, 9), np.nan, np.float32))
    refused(run(**{"in": "v.zarr", "normalize": "minmax"}), DataError, "no finite voxel")


# --- model ---


def test_models_that_are_not_there(run, tmp_path):
    refused(run(model="nosuch.onnx"), ModelError, "nosuch.onnx does not exist")
    (tmp_path / "folder.onnx").mkdir()
    refused(run(model="folder.onnx"), ModelError, "folder.onnx is a folder", ".onnx", "nnU-Net", "MONAI")
    (tmp_path / "weights.h5").write_bytes(b"x")
    refused(run(model="weights.h5"), ModelError, "weights.h5", ".onnx")


@pytest.mark.parametrize("suffix", ["onnx", "pt2", "pt"])
@pytest.mark.parametrize("content", [b"", b"junk" * 99])
def test_model_files_with_nothing_usable_in_them(run, tmp_path, suffix, content):
    (tmp_path / f"bad.{suffix}").write_bytes(content)
    refused(run(model=f"bad.{suffix}"), ModelError, f"bad.{suffix}", "export it again")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_truncated_onnx(run, tmp_path, tiny_onnx, part):
    whole = Path(tiny_onnx).read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: int(len(whole) * part)])
    refused(run(model="cut.onnx"), ModelError, "cut.onnx")


def test_corrupt_onnx(run, tmp_path, tiny_onnx):
    """Bytes turned over: a file is refused in one line, or is another network that still runs."""
    whole, rng = Path(tiny_onnx).read_bytes(), np.random.default_rng(3)
    for turned in [40] * 8 + [2] * 8:
        bad = bytearray(whole)
        for place in rng.integers(0, len(bad), turned):
            bad[place] ^= 0xFF
        (tmp_path / "bad.onnx").write_bytes(bad)
        said = run("--overwrite", model="bad.onnx")
        assert said.code in (0, ModelError.exit_code, BackendError.exit_code, InputError.exit_code), said.err
        assert "Traceback" not in said.err


def test_onnx_with_its_weights_in_another_file(run, tmp_path, tiny_onnx):
    """They belong to the model: a resume notices another one's, and a missing file is named."""
    onnx = pytest.importorskip("onnx")
    onnx.save(
        onnx.load(tiny_onnx), tmp_path / "net.onnx", save_as_external_data=True, location="net.bin", size_threshold=0
    )
    assert run(model=tiny_onnx).code == 0
    assert run(model="net.onnx", out="external.zarr").code == 0
    np.testing.assert_array_equal(result_of("external.zarr"), result_of("out.zarr"))
    weights = bytearray((tmp_path / "net.bin").read_bytes())
    weights[0] ^= 1
    (tmp_path / "net.bin").write_bytes(weights)
    refused(run("--resume", model="net.onnx", out="external.zarr"), ResumeError, "model", lines=None)
    (tmp_path / "net.bin").unlink()
    refused(run("--resume", model="net.onnx", out="external.zarr"), ModelError, "net.bin")


@pytest.mark.parametrize(
    ("text", "word"),
    [("[spec", "TOML"), ("latency_ms = 1", "name"), ("[spec]\nname = 'a'\naxes = 'xyz'", "axes"), ("spec = 3", "spec")],
)
def test_specs_that_are_not_valid(run, tmp_path, text, word):
    (tmp_path / "bad.fake.toml").write_text(text)
    refused(run(model="bad.fake.toml"), ModelError, "bad.fake.toml", word)


def test_windows_that_the_pooling_does_not_divide(run, tmp_path, tiny_onnx):
    refused(run(window="18,16,16", model=tiny_onnx), ModelError, "18", "16 or 20")
    refused(run(window="8,8"), ModelError, "8×8", "zyx")
    refused(run(model=fake_model(tmp_path, name="odd", window=(9, 8, 8))), ModelError, "9", "8 or 12")


def test_a_window_that_no_memory_holds(run):
    refused(run(window="40000,40000,40000"), PlanError, "memory", "--window")


def test_a_network_that_fails_half_way(run, tmp_path):
    said = run(model=fake_model(tmp_path, fail_at=60))
    assert said.code == BackendError.exit_code
    assert "fails at window 60" in said.error


# --- foreign ONNX ---


@pytest.fixture(scope="module")
def foreign(tiny_onnx, tmp_path_factory):
    """The tiny network as others export it: without a spec. Returns a function: with the sizes that the file fixes, its
    path."""
    onnx = pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("foreign")

    def write(sizes):
        model = onnx.load(tiny_onnx)
        del model.metadata_props[:]
        for value in (*model.graph.input, *model.graph.output):
            for i, dim in enumerate(value.type.tensor_type.shape.dim[2:]):
                dim.Clear()
                if sizes:
                    dim.dim_value = sizes[i]
                else:
                    dim.dim_param = f"n{i}"
        del model.graph.value_info[:]
        path = folder / f"foreign{'-'.join(map(str, sizes or []))}.onnx"
        onnx.save(model, path)
        return str(path)

    return write


def test_foreign_onnx_runs_with_the_window_it_fixes(run, foreign, ramp):
    said = run("--json", model=foreign((16, 16, 16)), output="logits")
    assert said.code == 0, said.err
    assert "none" in said.err  # no normalisation
    assert result_of("out.zarr").shape == (2, *ramp[0].shape)


def test_foreign_onnx_runs_with_a_given_window_and_gives_the_same(run, foreign, tiny_onnx):
    assert run(model=tiny_onnx, output="logits").code == 0
    assert run(model=foreign(None), window="16,16,16", output="logits", out="foreign.zarr").code == 0
    np.testing.assert_array_equal(result_of("foreign.zarr"), result_of("out.zarr"))


def test_foreign_onnx_that_says_no_window(run, foreign):
    refused(run(model=foreign(None)), ModelError, "--window", "64,64,64")


def test_foreign_onnx_with_a_window_that_its_pooling_does_not_divide(run, foreign):
    refused(run(model=foreign(None), window="18,16,16"), ModelError, "18×16×16", "--window")


def test_foreign_onnx_with_another_window_than_it_fixes(run, foreign):
    refused(run(model=foreign((16, 16, 16)), window="16,16,20"), ModelError, "16 voxels along x")


def test_spec_beside_a_foreign_onnx(run, foreign, tmp_path):
    shutil.copy(foreign(None), tmp_path / "net.onnx")
    (tmp_path / "net.toml").write_text(
        "window = [16, 16, 16]\nclasses = ['out', 'in']\nnormalization = { mode = 'zscore' }\n"
    )
    said = run(model="net.onnx")
    assert said.code == 0, said.err
    assert "zscore" in said.err
    (tmp_path / "net.toml").write_text("window = [16, 16, 16]\nclasses = ['one']\n")
    refused(run("--overwrite", model="net.onnx"), ModelError, "net", "class names")
    (tmp_path / "net.toml").write_text("window = 16\n")
    refused(run("--overwrite", model="net.onnx"), ModelError, "window")
    (tmp_path / "net.toml").write_text("windows = [16, 16, 16]\n")
    refused(run("--overwrite", model="net.onnx", window="16,16,16"), ModelError, "windows")


# --- memory ---


def test_a_budget_that_is_too_small(run, monkeypatch):
    monkeypatch.setattr(machine, "resident_bytes", lambda: 2**28)  # not what the tests before have left
    said = run(memory="1KiB")
    refused(said, PlanError, "needs", "--memory", "MiB")
    assert not Path("out.zarr").exists()


# --- output ---


def test_an_existing_output_is_not_touched(run):
    assert run().code == 0
    before = _files("out.zarr")
    refused(run(), OutputError, "out.zarr exists", "--resume", "--overwrite", lines=None)
    assert _files("out.zarr") == before


@pytest.mark.parametrize("kind", ["folder", "group", "array", "file"])
def test_what_is_not_ours_is_left_alone(run, tmp_path, kind):
    if kind == "folder":
        (tmp_path / "theirs").mkdir()
        (tmp_path / "theirs/data").write_text("precious")
    elif kind == "file":
        (tmp_path / "theirs").write_text("precious")
    elif kind == "group":
        zarr.create_group(tmp_path / "theirs").create_array("0", data=np.ones((3, 3, 3)))
    else:
        zarr.create_array(tmp_path / "theirs", data=np.ones((3, 3, 3)))
    before = _files("theirs")
    refused(run("--overwrite", out="theirs"), OutputError, "theirs", "left alone", lines=None)
    refused(run(out="theirs"), OutputError, "theirs exists", lines=None)
    said = run("--resume", out="theirs")
    refused(said, ResumeError if kind in ("folder", "group") else OutputError, "theirs", lines=None)
    assert _files("theirs") == before


def test_an_empty_folder_is_taken(run, tmp_path):
    (tmp_path / "out.zarr").mkdir()
    assert run().code == 0


def test_overwrite_replaces_an_earlier_output(run, ramp):
    assert run(output="logits").code == 0
    assert run("--overwrite").code == 0
    assert result_of("out.zarr").shape == ramp[0].shape


def test_outputs_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("x")
    refused(run(out="file/out.zarr"), OutputError, "file/out.zarr", lines=None)
    refused(run(out="/proc/nosuch/out.zarr"), OutputError, "/proc/nosuch", lines=None)
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("out", ["scan.zarr", "scan.zarr/", "./scan.zarr/labels", "scan.zarr/../scan.zarr", "."])
def test_the_output_must_not_touch_the_input(run, ramp, out):
    before = _files(ramp[1])
    refused(run("--overwrite", out=out), SettingsError, "--out", "overlaps the input")
    assert _files(ramp[1]) == before


def test_the_output_must_not_touch_the_input_through_a_link(run, ramp, tmp_path):
    (tmp_path / "link.zarr").symlink_to(ramp[1])
    before = _files(ramp[1])
    refused(run("--overwrite", out="link.zarr"), SettingsError, "overlaps the input")
    refused(run("--overwrite", out="scan.zarr", **{"in": "link.zarr"}), SettingsError, "overlaps the input")
    assert _files(ramp[1]) == before


def test_the_output_must_not_touch_the_mask(run, tmp_path):
    """An earlier result may be the mask, and --overwrite would take it away."""
    assert run(out="mask.zarr").code == 0
    model = fake_model(tmp_path, name="skips", empty=[0.0])
    refused(run("--overwrite", out="mask.zarr", mask="mask.zarr/0", model=model), SettingsError, "overlaps the input")


# --- resume of another run ---


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"precision": "fp16"}, "precision"),
        ({"overlap": "0.25"}, "overlap"),
        ({"blend": "constant"}, "blend"),
        ({"roi": "0:8,:,:"}, "roi"),
        ({"window": "12,12,12"}, "window"),
        ({"output": "logits"}, "output"),
        ({"normalize": "range:0,9"}, "normalization"),
        ({"padding": "edge"}, "padding"),
        ({"replace_nonfinite": "1"}, "replace_nonfinite"),
    ],
)
def test_resume_with_other_settings(run, change, word):
    assert run().code == 0
    before = _files("out.zarr")
    refused(run("--resume", **change), ResumeError, "out.zarr", word, "--overwrite", lines=None)
    assert _files("out.zarr") == before


def test_resume_with_another_model_or_input(run, tmp_path, ramp):
    assert run().code == 0
    refused(run("--resume", model=fake_model(tmp_path, name="other", latency_ms=1)), ResumeError, "model", lines=None)
    make_volume(tmp_path / "other.zarr", ramp[0] + 1)
    refused(run("--resume", **{"in": "other.zarr"}), ResumeError, "input", lines=None)


def test_resume_of_an_output_whose_header_is_damaged(run):
    assert run().code == 0
    Path("out.zarr/zarr.json").write_text("{")
    refused(run("--resume"), OutputError, "out.zarr", lines=None)


def _files(path):
    path = Path(path)
    if path.is_file():
        return path.read_bytes()
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
