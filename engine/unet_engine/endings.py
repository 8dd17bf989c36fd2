"""What the name of an output may end in. It says the format; one that is not written here must not be called so, as it
would be taken for it. And what makes a volume of a file that is not read here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from unet_engine.paths import inside, is_local, parts, root_of

_FORMATS = {
    "NIfTI": ("nibabel", "nii nii.gz hdr img"),
    "TIFF": ("tifffile", "tif tiff btf tf2 tf8 lsm svs ndpi"),
    "a format of ITK": ("SimpleITK", "mha mhd nrrd nhdr vtk vti mgz mgh mnc dcm dicom gipl"),
    "MRC": ("mrcfile", "mrc rec map ccp4"),
    "HDF5": ("h5py", "h5 hdf5 hdf he5 h5ad nc nc4 mat ims"),
    "N5": ("tensorstore", "n5"),
    "NumPy": ("numpy.save", "npy npz"),
    "raw bytes": ("numpy.ndarray.tofile", "raw"),
    "an image": ("imageio", "png jpg jpeg jp2 j2k jxl bmp gif webp exr avif heic pgm ppm svg pdf dng"),
    "a film": ("imageio", "avi mp4 mov mkv webm"),
    "a microscope's format": ("tifffile", "czi lif nd2 oib oif vsi scn mrxs"),
    "a raster": ("rasterio", "vrt grib grb ecw"),
    "a mesh": ("scikit-image", "stl obj ply glb gltf am"),
    "a table or text": ("", "csv tsv txt json xml yaml yml toml parquet feather xlsx xls html"),
    "a model": ("", "onnx pt pth pt2 ckpt safetensors pkl pickle"),
    "an archive": ("", "zip tar tar.gz tar.bz2 tar.xz gz tgz bz2 tbz xz zst lz4 7z rar iso"),
}
"""By the name of a format: what makes one of an array, and its endings."""
WRITTEN = frozenset("zarr ozx nii nii.gz nrrd mha npy h5 hdf5 ome.tif ome.tiff tif tiff dcm".split())
"""Endings of what is written here: those of `unet_engine.postprocess.formats.WRITERS`."""
_BY_ENDING = {ending: (name, tool) for name, (tool, endings) in _FORMATS.items() for ending in endings.split()}
_READABLE = {
    "a microscope's format": "make OME-Zarr of it: bioformats2raw {path} {zarr}",
    "a format of ITK": "save it as NIfTI, e.g. with 3D Slicer",
    "NumPy": "save its array alone, with numpy.save",
    "an image": "save it as PNG or TIFF",
    "a film": "save its pictures as PNG in a folder",
    "a model": "a model is given with --model",
    "an archive": "unpack it, and give what is in it",
}
_FIRST_OF_TWO = ("nii", "tar", "ome", "zarr", "tif", "tiff", "npy", "csv", "json", "raw")
"""Endings that another one may follow, as in ``seg.ome.tif``: no part of what the file is called."""


def stem(path: str) -> str:
    """`path` without what tells its format: ``scan.nii.gz`` is ``scan``, ``scan.v2`` is itself."""
    folder, slash, name = path.rpartition("/")
    for _ in range(2):
        before, _, ending = name.rpartition(".")
        if before and (ending.lower() in ("zarr", *_BY_ENDING) or (name != path and ending.lower() == "ome")):
            name = before
    return folder + slash + name


def together(paths: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """What volumes are called together, as a path beside the first one, by the words that their names have in common
    (``case_0000.nii.gz`` and ``case_0001.nii.gz``: ``case.nii.gz``); and what each of them is called among them (0000,
    0001)."""
    places = [_place(path) for path in paths]
    stems = [stem(place).rpartition("/")[2] for place in places]
    ending = places[0].rpartition("/")[2].removeprefix(stems[0])
    folder = places[0][: len(places[0]) - len(stems[0] + ending)]
    if len({*stems}) == 1:
        above = [place.rpartition("/")[0].rpartition("/")[2] for place in places]
        within = [(inside(path)[1] or "").strip("/") for path in paths]
        return folder + stems[0] + ending, next((_apart(n) for n in (above, within) if len({*n}) == len(n)), ())
    words = [_WORD.split(one) for one in stems]
    before = _alike(words) // 2 * 2
    behind = _alike([one[before:][::-1] for one in words]) // 2 * 2
    own = ["".join(one[before : len(one) - behind]) for one in words]
    head, tail = "".join(words[0][:before]), "".join(words[0][len(words[0]) - behind :])
    shared = (head.rstrip("_. -") + tail).strip("_. -")
    alike = [one for one in stems if one == shared]
    return folder + (shared or stems[0]) + ending, _apart(stems if alike else own)


def numbered(path: str) -> tuple[str, int, str] | None:
    """What stands before, the number, and what stands behind it of the file of one channel, as nnU-Net calls them
    (``CASE_0000.nii.gz``); None where `path` is none such."""
    found = _NUMBERED.fullmatch(path)
    return (found[1], int(found[2]), found[3]) if found else None


_NUMBERED = re.compile(r"((?:.*/)?[^/]*[^/]_)([0-9]{4})(\.[^/]+)", re.DOTALL)


def cases_among(paths: Sequence[str]) -> list[str]:
    """What several cases are called whose channels `paths` are, all of them called so; empty where they are not, or are
    numbered parts of one thing, as slices are."""
    found = [numbered(path) for path in paths]
    cases = list(dict.fromkeys(one[0] for one in found if one))
    return cases if len(cases) > 1 and all(found) and any(one and one[1] == 0 for one in found) else []


def called(path: str) -> str:
    """The outermost path that the volume at `path` is called after, without its ending: ``scan``; of several that are
    one, what they have in common."""
    several = parts(path)
    return stem(root_of(together(several)[0] if len(several) > 1 else path))


def _alike(lists: Sequence[Sequence[str]]) -> int:
    """With how many words all of them begin."""
    return next((n for n, words in enumerate(zip(*lists, strict=False)) if len({*words}) > 1), min(map(len, lists)))


_WORD = re.compile(r"([_. -]+)")


def _place(path: str) -> str:
    """The file or folder that `path` leads to."""
    place = path if is_local(path) else path.partition("?")[0]
    return inside(place)[0].rstrip("/")


def _apart(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(names) if all(names) and len({*names}) == len(names) else ()


def made_readable(path: str) -> str:
    """What to do with `path`, a file of a format that is not read here."""
    what, _ = _BY_ENDING.get(path.rpartition(".")[2].lower(), ("", ""))
    return _READABLE.get(what, "convert it to Zarr first").format(
        path=shlex.quote(path), zarr=shlex.quote(stem(path) + ".zarr")
    )


def unread_in(folder: str) -> str | None:
    """The first file in `folder` of a format that is known and not read here, None where there is none."""
    files = sorted(path for path in Path(folder).glob("[!.]*.*") if path.is_file()) if Path(folder).is_dir() else []
    return next((str(p) for p in files if _BY_ENDING.get(p.suffix[1:].lower(), ("",))[0] in _READABLE), None)


def refuse_other_formats(out: str) -> None:
    """Raise `ValueError` where `out`, a path or a URL, is called like a file of a format that is not written there.

    Only its last part counts, in any case. An ending that is not known may be anything, as in ``labels.v1.2``. A place
    inside of a file, as ``seg.h5:/labels``, is none that is written.
    """
    if inside := _inside(out):
        raise ValueError(f"outputs are files of their own, no places inside of one; use {inside}")
    for part in [out] if is_local(out) else out.partition("?")[0].split("::"):
        name = part.strip().rstrip("/").rpartition("/")[2]
        stem, _, ending = name.rpartition(".")
        before, _, first = stem.rpartition(".")
        known = _BY_ENDING.get(f"{first}.{ending}".lower()) or _BY_ENDING.get(ending.lower())
        if not stem or known is None:
            continue
        what, tool = known
        whole = f"{before if before and first.lower() in _FIRST_OF_TWO else stem}.zarr"
        if f"{first}.{ending}".lower() in WRITTEN or ending.lower() in WRITTEN:
            if out.lower().startswith(("http://", "https://")):
                raise ValueError(f"a web server can be read, not written to; write {what} to a local disk or a bucket")
            if "::" not in out and (is_local(out) or "?" not in out):
                continue
            raise ValueError(
                f"{what} is written to a place of a plain name; leave out what is before :: or behind ?, or use {whole}"
            )
        then = f", and make the file of its array {whole}/0 with {tool} when it is done" if tool else ""
        raise ValueError(f"{what} cannot be written yet; use {whole}, OME-Zarr, which is a folder{then}")


def _inside(out: str) -> str | None:
    """Where `out` is a place inside of a file, that file's name."""
    found = re.match(r"(.*\.(\w+)):(?!//)", out)
    return found[1] if found and found[2].lower() in _BY_ENDING else None
