"""One suite for every back end and every format it runs. A library that is missing is a visible skip."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unet_engine
from support.shares import share
from support.volumes import fake_model, make_volume, result_of
from unet_engine.backends import engine_cache
from unet_engine.backends.base import Backend, Setup
from unet_engine.backends.device import DeviceBackend
from unet_engine.backends.libraries import CPU, GPU, LIBRARIES, Library, _named, choose_backend, open_backend
from unet_engine.errors import BackendError, ModelError
from unet_engine.model.file import ModelFile, open_model

COMBINATIONS = [
    ("openvino", "net.onnx", "openvino"),
    ("onnxruntime", "net.onnx", "onnxruntime"),
    ("pytorch", "net.pt2", "torch"),
    ("pytorch", "net.pt", "torch"),
]
RINGS = [*COMBINATIONS, ("fake", "net.fake.toml", "numpy")]
"""Those, and the one without a network: what concerns slots alone holds for all."""
WINDOW = (16, 8, 24)


@pytest.fixture(scope="module", params=share(["instance", "batch", "none"], 2))
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A small 3D network in every format, with PyTorch's own answer as the truth."""
    torch = pytest.importorskip("torch")
    from unet_export.conversion.onnx_export import export_onnx, export_torch
    from unet_export.train.nets import UNet, UNetConfig
    from unet_export.train.specs import spec_for

    torch.manual_seed(5)
    config = UNetConfig(dims=3, channels_in=2, classes=3, base=4, depth=2, norm=request.param)
    network = UNet(config).eval()
    folder = tmp_path_factory.mktemp(request.param)
    spec = spec_for(config, name="net", window=(16, 16, 16))
    export_onnx(network, spec, folder / "net.onnx")
    export_torch(network, spec, folder / "net.pt2")
    export_torch(network, spec, folder / "net.pt")
    fake_model(folder, name="net", channels_in=2, channels_out=3)
    return network, folder


def opened(files: Any, combination: tuple[str, str, str], **options: Any) -> Backend:
    name, file, library = combination
    pytest.importorskip(library)
    return open_backend(name, Setup(open_model(files[1] / file), WINDOW, **options))


def windows(n: int) -> list[Any]:
    rng = np.random.default_rng(2)
    return [rng.standard_normal((1, 2, *WINDOW), dtype=np.float32) for _ in range(n)]


@pytest.mark.parametrize(
    "combination",
    [*COMBINATIONS[:2], pytest.param(COMBINATIONS[2], marks=pytest.mark.slow)],
    ids=[c[0] for c in COMBINATIONS[:3]],
)
def test_no_window_is_inferred_twice(
    files: Any, combination: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warming up is that inference already, of one window as of several. Others' answers are not taken for it."""
    network = opened(files, combination)
    started: list[bytes] = []
    told: list[bool] = []
    start = type(network).start
    monkeypatch.setattr(
        type(network), "start", lambda self, slot: (started.append(self.input(slot).tobytes()), start(self, slot))[1]
    )
    network.close()
    image = np.random.default_rng(5).normal(size=(2, *WINDOW)).astype(np.float32)

    def logits(name: str, values: Any, threads: int = 1) -> Any:
        started.clear()
        path = make_volume(tmp_path / f"{name}.zarr", values, axes="czyx")
        found = unet_engine.run(
            path, out=str(tmp_path / f"{name}-out.zarr"), model=str(files[1] / combination[1]), window=WINDOW,
            backend=combination[0], threads=threads, output="logits", device="cpu", trust=True, precision="fp32",
        )  # fmt: skip
        told.append(found.start["to the first window"] < found.start["to the run"])
        return result_of(found.out)

    long = np.concatenate([image[:, :, ::-1] / 2, image, image * 2], axis=2)
    narrow = image[:, : WINDOW[0] - 3]  # padded by the run
    cases = {"padded": (narrow, 2), "five": (long, 1), "of-three": (long, 3)}
    with monkeypatch.context() as patch:
        patch.setattr(Backend, "take_answered", lambda self: {})
        expected = {name: logits(f"{name}-twice", *case) for name, case in cases.items()}
        assert len(started) > len(set(started)), "three windows of warming up, and five"
    for name, case in cases.items():
        np.testing.assert_array_equal(logits(name, *case), expected[name])
        assert len(started) == len(set(started)) == (1 if case[0] is not long else 5)
    assert told == [False] * 3 + [True] * 3, "warming up is where the first window goes in, if it is one of the run"


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda c: "-".join(c[:2]))
def test_gives_what_pytorch_gives(files: Any, combination: tuple[str, str, str]) -> None:
    import torch

    backend = opened(files, combination)
    window = windows(1)[0]
    with torch.inference_mode():
        expected = files[0](torch.from_numpy(window)).numpy()
    np.testing.assert_allclose(backend.infer(window), expected, atol=1e-5 * np.abs(expected).max())
    backend.close()


