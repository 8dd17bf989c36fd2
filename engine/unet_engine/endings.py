"""What the name of an output may end in. It says the format; one that is not written here must not be called so, as it
would be taken for it."""

from __future__ import annotations

import re

from unet_engine.paths import is_local

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
