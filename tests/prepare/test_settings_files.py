"""What settings files may say: one beside the data describes data and model, and nothing else."""

import os
from pathlib import Path

import numpy as np
import pytest

from support.command_line import cli
from support.volumes import fake_model, make_volume
from unet_engine.errors import SettingsError
from unet_engine.settings.files import CONFIG, DESCRIPTIVE, SettingsFile
from unet_engine.settings.settings import Settings


@pytest.fixture(autouse=True)
def _own_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder of data from elsewhere, with a volume and a model in it. The current folder is another one."""
    make_volume(tmp_path / "data/scan.zarr", np.ones((9, 9, 9), np.uint8))
    fake_model(tmp_path / "data")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "data"


def model_in(folder):
    return next(folder.glob("*.fake.toml")).name


def write(folder, **values):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for key, value in values.items()
    ]
    (folder / CONFIG).write_text("\n".join(lines))


VALUES = {
    "device": "cpu", "gpus": 1, "backend": "openvino", "precision": "fp32", "overlap_tolerance": 0.9, "blend": "crop",
    "padding": "edge", "output": "logits", "dtype": "float32", "roi": "0:4,:,:", "replace_nonfinite": 0.0,
    "mask": "m.zarr",
    "memory": "1GiB", "batch": 1, "threads": 1, "workers": 1, "scheduler": "tcp://127.0.0.1:1", "protocol": "tcp",
    "cluster": "c.yaml", "part": "1/1", "hang_seconds": 9.0, "tls_ca": "a", "tls_cert": "b", "tls_key": "c",
    "dashboard": "0.0.0.0:0", "dashboard_token": "t", "profile": "auto", "out": "o.zarr", "resume": True,
    "overwrite": True,
    "strict": True,
}  # fmt: skip
NEEDS = {"overlap_tolerance": {"overlap": "auto"}, "dtype": {"output": "logits"}}
TLS = ("tls_ca", "tls_cert", "tls_key")


@pytest.mark.parametrize("key", sorted(set(Settings.model_fields) - set(DESCRIPTIVE)))
def test_every_setting_is_refused_beside_the_data_unless_it_describes_them(key, tmp_path):
    with pytest.raises(SettingsError, match=r"may not be set beside the input|is given by hand alone"):
        SettingsFile(tmp_path / CONFIG, {key: None}, beside=True).check(key)


@pytest.mark.parametrize("key", VALUES)
def test_beside_the_data_a_setting_that_describes_nothing_is_refused(key, data):
    said = {key: VALUES[key]} | ({k: VALUES[k] for k in TLS} if key in TLS else {}) | NEEDS.get(key, {})
    write(data, model=model_in(data), **said)
    with pytest.raises(SettingsError, match=r"data/unet-engine.toml: \w+ may not be set beside the input") as refusal:
        Settings.of(input=str(data / "scan.zarr"))
    assert ";" in str(refusal.value)
    assert str(Path(os.environ["XDG_CONFIG_HOME"], "unet-engine", CONFIG)) in str(refusal.value)


def test_what_the_user_says_makes_the_file_no_matter(data, tmp_path):
    write(data, model=model_in(data), out="theirs.zarr", overwrite=True)
    write(tmp_path / "here", overwrite=False)
    settings = Settings.of(input=str(data / "scan.zarr"), out="mine.zarr")
    assert (settings.out, settings.overwrite) == ("mine.zarr", False)


def test_an_earlier_output_is_not_replaced(data):
    write(data, model=model_in(data))
    assert cli("run", "--in", data / "scan.zarr", "--out", data / "labels.zarr").code == 0
    write(data, model=model_in(data), out="labels.zarr", overwrite=True)
    before = (data / "labels.zarr/zarr.json").stat().st_mtime_ns
    said = cli("run", "--in", data / "scan.zarr")
    assert said.code == SettingsError.exit_code
    assert (data / "labels.zarr/zarr.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("how", ["above", "absolute", "link", "url", "second", "list"])
def test_the_model_beside_the_data_lies_in_their_folder(how, data, tmp_path):
    outside = Path(fake_model(tmp_path, name="other"))
    (data / "link.fake.toml").symlink_to(outside)
    inside = model_in(data)
    write(data, model={"above": f"../{outside.name}", "absolute": str(outside), "link": "link.fake.toml",
                       "url": "s3://bucket/net.onnx", "second": f"{inside},{outside}",
                       "list": [inside, f"../{outside.name}"]}[how])  # fmt: skip
    with pytest.raises(SettingsError, match="lies outside the folder of the data; give --model"):
        Settings.of(input=str(data / "scan.zarr"))


@pytest.mark.parametrize("several", [["a.fake.toml", "b.fake.toml"], "a.fake.toml, b.fake.toml"])
def test_several_models_beside_the_data_start_at_their_file(several, data):
    paths = [fake_model(data, name=name) for name in "ab"]
    write(data, model=several)
    assert Settings.of(input=str(data / "scan.zarr")).model == ",".join(paths)


def test_what_was_taken_is_told(data, tmp_path):
    write(data, model=model_in(data), window=[12, 12, 12])
    write(tmp_path / "here", blend="crop")
    write(tmp_path / "config/unet-engine", memory="8GiB", blend="constant")
    said = cli("plan", "--in", data / "scan.zarr", "--json")
    assert said.code == 0, said.err
    said = cli("plan", "--in", data / "scan.zarr")
    notes = [line for line in said.err.splitlines() if "from /" in line]
    assert [n.removeprefix("note: ") for n in notes] == [
        f"from {tmp_path / 'here' / CONFIG}: blend",
        f"from {data / CONFIG}: model, window",
        f"from {tmp_path / 'config/unet-engine' / CONFIG}: memory",
    ]


def test_the_users_own_file_may_say_anything_and_paths_start_there(data, tmp_path):
    write(tmp_path / "config/unet-engine", cluster="slurm.yaml", overwrite=True, dashboard="0.0.0.0:8787")
    settings = Settings.of(input=str(data / "scan.zarr"))
    assert settings.cluster == str(tmp_path / "config/unet-engine/slurm.yaml")
    assert settings.overwrite


def test_so_may_the_one_in_the_current_folder(data, tmp_path):
    write(tmp_path / "here", cluster="slurm.yaml", overwrite=True, out="../o.zarr", dashboard="0.0.0.0:8787")
    assert Settings.of(input=str(data / "scan.zarr")).overwrite


@pytest.mark.parametrize("where", [".", "scan.zarr"])
@pytest.mark.parametrize(
    "said",
    [{"overwrite": True}, {"cluster": "slurm.yaml"}, {"scheduler": "tcp://h:1"}, {"dashboard": "0.0.0.0:1"},
     {"out": "../../o.zarr"}, {"out": "/o.zarr"}, {"profile": "../../p"}],
)  # fmt: skip
def test_but_not_where_it_lies_with_the_data(said, where, data, monkeypatch):
    write(data / where, **said)
    monkeypatch.chdir(data / where)
    with pytest.raises(SettingsError, match=r"beside the input|outside the folder") as refusal:
        Settings.of(input=str(data / "scan.zarr"))
    assert "in another folder and run there" in str(refusal.value) or "on the command line" in str(refusal.value)


def test_there_it_may_say_how_to_compute_and_what_to_write_in_its_folder(data, monkeypatch):
    write(data, output="logits", workers=2, out="o.zarr", model="../net.onnx")
    monkeypatch.chdir(data)
    settings = Settings.of(input="scan.zarr")
    assert (settings.output, settings.workers, settings.out) == ("logits", 2, str(data / "o.zarr"))


def test_a_link_to_the_data_is_no_way_around(data, tmp_path, monkeypatch):
    """The file is the same, whatever the folder is called."""
    write(data, overwrite=True)
    (tmp_path / "mine").symlink_to(data)
    monkeypatch.chdir(tmp_path / "mine")
    with pytest.raises(SettingsError, match="beside the input"):
        Settings.of(input=str(data / "scan.zarr"))
