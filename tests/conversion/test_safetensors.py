"""Files of safetensors that cannot be read, and what is said of them."""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from safetensors.torch import save_file  # noqa: E402

from support.command_line import cli  # noqa: E402
from unet_engine.errors import ModelError  # noqa: E402
from unet_export.conversion.safetensors_file import tensors_of  # noqa: E402
from unet_export.conversion.weights import read_weights  # noqa: E402


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file({"a.weight": torch.ones(4, 4), "b.weight": torch.ones(100)}, str(path))
    return path


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])
    return path


@pytest.mark.parametrize(
    ("missing", "words"), [(1, r"net.safetensors is cut short.*: b.weight is not all"), (401, "a.weight is not all")]
)
def test_the_tensor_that_is_not_all_there_is_named(whole, missing, words):
    with pytest.raises(ModelError, match=words):
        tensors_of(cut(whole, whole.stat().st_size - missing))


@pytest.mark.parametrize("size", [0, 5, 20])
def test_a_header_that_is_cut_short_is_told(whole, size):
    with pytest.raises(ModelError, match="cut short in its header"):
        tensors_of(cut(whole, size))


def test_a_page_of_the_web_is_no_file_that_was_cut_short(whole):
    whole.write_bytes(b"<html><body>not found</body></html>")
    with pytest.raises(ModelError, match="no readable safetensors file"):
        tensors_of(whole)


def test_an_import_says_that_the_file_is_cut_short_and_not_that_it_names_no_network(whole):
    said = cli("import", cut(whole, whole.stat().st_size - 401), "--out", "net.onnx")
    assert said.code == 5
    assert "a.weight is not all there" in said.error


# --- several files ---

FIRST, SECOND = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))


@pytest.fixture
def index(tmp_path):
    """As Hugging Face's libraries write it."""
    save_file({"a.weight": torch.ones(4, 4)}, str(tmp_path / FIRST))
    save_file({"b.weight": torch.ones(3)}, str(tmp_path / SECOND))
    places = {"a.weight": FIRST, "b.weight": SECOND}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 76}, "weight_map": places}))
    return path


def test_an_index_stands_for_the_weights_of_all_its_files(index):
    assert {name: tuple(t.shape) for name, t in read_weights(index).tensors.items()} == {
        "a.weight": (4, 4), "b.weight": (3,),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("places", "words"),
    [
        (None, "no index of weights"), ({"a.weight": "../x.safetensors"}, "none beside it"),
        ({"a.weight": "y.safetensors"}, "download that file, too"), ({"c.weight": FIRST}, "lacks c.weight"),
    ],
)  # fmt: skip
def test_an_index_whose_files_are_others_is_refused(index, places, words):
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ModelError, match=words):
        read_weights(index)


def test_one_of_several_files_alone_is_refused_with_the_name_of_the_index(index):
    for command in ("import", "export"):
        said = cli(command, index.parent / FIRST, "--out", "net.onnx")
        assert said.code == 5
        assert "is one of 2 parts" in said.error
        assert "model.safetensors.index.json" in said.error
