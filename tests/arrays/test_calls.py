"""From Python: arrays of every library, the same voxels as a run writes; notes, progress, signatures and errors."""

import inspect
import warnings

import numpy as np
import pytest
import zarr

import unet_engine
from support.volumes import fake_model, make_volume, result_of
from unet_engine.arrays.calls import NOT_OF_ARRAYS
from unet_engine.arrays.options import Options
from unet_engine.errors import InputError, OutputError, SettingsError, UnetEngineWarning
from unet_engine.settings.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore::unet_engine.errors.UnetEngineWarning")

SHAPE = (20, 17, 24)


@pytest.fixture
def values():
    return np.random.default_rng(5).normal(size=SHAPE).astype(np.float32)


@pytest.fixture
def model(tmp_path):
    return fake_model(tmp_path)


@pytest.fixture(params=["labels", "probabilities", "logits"])
def output(request):
    return {"output": request.param, **({"dtype": "float32"} if request.param == "probabilities" else {})}


def ran(values, model, tmp_path, name="ran", **options):
    """What `run` writes of the same voxels."""
    path = make_volume(tmp_path / f"{name}-in.zarr", values)
    return result_of(unet_engine.run(path, model, str(tmp_path / f"{name}.zarr"), **options).out)


def test_numpy_in_numpy_out_the_same_bytes_as_a_run(values, model, tmp_path, output):
    found = unet_engine.predict(values, model, **output)
    assert isinstance(found, np.ndarray)
    wanted = ran(values, model, tmp_path, **output)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "options", [{"roi": "3:19,0:17,5:11"}, {"memory": "4GiB", "tta": "mirror:zy"}, {"overlap": 0.0}]
)
def test_settings_are_those_of_run(values, model, tmp_path, options):
    wanted = ran(values, model, tmp_path, output="logits", **options)
    np.testing.assert_array_equal(unet_engine.predict(values, model, output="logits", **options), wanted)


def test_axes_channels_and_order(model, tmp_path):
    values = np.random.default_rng(6).normal(size=(12, 2, 9, 10)).astype(np.float32)
    found = unet_engine.predict(values, model, axes="xczy", input_channels=1, output="logits")
    wanted = unet_engine.predict(np.ascontiguousarray(values[:, 1].transpose(1, 2, 0)), model, output="logits")
    assert found.shape == (1, 12, 9, 10)
    np.testing.assert_array_equal(found.transpose(0, 2, 3, 1), wanted)


def test_zarr_in_zarr_out(values, model, tmp_path, output):
    stored = zarr.create_array({}, shape=SHAPE, chunks=(8, 8, 8), dtype="f4")
    stored[...] = values
    found = unet_engine.predict(stored, model, **output)
    assert isinstance(found, zarr.Array)
    np.testing.assert_array_equal(found[...], ran(values, model, tmp_path, **output))
    path = make_volume(tmp_path / "scan.zarr", values)
    np.testing.assert_array_equal(unet_engine.predict(path, model, **output)[...], found[...])


def test_an_image_in_an_open_store(values, model, tmp_path):
    from zarr.storage import LocalStore

    path = make_volume(tmp_path / "image.zarr", values, ome="0.5", axes="zyx", scale=(2.0, 1.0, 0.5), unit="micrometer")
    for given in (LocalStore(path), zarr.open_group(path, mode="r")):
        volume = unet_engine.open_volume(given)
        assert (volume.axes, volume.spacing, volume.unit) == ("zyx", (2.0, 1.0, 0.5), "micrometer")
        np.testing.assert_array_equal(unet_engine.predict(given, model)[...], unet_engine.predict(values, model))


def test_dask_in_dask_out_read_by_block(values, model, output):
    da = pytest.importorskip("dask.array")
    read = []

    def block(part):
        read.append(part.shape)
        return part

    lazy = da.from_array(values, chunks=(8, 8, 8)).map_blocks(block, dtype=values.dtype, meta=np.empty((0, 0, 0), "f4"))
    found = unet_engine.predict(lazy, model, **output)
    assert isinstance(found, da.Array)
    assert max(np.prod(shape) for shape in read) <= 512
    np.testing.assert_array_equal(found.compute(), unet_engine.predict(values, model, **output))


