"""PNG and JPEG, alone and as slices of a folder, are read as Pillow reads them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.command_line import cli
from support.spoiled import check_refused
from support.volumes import fake_model, identity, make_volume
from unet_engine.errors import InputError
from unet_engine.plan.box import Box
from unet_engine.volumes import picture
from unet_engine.volumes.formats import open_volume

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("imagecodecs")
RNG = np.random.default_rng(8)
GREY = RNG.integers(0, 255, (41, 53), np.uint8)
RGB = RNG.integers(0, 255, (41, 53, 3), np.uint8)


def saved(path: Path, array: Any, mode: str | None = None, **options: Any) -> str:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return str(path)


def whole(path: str) -> np.ndarray[Any, Any]:
    volume = open_volume(path)
    return volume.read(Box.of_shape(volume.shape))


@pytest.mark.parametrize("array", [GREY, GREY.astype(np.uint16) * 200, RGB, RGB[:, ::-1]])
def test_a_png_is_as_pillow_reads_it(tmp_path: Path, array: Any) -> None:
    path = saved(tmp_path / "a.PNG", array)
    volume = open_volume(path)
    assert (volume.axes, volume.alpha, volume.notes) == ("yxc"[: array.ndim], None, ())
    wanted = np.moveaxis(array, 2, 0) if array.ndim == 3 else array[None]
    assert np.array_equal(whole(path), wanted)
    assert np.array_equal(volume.read(Box((3, 50), (20, 53))), wanted[:, 3:20, 50:53])


def test_a_jpeg_is_as_pillow_reads_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", RGB)
    assert np.abs(whole(path).astype(int) - np.moveaxis(np.asarray(Image.open(path)), 2, 0)).max() <= 1


def test_its_last_channel_says_where_something_was_measured(tmp_path: Path) -> None:
    array = np.dstack([RGB, np.where(GREY > 100, 255, 0).astype(np.uint8)])
    assert open_volume(saved(tmp_path / "a.png", array)).alpha == 3


def test_a_palette_gives_its_colours_and_that_is_told(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", RGB, "P")
    assert np.array_equal(whole(path), np.moveaxis(np.asarray(Image.open(path).convert("RGB")), 2, 0))
    assert "palette: its colours are read" in open_volume(path).notes[0]


@pytest.mark.parametrize(("orientation", "notes"), [(1, 0), (6, 1)])
def test_one_that_is_shown_turned_is_read_as_it_is_stored_and_that_is_told(
    tmp_path: Path, orientation: int, notes: int
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    volume = open_volume(saved(tmp_path / "a.jpg", RGB, exif=exif))
    assert volume.shape == (41, 53)
    assert ["shown turned" in note for note in volume.notes] == [True] * notes


def test_a_large_one_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))
    path = saved(tmp_path / "a.png", RGB)
    alone = whole(path)
    monkeypatch.setattr(picture, "KEPT_BYTES", 100)
    volume = open_volume(path)
    assert "unpacked to" in volume.notes[-1]
    assert np.array_equal(volume.read(Box.of_shape(volume.shape)), alone)
    volume.release()


def test_a_folder_of_pictures_is_a_stack(tmp_path: Path) -> None:
    stack = RNG.integers(0, 255, (12, 41, 53), np.uint8)
    for z, plane in enumerate(stack):
        saved(tmp_path / "scan" / f"s{z}.png", plane) if z else (tmp_path / "scan").mkdir()
    saved(tmp_path / "scan" / "s0.png", stack[0])
    saved(tmp_path / "scan" / "overview.jpg", RGB)
    path = str(tmp_path / "scan")
    assert open_volume(path).axes == "zyx"
    assert "slices are the 12 files like s0.png; overview.jpg, of another kind, left out" in open_volume(path).notes[-1]
    assert np.array_equal(whole(path)[0], stack)
    other = make_volume(tmp_path / "same.zarr", stack)
    one, two = (identity(at, tmp_path, out=str(tmp_path / f"{i}.zarr")) for i, at in enumerate((path, other)))
    assert one.tobytes() == two.tobytes()
    saved(tmp_path / "scan" / "s12.png", stack[0][:, 1:])
    with pytest.raises(InputError, match=r"s12\.png is 41×52 uint8, the first slice 41×53"):
        whole(path)


def test_a_run_of_one_ends_in_a_tiff_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "cell.png", GREY)
    model = fake_model(tmp_path, axes="yx", window=[16, 16])
    done = cli("run", "--in", "cell.png", "--model", model)
    assert done.code == 0, done.err
    assert [found.name for found in tmp_path.glob("cell-*")] == [f"cell-{Path(model).name.split('.')[0]}.ome.tif"]


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_spoiled_ones_are_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    written = io.BytesIO()
    Image.fromarray(RGB).save(written, kind)
    check_refused(tmp_path / f"a.{kind}", written.getvalue())


def test_a_jpeg_that_breaks_off_and_one_for_printers_are_refused(tmp_path: Path) -> None:
    path = Path(saved(tmp_path / "a.jpg", RGB))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"a\.jpg is no readable picture: it breaks off"):
        open_volume(str(path))
    with pytest.raises(InputError, match="in CMYK, colours for a printer"):
        open_volume(saved(tmp_path / "b.jpg", RGB, "CMYK"))


def test_what_is_only_called_so_and_what_is_too_large_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"II*\0" * 20)
    with pytest.raises(InputError, match="no PNG or JPEG, though it is called so"):
        open_volume(str(tmp_path / "a.png"))
    data = bytearray(Path(saved(tmp_path / "b.png", GREY)).read_bytes())
    data[16:24] = b"\x3f\xff\xff\xff" * 2
    (tmp_path / "b.png").write_bytes(data)
    with pytest.raises(InputError, match=r"b\.png"):
        open_volume(str(tmp_path / "b.png"))
