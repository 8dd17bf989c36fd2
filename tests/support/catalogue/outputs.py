"""Outputs that were begun or finished, and what became of them since."""

from __future__ import annotations

from pathlib import Path

from support.catalogue.fault import Fault, Make, both, cut, fifo, file, folder, gone, link, metadata, run

HEAD = "half.zarr/zarr.json"
ARRAY = "half.zarr/0/zarr.json"


def _resumed(name: str, make: Make, code: int, *says: str) -> tuple[Fault, Fault]:
    """A resume and a `finish` of an output that was begun."""
    return (
        Fault(
            f"a resume of {name}", run("--resume", out="half.zarr"), code, says, make, needs=("half.zarr",), spoken=None
        ),
        Fault(f"finish of {name}", ("finish", "half.zarr"), 8, ("half.zarr",), make, needs=("half.zarr",), spoken=None),
    )


_HEADERS: list[tuple[str, Make, int]] = [
    ("a header that is empty", file(HEAD), 8),
    ("a header that breaks off", cut(HEAD), 8),
    ("a header that is null", file(HEAD, "null"), 8),
    ("a header that is a list", file(HEAD, "[1]"), 8),
    ("a header nested 100000 deep", file(HEAD, "[" * 100_000 + "]" * 100_000), 8),
    ("a header that is a FIFO", fifo(HEAD), 8),
    ("a header that is a folder", both(gone(HEAD), folder(HEAD)), 8),
    ("a header without ours", metadata(HEAD, attributes__unet_engine=...), 9),
    ("a header of null", metadata(HEAD, attributes__unet_engine=None), 9),
    ("a header of a word", metadata(HEAD, attributes__unet_engine="yes"), 9),
    ("an identity of a word", metadata(HEAD, attributes__unet_engine__identity="yes"), 9),
    ("an identity of null", metadata(HEAD, attributes__unet_engine__identity=None), 9),
    ("an identity of a list", metadata(HEAD, attributes__unet_engine__identity=[1]), 9),
    ("no identity", metadata(HEAD, attributes__unet_engine__identity=...), 9),
    ("another window", metadata(HEAD, attributes__unet_engine__identity__window=[9, 9, 9]), 9),
]

_BLOCKS: list[tuple[str, object]] = [
    ("blocks of 10**12", [[[0, 10**12]], [[0, 2]], [[0, 3]]]),
    ("blocks of a word", "many"),
    ("blocks of null", None),
    ("blocks of numbers", [1, 2, 3]),
    ("blocks of words", [["a"], ["b"], ["c"]]),
    ("blocks backwards", [[[5, 1]], [[0, 2]], [[0, 3]]]),
    ("negative blocks", [[[-5, 1]], [[0, 2]], [[0, 3]]]),
    ("blocks of fractions", [[[0, 1.5]], [[0, 2]], [[0, 3]]]),
    ("blocks of one axis", [[[0, 1]]]),
    ("no blocks", []),
]

_ARRAYS: list[tuple[str, Make]] = [
    ("an array whose metadata are a FIFO", fifo(ARRAY)),
]


def _journal(name: str, content: bytes) -> Make:
    def make(here: Path) -> None:
        place = next(here.glob("half.zarr/0/.journal/*"))
        (place / name).write_bytes(content)

    return make


