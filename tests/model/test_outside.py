"""Models read files of their own folder, and nothing else: no pipe, no device, nothing that unpacks to more than it
may."""

import os
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from support.command_line import cli
from support.volumes import make_volume
from unet_engine.errors import InputError, ModelError
from unet_engine.model.file import open_model
from unet_engine.model.spec import METADATA_KEY
from unet_engine.model.torch_file import LARGEST_SPEC

WEIGHTS = np.zeros((2, 1, 3, 3, 3), np.float32)


def tensor(location, **more):
    found = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=WEIGHTS.shape, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "length": WEIGHTS.nbytes, **more}.items():
        found.external_data.add(key=key, value=str(value))
    return found


def network(folder, held, *, where="initializer"):
    """A convolution whose weights lie in another file: as an initializer, in a node, or in a graph inside a node."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 6)]
    if where == "constant":
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=held))
    if where == "branch":
        inner = helper.make_graph([helper.make_node("Constant", [], ["i"], value=held)], "b", [],
                                  [helper.make_tensor_value_info("i", TensorProto.FLOAT, WEIGHTS.shape)])  # fmt: skip
        nodes.insert(0, helper.make_node("If", ["c"], ["w"], then_branch=inner, else_branch=inner))
        nodes.insert(
            0, helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.BOOL, [], [True]))
        )
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 1, 8, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 2, 8, 8, 8))],
        initializer=[held] if where == "initializer" else [],
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    path = folder / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


@pytest.fixture
def volume(tmp_path):
    return make_volume(tmp_path / "scan.zarr", np.ones((8, 8, 8), np.uint8))


@pytest.mark.parametrize("where", ["initializer", "constant", "branch"])
@pytest.mark.parametrize("place", ["../secret", "{root}/secret", "link", "sub/link", "", ".", "m/../../secret",
                                   "*/_ORT_MEM_ADDR_/*", "gone", "pipe", "/dev/zero", "zero"])  # fmt: skip
def test_weights_lie_in_the_models_folder_and_in_files(place, where, volume, tmp_path):
    folder = tmp_path / "m"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(WEIGHTS.tobytes())
    (folder / "link").symlink_to("../secret")
    (folder / "sub/link").symlink_to("../../secret")
    (folder / "zero").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe")
    path = network(folder, tensor(place.format(root=tmp_path)), where=where)
    for arguments in (
        ["plan", "--in", volume, "--model", path],
        ["export", path, "--out", tmp_path / "o.onnx"],
        ["info", path],
    ):
        said = cli(*arguments)
        assert said.code == ModelError.exit_code, said.err
        assert "keeps weights in" in said.error
        assert ";" in said.error


def test_those_beside_it_are_read_and_count_for_its_hash(volume, tmp_path):
    path = network(tmp_path / "m", tensor("net.data"))
    (tmp_path / "m/net.data").write_bytes(WEIGHTS.tobytes())
    assert cli("run", "--in", volume, "--model", path, "--out", "o.zarr").code == 0
    before = open_model(path).sha256
    (tmp_path / "m/net.data").write_bytes((WEIGHTS + 1).tobytes())
    assert open_model(path).sha256 != before
    # the model itself may be a link: its folder is where the link lies
    (tmp_path / "m/other.onnx").symlink_to(path)
    open_model(tmp_path / "m/other.onnx")


@pytest.mark.parametrize("more", [{"offset": 1}, {"length": WEIGHTS.nbytes + 1}, {"offset": -1}, {"length": "9" * 30},
                                  {"offset": "٣"}, {"length": "", "offset": 1},
                                  {"length": WEIGHTS.nbytes - 1}])  # fmt: skip
def test_weights_end_where_their_file_does(more, tmp_path):
    path = network(tmp_path / "m", tensor("net.data", **more))
    (tmp_path / "m/net.data").write_bytes(WEIGHTS.tobytes())
    with pytest.raises(ModelError, match=r"net\.data.* ends at|says (offset|length)|says that w lies in 215 bytes"):
        open_model(path)


@pytest.mark.parametrize("name", ["net.onnx", "net.pt2", "net.pt", "net.fake.toml"])
@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_a_model_is_a_file(name, kind, volume, tmp_path):
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        import socket

        path = Path(name)  # names of sockets are short
        socket.socket(socket.AF_UNIX).bind(name)
    for command in (["plan", "--in", volume, "--model", path], ["info", path]):
        said = cli(*command)
        assert said.code == ModelError.exit_code
        assert "no regular file" in said.error


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_so_is_the_spec_beside_it(kind, volume, tmp_path):
    path = network(tmp_path / "m", tensor("net.data"))
    (tmp_path / "m/net.data").write_bytes(WEIGHTS.tobytes())
    beside = path.with_suffix(".toml")
    os.mkfifo(beside) if kind == "pipe" else beside.symlink_to("/dev/zero")
    said = cli("plan", "--in", volume, "--model", path)
    assert said.code == ModelError.exit_code
    assert "no regular file" in said.error


@pytest.mark.parametrize("option", ["--in", "--mask"])
def test_and_an_input_is_a_folder(option, volume, model, tmp_path):
    os.mkfifo(tmp_path / "pipe.zarr")
    options = {"--in": volume, "--model": model, option: tmp_path / "pipe.zarr"}
    said = cli("run", *(text for pair in options.items() for text in pair))
    assert said.code == InputError.exit_code


@pytest.mark.parametrize("name", ["net.pt2", "net.pt"])
def test_a_spec_that_unpacks_to_more_than_any_is_not_unpacked(name, tmp_path):
    with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"net/extra/{METADATA_KEY}", b" " * (LARGEST_SPEC + 1))
    with pytest.raises(ModelError, match="none is above"):
        open_model(tmp_path / name)


def test_nor_is_an_attached_network(tmp_path, monkeypatch):
    import io

    from unet_engine.backends.openvino import unpacked

    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net.xml", b"<net/>")
        archive.writestr("net.bin", bytes(10**6))
    with pytest.raises(ModelError, match="unpacks to 1000006 bytes"):
        unpacked(held.getvalue(), 10**5)