def test_xarray_keeps_its_coordinates(values, model, output):
    xr = pytest.importorskip("xarray")
    array = xr.DataArray(
        values,
        dims=("lev", "lat", "lon"),
        coords={
            "lev": ("lev", np.arange(20) * 2.0, {"units": "mm"}),
            "lat": np.linspace(50, 34, 17),
            "lon": np.arange(24) * 0.5 + 7,
            "area": (("lat", "lon"), np.ones((17, 24))),
            "when": 2026,
        },
        name="scan",
    )
    found = unet_engine.predict(array, model, roi="2:10,0:17,4:24", **output)
    wanted = unet_engine.predict(values, model, roi="2:10,0:17,4:24", **output)
    lead = () if output["output"] == "labels" else ("class",)
    assert found.dims == (*lead, "lev", "lat", "lon")
    np.testing.assert_array_equal(found.values, wanted)
    cut = array.isel(lev=slice(2, 10), lon=slice(4, 24))
    for name in ("lev", "lat", "lon", "area", "when"):
        assert found.coords[name].identical(cut.coords[name])
    assert found.name == "scan"
    chunked = unet_engine.predict(array.chunk(8), model, roi="2:10,0:17,4:24", **output)
    assert chunked.chunks
    np.testing.assert_array_equal(chunked.values, wanted)


def test_xarray_says_its_spacing():
    xr = pytest.importorskip("xarray")
    coords = {
        "z": ("z", [0.0, 3.0], {"units": "mm"}),
        "y": ("y", [5.0, 6.0, 7.0], {"units": "mm"}),
        "x": ("x", [0.0, 0.5], {"units": "mm"}),
    }
    volume = unet_engine.open_volume(xr.DataArray(np.zeros((2, 3, 2)), coords=coords))
    assert (volume.spacing, volume.translation, volume.unit) == ((3.0, 1.0, 0.5), (0.0, 5.0, 0.0), "millimeter")
    uneven = xr.DataArray(np.zeros((2, 4, 2)), dims=("z", "y", "x"), coords={"y": [0, 1, 2, 5]})
    assert unet_engine.open_volume(uneven).spacing is None


def test_a_time_point_of_xarray(values, model):
    xr = pytest.importorskip("xarray")
    array = xr.DataArray(np.stack([values, -values]), dims=("time", "z", "y", "x"), coords={"time": [1, 2]})
    found = unet_engine.predict(array, model, timepoint=1, output="logits")
    np.testing.assert_array_equal(found.values, unet_engine.predict(-values, model, output="logits"))
    assert found.dims == ("class", "z", "y", "x")


def test_spacing_is_said_or_refused(values, tmp_path):
    trained = fake_model(tmp_path, name="trained", spacing=(1.0, 1.0, 1.0), spacing_unit="millimeter")
    with pytest.raises(InputError, match="ignore_spacing"):
        unet_engine.predict(values, trained, spacing=(9.0, 1.0, 1.0), unit="millimeter")
    assert unet_engine.predict(values, trained, spacing=(1, 1, 1), unit="millimeter").shape == SHAPE
    with pytest.raises(InputError, match="give a distance for each"):
        unet_engine.predict(values, trained, spacing=(1, 1))


@pytest.mark.parametrize("kind", ["numpy", "part", "turned", "xarray", "zarr"])
def test_it_is_not_written_into_what_is_read(model, kind):
    """Blocks are written while others are read: a network with a margin was given labels of blocks before."""
    values = np.random.default_rng(7).integers(0, 2, (2, 12, 8, 8)).astype(np.uint8)
    given, out = values[0], values[0]
    if kind == "part":
        out = values.reshape(24, 8, 8)[6:18]
    elif kind == "turned":
        out = out[::-1]
    elif kind == "xarray":
        given = pytest.importorskip("xarray").DataArray(given, dims=("z", "y", "x"))
    elif kind == "zarr":
        given = zarr.create_array({}, shape=given.shape, dtype=given.dtype)
        out = zarr.open_array(given.store, mode="r+")
    before = values.copy()
    with pytest.raises(OutputError, match="out lies where the voxels do"):
        unet_engine.predict(given, model, out=out, progress=False)
    np.testing.assert_array_equal(values, before)
    unet_engine.predict(values[0], model, out=values[1], progress=False)  # beside it


@pytest.mark.parametrize("kind", ["zarr", "level", "npy", "npy twice", "joined", "hdf5", "mask"])
def test_it_is_not_written_into_what_a_path_names(model, kind, tmp_path):
    values = np.random.default_rng(7).integers(0, 2, (12, 8, 8)).astype(np.uint8)
    place, settings = make_volume(tmp_path / "a.zarr", values), {}
    given, out = place, zarr.open_array(place, mode="r+")
    if kind == "level":
        given = make_volume(tmp_path / "i.zarr", values, ome="0.5", axes="zyx")
        out = zarr.open_group(given, mode="r+")["0"]
    elif kind.startswith("npy"):
        given = str(tmp_path / "a.npy")
        np.save(given, values)
        out = np.load(given, mmap_mode="r+")[:]
        given = np.load(given, mmap_mode="r") if kind == "npy twice" else given
    elif kind == "joined":
        given = f"{make_volume(tmp_path / 'b.zarr', values)}+{place}"
        settings = {"input_channels": "1"}
    elif kind == "hdf5":
        out = pytest.importorskip("h5py").File(tmp_path / "a.h5", "w").create_dataset("data", data=values)
        out.file.flush()
        given = str(tmp_path / "a.h5")
    elif kind == "mask":
        given, settings = values, {"mask": place, "roi": "0:4,:,:"}
    before = values.copy()
    with pytest.raises(OutputError, match="out lies where the voxels do"):
        unet_engine.predict(given, model, out=out, progress=False, **settings)
    np.testing.assert_array_equal(np.asarray(out[...]), before)