_ELSEWHERE = [
    Fault("an output that is there", run(out="done.zarr"), 8, ("done.zarr exists", "--resume", "--overwrite"), needs=("done.zarr",), spoken=None),
    Fault("a resume with another overlap", run("--resume", out="done.zarr", overlap="0.25"), 9, ("done.zarr", "overlap", "--overwrite"),
          needs=("done.zarr",), spoken=None),
    Fault("a resume with another type", run("--resume", out="done.zarr", output="logits"), 9, ("done.zarr", "output"), needs=("done.zarr",), spoken=None),
    Fault("finish of parts that lack some", ("finish", "parts.zarr"), 8, ("parts.zarr lacks", "--part"), needs=("parts.zarr",)),
    Fault("finish of nothing", ("finish", "no.zarr"), 8, ("no.zarr does not exist",)),
    Fault("finish of a volume", ("finish", "scan.zarr"), 8, ("scan.zarr is not an output",)),
    Fault("finish of a file", ("finish", "id.fake.toml"), 8, ("id.fake.toml",)),
    Fault("an output that is a file", run("--overwrite", out="notes.zarr"), 8, ("notes.zarr", "left alone"), file("notes.zarr", "precious"), spoken=None),
    Fault("an output that is somebody's folder", run("--overwrite", out="theirs"), 8, ("theirs", "left alone"), file("theirs/data", "precious"), spoken=None),
    Fault("an output below a file", run(out="notes/out.zarr"), 8, ("notes/out.zarr",), file("notes", "precious"), spoken=None),
    Fault("an output in /proc", run(out="/proc/nosuch/out.zarr"), 8, ("/proc/nosuch",), spoken=None),
    Fault("an output that is a link to itself", run(out="loop.zarr"), 8, ("loop.zarr",), link("loop.zarr", "loop.zarr"), spoken=None),
    Fault("an output that is a FIFO", run(out="pipe.zarr"), 8, ("pipe.zarr",), fifo("pipe.zarr"), spoken=None),
    Fault("an output that is the input", run("--overwrite", out="scan.zarr"), 2, ("--out", "scan.zarr")),
    Fault("an output inside the input", run("--overwrite", out="scan.zarr/labels"), 2, ("--out",)),
    Fault("an output around the input", run("--overwrite", out="."), 2, ("--out",)),
    Fault("an output that is the input through a link", run("--overwrite", out="link.zarr"), 2, ("--out",), link("link.zarr", "scan.zarr")),
    Fault("an output called like a picture", run(out="out.png"), 2, ("--out", ".png")),
    Fault("demo in a folder of other things", ("demo", "theirs"), 8, ("theirs",), file("theirs/data", "precious")),
    Fault("demo in a file", ("demo", "id.fake.toml"), 8, ("id.fake.toml",)),
    Fault("bench into a folder that is not there", ("bench", "--json", "no/b.json"), 8, ("--json",)),
    Fault("a profile in a file's place", run(profile="id.fake.toml/p"), 8, ("id.fake.toml",), spoken=None),
]  # fmt: skip

FAULTS = [
    *[fault for name, make, code in _HEADERS for fault in _resumed(name, make, code, "half.zarr")],
    *[Fault(f"finish of an output of {name}", ("finish", "half.zarr"), 8, ("half.zarr",), metadata(HEAD, attributes__unet_engine__blocks=value), needs=("half.zarr",))
      for name, value in _BLOCKS],
    *[Fault(f"a resume of {name}", run("--resume", out="half.zarr"), 8, ("half.zarr",), make, needs=("half.zarr",), spoken=None) for name, make in _ARRAYS],
    *[Fault(f"finish of an output with {name}", ("finish", "half.zarr"), 8, ("half.zarr lacks",), make, needs=("half.zarr",)) for name, make in (
        ("a marker of a block there is not", _journal("99.99.99", b"done\n")),
        ("a marker of one axis", _journal("0", b"done\n")),
        ("a marker of 400 digits", _journal("9" * 200 + ".0.0", b"done\n")),
        ("a marker in other digits", _journal("².٣.0", b"done\n")),
        ("a note that is empty", _journal("part.1.4.json", b"")),
        ("a note that is a list", _journal("part.1.4.json", b"[1]")),
        ("a note that is null", _journal("part.1.4.json", b"null")),
        ("a note that is junk", _journal("part.1.4.json", b"\xff\x00")),
        ("a note nested 100000 deep", _journal("part.1.4.json", b"[" * 100_000)),
        ("a note of words for numbers", _journal("part.1.4.json", b'{"part": "1/4", "finished": true, "seconds": "x"}')),
        ("a note of another part", _journal("part.1.4.json", b'{"part": "a/b", "finished": 3}')),
        ("a note called of no part", _journal("part.x.y.json", b"{}")),
    )],
    *_ELSEWHERE,
]  # fmt: skip
