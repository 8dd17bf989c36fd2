"""The gate: figures of known differences, windows that hold what is rare, verdicts that permit and refuse."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from support import networks
from support.command_line import cli
from support.volumes import make_volume, result_of
from unet_engine.errors import DataError, InputError, SettingsError
from unet_engine.model.file import open_model
from unet_engine.model.shipped import shipped_model
from unet_engine.model.verdict import Thresholds, Verdict, difference, shortfall
from unet_engine.model.writing import with_attachments
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.normalize import Scaling
from unet_export.quantize.fallback import Attempt, rescue
from unet_export.quantize.gate import Exam
from unet_export.quantize.judging import Request, search
from unet_export.quantize.metrics import Comparison, to_bf16
from unet_export.quantize.openvino_candidates import image_in_bf16
from unet_export.quantize.quantize import quantize
from unet_export.quantize.windows import sample

CLASSES = ("none", "cell", "edge")


def compared(reference, candidate, classes=CLASSES):
    found = Comparison(classes, "softmax")
    for r, c in zip(reference, candidate, strict=True):
        found.add(np.zeros((1, *r.shape[1:]), np.float32), r, c)
    return found


def logits_of(labels, n=3):
    return np.moveaxis(np.eye(n, dtype=np.float32)[labels], -1, 0) * 4


# --- figures ---


def test_figures_of_a_known_difference():
    truth = np.zeros((4, 4, 4), int)
    truth[:2] = 1
    other = truth.copy()
    other[0, 0] = 2
    f = compared([logits_of(truth)], [logits_of(other) + 0.5]).figures
    assert f.agreement == 60 / 64
    assert f.dice == (1.0, 2 * 28 / (32 + 28), 0.0)
    assert f.max_error == pytest.approx(4.5 / 4)
    assert (f.nonfinite, f.lost, f.one_class, f.voxels) == (0, (), False, 64)


def test_a_class_that_is_nowhere_has_no_dice_and_a_class_that_vanishes_is_lost():
    truth = np.zeros((2, 4, 4), int)
    truth[0] = 1
    f = compared([logits_of(truth)], [logits_of(np.zeros_like(truth))]).figures
    assert f.dice == (2 * 16 / 48, 0.0, None)
    assert f.lost == ("cell",)
    assert f.one_class
    assert shortfall(f, Thresholds(dice=0.0)) == "every voxel gets the same label"


def test_nan_and_inf_fail_whatever_the_thresholds():
    x = logits_of(np.zeros((2, 2, 2), int))
    bad = x.copy()
    bad[0, 0, 0, 0], bad[1, 1, 1, 1] = np.nan, np.inf
    f = compared([x], [bad]).figures
    assert f.nonfinite == 2
    assert "NaN or infinite" in shortfall(f, Thresholds(dice=0.0))
    assert np.isfinite(f.max_error)


def test_thresholds_of_users_are_kept():
    truth = np.zeros((4, 4, 4), int)
    truth[:2] = 1
    other = truth.copy()
    other[0, 0, 0] = 0
    f = compared([logits_of(truth, 2)], [logits_of(other, 2)], ("a", "b")).figures
    assert not shortfall(f, Thresholds(dice=0.98))
    assert "Dice of a" in shortfall(f, Thresholds(dice=0.99))
    assert "Dice of b" in shortfall(f, Thresholds(dice=0.9, dice_of={"b": 0.999}))
    assert "labels agree" in shortfall(f, Thresholds(dice=0.9, agreement=0.999))
    assert "largest error" in shortfall(f, Thresholds(dice=0.9, max_error=0.5))


def test_rounding_to_bf16_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).normal(size=4096).astype(np.float32) * 10.0 ** np.arange(-8, 8).repeat(256)
    values = np.concatenate([values.astype(np.float32), [0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8]]).astype(np.float32)
    np.testing.assert_array_equal(to_bf16(values), torch.from_numpy(values).bfloat16().float().numpy())


def test_the_worst_window_is_the_one_that_is_shown():
    zero, one = logits_of(np.zeros((3, 4, 4), int)), logits_of(np.ones((3, 4, 4), int))
    found = compared([zero, zero, zero], [zero, one, zero])
    assert found.worst.index == 1
    assert found.histogram.sum() == 3 * zero.size


# --- windows ---


def spotted(tmp_path, shape=(32, 32, 32)):
    """Noise between 0 and 9, and a single bright spot of 4 voxels a side."""
    array = np.random.default_rng(0).integers(0, 10, shape, np.uint8)
    array[20:24, 4:8, 12:16] = 255
    return open_volume(make_volume(tmp_path / "scan.zarr", array))


def draw(volume, counts=(8, 8, 6), seed=0, window=(8, 8, 8)):
    return sample(volume, Scaling((0.0,), (1.0,)), window, counts, seed, lambda w: (w[0] > 99).astype(int), 2)


@pytest.mark.parametrize("seed", range(4))
def test_windows_are_disjoint_and_the_rare_class_is_among_those_to_judge_on(tmp_path, seed):
    drawn = draw(spotted(tmp_path), seed=seed)
    windows = [*drawn.calibration, *drawn.choosing, *drawn.held_out]
    assert (len(drawn.calibration), len(drawn.choosing), len(drawn.held_out)) == (8, 6, 8)
    assert len({w.tobytes() for w in windows}) == 22
    assert any((w > 99).any() for w in drawn.held_out)


def test_a_rare_class_in_three_windows_is_in_all_sets(tmp_path):
    array = np.random.default_rng(0).integers(0, 10, (16, 64, 64), np.uint8)
    array[2:5, 2:5, 2:5] = array[10:13, 50:53, 50:53] = array[2:5, 26:29, 42:45] = 255
    drawn = draw(open_volume(make_volume(tmp_path / "scan.zarr", array)), (32, 32, 32))
    assert any((w > 99).any() for w in drawn.calibration)
    assert any((w > 99).any() for w in drawn.choosing)
    assert any((w > 99).any() for w in drawn.held_out)


def test_the_same_seed_draws_the_same_windows(tmp_path):
    volume = spotted(tmp_path)
    first, again, other = (draw(volume, seed=s) for s in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first.held_out, again.held_out, strict=True))
    assert first.boxes != other.boxes


def test_a_small_volume_gives_fewer_windows_of_each_and_too_small_a_one_is_refused(tmp_path):
    drawn = draw(spotted(tmp_path, (24, 16, 16)), (16, 24, 16))
    assert (len(drawn.calibration), len(drawn.choosing), len(drawn.held_out)) == (4, 3, 3)
    with pytest.raises(InputError, match="6 are needed; use a smaller --window"):
        draw(spotted(tmp_path / "b", (24, 8, 16)), window=(16, 16, 16))


def test_planes_of_a_volume_for_a_2d_network(tmp_path):
    drawn = draw(spotted(tmp_path), window=(16, 16))
    assert drawn.held_out[0].shape == (1, 16, 16)


def test_a_volume_without_an_image_is_refused(tmp_path):
    flat = open_volume(make_volume(tmp_path / "flat.zarr", np.full((32, 32, 32), 7, np.uint8)))
    with pytest.raises(DataError, match="one value alone"):
        draw(flat)


def test_statistics_that_differ_are_told():
    ours, theirs = ((0.0, 0.2, 0.5, 0.8, 1.0),), ((-0.1, 0.2, 0.5, 0.7, 1.1),)
    assert not difference(ours, theirs)
    assert "the 1 % quantile is 0 here and -90 there" in difference(ours, ((-90.0, -60.0, -40.0, -20.0, 0.4),))


# --- fallback ---


@pytest.mark.parametrize("needed", range(1, 10))
def test_the_fallback_finds_the_fewest_layers_in_few_attempts(needed):
    tried = []

    def attempt(kept):
        tried.append(len(kept))
        return Attempt(kept, Comparison(("a",), "none"), "" if len(kept) >= needed else "no", 1.0, 2.0)

    found = rescue(attempt(()), tuple("abcdefghi"), attempt, lambda _: None)
    assert found.kept == tuple("abcdefghi"[:needed])
    assert len(tried) <= 8


def test_the_fallback_stops_where_nothing_is_gained_any_more():
    def attempt(kept):
        return Attempt(kept, Comparison(("a",), "none"), "no", 0.5 + 0.2 * len(kept), 1.0)

    found = rescue(attempt(()), tuple("abcdefghi"), attempt, lambda _: None)
    assert len(found.kept) == 4
    assert not found.gains


def test_layers_are_chosen_on_other_windows_than_the_verdict_rests_on_with_something_to_spare():
    limits = Thresholds(dice=0.99, dice_of={"a": 0.9}, agreement=0.95, max_error=0.1)
    spare = limits.to_spare()
    assert (spare.dice, spare.dice_of["a"], spare.agreement, spare.max_error) == pytest.approx(
        (0.992, 0.92, 0.96, 0.08)
    )
    held, choosing = SimpleNamespace(windows=[0]), SimpleNamespace(windows=[0, 1, 2])
    judging = SimpleNamespace(held=held, choosing=choosing, tell=lambda _: None)
    for needed_in_the_end, passes in ((3, True), (4, False)):
        asked = []

        def attempt(kept, exam, asked=asked, needed=needed_in_the_end):
            asked.append((len(kept), exam))
            short = len(kept) < (needed if exam is held else 3)
            return Attempt(kept, Comparison(("a",), "none"), "no" if short else "", 1.0, 2.0)

        found = search("int8", attempt, lambda: tuple("abcdef"), judging)
        assert (found.attempt.kept, found.windows) == (("a", "b", "c"), 3)
        assert [kept for kept, exam in asked if exam is held] == [0, 3]
        assert (not found.attempt.shortfall) == passes
        assert passes or "where its layers were chosen it passed" in found.attempt.shortfall


@pytest.mark.parametrize(("middle", "named"), [(0.5, True), (0.0, False)])
def test_an_image_that_does_not_fit_into_bf16_is_named_as_the_cause(tmp_path, middle, named):
    """Levels closer than the steps of BF16 around 0.5, but not around 0, and a network that tells them apart."""

    def infer(windows):
        above = (windows - middle - 1.5 * 2**-10).astype(np.float32)
        return np.concatenate([-above, above], axis=1)

    spec = open_model(shipped_model("cells_3d.onnx")).spec.model_copy(update={"channels_out": 2, "classes": ("a", "b")})
    levels = np.random.default_rng(0).integers(0, 4, (2, 1, 8, 8, 8)).astype(np.float32)
    exam = Exam(levels * 2**-10 + np.float32(middle), infer, spec, tmp_path / "e.npy", {"bf16": Thresholds(dice=0.999)})
    cause = image_in_bf16(SimpleNamespace(held=exam, infer=infer, model=SimpleNamespace(spec=spec)))
    assert bool(cause) == named
    assert not named or "centred on 0" in cause


# --- from end to end ---

WINDOW = "16,16,16"


def quantized(model, tissue, *options):
    few = ["--windows", 6, "--held-out", 6, "--window", WINDOW, "--threads", 1]
    return cli("quantize", model, "--calibrate", tissue, *few, "--json", *options)


@pytest.fixture(scope="module")
def proved(tissue, tmp_path_factory):
    """The demo network with verdicts for bf16 and int8 (thresholds that small windows reach): path, what the command
    said."""
    pytest.importorskip("nncf")
    path = tmp_path_factory.mktemp("proved") / "cells.onnx"
    shutil.copy(shipped_model("cells_3d.onnx"), path)
    return path, quantized(path, tissue, "--min-dice", "0.98")


def verdict(path, precision):
    return next(v for v in open_model(path).verdicts if v.precision == precision)


def test_candidates_are_judged_and_what_passed_is_in_the_model_file(proved, tissue):
    path, said = proved
    assert said.code == 0, said.err
    int8 = verdict(path, "int8")
    assert int8.passed, int8.reason
    assert (int8.calibration.windows, int8.calibration.held_out, int8.calibration.seed) == (6, 6, 0)
    assert int8.figures.windows == 6
    assert bool(int8.kept) == bool(int8.calibration.choosing)
    assert open_model(path).sha256 == open_model(shipped_model("cells_3d.onnx")).sha256 == int8.model
    assert {row["precision"] for row in said.json} >= {"int8"}


def test_the_report_has_table_and_pictures(proved):
    text = proved[0].with_suffix(".gate.html").read_text()
    assert text.count("data:image/png;base64,") == text.count("<h2>") >= 1
    assert text.count("<svg") == 2 * text.count("<h2>")
    assert "Dice per class" in text


def run(path, tissue, *options):
    return cli("run", "--in", tissue, "--model", path, "--window", WINDOW, "--json", "--overwrite", *options)


def test_auto_takes_the_fastest_that_passed_and_says_why(proved, tissue, tmp_path):
    path, _ = proved
    best = max((v for v in open_model(path).verdicts if v.passed), key=lambda v: v.speedup)
    said = run(path, tissue, "--out", tmp_path / "o.zarr")
    assert said.code == 0, said.err
    if best.speedup > 1:
        assert said.json["precision"] == best.precision
        assert f"precision {best.precision}: fastest of those proved" in " ".join(said.err.split())


def test_the_hash_of_the_network_that_ran_is_in_the_provenance(proved, tissue, tmp_path):
    path, _ = proved
    assert run(path, tissue, "--precision", "int8", "--out", tmp_path / "o.zarr").json["precision"] == "int8"
    attributes = json.loads((tmp_path / "o.zarr" / "zarr.json").read_text())["attributes"]["unet_engine"]
    assert attributes["identity"]["network"][0] == verdict(path, "int8").network
    said = cli(
        "run", "--in", tissue, "--model", path, "--window", WINDOW, "--precision", "fp32", "--resume", "--out",
        tmp_path / "o.zarr"
    )  # fmt: skip
    assert said.code == 9


@pytest.mark.slow
def test_worker_processes_run_the_network_that_was_judged_and_give_the_same_bytes(proved, tissue, tmp_path):
    path, _ = proved
    results = []
    for name, crowd in (("alone", []), ("crowd", ["--workers", 2, "--threads", 1])):
        said = run(path, tissue, "--precision", "int8", "--out", tmp_path / f"{name}.zarr", *crowd)
        assert said.code == 0, said.err
        assert said.json["precision"] == "int8"
        results.append(result_of(tmp_path / f"{name}.zarr"))
    np.testing.assert_array_equal(*results)


def changed(path, tmp_path, **fields):
    """A copy of the model file whose verdicts say something else."""
    copy = tmp_path / "changed.onnx"
    model = open_model(path)
    verdicts = [Verdict.model_validate({**v.model_dump(), **fields}) for v in model.verdicts]
    with_attachments(model, copy, verdicts, {})
    return copy


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"library": "openvino 1"}, "judged with openvino 1"),
        ({"model": "0" * 64}, "other weights"),
        ({"window": (8, 8, 8)}, "windows of 8×8×8, not 16×16×16"),
        ({"normalization": "zscore"}, "--normalize zscore"),
        ({"emulated": True}, "only emulated"),
        ({"passed": False, "reason": "Dice of cell is 0.5"}, "failed the accuracy gate: Dice of cell is 0.5"),
    ],
)
def test_a_verdict_that_does_not_hold_here_permits_nothing(proved, tissue, tmp_path, fields, message):
    path = changed(proved[0], tmp_path, **fields)
    refused = run(path, tissue, "--precision", "int8")
    assert refused.code == 6
    assert message in refused.error
    assert run(path, tissue, "--out", tmp_path / "o.zarr").json["precision"] == "fp32"


def test_int8_without_any_verdict_says_what_to_do(tissue):
    said = run(shipped_model("cells_3d.onnx"), tissue, "--precision", "int8")
    assert said.code == 6
    assert "run: unet-engine quantize" in said.error


def test_a_damaged_network_is_not_run(proved, tissue, tmp_path):
    data = proved[0].read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[:-10] + b"AAAAAAAAAA")
    said = run(tmp_path / "cut.onnx", tissue, "--precision", "int8")
    assert said.code == 5
    assert "is damaged" in said.error


@pytest.mark.slow
def test_one_huge_channel_fails_int8_with_the_layer_named_and_is_rescued(tissue, tmp_path, monkeypatch):
    pytest.importorskip("nncf")
    # on a busy machine fp32 may seem as fast, and the search for layers then ends before one is found
    monkeypatch.setattr("unet_export.quantize.judging.both_seconds", lambda *_: (0.5, 1.0))
    source = shipped_model("cells_3d.onnx")
    path = networks.scaled(
        source, tmp_path / "huge.onnx", "encoders.0.3", {"encoders.1.0": 0, "decoders.0.0": 0}, [2], 1e4
    )
    said = quantized(path, tissue, "--precision", "int8", "--min-dice", "0.98")
    found = verdict(path, "int8")
    assert "measuring the sensitivity" in said.err
    assert found.sensitive[0] in ("decoders.0.0", "encoders.1.0")
    assert found.sensitive[0] in found.reason
    assert found.kept or not found.passed
    assert found.passed, found.reason


@pytest.mark.slow
def test_pytorch_itself_can_be_the_reference(tissue, tmp_path):
    torch = pytest.importorskip("torch")
    from unet_export.conversion.onnx_export import export_onnx, export_torch
    from unet_export.train.geometry import UNetConfig
    from unet_export.train.nets import UNet
    from unet_export.train.specs import spec_for

    torch.manual_seed(2)
    network = UNet(UNetConfig(dims=3, classes=2, base=4, depth=1)).eval()
    spec = spec_for(network.config, name="net", window=(16, 16, 16))
    export_onnx(network, spec, tmp_path / "net.onnx")
    export_torch(network, spec, tmp_path / "net.pt")
    options = ["--precision", "bf16", "--reference", tmp_path / "net.pt", "--min-dice", "0.5"]
    said = quantized(tmp_path / "net.onnx", tissue, *options)
    if said.code == 6:
        pytest.skip(said.error)
    assert "reference: torch" in said.err
    assert said.json[0]["max_error"] < 0.1
    said = quantized(tmp_path / "net.onnx", tissue, "--reference", shipped_model("cells_3d.onnx"))
    assert said.code == 5
    assert "other axes or channels" in said.error


def test_weights_outside_the_file_stay_where_they_are(tissue, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(shipped_model("cells_3d.onnx"))
    (tmp_path / "a").mkdir()
    onnx.save(model, tmp_path / "a" / "net.onnx", save_as_external_data=True, location="net.bin", size_threshold=0)
    said = quantized(tmp_path / "a" / "net.onnx", tissue, "--out", tmp_path / "net.onnx")
    assert said.code == 2
    assert "keeps weights in net.bin" in said.error


def test_info_tells_what_was_judged(proved):
    assert any(
        "int8 on openvino" in line and "passed" in line for line in cli("info", proved[0], "--json").json["judged"]
    )


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--windows", 1], 2, "must be 2 or more"),
        (["--min-dice", "nucleus=0.9"], 2, "names the class 'nucleus', which "),
        (["--min-dice", "x"], 2, "is no number"),
        (["--min-dice", "3"], 2, "between 0 and 1"),
        (["--backend", "pytorch"], 6, "lower precisions in PyTorch are proved on a GPU, and there is none here"),
        (["--window", "15,16,16"], 5, "nearest: 12 or 16"),
        (["--window", "64,64,64"], 3, "use a smaller --window"),
        (["--reference", "gone.pt2"], 5, "does not exist"),
    ],
)
def test_bad_options_are_refused_before_anything_is_made(tissue, tmp_path, options, code, message):
    path = tmp_path / "cells.onnx"
    shutil.copy(shipped_model("cells_3d.onnx"), path)
    before = path.read_bytes()
    window = [] if "--window" in options else ["--window", WINDOW]
    said = cli("quantize", path, "--calibrate", tissue, *window, *options)
    assert said.code == code, said.err
    assert message in said.error
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "given",
    [
        {"dice": np.nan}, {"dice": 1.1}, {"dice_of": {"a": np.nan}}, {"agreement": np.nan}, {"agreement": -0.1},
        {"max_error": np.nan}, {"max_error": np.inf}, {"max_error": -1.0}, {"seed": -1}, {"threads": 0},
        {"held_out": 1},
    ],
)  # fmt: skip
def test_from_python_too_a_threshold_that_everything_passes_is_refused(given):
    option = {"dice_of": "dice", "held_out": "held-out", "max_error": "max-error"}.get(name := next(iter(given)), name)
    with pytest.raises(SettingsError, match=f"{option} .*must"):
        quantize(Request("gone.onnx", "gone.zarr", **given))


def test_no_verdict_holds_a_threshold_of_nan():
    for given in ({"dice": np.nan}, {"dice": 0.9, "dice_of": {"a": np.nan}}, {"dice": 0.9, "agreement": np.nan}):
        with pytest.raises(ValueError, match="finite number"):
            Thresholds(**given)


def test_an_empty_volume_and_another_modality(tissue, tmp_path):
    path = tmp_path / "cells.onnx"
    shutil.copy(shipped_model("cells_3d.onnx"), path)
    flat = make_volume(tmp_path / "flat.zarr", np.zeros((32, 32, 32), np.uint8))
    said = cli("quantize", path, "--calibrate", flat, "--window", WINDOW)
    assert said.code == 4
    assert "one value alone" in said.error
    hounsfield = make_volume(
        tmp_path / "ct.zarr", np.random.default_rng(0).normal(-400, 500, (32, 32, 32)).astype(np.int16)
    )
    said = cli("quantize", path, "--calibrate", hounsfield, "--window", WINDOW, "--precision", "bf16", "--held-out", 4)
    assert "its statistics differ; is it the same modality?" in " ".join(said.err.split())
