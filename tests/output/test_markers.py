"""A resume and `finish` believe a marker only where what it stands for is still there, as it was written."""

import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zarr

import unet_engine
from support.command_line import cli
from support.outputs import chunks, marked
from support.volumes import fake_model, make_volume, result_of
from unet_engine.backends.fake import FakeBackend
from unet_engine.errors import BackendError, OutputError
from unet_engine.output import completion
from unet_engine.output.completion import finish
from unet_engine.output.header import Header
from unet_engine.output.journal import Journal
from unet_engine.output.stored import Stored

SHAPE = (27, 30, 37)
OPTIONS = {"output": "logits", "dtype": "float32"}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Volume, model, and the chunks of an undisturbed run. Part of the volume is 0, so some chunks are not stored."""
    folder = tmp_path_factory.mktemp("markers")
    image = np.random.default_rng(2).integers(1, 255, SHAPE, np.uint8)
    image[:, :, :16] = 0
    volume = make_volume(folder / "scan.zarr", image)
    model = fake_model(folder, empty=[0.0])
    return volume, model, chunks(unet_engine.run(volume, model=model, out=str(folder / "whole.zarr"), **OPTIONS).out)


def begun(case, out, monkeypatch, stop="finish"):
    """An output with some blocks, or all, committed and not complete."""
    with monkeypatch.context() as patch:
        if stop == "finish":
            patch.setattr("unet_engine.output.header.Header.finish", lambda *_: None)
            unet_engine.run(case[0], model=case[1], out=str(out), **OPTIONS)
        else:
            calls, start = [], FakeBackend.start

            def failing(self, slot):
                calls.append(slot)
                if len(calls) > stop:
                    raise BackendError("enough")
                start(self, slot)

            patch.setattr(FakeBackend, "start", failing)
            with pytest.raises(BackendError, match="enough"):
                unet_engine.run(case[0], model=case[1], out=str(out), **OPTIONS)
    assert marked(out)
    return Path(out)


def journal_of(out):
    return next(out.glob("0/.journal/*"))


def markers_of(out):
    return sorted(place for place in journal_of(out).iterdir() if place.is_file())


def a_chunk(out):
    """A stored chunk of a committed block: (its file, the block)."""
    for marker in markers_of(out):
        index = tuple(map(int, marker.name.split(".")))
        stored = Stored.decoded(index, marker.read_bytes())
        for place, length in zip(stored.chunks(), stored.lengths, strict=True):
            if length:
                return Path(out, "0", "c", *map(str, place)), index
    raise AssertionError("no marker names a chunk")


def resumed(case, out, **options):
    return unet_engine.run(case[0], model=case[1], out=str(out), resume=True, **OPTIONS, **options)


def removed(place):
    place.unlink()


def truncated(place):
    place.write_bytes(place.read_bytes()[:-3])


def longer(place):
    place.write_bytes(place.read_bytes() + b"more")


def emptied(place):
    place.write_bytes(b"")


def a_folder(place):
    place.unlink()
    place.mkdir()
    (place / "notes.txt").write_text("not a chunk")


DAMAGES = [removed, truncated, longer, emptied, a_folder]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("stop", ["finish", 235], ids=["all committed", "half committed"])
def test_a_committed_chunk_that_is_not_as_written_is_computed_again_and_told(tmp_path, case, monkeypatch, damage, stop):
    out = begun(case, tmp_path / "out.zarr", monkeypatch, stop)
    place, index = a_chunk(out)
    damage(place)
    with pytest.raises(OutputError) as told:
        finish(str(out))
    if stop == "finish":
        assert f"block {index}: chunk" in str(told.value)
        assert "--resume" in str(told.value)
    result = resumed(case, out)
    assert len(result.notes) == 1
    assert "not as written" in result.notes[0]
    assert str(index) in result.notes[0]
    assert chunks(out) == case[2]
    assert stop != "finish" or result.blocks_written == 1


def test_contents_are_compared_where_that_is_asked_for(tmp_path, case, monkeypatch):
    out = begun(case, tmp_path / "out.zarr", monkeypatch)
    place, index = a_chunk(out)
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    place.write_bytes(content)
    with pytest.raises(OutputError, match="has other contents than were written"):
        finish(str(out), verify=True)
    said = cli("finish", out, "--verify")
    assert (said.code, said.err.count("\n")) == (OutputError.exit_code, 1)
    said = cli(
        "run", "--in", case[0], "--model", case[1], "--out", out, "--resume", "--verify", "--json",
        *(f for key, value in OPTIONS.items() for f in (f"--{key}", value)),
    )  # fmt: skip
    assert (said.code, said.json["blocks_written"]) == (0, 1)
    assert "computed again" in said.err
    assert f"{index}" in said.json["notes"][0]
    assert chunks(out) == case[2]


def test_a_chunk_where_nothing_should_be_is_taken_away(tmp_path, case, monkeypatch):
    out = begun(case, tmp_path / "out.zarr", monkeypatch)
    place = Path(out, "0", "c", "0", "0", "0", "0")
    assert not place.exists()
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(a_chunk(out)[0], place)
    with pytest.raises(OutputError, match="should not be there"):
        finish(str(out))
    assert resumed(case, out).blocks_written == 1
    assert chunks(out) == case[2]


def test_a_chunk_lost_while_the_run_goes_on_is_noticed_at_its_end(tmp_path, case, monkeypatch):
    out = tmp_path / "out.zarr"
    from unet_engine.pipeline.worker import Worker

    lost, commit = [], Worker.commit

    def losing(self, task, core, halos):
        commit(self, task, core, halos)
        if not lost:
            lost.extend(p for p in out.glob("0/c/*/*/*/*") if p.is_file())
            for place in lost:
                place.unlink()

    monkeypatch.setattr(Worker, "commit", losing)
    with pytest.raises(OutputError, match=r"not as written.*--resume"):
        unet_engine.run(case[0], model=case[1], out=str(out), **OPTIONS)
    assert lost
    monkeypatch.undo()
    assert resumed(case, out).blocks_written == 1
    assert chunks(out) == case[2]


def test_nothing_is_done_again_where_all_is_as_it_was(tmp_path, case, monkeypatch):
    out = begun(case, tmp_path / "out.zarr", monkeypatch)
    result = resumed(case, out, verify=True)
    assert (result.blocks_written, result.notes) == (0, ())
    assert finish(str(out))["complete"]
    assert chunks(out) == case[2]


def edited(**changed):
    def edit(text):
        return json.dumps({**json.loads(text), **changed})

    return edit


EDITS = {
    "type": edited(data_type="int32"),
    "shape": edited(shape=[1, 27, 30, 36]),
    "fill": edited(fill_value=1.0),
    "codecs": edited(codecs=[{"name": "bytes", "configuration": {"endian": "little"}}]),
    "keys": edited(chunk_key_encoding={"name": "v2"}),
    "empty": lambda _: "",
    "brace": lambda _: "{",
    "list": lambda _: "[1]",
    "cut": lambda text: text[:-20],
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_metadata_of_the_array_are_the_plans_again(tmp_path, case, monkeypatch, edit):
    """Told; and as what changed them may have written chunks too, all are compared with their checksums."""
    out = begun(case, tmp_path / "out.zarr", monkeypatch)
    metadata = out / "0" / "zarr.json"
    before = metadata.read_text()
    metadata.write_text(edit(before))
    place, _ = a_chunk(out)
    place.write_bytes(bytes(reversed(place.read_bytes())))
    with pytest.raises(OutputError, match=r"metadata of its array.*--resume"):
        finish(str(out))
    result = resumed(case, out)
    assert "metadata of the array" in result.notes[0]
    assert result.blocks_written == 1
    assert json.loads(metadata.read_text()) == json.loads(before)
    assert chunks(out) == case[2]


def test_metadata_of_a_complete_output_are_looked_at_too(tmp_path, case):
    out = tmp_path / "out.zarr"
    unet_engine.run(case[0], model=case[1], out=str(out), **OPTIONS)
    metadata = out / "0" / "zarr.json"
    values = result_of(out)
    metadata.write_text(edited(data_type="int32", fill_value=0)(metadata.read_text()))
    with pytest.raises(OutputError, match="metadata of its array"):
        finish(str(out))
    assert "restored" in resumed(case, out).notes[0]
    np.testing.assert_array_equal(result_of(out), values)


def test_attributes_and_names_of_axes_may_be_edited(tmp_path, case, monkeypatch):
    out = begun(case, tmp_path / "out.zarr", monkeypatch)
    zarr.open_array(out / "0", mode="r+").attrs["seen"] = "today"
    assert resumed(case, out).notes == ()
    assert zarr.open_array(out / "0", mode="r").attrs["seen"] == "today"


GARBAGE = [b"", b"x", b"done", b"[1]", b"[" * 100_000, b"{}", b"\xff\xfe", b'{"block":[0,0,0]}', b"null", b"1e999"]


@pytest.mark.parametrize("garbage", GARBAGE, ids=[str(g[:12]) for g in GARBAGE])
def test_a_marker_that_is_not_readable_is_no_marker(tmp_path, case, monkeypatch, garbage):
    out = begun(case, tmp_path / "out.zarr", monkeypatch)
    markers_of(out)[-1].write_bytes(garbage)
    with pytest.raises(OutputError, match=r"its marker is not readable.*--resume"):
        finish(str(out))
    result = resumed(case, out)
    assert result.blocks_written == 1
    assert "its marker is not readable" in result.notes[0]
    assert chunks(out) == case[2]


@pytest.mark.parametrize("name", ["99.99.99", "0.0", "0.0.0.0", "7", "00.0.0", "²", "." * 9])
def test_a_marker_of_no_block_counts_for_nothing(tmp_path, case, monkeypatch, name):
    """Neither for a resume nor for what is complete: with one block too few, it does not make up for it."""
    out = begun(case, tmp_path / "out.zarr", monkeypatch)
    markers_of(out)[-1].rename(journal_of(out) / name)
    with pytest.raises(OutputError, match="lacks 1 of"):
        finish(str(out))
    result = resumed(case, out)
    assert result.blocks_written == 1
    assert chunks(out) == case[2]


def test_the_marker_of_another_block_is_none(tmp_path, case, monkeypatch):
    out = begun(case, tmp_path / "out.zarr", monkeypatch)
    shutil.copy(markers_of(out)[0], markers_of(out)[-1])
    with pytest.raises(OutputError, match="its marker is that of block"):
        finish(str(out))
    assert resumed(case, out).blocks_written == 1


def test_a_marker_that_is_no_file_is_no_marker(tmp_path, case, monkeypatch):
    import os

    for number, make in enumerate((os.mkdir, os.mkfifo)):
        out = begun(case, tmp_path / f"{number}.zarr", monkeypatch)
        place = markers_of(out)[-1]
        place.unlink()
        make(place)
        assert resumed(case, out).blocks_written == 1
        assert chunks(out) == case[2]


def test_markers_of_older_versions_are_believed_but_not_verified(tmp_path, case, monkeypatch):
    for verify, again in ((False, 0), (True, 1)):
        out = begun(case, tmp_path / f"{verify}.zarr", monkeypatch)
        markers_of(out)[-1].write_bytes(b"done\n")
        header = json.loads((out / "zarr.json").read_text())
        del header["attributes"]["unet_engine"]["array"]
        (out / "zarr.json").write_text(json.dumps(header))
        assert resumed(case, out, verify=verify).blocks_written == again
        assert chunks(out) == case[2]


@pytest.mark.parametrize(
    "garbage", [b"", b"[1]", b"{", b'{"part": "1/2"}', b'{"part": "1/2", "finished": true, "seconds": "x"}']
)
def test_notes_of_parts_that_are_not_readable_are_left_out(tmp_path, case, garbage):
    out = tmp_path / "out.zarr"
    unet_engine.run(case[0], model=case[1], out=str(out), part="1/2", **OPTIONS)
    (journal_of(out) / "part.1.2.json").write_bytes(garbage)
    (journal_of(out) / "part.x.y.json").write_bytes(garbage)
    with pytest.raises(OutputError, match="lacks"):
        finish(str(out))
    assert unet_engine.run(case[0], model=case[1], out=str(out), part="2/2", **OPTIONS).complete
    assert chunks(out) == case[2]


@pytest.mark.parametrize("gone", [False, True])
def test_another_part_may_complete_the_output_while_this_one_looks_at_it(tmp_path, case, monkeypatch, gone):
    """As may be where nothing locks: it takes the markers away, which are then no sign of damage."""
    out = tmp_path / "out.zarr"
    unet_engine.run(case[0], model=case[1], out=str(out), part="1/2", **OPTIONS)
    looking, concluding = Journal.markers, completion.refuse_changed

    def meanwhile(*arguments):
        Header.of(str(out)).finish({})
        if gone:
            raise FileNotFoundError("what was just listed")
        return looking(*arguments)

    def at_the_end(*arguments):
        monkeypatch.setattr(Journal, "markers", meanwhile)
        concluding(*arguments)

    monkeypatch.setattr(completion, "refuse_changed", at_the_end)
    assert unet_engine.run(case[0], model=case[1], out=str(out), part="2/2", **OPTIONS).complete
    assert chunks(out) == case[2]


def test_finish_of_an_output_of_many_blocks_looks_at_what_is_marked_alone(tmp_path, case, monkeypatch):
    """10¹⁸ blocks and a million parts: neither is listed to say what is missing."""
    out = begun(case, tmp_path / "out.zarr", monkeypatch, stop=30)
    header = json.loads((out / "zarr.json").read_text())
    header["attributes"]["unet_engine"]["blocks"] = [[[0, 10**6]], [[0, 3], [5, 10**6 + 2]], [[0, 10**6]]]
    (out / "zarr.json").write_text(json.dumps(header))
    place = journal_of(out)
    for name in place.iterdir():
        if name.is_file():
            name.unlink()
    for name in ("0.0.0", "0.0.1", "0.0.2", "7.5.9", "7.4.9"):
        (place / name).write_bytes(b"done\n")
    (place / "part.2.1000000.json").write_text(json.dumps({"part": "2/1000000", "finished": True}))
    tracemalloc.start()
    try:
        with pytest.raises(OutputError) as told:
            finish(str(out))
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    said = str(told.value)
    assert "lacks 999,999,999,999,999,996 of 1,000,000,000,000,000,000 blocks, the first is (0, 0, 3)" in said
    assert "1/1000000, 3/1000000, 4/1000000" in said
    assert "and 999,991 more" in said
    assert len(said) < 500
