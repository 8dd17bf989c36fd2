"""`run --report`: one file that holds all of it, with seams that are measured; what a run cost."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from support.command_line import cli
from support.graphs import graph, node
from support.shares import share
from support.volumes import fake_model, make_volume, result_of
from unet_engine.commands.price import Rate
from unet_engine.commands.run_report.unfinished import Unfinished
from unet_engine.errors import OutputError, SettingsError
from unet_engine.model.spec import ModelSpec
from unet_engine.output.header import Header
from unet_engine.profiling import energy

CLASSES = ("<dark>", "light")


@pytest.fixture
def scan(tmp_path):
    values = np.random.default_rng(1).uniform(0, 1, (20, 40, 40)).astype(np.float32)
    return make_volume(tmp_path / "scan.zarr", values)


def two_classes(path, where):
    """A network that compares each voxel with `where` (8, 8, 8): the place in the window, or a constant."""
    spec = ModelSpec(
        name="two", axes="zyx", channels_in=1, channels_out=2, window=(8, 8, 8), window_min=(8, 8, 8),
        window_step=(0, 0, 0), margin=(0, 0, 0), activation="softmax", classes=CLASSES,
    )  # fmt: skip
    return graph(
        path, [node("Add", "x zero", "same"), node("Mul", "same zero", "none"),
               node("Add", "none where", "place"), node("Concat", "place same", "y", axis=1)],
        shape=(1, 1, 8, 8, 8), spec=spec, zero=np.zeros(1, np.float32),
        where=np.ascontiguousarray(where, np.float32).reshape(1, 1, 8, 8, 8),
    )  # fmt: skip


@pytest.fixture
def even(tmp_path):
    return two_classes(tmp_path / "even.onnx", np.full((8, 8, 8), 0.5))


@pytest.fixture
def uneven(tmp_path):
    """What it says of a voxel depends on where the window lies."""
    z, y, x = np.meshgrid(*[np.arange(8)] * 3, indexing="ij")
    return two_classes(tmp_path / "uneven.onnx", (z + y + x) / 21)


class Reader(HTMLParser):
    """Rows of tables by their heading, links and loaded things."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.loads, self.tags = {}, [], []
        self.feed(text)
        for name, value in re.findall(r"<tr><th>([^<]*)<td>([^<]*)</tr>", text):
            self.rows[html.unescape(name)] = html.unescape(value)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]


def run(scan, model, *options):
    said = cli("run", "--in", scan, "--model", model, "--out", "out.zarr", "--report", "r.html", *options)
    assert said.code == 0, said.err
    return Reader(Path("r.html").read_text()), said


def test_all_is_in_one_file_that_loads_nothing(scan, even):
    page, said = run(scan, even)
    assert "script" not in page.tags
    assert len(page.loads) == 12
    assert all(place.startswith("data:image/png;base64,") for place in page.loads)
    assert page.rows["model"].startswith("two, even.onnx, SHA-256 ")
    assert page.rows["precision"].startswith("fp32")
    text = Path("r.html").read_text()
    assert "&lt;dark&gt;" in text
    assert "<dark>" not in text
    assert "<svg" in text
    assert "report: r.html" in said.err
    assert "stage" not in said.err
    assert not [path for path in Path().iterdir() if "profile" in path.name or "partial" in path.name]


def test_the_report_changes_no_byte(scan, even):
    cli("run", "--in", scan, "--model", even, "--out", "plain.zarr")
    run(scan, even)
    assert np.array_equal(result_of("plain.zarr"), result_of("out.zarr"))


def test_a_network_that_does_not_see_the_window_is_consistent(scan, even):
    page, _ = run(scan, even)
    assert page.rows["translation consistency"].startswith("1.00000 of the labels, windows moved by (2, 2, 2)")
    assert page.rows["labels that differ"].startswith("0.000% within 4 voxels")


def test_a_network_that_sees_where_its_window_lies_is_found_out(scan, uneven):
    page, _ = run(scan, uneven, "--overlap", "0.25")
    consistency = float(page.rows["translation consistency"].split()[0])
    assert 0.4 < consistency < 0.99


