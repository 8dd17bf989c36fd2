"""bioimage.io packages, from folder or zip to what a run writes, against their networks in their own framework."""

import json
import re
import shutil

import numpy as np
import pytest
import zarr

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
yaml = pytest.importorskip("yaml")

from support import packages  # noqa: E402
from support.command_line import cli  # noqa: E402
from support.importing import imported, refusal  # noqa: E402
from support.volumes import make_volume, result_of  # noqa: E402
from unet_engine.errors import ModelError  # noqa: E402
from unet_engine.model.file import open_model  # noqa: E402
from unet_export.importers.base import Wanted  # noqa: E402
from unet_export.importers.bioimageio.importer import BioimageIO  # noqa: E402

ZSCORE = packages.step("zero_mean_unit_variance", axes=["channel", "y", "x"])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))


def zscored(x):
    x = x.astype(np.float64)
    return ((x - x.mean()) / (x.std() + 1e-6)).astype(np.float32)


def small(folder, **options):
    """A package with a z-score and a softmax, and its image (1, 1, y, x)."""
    net, given = packages.network(), packages.image((1, 1, 40, 48))
    logits = packages.result(net, zscored(given))
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    said = {"before": [ZSCORE], "behind": [packages.step("softmax", axis="channel")], "classes": ("sky", "cell")}
    return packages.package(folder, net, given, expected, **(said | options)), given, expected


def test_a_package_keeps_what_its_description_says(tmp_path):
    folder, _given, _ = small(tmp_path / "pkg")
    said, model = imported(folder)
    spec = model.spec
    assert (spec.name, spec.axes, spec.channels_in, spec.classes) == ("Tiny cells", "yx", 1, ("sky", "cell"))
    assert (spec.window, spec.window_min, spec.window_step) == ((40, 48), (16, 16), (8, 8))
    assert (spec.activation, spec.channels, str(spec.normalization)) == ("softmax", "classes", "zscore:whole,eps=1e-06")
    credit = model.credit
    assert (credit.licence, credit.authors, credit.version) == ("CC-BY-4.0", ("A. Author",), "1.2")
    assert credit.citation == ("how it was made 10.1/x",)
    (certificate,) = credit.certificate
    assert certificate.equal_labels >= 0.999
    assert set(certificate.dice) == {"sky", "cell"}
    assert certificate.largest_difference < 1e-4
    assert "certificate: its own test tensors" in said.err


@pytest.mark.parametrize(
    ("first", "threshold", "expected", "activation", "kept"),
    [
        ("sigmoid", 0.3, lambda y: 1 / (1 + np.exp(-y)) > 0.3, "sigmoid", 0.3),
        (None, 0.4, lambda y: y > 0.4, "probabilities_each", 0.4),
        (None, -0.2, lambda y: y > -0.2, "sigmoid", None),
        ("sigmoid", 0.5, lambda y: y > 0, "sigmoid", None),
    ],
)
def test_labels_are_set_above_the_threshold_that_binarize_names(tmp_path, first, threshold, expected, activation, kept):
    net, given = packages.network(), packages.image((1, 1, 40, 48))
    behind = [*([packages.step(first)] if first else []), packages.step("binarize", threshold=threshold)]
    scaled = {"before": [packages.step("scale_linear", gain=0.01, offset=0.0)]}
    with_net = expected(packages.result(net, given * np.float32(0.01))).astype(np.float32)
    folder = packages.package(tmp_path / "pkg", net, given, with_net, behind=behind, **scaled)
    _, model = imported(folder)
    assert (model.spec.activation, model.spec.threshold, model.spec.channels) == (activation, kept, "multilabel")
    scan = make_volume(tmp_path / "v.zarr", given[0], axes="cyx")
    said = cli("run", "--in", scan, "--model", "net.onnx", "--out", "o.zarr", "--output", "masks", "--window", "40,48")
    assert said.code == 0, said.err
    assert (result_of("o.zarr") == with_net[0]).mean() > 0.999


