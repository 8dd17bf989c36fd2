"""What is attached to a model file changes neither its network nor its hash, and damage to it is noticed."""

import base64
import hashlib
import shutil
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_engine.errors import ModelError, OutputError
from unet_engine.model import attachments
from unet_engine.model.attached import NETWORK
from unet_engine.model.file import attached_network, open_model


@pytest.fixture
def file(tiny_onnx, tmp_path):
    return shutil.copy(tiny_onnx, tmp_path / "net.onnx")


def own(path):
    return b"".join(attachments.own_bytes(path))


def test_the_network_keeps_its_bytes_and_its_hash(file):
    onnx = pytest.importorskip("onnx")
    before, bytes_before = open_model(file), file.read_bytes()
    attachments.attach(file, file, {"a": b"one", "b": "größer".encode() * 100_000})
    assert own(file) == bytes_before
    assert open_model(file).sha256 == before.sha256
    assert attachments.read(file, "b") == "größer".encode() * 100_000
    assert attachments.read(file, "c") is None
    onnx.checker.check_model(onnx.load(file))
    attachments.attach(file, file, {})
    assert file.read_bytes() == bytes_before


def test_attachments_are_found_wherever_another_tool_puts_them(file, tmp_path):
    onnx = pytest.importorskip("onnx")
    attachments.attach(file, file, {"a": b"one"})
    model = onnx.load(file)
    entry = model.metadata_props.add()
    entry.key, entry.value = "foreign", "x"
    onnx.save(model, tmp_path / "saved.onnx")
    assert attachments.read(tmp_path / "saved.onnx", "a") == b"one"
    assert b"foreign" in own(tmp_path / "saved.onnx")


@given(st.dictionaries(st.text("abcé", min_size=1, max_size=30), st.binary(max_size=300), max_size=4))
def test_what_is_attached_comes_back(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("a") / "x.onnx"
    path.write_bytes(b"\x08\x0a\x12\x03abc")
    attachments.attach(path, path, values)
    assert {a.key: attachments.read(path, a.key) for a in attachments.attachments(path)} == values
    assert own(path) == b"\x08\x0a\x12\x03abc"


@pytest.mark.parametrize("data", [b"\x12\xff", b"\x12\x05abc", b"\xff" * 20, b"\x0b\x00"])
def test_what_is_no_message_is_refused(tmp_path, data):
    (tmp_path / "x.onnx").write_bytes(data)
    with pytest.raises(ModelError, match="not a readable ONNX"):
        attachments.attachments(tmp_path / "x.onnx")


def test_a_damaged_or_missing_network_is_refused(file):
    sha256 = hashlib.sha256(b"network").hexdigest()
    attachments.attach(file, file, {NETWORK + sha256: base64.b64encode(b"another")})
    with pytest.raises(ModelError, match="is damaged; run unet-engine quantize again"):
        attached_network(open_model(file), sha256)
    with pytest.raises(ModelError, match="is missing"):
        attached_network(open_model(file), "0" * 64)


def test_a_folder_that_cannot_be_written_is_named(file, tmp_path):
    with pytest.raises(OutputError, match="choose a folder"):
        attachments.attach(file, tmp_path / "gone" / "x.onnx", {})


def test_the_file_keeps_its_permissions_and_a_link_stays_one(tmp_path, tiny_onnx):
    real, link = tmp_path / "real.onnx", tmp_path / "link.onnx"
    shutil.copy(tiny_onnx, real)
    real.chmod(0o640)
    link.symlink_to("real.onnx")
    attachments.attach(link, link, {"a": b"1"})
    assert link.is_symlink()
    assert attachments.read(real, "a") == b"1"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert {p.name for p in tmp_path.iterdir()} == {"real.onnx", "link.onnx"}