def test_labels_agree_as_two_runs_over_moved_volumes_do(tmp_path, uneven):
    """The figure is that of two runs of the command: over the volume, and over the volume without its first voxels."""
    values = np.random.default_rng(2).uniform(0, 1, (24, 24, 24)).astype(np.float32)
    whole = make_volume(tmp_path / "whole.zarr", values)
    moved = make_volume(tmp_path / "moved.zarr", values[2:, 2:, 2:])
    page, _ = run(whole, uneven)
    cli("run", "--in", moved, "--model", uneven, "--out", "moved-out.zarr")
    one, other = result_of("out.zarr")[2:, 2:, 2:], result_of("moved-out.zarr")
    boxes = [tuple(slice(*(int(n) - 2 for n in span.split(":"))) for span in box.split(","))
             for box in page.rows["measured on"].partition("inferred: ")[2].split("; ")]  # fmt: skip
    same = np.mean([np.mean(one[box] == other[box]) for box in boxes])
    assert page.rows["translation consistency"].split()[0] == f"{same:.5f}"


def test_what_the_mask_leaves_out_is_not_counted(tmp_path, scan, uneven):
    mask = np.zeros((20, 40, 40), np.uint8)
    mask[:, :20] = 1
    page, _ = run(scan, uneven, "--mask", make_volume(tmp_path / "mask.zarr", mask))
    voxels = int(page.rows["measured on"].split()[0].replace(",", ""))
    regions = page.rows["measured on"].partition("inferred: ")[2].split("; ")
    assert 0 < voxels <= 512 * len(regions)
    spans = [box.split(",")[1].split(":") for box in regions]
    inside = sum(64 * max(0, min(int(hi), 20) - int(lo)) for lo, hi in spans)
    assert voxels == inside


@pytest.mark.parametrize(
    ("roi", "there"), [("0:12,0:12,0:12", True), ("12:20,33:40,3:21", True), ("0:3,0:3,0:3", False)]
)
def test_a_region_is_measured_in_that_region(scan, uneven, roi, there):
    """Windows of 8 that are 4 apart: before voxel 6 there are fewer on the moved grid."""
    page, _ = run(scan, uneven, "--roi", roi)
    if not there:
        assert "mask and --roi leave out" in page.rows["seams"]
        return
    asked = [tuple(map(int, span.split(":"))) for span in roi.split(",")]
    regions = page.rows["measured on"].partition("inferred: ")[2].split("; ")
    found = [[tuple(map(int, span.split(":"))) for span in region.split(",")] for region in regions]
    assert all(a <= l < h <= b for region in found for (l, h), (a, b) in zip(region, asked, strict=True))
    sizes = [np.prod([h - l for l, h in region]) for region in found]
    assert int(page.rows["measured on"].split()[0].replace(",", "")) == sum(sizes)


def test_a_volume_of_one_window_has_no_seams(tmp_path, even):
    page, _ = run(make_volume(tmp_path / "s.zarr", np.random.default_rng(0).random((8, 8, 8), np.float32)), even)
    assert page.rows["seams"] == "not measured: the volume is as small as one window, there are no seams"


@pytest.mark.parametrize("output", ["probabilities", "logits"])
def test_any_kind_of_output_has_pictures(scan, even, output):
    page, _ = run(scan, even, "--output", output)
    assert len(page.loads) == 12


def test_masks_have_pictures(scan, tmp_path):
    model = fake_model(tmp_path, channels_out=1, activation="sigmoid", channels="multilabel")
    page, _ = run(scan, model, "--output", "masks")
    assert len(page.loads) == 12


def test_a_report_of_an_output_that_is_there(scan, even):
    cli("run", "--in", scan, "--model", even, "--out", "out.zarr")
    page, _ = run(scan, even, "--resume")
    assert "was complete before" in Path("r.html").read_text()
    assert len(page.loads) == 12
    assert "translation consistency" in page.rows


def test_parts_have_a_report_without_pictures(scan, even):
    page, _ = run(scan, even, "--part", "1/2")
    assert page.loads == []
    assert "run again with --resume and --report" in Path("r.html").read_text()


def test_a_file_of_another_format_is_drawn(scan, even):
    pytest.importorskip("nibabel")
    said = cli("run", "--in", scan, "--model", even, "--out", "out.nii.gz", "--report", "r.html")
    assert said.code == 0
    assert len(Reader(Path("r.html").read_text()).loads) == 12


def test_a_plane_of_colours(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 255, (3, 40, 40), np.uint8)
    volume = make_volume(tmp_path / "rgb.zarr", rgb, axes="cyx", chunks=(3, 8, 8))
    model = fake_model(tmp_path, axes="yx", channels_in=3, channels_out=3, activation="softmax")
    page, _ = run(volume, model)
    assert len(page.loads) == 12