def test_a_run_of_the_folder_itself_imports_it_once_and_gives_its_credit_to_the_output(tmp_path):
    folder, given, expected = small(tmp_path / "pkg")
    volume = make_volume(tmp_path / "v.zarr", given[0, 0], axes="yx", chunks=(40, 48))
    first = cli("run", "--in", volume, "--model", folder, "--out", "a.zarr")
    assert first.code == 0, first.err
    assert "importing" in first.err
    assert "note: note" not in first.err
    again = cli("run", "--in", volume, "--model", folder, "--out", "b.zarr")
    assert "was imported before" in again.err
    assert "importing" not in again.err
    group = zarr.open_group("a.zarr", mode="r")
    np.testing.assert_array_equal(group["0"][...], expected[0].argmax(0))
    provenance = group.attrs["unet_engine"]
    assert provenance["credit"]["licence"] == "CC-BY-4.0"
    assert provenance["credit"]["certificate"][0]["equal_labels"] >= 0.999
    packages.described(folder, version="1.3")
    assert "importing" in cli("run", "--in", volume, "--model", folder, "--out", "c.zarr").err


def test_plan_and_info_take_the_folder_too(tmp_path):
    folder, given, _ = small(tmp_path / "pkg")
    volume = make_volume(tmp_path / "v.zarr", given[0, 0], axes="yx")
    assert cli("plan", "--in", volume, "--model", folder).code == 0
    said = cli("info", folder)
    assert said.code == 0, said.err
    assert "CC-BY-4.0" in said.out
    assert "its own test tensors" in said.out
    assert json.loads(cli("info", folder, "--json").out)["credit"]["authors"] == ["A. Author"]


@pytest.mark.parametrize("under", ["", "Tiny cells/"])
def test_a_zip_is_the_same_as_its_folder(tmp_path, under):
    folder, _, _ = small(tmp_path / "pkg")
    path = packages.zipped(folder, tmp_path / "pkg.zip", under=under)
    _, model = imported(path)
    _, other = imported(folder)
    assert model.spec == other.spec


def test_the_description_itself_may_be_named(tmp_path):
    folder, _, _ = small(tmp_path / "pkg")
    assert imported(folder / "rdf.yaml")[1].spec.name == "Tiny cells"


