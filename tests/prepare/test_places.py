"""Where a run writes: beside its input, and never into what it reads."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from support.command_line import cli
from support.volumes import fake_model, make_volume
from unet_engine.errors import SettingsError
from unet_engine.model.spec import plain_name
from unet_engine.storage import stores


def tree(folder):
    """Every file below `folder` and what it holds."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def data(tmp_path):
    """A folder with a volume and nothing else."""
    make_volume(tmp_path / "data/scan.zarr", np.ones((9, 9, 9), np.uint8))
    return tmp_path / "data"


@pytest.mark.parametrize(
    "name",
    ["../../elsewhere", "/tmp/elsewhere", "a/b", "..", "", "a\\b", "a\nb", "a\x1b[31mb", "a\x00b", "x" * 300, "a:b",
     "\u202eevil", "."],
)  # fmt: skip
def test_whatever_a_model_is_called_its_output_lies_beside_the_input(name, data, tmp_path):
    model = fake_model(tmp_path / "m")
    text = Path(model).read_text()
    assert 'name = "id"' in text
    Path(model).write_text(text.replace('name = "id"', f"name = {json.dumps(name)}"))
    said = cli("run", "--in", data / "scan.zarr", "--model", model, "--json")
    assert said.code == 0, said.err
    assert os.path.dirname(said.json["out"]) == str(data)  # noqa: PTH120
    assert {p.name for p in data.iterdir()} == {"scan.zarr", Path(said.json["out"]).name}
    assert {p.name for p in tmp_path.iterdir()} == {"m", "data"}


def test_names_stay_what_they_are_where_they_lead_nowhere():
    for name in ("cells_3d", "Zellkerne für EM (v2.1)", "net[1]", "a+b=c", "細胞", "it's #5 @ 50%"):
        assert plain_name(name) == name


@pytest.mark.parametrize("inside", ["scan.zarr", "scan.zarr/0", "scan.zarr/new/labels.zarr", "SCAN/x", "link", "link/x",
                                    "sub/../scan.zarr/x", "."])  # fmt: skip
@pytest.mark.parametrize("option", ["out", "profile", "profile-json"])
def test_nothing_is_written_into_the_input(option, inside, data, model, monkeypatch):
    monkeypatch.chdir(data)
    (data / "link").symlink_to("scan.zarr")
    (data / "sub").mkdir()
    (data / "SCAN").symlink_to("scan.zarr")
    before = tree(data)
    place = {"out": ["--out", inside, "--overwrite"], "profile": ["--profile", inside, "--out", "o.zarr"],
             "profile-json": ["--profile", f"{inside}/p.json", "--out", "o.zarr"]}[option]  # fmt: skip
    if inside == "." and option != "out":
        return  # a profile beside the volume is where it should be
    said = cli("run", "--in", "scan.zarr", "--model", model, *place)
    assert said.code == SettingsError.exit_code
    assert "overlaps the input" in said.error or "which holds voxels" in said.error
    assert tree(data) == before


def test_a_folder_in_another_case_is_found_by_what_it_is(data, monkeypatch):
    """File systems that do not tell upper from lower case give both names the same inode."""
    real = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path: real(Path(str(path).replace("SCAN.ZARR", "scan.zarr"))))
    assert stores.within(str(data / "SCAN.ZARR/labels"), str(data / "scan.zarr"))
    assert not stores.within(str(data / "SCAN2.ZARR/labels"), str(data / "scan.zarr"))


def test_a_profile_stays_out_of_the_output(data, model, tmp_path):
    for place in ("o.zarr", "o.zarr/0", "o.zarr/0/p.json"):
        said = cli("run", "--in", data / "scan.zarr", "--model", model, "--out", "o.zarr", "--profile", place)
        assert said.code == SettingsError.exit_code
        assert "which holds voxels" in said.error
        assert not (tmp_path / "o.zarr").exists()


def test_the_output_in_the_settings_name_that_leads_to_the_input_by_a_link_is_left_alone(data, tmp_path):
    """Even where the input is itself an output of ours, which --overwrite may replace."""
    model = fake_model(tmp_path, name="id")
    assert cli("run", "--in", data / "scan.zarr", "--model", model, "--out", data / "first.zarr").code == 0
    (data / "first-id.zarr").symlink_to("first.zarr")
    before = tree(data)
    for flags in (["--overwrite"], ["--resume"], []):
        said = cli("run", "--in", data / "first.zarr/0", "--model", model, *flags)
        assert said.code == SettingsError.exit_code
        assert "overlaps the input" in said.error
    assert tree(data) == before


def test_nor_does_its_array(data, tmp_path):
    model = fake_model(tmp_path, name="id")
    (data / "o.zarr").mkdir()
    (data / "o.zarr/0").symlink_to("../scan.zarr")
    said = cli("run", "--in", data / "scan.zarr", "--model", model, "--out", data / "o.zarr", "--resume")
    assert said.code == SettingsError.exit_code
    assert "overlaps the input" in said.error


def test_reports_of_other_commands_stay_out_too(data, tiny_onnx):
    before = tree(data)
    inside = str(data / "scan.zarr/c.html")
    said = cli("quantize", tiny_onnx, "--calibrate", data / "scan.zarr", "--report", inside, "--out", "q.onnx")
    assert said.code == SettingsError.exit_code
    said = cli("bench", "--in", data / "scan.zarr", "--model", tiny_onnx, "--html", inside)
    assert said.code == SettingsError.exit_code
    assert tree(data) == before


def test_a_folder_that_takes_no_files_is_refused_before_a_network_is_loaded(tmp_path, monkeypatch):
    """Root may write everywhere, so the system's answer is made up."""
    scan = make_volume(tmp_path / "scan.zarr", np.ones((8, 8, 8), np.float32))
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path))
    said = cli("run", "--in", scan, "--model", fake_model(tmp_path, fail_at=1), "--out", tmp_path / "a/b.zarr")
    assert said.code == 8
    assert f"{tmp_path} takes no files of yours; choose another --out" in said.error
    assert not (tmp_path / "a").exists()