@pytest.mark.parametrize("place", ["r.txt", "s3://bucket/r.html", "", "folder.html", "scan.zarr/zarr.json/r.html"])
def test_a_place_that_takes_no_report_is_said_before_the_run(scan, even, place):
    Path("folder.html").mkdir()
    said = cli("run", "--in", scan, "--model", even, "--out", "out.zarr", "--report", place)
    assert said.code in (2, 8)
    assert "--report" in said.error
    assert not Path("out.zarr").exists()


class Links(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if (tag, name) == ("a", "href")]


def several(scan, model, *options, report="r.html"):
    return cli(
        "run", "--in", scan, "--in", "other scan.zarr", "--in", "missing.zarr", "--model", model, "--out",
        "{stem}.out.zarr", "--report", report, *options
    )  # fmt: skip


@pytest.fixture
def two(scan):
    make_volume("other scan.zarr", np.random.default_rng(5).random((8, 16, 16), np.float32))


def test_several_volumes_have_a_page_that_lists_all_and_one_each(scan, two, even):
    said = several(scan, even, "--keep-going", "--rate", "3EUR")
    assert said.code == 11
    assert "report: r.html" in said.err
    text = Path("r.html").read_text()
    assert "3 volumes: " in text
    assert "2 done" in text
    assert "1 failed" in text
    assert "failed: missing.zarr" in text  # with what was wrong
    assert text.count("EUR a teravoxel") == 2
    page = Reader(text)
    assert "script" not in page.tags
    links = Links(text).found
    assert len(links) == 2
    assert all(load.startswith("data:image/png;base64,") for load in page.loads if load not in links)
    assert len(page.loads) == 2 + 2 * 2  # of each a picture of volume and result
    for link in links:
        own = Reader(Path(unquote(link)).read_text())
        assert "run this one alone with --resume" in own.rows["seams"]
        assert "EUR" in own.rows["price"]
        assert own.loads


def test_several_volumes_that_are_there_have_their_report_made_later(scan, two, even):
    several(scan, even, "--keep-going")
    before = result_of("scan.out.zarr")
    Path("r.html").unlink()
    several(scan, even, "--keep-going", "--resume")
    text = Path("r.html").read_text()
    assert "2 already complete" in text
    assert len(Links(text).found) == 2
    assert np.array_equal(result_of("scan.out.zarr"), before)


def test_each_part_of_several_volumes_has_a_list_of_its_own(scan, two, even):
    for part in ("1/3", "2/3"):
        assert several(scan, even, "--part", part).code == 0
    lists = sorted(path.name for path in Path().glob("r*.html"))
    assert lists == ["r.part1of3.html", "r.part2of3.html"]
    assert len(list(Path().glob("r.part*.pages/*.html"))) == 2


def test_a_dry_run_of_several_volumes_writes_no_report_and_a_bad_place_is_said_before(scan, two, even):
    several(scan, even, "--dry-run")
    assert not Path("r.html").exists()
    said = several(scan, even, report="r.txt")
    assert said.code == 2
    assert "--report r.txt: it is one HTML file" in said.error
    assert not list(Path().glob("*.out.zarr"))


def test_secrets_are_not_in_it(scan, even, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "abcdefgh12345")
    monkeypatch.setattr("unet_engine.batches.notify.PAUSES", ())
    run(scan, even, "--notify", "http://127.0.0.1:9/services/abcdefgh12345abcdefgh")
    assert "abcdefgh12345" not in Path("r.html").read_text()


# --- runs that do not end well ---


@pytest.fixture
def full(monkeypatch):
    """A disk that takes one block, and no more."""
    mark = Header.mark_all

    def mark_one(header, blocks):
        mark(header, blocks[:1])
        raise OutputError("out.zarr: the disk is full (writing?token=abcdefgh12345); free some space")

    monkeypatch.setattr(Header, "mark_all", mark_one)


def fails(volume, model, *options):
    said = cli("run", "--in", volume, "--model", model, "--out", "out.zarr", "--report", "r.html", *options)
    assert said.code
    return said


