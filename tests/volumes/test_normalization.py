"""What `--normalize` says: read and printed, the frameworks' formulas over whole volumes, on host and device."""

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import unet_engine
from support.volumes import fake_model, identity, make_volume, result_of
from unet_engine.commands.info import describe
from unet_engine.errors import DataError, SettingsError
from unet_engine.model.file import open_model
from unet_engine.model.normalization import Normalization
from unet_engine.plan.box import Box
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.normalize import Scaling, quantiles, scaling
from unet_engine.volumes.windows import cut


def scan(seed=0, shape=(20, 19, 18), dtype=np.int16):
    """Air at -1000, tissue around 40, a few bright voxels; zeros in a corner."""
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(shape) < 0.5, -1000 + rng.normal(0, 20, shape), rng.normal(40, 200, shape))
    x[rng.random(shape) < 0.01] = 3500
    x[2:11, 3:12, 2:11] = 0
    return x.astype(dtype)


def ct(x, mean=99.5, std=39.4, low=-41, high=176):
    return (np.clip(x, low, high) - mean) / max(std, 1e-8)


def own_percentiles(x, low, high):
    a, b = np.percentile(x, [low, high])
    return (np.clip(x, a, b) - a) / (b - a)


def nonzero(x):
    inside = x != 0
    return np.where(inside, (x - x[inside].mean()) / x[inside].std(), 0)


def inside_of(x):
    return pytest.importorskip("scipy.ndimage").binary_fill_holes(x != 0)


FORMULAS = {
    "fixed:mean=99.5,std=39.4,clip=-41:176": ct,
    "fixed:mean=99.5,std=39.4,clip=0.5%:99.5%": lambda x: ct(x, low=np.percentile(x, 0.5), high=np.percentile(x, 99.5)),
    "zscore:clip=-1024:3071": lambda x: (
        (np.clip(x, -1024, 3071) - np.clip(x, -1024, 3071).mean()) / np.clip(x, -1024, 3071).std()
    ),
    "range:-1000,400,clip": lambda x: (np.clip(x, -1000, 400) + 1000) / 1400,
    "range:-1000,400,to=-1:1": lambda x: (x + 1000) / 1400 * 2 - 1,
    "range:-1000,400,to=1:0,clip": lambda x: 1 - (np.clip(x, -1000, 400) + 1000) / 1400,
    "percentile:2,98,clip": lambda x: own_percentiles(x, 2, 98),
    "percentile:0,100,clip=-900:900": lambda x: (np.clip(x, -900, 900) + 900) / 1800,
    "minmax:to=-1:1,clip": lambda x: (x - x.min()) / (x.max() - x.min()) * 2 - 1,
    "zscore:foreground": nonzero,
    "zscore:foreground=-500": lambda x: np.where(x > -500, (x - x[x > -500].mean()) / x[x > -500].std(), 0),
    "zscore:foreground=-500,everywhere": lambda x: (x - x[x > -500].mean()) / x[x > -500].std(),
    "zscore:foreground=filled,everywhere": lambda x: (x - x[inside_of(x)].mean()) / x[inside_of(x)].std(),
    "none:clip=-100:100": lambda x: np.clip(x, -100, 100),
}