@pytest.mark.parametrize("combination", RINGS, ids=lambda c: "-".join(c[:2]))
def test_the_same_bytes_for_any_number_of_threads_and_any_slot(files: Any, combination: tuple[str, str, str]) -> None:
    batches = windows(7)
    answers = []
    for threads in (1, 2, 3):
        backend = opened(files, combination, threads=threads)
        got: list[Any] = [None] * len(batches)
        for first in range(0, len(batches), backend.slots):
            flight = list(enumerate(batches))[first : first + backend.slots]
            for slot, (_, batch) in enumerate(flight):
                backend.input(slot)[...] = batch
                backend.start(slot)
            for slot, (i, _) in reversed(list(enumerate(flight))):
                got[i] = backend.result(slot).tobytes()
        answers.append(got)
        backend.close()
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("combination", RINGS, ids=lambda c: "-".join(c[:2]))
def test_slots_are_filled_and_read_in_place(files: Any, combination: tuple[str, str, str]) -> None:
    backend = opened(files, combination, threads=2)
    assert backend.slots >= 3
    for slot in range(backend.slots):
        assert backend.input(slot) is backend.input(slot)
        assert backend.input(slot).shape == (1, 2, *WINDOW)
        assert backend.input(slot).dtype == np.float32
        assert backend.input(slot).flags.c_contiguous
    assert len({backend.input(slot).ctypes.data for slot in range(backend.slots)}) == backend.slots
    backend.close()


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda c: "-".join(c[:2]))
def test_a_window_the_pooling_does_not_divide_is_refused(files: Any, combination: tuple[str, str, str]) -> None:
    name, file, library = combination
    pytest.importorskip(library)
    with pytest.raises(ModelError, match=r"net\.(onnx|pt2|pt)"):
        open_backend(name, Setup(open_model(files[1] / file), (15, 8, 24)))


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda c: "-".join(c[:2]))
def test_a_precision_it_does_not_run_is_refused(files: Any, combination: tuple[str, str, str]) -> None:
    with pytest.raises(BackendError, match="use --precision fp32"):
        opened(files, combination, precision="int8")


@pytest.mark.parametrize(
    "combination", [c for c in COMBINATIONS if c[0] != "onnxruntime"], ids=lambda c: "-".join(c[:2])
)
def test_bf16_is_close_where_it_runs(files: Any, combination: tuple[str, str, str]) -> None:
    try:
        backend = opened(files, combination, precision="bf16")
    except BackendError as error:
        pytest.skip(str(error))
    import torch

    window = windows(1)[0]
    with torch.inference_mode():
        expected = files[0](torch.from_numpy(window)).numpy()
    got = np.asarray(backend.infer(window), np.float32)
    assert 0 < np.abs(got - expected).max() < 0.1 * np.abs(expected).max()
    backend.close()


def test_a_spec_that_promises_other_channels_is_found_out(files: Any, tmp_path: Path) -> None:
    model = open_model(files[1] / "net.onnx")
    wrong = ModelFile(model.path, model.format, model.sha256, model.spec.model_copy(update={"channels_out": 5}))
    with pytest.raises(ModelError, match="correct channels_out or margin"):
        open_backend("openvino", Setup(wrong, WINDOW))


@pytest.mark.parametrize("known", LIBRARIES, ids=lambda known: known.name)
def test_a_record_says_what_its_module_has(known: Library) -> None:
    assert [CPU] * bool(known.host) + [GPU] * bool(known.on_device) == list(known.devices)
    assert all("fp32" in precisions for precisions in known.devices.values())
    if known.modules:
        pytest.importorskip(known.modules[-1] if known.name == "tensorrt" else known.modules[0])
    for what, kind in ((known.host, Backend), (known.on_device, DeviceBackend)):
        if what:
            found = _named(what)
            assert isinstance(found, type)
            assert issubclass(found, kind)
            assert found.name == known.name
    for function in (known.bound_to, known.computes_in, known.sees_gpu):
        assert not function or callable(_named(function))


def test_the_back_end_follows_the_format(files: Any) -> None:
    assert choose_backend(open_model(files[1] / "net.onnx"), "cpu") == "openvino"
    assert choose_backend(open_model(files[1] / "net.pt2"), "cpu") == "pytorch"
    with pytest.raises(BackendError, match="does not run"):
        choose_backend(open_model(files[1] / "net.pt2"), "cpu", "openvino")
    with pytest.raises(BackendError, match="no back end 'cntk'; use one of"):
        choose_backend(open_model(files[1] / "net.onnx"), "cpu", "cntk")


