"""What is kept of pieces of files that are unpacked as a whole: one budget for all files of a volume, planned."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unet_engine
from support.command_line import cli
from support.volumes import fake_model, result_of
from unet_engine.plan.box import Box
from unet_engine.prepare.keeping import to_keep_of_mask, to_keep_unpacked
from unet_engine.volumes import tiff
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.joined import JoinedVolume
from unet_engine.volumes.mask import open_mask
from unet_engine.volumes.slices import SlicesVolume

tifffile = pytest.importorskip("tifffile")
STACK = np.random.default_rng(5).integers(0, 200, (24, 64, 48), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    place = tmp_path / "slices"
    place.mkdir()
    for z, plane in enumerate(STACK):
        tifffile.imwrite(place / f"{z:03}.tif", plane, compression="zlib", rowsperstrip=16)
    return str(place)


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> Counter[Any]:
    """How often each piece was."""
    seen = Counter[Any]()
    plain = tiff.TiffVolume._decoded

    def counted(self: Any, page: Any, piece: int) -> Any:
        seen[self.path, piece] += 1
        return plain(self, page, piece)

    monkeypatch.setattr(tiff.TiffVolume, "_decoded", counted)
    return seen


def test_slices_keep_no_more_than_one_budget(folder: str, unpacked: Counter[Any]) -> None:
    volume, whole = open_volume(folder), Box.of_shape(STACK.shape)
    assert isinstance(volume, SlicesVolume)
    assert volume.pieces == (1, 16, 48)
    volume.keep(10 * 16 * 48, None)
    np.testing.assert_array_equal(volume.read(whole)[0], STACK)
    assert volume._open.kept._bytes == 10 * 16 * 48
    volume.keep(0, None)
    assert volume._open.kept._bytes == 0
    unpacked.clear()
    volume.keep(STACK.nbytes, None)
    for _ in range(2):
        np.testing.assert_array_equal(volume.read(whole)[0], STACK)
    assert set(unpacked.values()) == {1}


@pytest.mark.parametrize("room", ["all", "none"])
def test_pieces_are_unpacked_as_often_as_the_plan_says(
    tmp_path: Path, folder: str, unpacked: Counter[Any], monkeypatch: pytest.MonkeyPatch, room: str
) -> None:
    """Where all that spares any is kept, and where nothing is: the plan counts it as memory."""
    least = room == "none"
    monkeypatch.setattr("unet_engine.machine.resident_bytes", lambda: 2**28)  # whatever was tested in this process
    if least:
        monkeypatch.setattr("unet_engine.prepare.prepare.to_keep_unpacked", lambda *_: 0)
    arguments = {"in": folder, "model": fake_model(tmp_path), "memory": "2GiB"}
    said = cli("plan", *(f"--{key}={value}" for key, value in arguments.items()), "--json").json
    assert (said["bytes_kept"] == 0) == least
    assert (said["unpack_factor"] == 1) != least
    assert any("is unpacked" in note and "convert" in note for note in said["notes"]) == least
    unpacked.clear()
    unet_engine.run(folder, arguments["model"], memory="2GiB", out=str(tmp_path / "o.zarr"))
    mean = sum(unpacked.values()) / (len(STACK) * STACK.shape[1] // 16)
    samples = 1.06  # all of so small a volume is looked at once before
    assert said["unpack_factor"] <= mean <= said["unpack_factor"] + samples


def test_what_is_kept_is_memory_of_the_plan(tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fake_model(tmp_path)
    plan = ("plan", "--in", folder, "--model", model, "--memory", "2GiB", "--json")
    monkeypatch.setattr("unet_engine.machine.resident_bytes", lambda: 2**28)
    kept = cli(*plan).json
    monkeypatch.setattr("unet_engine.prepare.prepare.to_keep_unpacked", lambda *_: 0)
    bare = cli(*plan).json
    assert kept["memory"]["total"] - bare["memory"]["total"] == kept["bytes_kept"] > 0
    assert kept["blocks"] == bare["blocks"]


def test_channels_in_files_of_their_own_keep_one_budget(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{name}.tif") for name in "ab"]
    for path in paths:
        tifffile.imwrite(path, STACK, compression="zlib", rowsperstrip=16)
    volume = open_volume("+".join(paths))
    assert isinstance(volume, JoinedVolume)
    assert volume.pieces == (1, 16, 48)
    volume.keep(10 * 16 * 48, None)
    volume.read(Box.of_shape(volume.shape))
    assert sum(part.kept._bytes for part in volume.parts if isinstance(part, tiff.TiffVolume)) == 10 * 16 * 48


def test_what_is_kept_of_a_mask_is_memory_of_the_plan(
    tmp_path: Path, folder: str, unpacked: Counter[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, mask, scan = fake_model(tmp_path), str(tmp_path / "mask.tif"), str(tmp_path / "scan.npy")
    tifffile.imwrite(mask, (STACK > 9).astype("u1"), compression="zlib", rowsperstrip=16, metadata={"axes": "ZYX"})
    np.save(scan, STACK)
    monkeypatch.setattr("unet_engine.machine.resident_bytes", lambda: 2**28)
    memory = {}
    for how, path in {"packed": mask, "in place": str(tmp_path / "mask.npy")}.items():
        np.save(tmp_path / "mask.npy", (STACK > 9).astype("u1"))
        said = cli("plan", "--in", scan, "--model", model, "--mask", path, "--memory", "2GiB", "--json")
        memory[how] = said.json["memory"]["total"]
    assert memory["packed"] - memory["in place"] == STACK.nbytes
    unpacked.clear()
    unet_engine.run(scan, model, out=str(tmp_path / "o.zarr"), mask=mask, memory="2GiB", blend="crop")
    assert max(unpacked.values()) <= 2 * len(STACK)  # of each plane, as it is looked at, and by the run
    assert to_keep_of_mask(open_mask(mask, open_volume(scan)), 400) == 100


def test_blocks_come_slice_by_slice_where_that_spares_unpacking(
    tmp_path: Path, unpacked: Counter[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a layer of slices can be kept and not all of them; no byte changes, and the plan says how often."""
    stack, room = np.random.default_rng(6).integers(0, 200, (72, 144, 60), np.uint8), 56 * 144 * 60
    monkeypatch.setattr("unet_engine.machine.resident_bytes", lambda: 2**28)
    (tmp_path / "slices").mkdir()
    for z, plane in enumerate(stack):
        tifffile.imwrite(tmp_path / f"slices/{z:03}.tif", plane, compression="zlib", rowsperstrip=144)
    for where in ("order", "prepare"):
        monkeypatch.setattr(
            f"unet_engine.prepare.{where}.to_keep_unpacked",
            lambda scan, plan, free: to_keep_unpacked(scan, plan, min(free, room)),
        )
    monkeypatch.setattr("unet_engine.prepare.order.BYTES_A_SECOND", 1.0)
    folder, model = str(tmp_path / "slices"), fake_model(tmp_path, window=(16, 16, 16))
    said, written, counted = {}, {}, {}
    for how in ("chosen", "by length"):
        if how == "by length":
            monkeypatch.setattr("unet_engine.prepare.prepare.in_order", lambda scan, plan, fitted, room: fitted)
        said[how] = cli("plan", "--in", folder, "--model", model, "--memory", "2GiB", "--json").json
        unpacked.clear()
        unet_engine.run(folder, model, memory="2GiB", out=str(tmp_path / f"{how}.zarr"), output="logits")
        written[how], counted[how] = result_of(tmp_path / f"{how}.zarr"), sum(unpacked.values()) / len(stack)
    np.testing.assert_array_equal(written["chosen"], written["by length"])
    assert said["chosen"]["digest"] == said["by length"]["digest"]
    assert said["chosen"]["unpack_factor"] < 1.5
    assert said["by length"]["unpack_factor"] > 4
    assert said["chosen"]["unpack_factor"] <= counted["chosen"] <= said["chosen"]["unpack_factor"] + 1.06  # samples
    assert counted["by length"] > 4