@pytest.mark.parametrize("device", ["cpu", "simulated"])
@pytest.mark.parametrize("text", FORMULAS)
def test_a_whole_volume_is_what_the_formula_makes_of_it(text, device, tmp_path):
    image = scan()
    path = make_volume(tmp_path / "scan.zarr", image, axes="zyx")
    found = identity(path, tmp_path, normalize=text, device=device)[0]
    expected = FORMULAS[text](image.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f2", "f4", "f8"])
@pytest.mark.parametrize("text", ["zscore:foreground,clip=3:90", "percentile:5,95,clip,foreground=20"])
def test_host_and_device_give_the_same_bits_in_all_types(dtype, text, tmp_path):
    image = np.random.default_rng(1).integers(0, 120, (12, 12, 12)).astype(dtype)
    path = make_volume(tmp_path / "scan.zarr", image, axes="zyx")
    both = [
        identity(path, tmp_path, normalize=text, device=d, out=str(tmp_path / f"{d}.zarr"))
        for d in ("cpu", "simulated")
    ]
    np.testing.assert_array_equal(both[0].view(np.uint32), both[1].view(np.uint32))
    assert np.all(both[0][0][image <= (20 if "=20" in text else 0)] == 0)


def test_channels_have_statistics_of_their_own(tmp_path):
    image = np.random.default_rng(2).integers(0, 256, (3, 8, 40, 40)).astype(np.uint8)
    path = make_volume(tmp_path / "rgb.zarr", image, axes="czyx")
    model = fake_model(tmp_path, axes="yx", channels_in=3, channels_out=3)
    found = identity(path, tmp_path, model=model, normalize="imagenet")
    mean, std = (np.reshape(v, (3, 1, 1, 1)) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    np.testing.assert_allclose(found, (image / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    found = identity(path, tmp_path, model=model, normalize="none:clip=0:100/50:60/7:255", overwrite=True)
    bounds = np.array([[0, 100], [50, 60], [7, 255]]).T.reshape(2, 3, 1, 1, 1)
    np.testing.assert_array_equal(found, np.clip(image, *bounds))


def test_monai_gives_the_same(tmp_path):
    transforms = pytest.importorskip("monai.transforms")
    image = scan().astype(np.float32)
    path = make_volume(tmp_path / "scan.zarr", image, axes="zyx")
    pairs = {
        "range:-1000,400,to=-1:1,clip": transforms.ScaleIntensityRange(-1000, 400, -1, 1, clip=True),
        "range:-1000,400": transforms.ScaleIntensityRange(-1000, 400, 0, 1, clip=False),
        "percentile:5,95,to=0:2,clip": transforms.ScaleIntensityRangePercentiles(5, 95, 0, 2, clip=True),
        "zscore:foreground": transforms.NormalizeIntensity(nonzero=True, channel_wise=True),
    }
    for number, (text, transform) in enumerate(pairs.items()):
        found = identity(path, tmp_path, normalize=text, out=str(tmp_path / f"{number}.zarr"))
        np.testing.assert_allclose(found, np.asarray(transform(image[None])), rtol=1e-4, atol=1e-4, err_msg=text)


@pytest.mark.parametrize("device", ["cpu", "simulated"])
@pytest.mark.parametrize("resampled", [False, True])
def test_channels_may_be_normalised_in_different_ways(tmp_path, device, resampled):
    """A PET beside a CT: one by fixed figures, one by its own, one of what is not 0, one as it is."""
    ways = ["fixed:mean=99.5,std=39.4,clip=-41:176", "minmax", "zscore:foreground", "none"]
    image = np.stack([scan(i).astype(np.float32) for i in range(4)])
    path = make_volume(tmp_path / "v.zarr", image, axes="czyx", ome="0.5", scale=(1, 2, 2, 2), unit="millimeter")
    spec = {"spacing": [2.0, 2.0, 2.1], "spacing_unit": "millimeter", "resampling": {"output": 0}} if resampled else {}
    model = fake_model(tmp_path, channels_in=4, channels_out=4, **spec)
    expected = np.stack([ct(image[0]), own_percentiles(image[1], 0, 100), nonzero(image[2]), image[3]])
    found = identity(path, tmp_path, model=model, normalize=";".join(ways), device=device)
    if not resampled:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    alone = [
        identity(
            make_volume(tmp_path / f"{c}.zarr", image[c : c + 1], axes="czyx", ome="0.5", scale=(1, 2, 2, 2), unit="millimeter"),
            tmp_path, model=fake_model(tmp_path, name=f"m{c}", **spec), normalize=way, out=str(tmp_path / f"o{c}.zarr"),
        )[0]
        for c, way in enumerate(ways)
    ]  # fmt: skip
    np.testing.assert_array_equal(found, np.stack(alone))
    with pytest.raises(SettingsError, match="2 ways are said for 4 input channels"):
        identity(path, tmp_path, model=model, normalize="zscore;minmax", overwrite=True)


def test_nan_is_replaced_before_it_is_clipped(tmp_path):
    image = scan(dtype=np.float32)
    image[3, 3, 3] = np.nan
    image[4, 4, 4] = np.inf
    path = make_volume(tmp_path / "scan.zarr", image, axes="zyx")
    with pytest.raises(DataError, match="replace-nonfinite"):
        identity(path, tmp_path, normalize="range:-1000,400,clip")
    found = identity(
        path, tmp_path, normalize="range:-1000,400,clip", replace_nonfinite=-9999, out=str(tmp_path / "b.zarr")
    )[0]
    assert found[3, 3, 3] == found[4, 4, 4] == 0


numbers = st.floats(-1e6, 1e6).map(lambda v: float(np.float32(v)))


@given(
    st.sampled_from(
        list(FORMULAS) + ["imagenet", "fixed:mean=1/2,std=3/4,clip=0:1/2:3", "percentile:1,99", "none;zscore:eps=1e-08"]
    ),
    numbers,
    st.floats(0.001, 1e6),
)
def test_text_is_read_as_it_is_printed(text, low, width):
    for said in (Normalization.parse(text), Normalization(mode="fixed", mean=low, std=width, clip=(low, low + width))):
        assert Normalization.parse(str(said)) == said
        assert Normalization.model_validate_json(said.model_dump_json()) == said


def test_what_is_not_said_is_not_written():
    said = Normalization(mode="range", low=0, high=255)
    assert json.loads(said.model_dump_json()) == {"mode": "range", "low": 0.0, "high": 255.0}
    assert json.loads(Normalization().model_dump_json()) == {"mode": "none", "low": None, "high": None}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("clip", "Input should be"),
        ("zscore:clip", "clip alone follows"),
        ("zscore:clip=5", "is not LOW:HIGH"),
        ("zscore:clip=9:5", "A below B"),
        ("zscore:clip=-1%:5%", "between 0 and 100"),
        ("zscore:clip=1:2,clip_of=all", "is said of percentiles"),
        ("zscore:clip=1%:2%,clip_of=some", "Input should be"),
        ("range:0,1,clip=1%:2%,measured_of=raw", "measured_of is said of"),
        ("percentile:1,99,together,clip=1%:2%,clip_of=each,measured_of=clipped", "are not measured"),
        ("zscore:clip=1%:2%,clip_of=all;none", "no statistics together"),
        ("zscore:clip=0:1,clip=0:2", "said twice"),
        ("range:0,inf", "is not finite"),
        ("range:0", "1 bounds"),
        ("range:0,255,claps", "'claps' is no number"),
        ("zscore:mean=3", "belong to fixed"),
        ("fixed:mean=3", "needs mean and std"),
        ("fixed:mean=3,std=0", "above 0"),
        ("fixed:mean=1/2/3,std=1/2", "3 values of mean"),
        ("zscore:to=0:1", "belongs to range"),
        ("range:0,1,to=1:1", "A differs from B"),
        ("none:foreground", "no foreground"),
        ("zscore:everywhere", "of a foreground"),
        ("zscore;", "Input should be"),
        ("zscore:together;none", "no statistics together"),
    ],
)
def test_what_is_not_understood_is_said_in_one_line(text, why):
    with pytest.raises(SettingsError, match="is not understood") as error:
        Normalization.parse(text)
    assert why in str(error.value)
    assert "\n" not in str(error.value)
    assert "fixed:mean" in str(error.value)


def test_other_numbers_of_channels_are_refused(tmp_path):
    path = make_volume(tmp_path / "scan.zarr", scan(), axes="zyx")
    with pytest.raises(SettingsError, match="mean has 3 values for 1 input channels"):
        identity(path, tmp_path, normalize="imagenet")


def test_a_volume_without_foreground_is_refused(tmp_path):
    path = make_volume(tmp_path / "scan.zarr", scan(), axes="zyx")
    with pytest.raises(DataError, match="no voxel in the samples of channel 0 is foreground"):
        identity(path, tmp_path, normalize="zscore:foreground=9000")


def test_the_spec_says_it_as_text_or_as_a_table(tmp_path):
    path = make_volume(tmp_path / "scan.zarr", scan(), axes="zyx")
    text = "fixed:mean=99.5,std=39.4,clip=-41:176"
    table = {"mode": "fixed", "mean": 99.5, "std": 39.4, "clip": [-41, 176]}
    by_text = identity(path, tmp_path, model=fake_model(tmp_path / "a", normalization=text))
    model = fake_model(tmp_path / "b")
    with Path(model).open("a") as file:
        file.write("[spec.normalization]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in table.items()))
    assert str(open_model(model).spec.normalization) == text
    assert describe(model)["normalization"] == text
    by_table = identity(path, tmp_path, model=model, out=str(tmp_path / "b.zarr"))
    np.testing.assert_array_equal(by_text, by_table)
    said = fake_model(tmp_path / "c")
    by_option = identity(path, tmp_path, model=said, normalize=text, out=str(tmp_path / "c.zarr"))
    np.testing.assert_array_equal(by_text, by_option)


def test_clip_names_the_run_and_is_in_the_output(tmp_path):
    path = make_volume(tmp_path / "scan.zarr", scan(), axes="zyx")
    model = fake_model(tmp_path)

    def run(how, **more):
        out = str(tmp_path / f"{how}.zarr".replace(":", "_"))
        return unet_engine.run(path, model=model, out=out, output="logits", blend="crop", normalize=how, **more)

    plain, clipped = run("range:-1000,400"), run("range:-1000,400,clip")
    of = [dict(zarr.open_group(r.out).attrs)["unet_engine"] for r in (plain, clipped)]
    assert of[0]["normalization"] == {"shift": [-1000.0], "scale": [1 / 1400]}
    assert of[0]["identity"]["normalization"] == ["range:-1000,400", [-1000.0], [1 / 1400]]
    assert of[1]["normalization"] == {"shift": [-1000.0], "scale": [1 / 1400], "clip": [[-1000.0, 400.0]]}
    assert of[1]["identity"] != of[0]["identity"]
    with pytest.raises(unet_engine.errors.OutputError, match="normalization"):
        unet_engine.run(path, model=model, out=clipped.out, output="logits", normalize="range:-1000,400", resume=True)
    assert result_of(clipped.out).min() == 0 < result_of(clipped.out).max() == 1


def test_windows_of_calibration_are_normalised_alike(tmp_path):
    image = scan(shape=(8, 8, 8))
    volume = open_volume(make_volume(tmp_path / "scan.zarr", image, axes="zyx"))
    scale = scaling(Normalization.parse("zscore:foreground,clip=-500:500"), [image])
    assert scale.clip == ((-500.0, 500.0),)
    assert scale.void == (0.0, 0.0)
    expected = nonzero(np.clip(image.astype(np.float64), -500, 500))
    window = cut(volume, scale, Box.of_shape((8, 8, 8)), (8, 8, 8))
    np.testing.assert_allclose(window[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        quantiles([image], scale)[0], np.percentile(expected, [1, 25, 50, 75, 99]), rtol=1e-6, atol=1e-9
    )


def test_no_limits_where_none_are_asked_for():
    assert Scaling((0.0,), (1.0,)).limits is None
    assert scaling(Normalization.parse("zscore:foreground=1,everywhere"), [np.arange(9)]).limits is None


def test_statistics_of_all_channels_together_and_what_is_added_to_the_divisor():
    x = [np.arange(6.0), np.arange(6.0) * 10 + 3]
    all_of_it = np.concatenate(x)
    found = scaling(Normalization.parse("zscore:together,eps=0.5"), x)
    assert found.shift == (all_of_it.mean(),) * 2
    np.testing.assert_allclose(found.scale, 1 / (all_of_it.std() + 0.5))
    found = scaling(Normalization.parse("percentile:0,100,eps=2"), x)
    np.testing.assert_allclose(found.scale, [1 / 7, 1 / 52])
    assert scaling(Normalization.parse("zscore:eps=1e-6"), [np.ones(4)]).scale == (1e6,)  # no error of a blank image


def test_a_channel_without_foreground_becomes_0_where_eps_is_said():
    """As nothing of it would be left; without eps it is an error, of voxels that were meant to be something."""
    x = [np.array([0.0, 2.0, 4.0]), np.zeros(3)]
    found = scaling(Normalization.parse("zscore:foreground,eps=1e-12"), x)
    assert found.normalised(x[1], 1).tolist() == [0, 0, 0]
    np.testing.assert_allclose(found.normalised(x[0], 0), [0, -1, 1])
    with pytest.raises(DataError, match="no voxel in the samples of channel 1 is foreground"):
        scaling(Normalization.parse("zscore:foreground"), x)


@pytest.mark.parametrize("text", ["zscore:together", "percentile:1,99,together,eps=1e-06", "minmax:eps=0.1"])
def test_they_are_said_as_text(text):
    assert str(Normalization.parse(text)) == text


@pytest.mark.parametrize("text", ["range:0,1,eps=1", "fixed:mean=1,std=1,together", "zscore:eps=-1"])
def test_they_belong_to_what_is_measured(text):
    with pytest.raises(SettingsError, match="together belong to"):
        Normalization.parse(text)