def test_it_is_written_beside_what_is_read(model, tmp_path):
    values = np.random.default_rng(7).integers(0, 2, (12, 8, 8)).astype(np.uint8)
    given = make_volume(tmp_path / "i.zarr", values, ome="0.5", axes="zyx")
    out = zarr.open_group(given, mode="r+").create_array("labels/cells/0", shape=values.shape, dtype=values.dtype)
    expected = unet_engine.predict(values, model, progress=False)
    np.testing.assert_array_equal(unet_engine.predict(given, model, out=out, progress=False)[...], expected)


@pytest.mark.parametrize("option", [{"nodata": "-99", "outside": "9"}, {"replace_nonfinite": 7}])
@pytest.mark.parametrize("kind", ["numpy", "dask", "xarray", "torch"])
def test_what_is_given_is_left_as_it_was(model, kind, option):
    """A block of all of it is a view of it, and voxels that were not measured are written over there."""
    values = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
    values[1, 1, 1] = -99 if "nodata" in option else np.nan
    given, before = values, values.copy()
    if kind == "dask":
        given = pytest.importorskip("dask.array").from_array(values)
    elif kind == "xarray":
        given = pytest.importorskip("xarray").DataArray(values, dims=("z", "y", "x"))
    elif kind == "torch":
        given = pytest.importorskip("torch").from_numpy(values)
    found = unet_engine.predict(given, model, progress=False, normalize="none", **option)
    np.testing.assert_array_equal(values, before)
    if "nodata" in option:
        assert np.asarray(found)[1, 1, 1] == 9


def test_it_is_written_into_what_is_given(values, model):
    wanted = unet_engine.predict(values, model, output="logits")
    out = np.full(wanted.shape, np.nan, np.float32)
    assert unet_engine.predict(values, model, out=out, output="logits") is out
    np.testing.assert_array_equal(out, wanted)
    stored = zarr.create_array({}, shape=wanted.shape, chunks=(1, 5, 7, 6), dtype="f4")
    unet_engine.predict(values, model, out=stored, output="logits")
    np.testing.assert_array_equal(stored[...], wanted)
    with pytest.raises(OutputError, match="out is"):
        unet_engine.predict(values, model, out=np.zeros(SHAPE, "f8"), output="logits")


def test_run_takes_arrays_and_opened_models(values, model, tmp_path):
    wanted = ran(values, model, tmp_path, output="logits")
    opened = unet_engine.open_model(model)
    found = unet_engine.run(values, opened, tmp_path / "a.zarr", output="logits")
    np.testing.assert_array_equal(result_of(found.out), wanted)
    assert unet_engine.run(values, opened, tmp_path / "a.zarr", output="logits", resume=True).already_complete
    np.testing.assert_array_equal(unet_engine.predict(values, opened, output="logits"), wanted)
    plan = unet_engine.make_plan(values, opened, tmp_path / "a.zarr", output="logits")
    assert plan.digest == found.digest
    with pytest.raises(SettingsError, match="out is needed"):
        unet_engine.run(values, opened)


def test_a_torch_module_stands_for_a_file(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 2, 1))
    module.train()
    values = np.random.default_rng(7).normal(size=(12, 16, 12)).astype(np.float32)
    given = {"window": (8, 8, 8), "normalize": "none", "output": "logits", "blend": "crop", "precision": "fp32"}
    found = unet_engine.predict(values, module, **given)
    with torch.no_grad():
        wanted = module.eval()(torch.from_numpy(values)[None, None])[0].numpy()
    inside = (slice(None), slice(3, 5), slice(3, 5), slice(3, 5))
    assert found.shape == (2, *values.shape)
    np.testing.assert_allclose(found[inside], wanted[inside], atol=1e-4)
    module.train()
    unet_engine.predict(values, module, **given)
    assert module.training
    with pytest.raises(SettingsError, match="window is needed"):
        unet_engine.predict(values, module)


# --- what is said ---


