"""Names of volumes may hold whatever a file system takes: what is left for machines can be read all the same."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from support.command_line import cli
from unet_engine.units import printable
from unet_engine.volumes.formats import open_volume

NAMES = ["a\nb", 'c"d,e', "f\x1b[31mg", "h\u202ei", "~j", "k:level=x", "l#m?n*o[1]", "-p %sq'r\\s "]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_what_is_left_of_odd_names_is_a_line_each(here, model):
    for name in NAMES:
        np.save(f"./{name}.npy", np.zeros((8, 8, 8), np.uint8))
    records = ["--results", "r.jsonl", "--log", "l.txt", "--metrics", "m.prom"]
    volumes = [f"./{name}.npy" for name in NAMES]
    said = cli("--json", "run", "--in", *volumes, "--model", model, "--out", "o/{stem}.zarr", *records)
    assert said.code == 0, said.err
    assert sorted(path.stem for path in Path("o").iterdir()) == sorted(NAMES)
    lines = [json.loads(line) for line in Path("r.jsonl").read_text().split("\n")[:-1]]
    assert [line["input"] for line in lines] == volumes
    assert all(
        re.match(r"\d{4}-\d\d-\d\dT[^\x00-\x1f\u202e]*$", line) for line in Path("l.txt").read_text().split("\n")[:-1]
    )
    assert all(re.match(r"# |[a-z_]+(\{[^}]*\})? \S+$", line) for line in Path("m.prom").read_text().splitlines())
    assert "\x1b[31mg" not in said.err


def test_a_tilde_is_no_home(here):
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 4, 5), np.uint8), np.eye(4)), Path("~j.nii").absolute())
    assert open_volume("~j.nii").shape == (5, 4, 3)


def test_what_steers_a_terminal_is_shown():
    assert printable("é — µm\tx") == "é — µm\tx"
    assert printable("a\x1b[2Jb\u202ec") == "a\\x1b[2Jb\\u202ec"
