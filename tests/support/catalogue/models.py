"""Model files, and what is said beside them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from support.catalogue.fault import (
    Fault,
    Make,
    both,
    cut,
    export,
    fifo,
    file,
    folder,
    gone,
    link,
    model,
    plan,
    quantize,
    run,
)


def _own(text: str) -> Make:
    return file("bad.fake.toml", text)


_SPEC = '[spec]\nname = "bad"\naxes = "zyx"\nchannels_in = 1\nchannels_out = 1\nactivation = "none"\nwindow = [8, 8, 8]\nwindow_min = [4, 4, 4]\nwindow_step = [4, 4, 4]\nmargin = [0, 0, 0]\n'


def _with(**changed: str) -> Make:
    """The spec with keys written otherwise."""
    lines = [line for line in _SPEC.splitlines() if line.split(" =")[0] not in changed]
    return _own("\n".join([*lines, *(f"{key} = {value}" for key, value in changed.items())]) + "\n")


_SPECS: list[tuple[str, Make]] = [
    ("that breaks off", _own("[spec")),
    ("that is empty", _own("")),
    ("that is a number", _own("spec = 3")),
    ("that is a list", _own("spec = [1]")),
    ("that is no text", file("bad.fake.toml", b"\xff\xfe")),
    ("nested 5000 deep", _own("a = " + "[" * 5000 + "]" * 5000)),
    ("that is a FIFO", fifo("bad.fake.toml")),
    ("that is a folder", folder("bad.fake.toml")),
    ("that is a link to itself", link("bad.fake.toml", "bad.fake.toml")),
    ("that is a link to /dev/zero", link("bad.fake.toml", "/dev/zero")),
    ("without a name", _own(_SPEC.replace('name = "bad"\n', ""))),
    ("of axes xyz", _with(axes='"xyz"')),
    ("of axes that are a number", _with(axes="3")),
    ("of no channels", _with(channels_in="0")),
    ("of channels of 10**30", _with(channels_out=str(10**30))),
    ("of channels in words", _with(channels_out='"two"')),
    ("of a window of words", _with(window='["a", 8, 8]')),
    ("of a window of zero", _with(window="[0, 8, 8]")),
    ("of a window of two sizes", _with(window="[8, 8]")),
    ("of a window of 2**63", _with(window=f"[{2**63}, 8, 8]")),
    ("of a window that it does not take", _with(window="[9, 8, 8]")),
    ("of a negative step", _with(window_step="[-4, 4, 4]")),
    ("of a negative margin", _with(margin="[-1, 0, 0]")),
    ("of a margin of all the window", _with(margin="[4, 4, 4]")),
    ("of a margin of 2**70", _with(margin=f"[{2**70}, 0, 0]")),
    ("of an unknown activation", _with(activation='"relu"')),
    ("of an unknown key", _with(colour="1")),
    ("of an unknown normalization", _with(normalization='{mode = "best"}')),
    ("of a range upside down", _with(normalization='{mode = "range", low = 5, high = 1}')),
    ("of a range of nan", _with(normalization='{mode = "range", low = nan, high = 1}')),
    ("of a spacing of words", _with(spacing='["a", "b", "c"]')),
    ("of a spacing of two", _with(spacing="[1.0, 1.0]")),
    ("of too many classes", _with(activation='"sigmoid"', classes='["a", "b", "c"]')),
    ("of classes that are a number", _with(classes="3")),
    ("of nothing that is too long", _with(empty="[0.0, 0.0]")),
    ("of softmax over one channel", _with(activation='"softmax"')),
]  # fmt: skip


def _archive(name: str, *entries: tuple[str, bytes]) -> Make:
    def make(here: Path) -> None:
        with zipfile.ZipFile(here / name, "w") as archive:
            for entry, content in entries:
                archive.writestr(entry, content)

    return make


_FILES: list[tuple[str, str, Make | None]] = [
    *[(f"{suffix} that is not there", f"bad.{suffix}", None) for suffix in ("onnx", "pt2", "pt")],
    *[(f"{suffix} that is empty", f"bad.{suffix}", file(f"bad.{suffix}")) for suffix in ("onnx", "pt2", "pt")],
    *[(f"{suffix} that is junk", f"bad.{suffix}", file(f"bad.{suffix}", b"junk" * 99)) for suffix in ("onnx", "pt2", "pt")],
    *[(f"{suffix} that is a folder", f"bad.{suffix}", folder(f"bad.{suffix}")) for suffix in ("onnx", "pt2", "pt")],
    *[(f"{suffix} that is a FIFO", f"bad.{suffix}", fifo(f"bad.{suffix}")) for suffix in ("onnx", "pt2", "pt")],
    *[(f"{suffix} that is /dev/zero", f"bad.{suffix}", link(f"bad.{suffix}", "/dev/zero")) for suffix in ("onnx", "pt2", "pt")],
    ("onnx that breaks off at a tenth", "net.onnx", cut("net.onnx", 0.1)),
    ("onnx that breaks off at a half", "net.onnx", cut("net.onnx", 0.5)),
    ("onnx that breaks off at the end", "net.onnx", cut("net.onnx", 0.99)),
    ("archive of nothing", "bad.pt2", _archive("bad.pt2")),
    ("archive without a spec", "bad.pt", _archive("bad.pt", ("bad/data.pkl", b"x"))),
    ("archive of a spec of junk", "bad.pt", _archive("bad.pt", ("bad/extra/unet_engine.spec", b"\xff"))),
    ("archive that breaks off", "bad.pt2", both(_archive("bad.pt2", ("a", b"x" * 1000)), cut("bad.pt2"))),
    ("file called like none", "weights.h5", file("weights.h5", b"x")),
    ("file without a suffix", "weights", file("weights", b"x")),
]  # fmt: skip

_BESIDE: list[tuple[str, Make]] = [
    ("that breaks off", file("net.toml", "window = [")),
    ("that is no text", file("net.toml", b"\xff")),
    ("that is a FIFO", fifo("net.toml")),
    ("nested 5000 deep", file("net.toml", "a = " + "[" * 5000 + "]" * 5000)),
    ("of a window that is a number", file("net.toml", "window = 16")),
    ("of a window it does not take", file("net.toml", "window = [17, 16, 16]")),
    ("of a window of words", file("net.toml", "window = ['a', 'b', 'c']")),
    ("of axes that are a list", file("net.toml", "axes = ['z', 'y', 'x']")),
    ("of an unknown key", file("net.toml", "windows = [16, 16, 16]")),
    ("of one class", file("net.toml", "classes = ['one']")),
    ("of an unknown activation", file("net.toml", "activation = 'relu'")),
    ("of channels in words", file("net.toml", "channels_in = 'one'")),
    ("of no channels", file("net.toml", "channels_out = 0")),
]

FAULTS = [
    *[Fault(f"a spec {name}", run(model="bad.fake.toml"), 5, ("bad",), make) for name, make in _SPECS],
    *[Fault(f"a model: {name}", run(model=path), 5, (path,), make) for name, path, make in _FILES],
    *[Fault(f"a file beside a model {name}", run(model="net.onnx"), 5, ("net",), make) for name, make in _BESIDE],
    Fault("a network of two channels", run(model="two.fake.toml"), 3, ("1 channel", "takes 2", "--axes"), model("two", channels_in=2)),
    Fault("a network that fails", run(model="fails.fake.toml"), 6, ("fails at window 60",), model("fails", fail_at=60), spoken=None),
    Fault("a window it does not take", run(window="9,8,8"), 5, ("9", "8 or 12")),
    Fault("a window of another rank", run(window="8,8"), 5, ("8×8", "zyx")),
    Fault("a window that is fixed otherwise", run(model="net.onnx", window="16,16,20"), 5, ("16 voxels along x",)),
    Fault("a plan of a model that is not there", plan(model="no.onnx"), 5, ("no.onnx does not exist",)),
    Fault("info of a model that breaks off", ("info", "net.onnx"), 5, ("net.onnx",), cut("net.onnx")),
    Fault("info of a file that is no model", ("info", "notes.txt"), 3, ("notes.txt",), file("notes.txt", "x")),
    Fault("info of nothing there", ("info", "no.zarr"), 3, ("no.zarr does not exist",)),
    Fault("info of a FIFO", ("info", "pipe"), 3, ("pipe",), fifo("pipe")),
    Fault("quantize of a model that is not there", ("quantize", "no.onnx", "--calibrate=scan.zarr"), 5, ("no.onnx does not exist",)),
    Fault("quantize on a volume that is not there", quantize(calibrate="no.zarr"), 3, ("no.zarr does not exist",)),
    Fault("quantize of what is no ONNX", ("quantize", "id.fake.toml", "--calibrate=scan.zarr"), 2, ("id.fake.toml",)),
    Fault("quantize on a volume that is too small", quantize(), 3, ("scan.zarr has", "larger volume"), spoken=None),
    Fault("export of nothing there", ("export", "no.pth", "--out=o.onnx"), 5, ("no.pth",), slow=True),
    Fault("export to what is no ONNX", export(out="o.txt"), 2, ("o.txt",), slow=True),
    Fault("export of junk", ("export", "junk.pth", "--out=o.onnx"), 5, ("junk.pth",), file("junk.pth", b"junk" * 99), slow=True),
    Fault("export of a FIFO", ("export", "pipe.pth", "--out=o.onnx"), 5, ("pipe.pth",), fifo("pipe.pth"), slow=True),
    Fault("export of a model whose file is gone", export(), 5, ("net.onnx",), gone("net.onnx"), slow=True),
]  # fmt: skip
