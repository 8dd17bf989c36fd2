"""Models of other tools, from anybody: archives and folders that lead out, unpack to gigabytes, or hold code."""

from __future__ import annotations

import json
import os
import pickle
import stat
import zipfile
from pathlib import Path

from support.catalogue.fault import Fault, Make, both, fifo, file, folder, link

RDF = "format_version: 0.5.3\ntype: model\nname: x\ninputs: [{}]\noutputs: [{}]\nweights: {}\n"
_SPACE = "{type: space, id: y, size: 16}, {type: space, id: x, size: 16}"
_TENSOR = (
    "{id: a, axes: [{type: batch}, {type: channel, channel_names: [a]}, " + _SPACE + "], test_tensor: {source: t.npy}}"
)


def described(weights: str = "{}", tensor: str = _TENSOR, more: str = "") -> str:
    """A description of bioimage.io."""
    return RDF.replace("{}", "%s") % (tensor, tensor.replace("id: a,", "id: b,"), weights) + more


def rdf(content: str | bytes) -> Make:
    return file("m/rdf.yaml", content)


def packed(*entries: tuple[str, str | bytes], linked: str = "") -> Make:
    def make(here: Path) -> None:
        with zipfile.ZipFile(here / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in (("rdf.yaml", described()), *entries):
                archive.writestr(name, content)
            if linked:
                entry = zipfile.ZipInfo("w.pt")
                entry.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(entry, linked)

    return make


class _Code:
    """A pickle that makes a file where it is opened."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("pwned",)


PICKLE = pickle.dumps(_Code())
_NETWORK = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "channels": [4, 8],
    "strides": [2],
}
_META = {
    "network_data_format": {
        "inputs": {"image": {"type": "image", "num_channels": 1, "spatial_shape": [16, 16, 16]}},
        "outputs": {"pred": {"type": "image", "num_channels": 2}},
    }
}
_CALL = "$__import__('os').mkdir('pwned')"


def bundle(network: object, weights: bytes = b"junk", metadata: str = json.dumps(_META)) -> Make:
    """A bundle of MONAI."""
    said = json.dumps({"network_def": network})
    return both(
        file("m/configs/metadata.json", metadata),
        file("m/configs/inference.json", said),
        file("m/models/model.pt", weights),
    )


def nnunet(plans: str, weights: bytes = b"junk") -> Make:
    return both(
        file("m/plans.json", plans), file("m/dataset.json", "{}"), file("m/fold_0/checkpoint_final.pth", weights)
    )


_WEIGHTS = "{onnx: {source: '%s'}}"
_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)

_SOURCES: list[tuple[str, Make, str, str]] = [
    # descriptions
    ("a description that is empty", rdf(""), "m", "describes nothing"),
    ("a description that is no text", rdf(b"\xff\xfe\0"), "m", "rdf.yaml"),
    ("a description nested 100000 deep", rdf("a: " + "[" * 100_000), "m", "rdf.yaml"),
    ("a description of a billion laughs", rdf(_LAUGHS), "m", "more than a description"),
    ("a description that holds itself", rdf("a: &a {b: *a}\n"), "m", "more than a description"),
    ("a description that makes objects", rdf("a: !!python/object/apply:os.mkdir ['pwned']"), "m", "rdf.yaml"),
    ("a description of 8 MiB", rdf("".join(f"k{i}: 1\n" for i in range(800_000))), "m", "too large"),
    ("a description of 5000 digits", rdf(described(more="a: " + "9" * 5000)), "m", "rdf.yaml"),
    ("a description whose inputs are a word", rdf("format_version: 0.5.3\ntype: model\ninputs: many"), "m", "rdf.yaml"),
    ("a description that is a FIFO", both(folder("m"), fifo("m/rdf.yaml")), "m", "rdf.yaml"),
    ("a description that is a device", both(folder("m"), link("m/rdf.yaml", "/dev/zero")), "m", "rdf.yaml"),
    ("weights outside of a source", rdf(described(_WEIGHTS % "../../etc/passwd")), "m", "outside"),
    ("weights at the root of the disk", rdf(described(_WEIGHTS % "/etc/passwd")), "m", "outside"),
    ("weights that are a link out", both(rdf(described(_WEIGHTS % "w.onnx")), link("m/w.onnx", "/etc/passwd")), "m", "leads out"),
    ("weights that are a FIFO", both(rdf(described(_WEIGHTS % "w.onnx")), fifo("m/w.onnx")), "m", "w.onnx"),
    ("weights that are a URL with a password", rdf(described(_WEIGHTS % "http://me:hunter2@127.0.0.1:9/w.onnx?token=abc")), "m", "w.onnx"),
    # archives
    ("an archive that is a FIFO", fifo("a.zip"), "a.zip", "a.zip"),
    ("an archive that is a device", link("a.zip", "/dev/zero"), "a.zip", "a.zip"),
    ("an archive of an entry above it", packed(("../x", "y")), "a.zip", "outside"),
    ("an archive of an entry at the root", packed(("/tmp/x", "y")), "a.zip", "outside"),
    ("an archive with a link", packed(linked="/etc/passwd"), "a.zip", "link"),
    ("an archive that unpacks to gigabytes", packed(("w", bytes(2**27))), "a.zip", "unpacks to"),
    ("an archive of junk", file("a.zip", b"PK\3\4" + b"junk" * 99), "a.zip", "a.zip"),
    # code
    ("a bundle whose network is an expression", bundle(_CALL), "m", "--trust"),
    ("a bundle that calls by name", bundle({"_target_": "os.mkdir", "path": "pwned"}), "m", "--trust"),
    ("a bundle with an expression for a number", bundle({**_NETWORK, "spatial_dims": _CALL}), "m", "--trust"),
    ("a bundle that refers to itself", bundle("@network_def"), "m", "m"),
    ("a bundle whose weights are code", bundle(_NETWORK, PICKLE), "m", "model.pt"),
    ("a bundle of 10**9 channels", bundle({**_NETWORK, "channels": [10**9, 10**9]}), "m", "m"),
    ("a bundle whose metadata are nested", bundle(_NETWORK, metadata="[" * 100_000), "m", "metadata.json"),
    ("plans of nnU-Net that break off", nnunet("{"), "m", "plans.json"),
    ("plans of nnU-Net nested 100000 deep", nnunet("[" * 100_000), "m", "plans.json"),
    ("weights of nnU-Net that are code", nnunet("{}", PICKLE), "m", "m"),
    ("a checkpoint that is code", file("a.ckpt", PICKLE), "a.ckpt", "a.ckpt"),
    ("a checkpoint that is a FIFO", fifo("a.ckpt"), "a.ckpt", "a.ckpt"),
    ("a checkpoint whose header has 2**60 bytes", file("a.safetensors", b"\0" * 7 + b"\x10{}"), "a.safetensors", "a.safetensors"),
]  # fmt: skip

FAULTS = [
    *[Fault(f"import of {name}", ("import", source, "--out=q.onnx"), 5, (says,), make, spoken=None) for name, make, source, says in _SOURCES],
    *[Fault(f"run of {name}", ("run", "--in=scan.zarr", f"--model={source}", "--out=out.zarr"), 5, (says,), make, spoken=None, slow=True)
      for name, make, source, says in _SOURCES[11:16] + _SOURCES[23:30]],
]  # fmt: skip
