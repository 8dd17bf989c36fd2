"""Objects of a table as links."""

import csv

import pytest

from unet_engine.errors import InputError
from unet_engine.viewing import tables
from unet_engine.viewing.tables import Entry

ROWS = [
    {"id": 2, "class": 1, "class_name": "<b>cell", "voxels": 5, "voxel_y0": 2, "voxel_y1": 5, "voxel_x0": 0, "voxel_x1": 4},
    {"id": 9, "class": 2, "class_name": "", "voxels": 70, "voxel_y0": 0, "voxel_y1": 10, "voxel_x0": 8, "voxel_x1": 9},
]  # fmt: skip


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_the_largest_object_comes_first_and_links_lead_to_the_middle_of_its_box(tmp_path, ending):
    path = tmp_path / f"t.{ending}"
    if ending == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ROWS[0])
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    found = tables.read(str(path))
    assert found == [Entry(9, "2", 70, (5.0, 8.5)), Entry(2, "<b>cell", 5, (3.5, 2.0))]
    page = tables.page("Objects of <x>", found)
    assert page.index('href="objects/9"') < page.index('href="objects/2"')
    assert "&lt;b&gt;cell" in page
    assert "<x>" not in page


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "id,voxels,voxel_x0,voxel_x1\n1,many,0,1\n", "\0\xff"])
def test_other_tables_are_refused(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode("latin1"))
    if not text:
        assert tables.read(str(path)) == []
        return
    with pytest.raises(InputError, match="unet-engine table"):
        tables.read(str(path))


def test_a_table_that_is_not_there_is_told_how_to_make(tmp_path):
    with pytest.raises(InputError, match="make it with: unet-engine table"):
        tables.read(str(tmp_path / "t.csv"))