def test_a_run_that_fails_midway_says_so_in_place_of_an_earlier_report(scan, even, full, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "abcdefgh12345")
    monkeypatch.setattr("unet_engine.batches.notify.PAUSES", ())
    Path("r.html").write_text("out.zarr: complete")
    said = fails(scan, even, "--notify", "http://127.0.0.1:9/services/abcdefgh12345abcdefgh")
    assert said.code == 8
    assert "report: r.html" in said.err
    text = html.unescape(Path("r.html").read_text())
    assert "<h1>out.zarr: failed</h1>" in text
    assert said.error.removeprefix("unet-engine: ") in text
    page = Reader(Path("r.html").read_text())
    assert page.rows["volume"] == str(scan)
    assert re.fullmatch(r"[1-9] of \d+ blocks", page.rows["committed"])
    assert f"cd {Path.cwd()} && unet-engine run --resume --in {scan}" in text
    assert "abcdefgh12345" not in text
    assert "script" not in page.tags


def test_a_run_that_fails_before_its_first_block_has_nothing_to_go_on_with(scan, tmp_path):
    fails(scan, fake_model(tmp_path, fail_at=9))
    assert Reader(Path("r.html").read_text()).rows["committed"] == "nothing yet"


def test_until_a_run_ends_its_report_says_that_it_is_under_way(scan, even, monkeypatch):
    seen = []
    begun = Unfinished.under_way
    monkeypatch.setattr(
        Unfinished, "under_way", lambda *given: (begun(*given), seen.append(Path("r.html").read_text()))[0]
    )
    Path("r.html").write_text("out.zarr: complete")
    run(scan, even, "--quiet")
    assert "<h1>out.zarr: under way</h1>" in seen[0]
    assert "unet-engine run --resume --in" in seen[0]
    assert "<h1>out.zarr: complete</h1>" in Path("r.html").read_text()


@pytest.mark.parametrize("options", share(["--resume --overlap 0.25", "", "--overlap 7"]))
def test_a_run_that_is_refused_leaves_the_report_of_what_is_there(scan, even, options):
    run(scan, even)
    before = Path("r.html").read_bytes()
    assert fails(scan, even, *options.split()).code in (2, 8, 9)
    assert Path("r.html").read_bytes() == before


def test_a_list_of_volumes_says_how_it_ended_and_how_to_go_on(scan, two, even):
    Path("r.html").write_text("3 volumes: 3 done")
    assert several(scan, even, "--overwrite").code == 3
    text = html.unescape(Path("r.html").read_text())
    assert "1 failed" in text
    assert "(exit code 3)" in text
    assert f"cd {Path.cwd()} && unet-engine run --resume --" in text
    assert "--overwrite" not in text.partition("To go on")[2]
    assert "Under way" not in text


def test_what_ends_several_before_they_begin_is_in_their_report(scan):
    Path("r.html").write_text("3 volumes: 3 done")
    said = several(scan, "missing.onnx")
    assert said.code == 5
    assert said.error.removeprefix("unet-engine: ") in html.unescape(Path("r.html").read_text())


def test_energy_is_told_where_counters_are(scan, even, monkeypatch):
    ticks = iter(range(0, 10**12, 500_000))
    monkeypatch.setattr(energy, "counters", lambda: {"package-0": (lambda: next(ticks), 0)})
    page, said = run(scan, even, "--json")
    assert page.rows["energy"].startswith("0 J, ")
    assert said.json["joules"] == {"package-0": 0.5}


# --- price ---


def test_the_price_is_that_of_the_time(scan, even):
    _, said = run(scan, even, "--rate", "3.60 EUR", "--json")
    facts = said.json
    assert facts["price"] == pytest.approx(facts["seconds"] / 1000, rel=1e-4)
    assert facts["price_per_teravoxel"] == pytest.approx(facts["price"] / 32_000 * 1e12, rel=1e-4)
    assert facts["price_unit"] == "EUR"
    assert "EUR a teravoxel" in said.err


@pytest.mark.parametrize(
    ("text", "hour", "unit"), [("3.2", 3.2, ""), ("3.20EUR", 3.2, "EUR"), ("0 $", 0.0, "$"), ("1e-3", 1e-3, "")]
)
def test_rates(text, hour, unit):
    assert Rate.of(text) == Rate(hour, unit)


@pytest.mark.parametrize("text", ["", "EUR", "-1", "nan", "inf", "1.2.3", "1/h", "3,20"])
def test_what_is_no_rate(scan, even, text):
    with pytest.raises(SettingsError, match="--rate"):
        Rate.of(text)
    assert cli("run", "--in", scan, "--model", even, "--out", "o.zarr", "--rate", text).code == 2
