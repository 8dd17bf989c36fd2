"""What the parts of `gpu_check.py` import beyond Python, NumPy and PyTorch: by what a part needs, modules with the
distributions that bring them. `need` asks for them, `gpu_wheels.py` fetches them."""

from __future__ import annotations

ENGINE = {
    "zarr": "zarr", "zarrs": "zarrs", "numcodecs": "numcodecs", "google_crc32c": "google-crc32c", "donfig": "donfig",
    "yaml": "PyYAML", "pydantic": "pydantic", "pydantic_core": "pydantic_core", "annotated_types": "annotated-types",
    "typing_inspection": "typing-inspection", "typing_extensions": "typing_extensions", "packaging": "packaging",
    "psutil": "psutil",
}  # fmt: skip
"""What a run imports."""
GPU = {"cuda.core": "cuda-core", "cuda.bindings": "cuda-bindings", "cuda.pathfinder": "cuda-pathfinder"}
REPORT = {"rich": "rich"}
BUILD = {"nanobind": "nanobind"}
TESTS = {
    "pytest": "pytest", "iniconfig": "iniconfig", "pluggy": "pluggy", "hypothesis": "hypothesis",
    "sortedcontainers": "sortedcontainers", "ml_dtypes": "ml_dtypes", "click": "click",
}  # fmt: skip
PEER = {"monai": "monai"}
CLUSTER = {
    "distributed": "distributed", "tornado": "tornado", "dask": "dask", "cloudpickle": "cloudpickle", "toolz": "toolz", "tlz": "toolz",
    "lazy_importer": "lazy-importer",
    "zict": "zict", "sortedcontainers": "sortedcontainers", "tblib": "tblib", "locket": "locket",
    "msgpack": "msgpack", "click": "click", "importlib_metadata": "importlib_metadata", "zipp": "zipp",
    "jinja2": "Jinja2", "markupsafe": "MarkupSafe", "fsspec": "fsspec", "cryptography": "cryptography", "cffi": "cffi",
    "pycparser": "pycparser",
}  # fmt: skip
"""What two processes import that send each other halos."""

ONNX = {"onnx": "onnx", "google.protobuf": "protobuf", "ml_dtypes": "ml_dtypes"}
"""What reads the networks that come with the engine."""

PARTS: dict[str, dict[str, str]] = {
    "build": BUILD,
    "tests": ENGINE | TESTS,
    "sanitizer": {},
    "bandwidth": {},
    "norm": ENGINE,
    "end-to-end": ENGINE | REPORT,
    "monai": ENGINE | PEER,
    "memory": ENGINE,
    "tensorrt": ENGINE,
    "gpus": ENGINE | CLUSTER,
    "decoding": ENGINE,
    "classes": ENGINE | REPORT,
    "int8": ENGINE,
    "grid": ENGINE,
    "resample": ENGINE,
    "tiling": ENGINE | REPORT | ONNX,
}
"""By part; all but `build` also need `GPU` where the GPU is real."""


def wheels() -> tuple[str, ...]:
    """Distributions of all parts, each once."""
    every = [*GPU.values(), *(name for modules in PARTS.values() for name in modules.values())]
    return tuple(dict.fromkeys(every))