def test_a_library_that_is_not_installed_is_named_with_its_extra(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unet_engine.backends.libraries.find_spec", lambda _: None)
    with pytest.raises(BackendError, match=r"pip install 'unet-engine\[onnxruntime\]'"):
        choose_backend(open_model(files[1] / "net.onnx"), "cpu", "onnxruntime")


@pytest.mark.parametrize("combination", COMBINATIONS[2:], ids=lambda c: "-".join(c[:2]))
def test_on_a_gpu_pytorch_gives_what_the_cpu_gives(files: Any, combination: tuple[str, str, str]) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU on this machine")
    window = windows(1)[0]
    expected = opened(files, combination).infer(window)
    for precision, tolerance in (("fp32", 1e-3), ("bf16", 0.1), ("fp16", 0.02)):
        got = np.asarray(opened(files, combination, device="cuda:0", precision=precision).infer(window), np.float32)
        assert np.abs(got - expected).max() < tolerance * np.abs(expected).max()


# --- what OpenVINO compiled, kept for the next run ---


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(folder))
    return folder


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is compiled anew."""
    backend = pytest.importorskip("unet_engine.backends.openvino")
    models: list[Any] = []
    compile_model = backend.ov.Core.compile_model

    def counted(self: Any, model: Any, *args: Any) -> Any:
        models.append(model)
        return compile_model(self, model, *args)

    monkeypatch.setattr(backend.ov.Core, "compile_model", counted)
    return models


OPENVINO = COMBINATIONS[0]


def test_a_network_that_was_compiled_is_taken_from_the_cache(files: Any, cache: Path, compiled: list[Any]) -> None:
    answers = []
    for _ in range(2):
        network = opened(files, OPENVINO, threads=2)
        answers.append(network.infer(windows(1)[0]))
        network.close()
    assert len(compiled) == len(list(cache.glob("*.openvino"))) == 1
    np.testing.assert_array_equal(*answers)


def test_what_decides_the_compiled_network_is_in_its_key(files: Any, cache: Path, compiled: list[Any]) -> None:
    for options in ({}, {"threads": 2}, {"batch": 2}):
        opened(files, OPENVINO, **options).close()
    model = open_model(files[1] / "net.onnx")
    for setup in (Setup(model, (16, 16, 16)), Setup(replace(model, sha256="other"), WINDOW)):
        open_backend("openvino", setup).close()
    assert len(compiled) == len(list(cache.glob("*.openvino"))) == 5


@pytest.mark.parametrize("spoil", [
    lambda data: data[:-9], lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:], lambda data: b"",
])  # fmt: skip
def test_a_spoiled_cache_is_compiled_again(files: Any, cache: Path, compiled: list[Any], spoil: Any) -> None:
    expected = opened(files, OPENVINO).infer(windows(1)[0])
    (kept,) = cache.glob("*.openvino")
    kept.write_bytes(spoil(kept.read_bytes()))
    for _ in range(2):
        np.testing.assert_array_equal(opened(files, OPENVINO).infer(windows(1)[0]), expected)
        assert len(compiled) == 2


def test_what_openvino_does_not_take_from_the_cache_is_compiled_again(
    files: Any, cache: Path, compiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_cache, "load", lambda kind, key: b"nothing that was compiled")
    opened(files, OPENVINO).infer(windows(1)[0])
    assert len(compiled) == 1


def test_a_cache_that_cannot_be_used_is_no_error(files: Any, cache: Path, compiled: list[Any]) -> None:
    cache.chmod(0o777)
    for _ in range(2):
        opened(files, OPENVINO).close()
    assert len(compiled) == 2


def test_the_oldest_compiled_networks_go(files: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest.importorskip("unet_engine.backends.openvino"), "LATEST", 2)
    for threads in (1, 2, 3):
        opened(files, OPENVINO, threads=threads).close()
    assert len(list(cache.glob("*.openvino"))) == 2


def test_openvino_still_converts_for_others() -> None:
    ov = pytest.importorskip("unet_engine.backends.openvino").ov
    assert callable(ov.convert_model)
    with pytest.raises(AttributeError):
        _ = ov.no_such_thing


def test_what_openvino_does_without_is_there_for_others() -> None:
    """For other threads even while OpenVINO is imported."""
    module = pytest.importorskip("unet_engine.backends.openvino")
    before, found = list(sys.meta_path), []
    finder = module._WithoutConverter()
    with finder, pytest.raises(ModuleNotFoundError):
        finder.find_spec(module._CONVERTER)
    other = threading.Thread(target=lambda: found.append(finder.find_spec(module._CONVERTER)))
    with finder:
        assert sys.meta_path[0] is finder
        other.start()
        other.join()
    assert found == [None]
    assert sys.meta_path == before
    assert sys.modules.get(module._CONVERTER, module) is not None