def test_notes_are_warnings_and_in_the_result(values, model, tmp_path, monkeypatch):
    monkeypatch.setenv("UNET_ENGINE_OVERLAP", "0.25")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result = unet_engine.run(make_volume(tmp_path / "v.zarr", values), model, tmp_path / "o.zarr")
        unet_engine.predict(values, model)
    ours = [w for w in seen if w.category is UnetEngineWarning]
    assert [str(w.message) for w in ours] == ["from the environment: overlap"] * 2
    assert {w.filename for w in ours} == {__file__}
    assert result.notes == ("from the environment: overlap",)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"overlap": 2}, "overlap 2"),
        ({"roi": "0:4"}, "roi '0:4'"),
        ({"normalise": "zscore"}, "normalise is not a setting"),
        ({"replace_nonfinite": float("inf")}, "replace_nonfinite"),
    ],
)
def test_errors_name_arguments(values, model, options, said):
    with pytest.raises(SettingsError) as found:
        unet_engine.predict(values, model, **options)
    assert said in str(found.value)
    assert "--" not in str(found.value)


def test_errors_of_run_tell_what_options_are_called(values, model, tmp_path):
    path = make_volume(tmp_path / "v.zarr", values)
    with pytest.raises(SettingsError) as found:
        unet_engine.run(path, model, overlap_tolerance=0.5)
    assert found.value.__notes__ == ["arguments: overlap_tolerance for --overlap-tolerance, overlap for --overlap"]


def test_what_is_no_volume_is_refused(model):
    for given in ("missing.zarr", object(), np.zeros(3), np.zeros((2, 2), "U1"), [[1, 2]]):
        with pytest.raises(InputError):
            unet_engine.predict(given, model)
    with pytest.raises(InputError, match="replace_nonfinite"):
        unet_engine.predict(np.full((8, 8, 8), np.nan, np.float32), model)
    for name in ("resume", "workers", "part"):
        assert name in NOT_OF_ARRAYS
        with pytest.raises(SettingsError, match=f"{name} is for outputs"):
            unet_engine.predict(np.zeros((8, 8, 8)), model, **{name: 1})


def test_what_would_be_read_otherwise_than_it_says_is_refused_and_tensors_are_taken(model):
    values = np.random.default_rng(1).normal(size=(8, 8, 8)).astype(np.float32)
    with pytest.raises(InputError, match=r"masked voxels.*give array\.filled"):
        unet_engine.predict(np.ma.masked_array(values, values > 1), model)
    plain = unet_engine.predict(values, model)
    np.testing.assert_array_equal(unet_engine.predict(np.ma.masked_array(values), model), plain)
    with pytest.raises(OutputError, match=r"out is str, and predict writes into arrays; .*unet_engine\.run"):
        unet_engine.predict(values, model, out="labels.zarr")
    dask = pytest.importorskip("dask.array").from_array(values.ravel(), chunks=64)
    with pytest.raises(InputError, match="does not know its shape"):
        unet_engine.predict(dask[dask > 0], model)
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(unet_engine.predict(torch.tensor(values, requires_grad=True), model), plain)
    with pytest.raises(InputError, match="Tensor cannot be read as an array"):
        unet_engine.predict(torch.tensor(values).to(torch.bfloat16), model)


def test_signatures_are_those_of_the_settings():
    """Static ones, which editors read, and those that notebooks show."""
    assert set(Options.__annotations__) == set(Settings.model_fields) - {"input", "model", "out"}
    for function in (unet_engine.run, unet_engine.make_plan):
        names = set(inspect.signature(function).parameters) - {"progress"}
        assert names == set(Settings.model_fields)
    names = set(inspect.signature(unet_engine.predict).parameters) - {"array", "spacing", "unit", "progress"}
    assert names == set(Settings.model_fields) - {"input", *NOT_OF_ARRAYS}
    assert inspect.signature(unet_engine.run).parameters["overlap"].default == 0.5


def test_volumes_are_opened(values, tmp_path):
    path = make_volume(tmp_path / "scan.zarr", values)
    volume = unet_engine.open_volume(path)
    assert volume.shape == SHAPE
    from unet_engine.plan.box import Box

    box = Box((1, 2, 3), (4, 5, 9))
    np.testing.assert_array_equal(volume.read(box)[0], values[box.slices()])
    given = unet_engine.open_volume(values, spacing=(3, 1, 1), unit="micrometer")
    np.testing.assert_array_equal(given.read(box)[0], values[box.slices()])
    assert (given.spacing, given.unit) == ((3.0, 1.0, 1.0), "micrometer")


def test_a_bar_is_shown_in_terminals_alone(values, model, monkeypatch, capsys):
    unet_engine.predict(values, model)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    unet_engine.predict(values, model)
    assert "━" in capsys.readouterr().err
    unet_engine.predict(values, model, progress=False)
    assert capsys.readouterr().err == ""
