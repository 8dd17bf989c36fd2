"""Files of safetensors that cannot be read, and what is said of them."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from safetensors.torch import save_file  # noqa: E402

from support.command_line import cli  # noqa: E402
from unet_engine.errors import ModelError  # noqa: E402
from unet_export.conversion.safetensors_file import tensors_of  # noqa: E402


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