def test_channels_last_as_keras_has_them(tmp_path):
    net, given = packages.network(), packages.image((1, 32, 40, 1))
    expected = packages.result(net, zscored(given).transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    folder = packages.package(tmp_path / "pkg", net, given, expected, order="byxc", before=[ZSCORE])
    _, model = imported(folder)
    assert (model.spec.window, model.spec.channels_out) == ((32, 40), 2)
    assert model.credit.certificate[0].largest_difference < 1e-4


def test_x_may_come_before_y(tmp_path):
    net, given = packages.network(), packages.image((1, 32, 48, 1))
    expected = packages.result(net, zscored(given).transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    folder = packages.package(tmp_path / "pkg", net, given, expected, order="bxyc", before=[ZSCORE])
    _, model = imported(folder)
    assert model.spec.window == (48, 32)  # y, x
    assert model.credit.certificate[0].largest_difference < 1e-4


def test_three_axes_of_space(tmp_path):
    net, given = packages.network(dims=3), packages.image((1, 1, 8, 16, 24))
    step = packages.step("zero_mean_unit_variance", axes=["channel", "z", "y", "x"])
    sizes = {"z": 8, "y": {"min": 16, "step": 8}, "x": {"min": 16, "step": 8}}
    expected = packages.result(net, zscored(given))
    _, model = imported(
        packages.package(tmp_path / "pkg", net, given, expected, order="bczyx", sizes=sizes, before=[step])
    )
    assert (model.spec.axes, model.spec.window_min, model.spec.window_step) == ("zyx", (8, 16, 16), (0, 8, 8))
    assert model.credit.certificate[0].largest_difference < 1e-4


def test_the_halo_is_a_margin_that_is_read_and_not_written(tmp_path):
    net, given = packages.network(), packages.image((1, 1, 40, 48))
    logits = packages.result(net, zscored(given))
    folder = packages.package(tmp_path / "pkg", net, given, logits, before=[ZSCORE], halo=4)
    _, model = imported(folder)
    assert model.spec.margin == (4, 4)
    large = packages.image((1, 1, 100, 90), 1)
    volume = make_volume(tmp_path / "v.zarr", large[0, 0], axes="yx")
    assert cli("run", "--in", volume, "--model", folder, "--out", "o.zarr", "--output", "logits").code == 0
    found = zarr.open_group("o.zarr", mode="r")["0"][...]
    whole = packages.result(net, zscored(large))[0]
    inside = (slice(None), slice(4, -4), slice(4, -4))  # borders are mirrored here, and zero there
    np.testing.assert_allclose(found[inside], whole[inside], atol=1e-4 * np.abs(whole).max())


def test_format_04(tmp_path):
    net, given = packages.network(), packages.image((1, 1, 40, 48))
    folder, _, _expected = small(tmp_path / "pkg", behind=[])
    logits = packages.result(net, zscored(given))
    np.save(folder / "expected.npy", logits)
    packages.described(
        folder, format_version="0.4.9", test_inputs=["given.npy"], test_outputs=["expected.npy"],
        inputs=[{
            "name": "raw", "axes": "bcyx", "data_type": "uint16", "shape": {"min": [1, 1, 16, 16], "step": [0, 0, 8, 8]},
            "preprocessing": [{"name": "zero_mean_unit_variance", "kwargs": {"axes": "cyx", "mode": "per_sample"}}],
        }],
        outputs=[{
            "name": "cells", "axes": "bcyx", "data_type": "float32", "halo": [0, 0, 4, 4],
            "shape": {"reference_tensor": "raw", "scale": [1, 0, 1, 1], "offset": [0, 1, 0, 0]},
        }],
    )  # fmt: skip
    _, model = imported(folder)
    assert (model.spec.window_min, model.spec.window_step, model.spec.margin) == ((16, 16), (8, 8), (4, 4))
    assert model.credit.source.startswith("bioimage.io 0.4.9")
    assert model.credit.certificate[0].equal_labels == 1.0


def test_a_probability_that_is_brought_to_another_range_is_an_image(tmp_path):
    """It was asked about, as a graph with a sigmoid and outputs from 0 to 255."""
    net, given = packages.network(), packages.image((1, 1, 40, 48))
    expected = 255 / (1 + np.exp(-packages.result(net, zscored(given))))
    behind = [packages.step("sigmoid"), packages.step("scale_linear", gain=255.0, offset=0.0)]
    _, model = imported(packages.package(tmp_path / "pkg", net, given, expected, before=[ZSCORE], behind=behind))
    assert (model.spec.channels, model.spec.activation) == ("image", "none")
    assert model.credit.certificate[0].largest_difference < 1e-4


def test_in_format_04_an_offset_tells_the_channels_of_the_output(tmp_path):
    """Twice of it. What is binarized are two masks then, and not one probability."""
    folder, _, _ = small(tmp_path / "pkg", behind=[])
    inputs = [{
        "name": "raw", "axes": "bcyx", "data_type": "uint16", "shape": {"min": [1, 1, 16, 16], "step": [0, 0, 8, 8]},
    }]  # fmt: skip
    outputs = [{
        "name": "cells", "axes": "bcyx", "data_type": "float32",
        "shape": {"reference_tensor": "raw", "scale": [1, None, 1, 1], "offset": [0, 1, 0, 0]},
        "postprocessing": [{"name": "binarize", "kwargs": {"threshold": 0.4}}],
    }]  # fmt: skip
    packages.described(folder, format_version="0.4.9", inputs=inputs, outputs=outputs)
    found = BioimageIO().read(folder, Wanted(checkpoint=str(folder), out="net.onnx"), print)
    assert (found.promised["channels"], found.promised["activation"]) == ("multilabel", "probabilities_each")


class Half(torch.nn.Module):
    """Outputs at half the resolution."""

    def __init__(self):
        super().__init__()
        self.net = packages.network()

    def forward(self, x):
        return torch.nn.functional.avg_pool2d(self.net(x), 2)


@pytest.mark.parametrize("behind", [[], [packages.step("clip", min=-0.1, max=0.2)]], ids=["plain", "clipped"])
def test_coarser_outputs_come_back_on_the_grid_of_the_input(tmp_path, behind):
    """Behind what is done to them: a clip of what is interpolated is another."""
    given = packages.image((1, 1, 40, 48))
    logits = packages.result(Half().eval(), zscored(given))
    logits = logits.clip(-0.1, 0.2) if behind else logits
    folder = packages.package(tmp_path / "pkg", Half().eval(), given, logits, before=[ZSCORE], behind=behind)
    said = yaml.safe_load((folder / "rdf.yaml").read_text())
    for axis in said["outputs"][0]["axes"][2:]:
        axis["scale"] = 2.0
    (folder / "rdf.yaml").write_text(yaml.safe_dump(said))
    _, model = imported(folder)
    assert model.spec.margin == (0, 0)
    assert model.credit.certificate[0].shape == (2, 40, 48)
    assert model.credit.certificate[0].largest_difference < 1e-4


# --- PyTorch, with code ---


def scripted(tmp_path, kind):
    """A package with PyTorch weights of that kind, and the file that running its code makes."""
    folder, _given, _ = small(tmp_path / "pkg")
    net, mark = packages.network(), tmp_path / "ran"
    (folder / "net.onnx").unlink()
    if kind == "torchscript":
        torch.jit.trace(net, torch.zeros(1, 1, 16, 16)).save(str(folder / "net.pt"))
        packages.described(folder, weights={"torchscript": {"source": "net.pt"}})
        return folder, mark
    (folder / "tiny.py").write_text(packages.ARCHITECTURE.format(mark=str(mark)))
    torch.save(net.state_dict(), folder / "net.pth")
    architecture = {"callable": "Tiny", "source": "tiny.py", "kwargs": {"channels": 1, "classes": 2}}
    packages.described(folder, weights={"pytorch_state_dict": {"source": "net.pth", "architecture": architecture}})
    return folder, mark


@pytest.mark.parametrize("kind", ["torchscript", "state dict"])
def test_code_runs_with_trust_alone_and_is_asked_for_once(tmp_path, kind, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder, mark = scripted(tmp_path, kind)
    refused = cli("import", folder, "--out", "net.onnx")
    assert refused.code == 5
    assert "--trust" in refused.error
    assert not mark.exists()
    assert not (tmp_path / "net.onnx").exists()
    _, model = imported(folder, "--trust")
    assert model.credit.certificate[0].equal_labels >= 0.999
    assert all(model.spec.window_step)
    imported(folder)
    assert mark.exists() == (kind == "state dict")


@pytest.mark.parametrize(
    "kwargs", ["x", [1], {"in_channels": 1, "out_channels": 2, "depth": None}, {"in_channels": -1, "out_channels": 2}]
)
def test_arguments_of_wrong_types_are_one_line(tmp_path, kwargs):
    """Also of networks that are built here, without their code."""
    folder, _ = scripted(tmp_path, "state dict")
    architecture = {"callable": "UNet2d", "source": "tiny.py", "kwargs": kwargs}
    packages.described(folder, weights={"pytorch_state_dict": {"source": "net.pth", "architecture": architecture}})
    (folder / "tiny.py").unlink()
    assert re.search("arguments|built", refusal(folder))


def test_tags_of_a_wrong_type_say_nothing(tmp_path):
    folder, _, _ = small(tmp_path / "pkg")
    packages.described(folder, tags=3)
    assert BioimageIO().read(folder, Wanted(str(folder), "net.onnx"), [].append).members


def test_what_no_reader_expects_is_one_line(tmp_path, monkeypatch):
    folder, _, _ = small(tmp_path / "pkg")
    monkeypatch.setattr(BioimageIO, "read", lambda *_: int(None))
    assert "says something of itself that bioimage.io does not expect: int()" in refusal(folder)


# --- what is refused, and what is left out ---


def test_a_test_output_that_is_not_reached_refuses_the_file_unless_told_otherwise(tmp_path):
    folder, _, expected = small(tmp_path / "pkg")
    np.save(folder / "expected.npy", expected[:, ::-1].copy())
    assert "would not give what the source does" in refusal(folder)
    assert not (tmp_path / "net.onnx").exists()
    said, model = imported(folder, "--uncertified")
    assert "not certified" in said.err
    assert model.credit.certificate == ()


def test_several_inputs_are_refused_by_name(tmp_path):
    folder, _, _ = small(tmp_path / "pkg")
    said = yaml.safe_load((folder / "rdf.yaml").read_text())
    packages.described(folder, inputs=[*said["inputs"], said["inputs"][0] | {"id": "other"}])
    assert "takes 2 inputs (raw, other)" in refusal(folder)


def test_keras_weights_are_refused_with_the_way_out(tmp_path):
    folder, _, _ = small(tmp_path / "pkg")
    packages.described(folder, weights={"keras_hdf5": {"source": "net.h5"}})
    assert "tf2onnx" in refusal(folder)


def test_outputs_finer_than_the_input_are_refused(tmp_path):
    folder, _, _ = small(tmp_path / "pkg")
    said = yaml.safe_load((folder / "rdf.yaml").read_text())
    for axis in said["outputs"][0]["axes"][2:]:
        axis["scale"] = 0.25
    (folder / "rdf.yaml").write_text(yaml.safe_dump(said))
    assert "makes 4 voxels of each one" in refusal(folder)


def test_a_format_that_is_not_read_is_named(tmp_path):
    folder, _, _ = small(tmp_path / "pkg")
    packages.described(folder, format_version="0.3.6")
    assert "0.3.6" in refusal(folder)


@pytest.mark.parametrize("key", ["inputs", "outputs", "name"])
def test_a_description_that_lacks_something_names_it(tmp_path, key):
    folder, _, _ = small(tmp_path / "pkg")
    said = yaml.safe_load((folder / "rdf.yaml").read_text())
    del said[key]
    (folder / "rdf.yaml").write_text(yaml.safe_dump(said))
    assert f"'{key}' is missing" in refusal(folder)


@pytest.mark.parametrize(("tensor", "at"), [("inputs", 0), ("outputs", 1)])
def test_an_axis_of_no_known_type_is_named(tmp_path, tensor, at):
    folder, _, _ = small(tmp_path / "pkg")
    said = yaml.safe_load((folder / "rdf.yaml").read_text())
    said[tensor][0]["axes"][at]["type"] = "colour"
    (folder / "rdf.yaml").write_text(yaml.safe_dump(said))
    assert "of the type 'colour', which is none of batch, channel, space, time, index" in refusal(folder)


@pytest.mark.parametrize("axes", [True, 3, {"y": 1}])
def test_statistics_along_what_are_no_axes_are_named(tmp_path, axes):
    step = packages.step("zero_mean_unit_variance", axes=axes)
    folder, _, _ = small(tmp_path / "pkg", before=[step])
    assert "which are no axes" in refusal(folder)


@pytest.mark.parametrize("file", ["net.onnx", "given.npy", "expected.npy"])
def test_files_that_are_missing_or_cut_are_one_line(tmp_path, file):
    folder, _, _ = small(tmp_path / "pkg")
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: len(data) // 2])
    assert file in refusal(folder)
    (folder / file).unlink()
    assert f"lacks the file {file}" in refusal(folder)


def test_weights_other_than_the_description_means_are_refused(tmp_path):
    folder, _, _ = small(tmp_path / "pkg")
    packages.described(folder, weights={"onnx": {"source": "net.onnx", "sha256": "0" * 64}})
    assert "its SHA-256 differs" in refusal(folder)


@pytest.mark.parametrize("text", ["a: [", "!!python/object/apply:os.system ['touch ran']", "- 1", ""])
def test_a_description_that_is_none_is_one_line_and_runs_nothing(tmp_path, text):
    folder, _, _ = small(tmp_path / "pkg")
    (folder / "rdf.yaml").write_text(text)
    refusal(folder)
    assert not (tmp_path / "ran").exists()


def test_aliases_that_grow_without_end_are_refused(tmp_path):
    folder, _, _ = small(tmp_path / "pkg")
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    (folder / "rdf.yaml").write_text("\n".join(lines))
    assert "more than a description does" in refusal(folder)


def test_a_test_tensor_that_is_a_pickle_is_not_opened(tmp_path):
    folder, _, _ = small(tmp_path / "pkg")
    np.save(folder / "given.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "given.npy cannot be read" in refusal(folder)


def test_a_source_that_is_none_is_named_with_what_there_is(tmp_path):
    (tmp_path / "empty").mkdir()
    said = cli("import", tmp_path / "empty", "--out", "net.onnx")
    assert said.code == 5
    assert "bioimage.io" in said.error
    assert cli("import", tmp_path / "nothing", "--out", "net.onnx").code == 5


def test_the_list_names_every_source():
    said = cli("import", "--list")
    assert said.code == 0
    assert "bioimage.io" in said.out
    assert next(s["name"] for s in cli("import", "--list", "--json").json["sources"]) == "bioimage.io"


def test_quantising_keeps_whose_the_model_is(tmp_path):
    from unet_engine.model.writing import with_attachments

    folder, _, _ = small(tmp_path / "pkg")
    _, model = imported(folder)
    with_attachments(model, tmp_path / "other.onnx", (), {})
    assert open_model(tmp_path / "other.onnx").credit == model.credit
    assert open_model(tmp_path / "other.onnx").sha256 == model.sha256
    shutil.copy(tmp_path / "net.onnx", tmp_path / "bare.onnx")
    from unet_engine.model import attachments

    attachments.attach(tmp_path / "bare.onnx", tmp_path / "bare.onnx", {})
    assert open_model(tmp_path / "bare.onnx").sha256 == model.sha256  # the credit names no run


def test_one_label_everywhere_certifies_nothing(tmp_path):
    net, given = packages.network(classes=1), packages.image((1, 1, 40, 48))
    with torch.no_grad():
        net.b.bias.fill_(1000.0)
    logits = packages.result(net, zscored(given))
    folder = packages.package(tmp_path / "pkg", net, given, logits, before=[ZSCORE], classes=("a",))
    (certificate,) = imported(folder)[1].credit.certificate
    assert certificate.equal_labels is None
    np.save(folder / "expected.npy", logits + 50)
    assert "would not give what the source does" in refusal(folder)


def spaced(folder, size):
    """A package whose voxels are `size` micrometers long."""
    source, given, expected = small(folder)
    described = yaml.safe_load((source / "rdf.yaml").read_text())
    for axis in described["inputs"][0]["axes"]:
        if axis["type"] == "space":
            axis |= {"scale": size, "unit": "micrometer"}
    for axis in described["outputs"][0]["axes"]:
        if axis["type"] == "space":
            axis |= {"scale": size, "unit": "micrometer"}
    (source / "rdf.yaml").write_text(yaml.safe_dump(described))
    return source, given, expected


def test_volumes_of_other_voxels_than_the_package_says_are_interpolated_and_the_result_brought_back(tmp_path):
    source, given, expected = spaced(tmp_path / "pkg", 2.0)
    spec = imported(source)[1].spec
    assert (spec.spacing, spec.spacing_unit, spec.resampling.image) == ((2.0, 2.0), "micrometer", 1)
    own = make_volume(tmp_path / "own.zarr", given[0, 0], axes="yx", ome="0.5", scale=(2.0, 2.0), unit="micrometer")
    assert cli("run", "--in", own, "--model", "net.onnx", "--out", "own_out.zarr").code == 0
    np.testing.assert_array_equal(result_of("own_out.zarr"), expected[0].argmax(0))
    finer = np.repeat(np.repeat(given[0, 0], 2, 0), 2, 1)  # in its middle it is interpolated to the same voxels
    fine = make_volume(tmp_path / "fine.zarr", finer, axes="yx", ome="0.5", scale=(1.0, 1.0), unit="micrometer")
    said = cli("run", "--in", fine, "--model", "net.onnx", "--out", "fine_out.zarr")
    assert said.code == 0, said.err
    assert "is brought from 80×96 voxels to 40×48" in said.err
    found = result_of("fine_out.zarr")
    assert found.shape == (80, 96)
    assert (found == np.repeat(np.repeat(expected[0].argmax(0), 2, 0), 2, 1)).mean() > 0.8


def test_the_spacing_is_said_where_the_source_says_none_and_there_alone(tmp_path):
    source, _, _ = small(tmp_path / "pkg")
    spec = imported(source, "--spacing", "0.5,0.25", "--spacing-unit", "nanometer")[1].spec
    assert (spec.spacing, spec.spacing_unit, spec.resampling.output) == ((0.5, 0.25), "nanometer", 1)
    told = json.loads(cli("info", "net.onnx", "--json").out)["origins"]
    assert {told[field] for field in ("spacing", "resampling")} == {"--spacing"}
    assert told["spacing_unit"] == "--spacing-unit"
    said = cli("import", source, "--out", "c.onnx", "--spacing", "1,1", "--spacing-unit", "furlong")
    assert said.code == 2
    assert "--spacing-unit: 'furlong' is no unit of length that is known; give angstrom, nanometer" in said.err
    said = cli("import", source, "--out", "c.onnx", "--spacing-unit", "mm")
    assert said.code == 2
    assert "--spacing-unit is that of --spacing; give both" in said.err
    said = cli("import", spaced(tmp_path / "spaced", 2.0)[0], "--out", "b.onnx", "--spacing", "1,1")
    assert said.code != 0
    assert "says its own" in said.err


# --- what strangers say ---


def test_what_makes_other_outputs_is_refused_unless_told_otherwise(tmp_path):
    """It ran, and a note said that objects, or a measure of the whole output, were left out."""
    folder, _, _ = small(tmp_path / "pkg", behind=[packages.step("scale_range", axes=["y", "x"])])
    with pytest.raises(ModelError, match=r"outputs would be others.*scale_range.*--uncertified"):
        BioimageIO().read(folder, Wanted(checkpoint=str(folder), out="net.onnx"), print)
    found = BioimageIO().read(folder, Wanted(checkpoint=str(folder), out="net.onnx", uncertified=True), print)
    assert "scale_range" in found.credit.left_out[0]


def test_a_halo_as_large_as_the_test_input_takes_a_larger_window(tmp_path):
    folder, _, _ = small(tmp_path / "pkg", behind=[], halo=24)
    told = []
    found = BioimageIO().read(folder, Wanted(checkpoint=str(folder), out="net.onnx"), told.append)
    assert found.promised["window"] == (96, 96)
    assert not found.samples
    assert "without its halo" in told[0]


def test_a_halo_that_leaves_nothing_of_a_fixed_window_is_named(tmp_path):
    folder, _, _ = small(tmp_path / "pkg", behind=[], halo=24, sizes={"y": 40, "x": 48})
    with pytest.raises(ModelError, match="of its window of 40×48 nothing is left once 24×24 voxels"):
        BioimageIO().read(folder, Wanted(checkpoint=str(folder), out="net.onnx"), print)


def test_whole_numbers_of_a_test_output_cut_off_what_follows_the_point(tmp_path):
    folder, _, _ = small(tmp_path / "pkg", behind=[packages.step("ensure_dtype", dtype="uint8")])
    np.save(folder / "expected.npy", np.full((1, 2, 40, 48), 200, np.uint8))
    found = BioimageIO().read(folder, Wanted(checkpoint=str(folder), out="net.onnx"), print)
    assert found.tolerance == (1e-3, 1.0)
    np.save(folder / "expected.npy", np.ones((1, 2, 40, 48), np.uint8))  # a mask
    assert BioimageIO().read(folder, Wanted(checkpoint=str(folder), out="n.onnx"), print).tolerance == (1e-3, 1e-3)


@pytest.mark.parametrize("deciding", ["ReduceMean <keepdims = 0> (x)", "RandomNormal <shape = [1]> ()"])
def test_graphs_that_ask_for_values_of_a_window_are_told_and_those_that_draw_refused(tmp_path, deciding):
    folder, _, _ = small(tmp_path / "pkg", behind=[])
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[1, 1, h, w] x) => (float[1, 1, h, w] y) {
        of = %s
        zero = Constant <value_float = 0.0> ()
        above = Greater(of, zero)
        y = If (above) <
            then_branch = t () => (float[1, 1, h, w] a) { a = Identity(x) },
            else_branch = e () => (float[1, 1, h, w] b) { b = Neg(x) }
        >
    }"""
    onnx.save(onnx.parser.parse_model(text % deciding), folder / "net.onnx")
    told = []
    if "Random" in deciding:
        with pytest.raises(ModelError, match="draws random numbers"):
            BioimageIO().read(folder, Wanted(checkpoint=str(folder), out="net.onnx"), told.append)
        return
    BioimageIO().read(folder, Wanted(checkpoint=str(folder), out="net.onnx"), told.append)
    assert "its If asks for values of the window" in told[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda said: said.update(run_mode={"name": "tta", "kwargs": {}}), "run_mode tta"),
        (lambda said: said["inputs"][0].update(output_of="denoiser"), "the model denoiser gives"),
    ],
)
def test_what_is_done_around_the_network_is_refused(tmp_path, change, words):
    folder, _, _ = small(tmp_path / "pkg")
    said = yaml.safe_load((folder / "rdf.yaml").read_text())
    change(said)
    (folder / "rdf.yaml").write_text(yaml.safe_dump(said))
    assert words in refusal(folder)
