"""TensorRT without a GPU: graphs parse and build, builds can be given up, the cache trusts nothing, the graph runs in
the pipeline's memory."""

import shutil
import threading

import numpy as np
import pytest

from support.tensorrt import DoublingContext, as_rtx, doubling
from unet_engine import machine
from unet_engine.backends import engine_cache, tensorrt_api
from unet_engine.backends import tensorrt as backend_module
from unet_engine.backends.base import Setup
from unet_engine.backends.libraries import choose_backend, open_backend, open_on_device, record
from unet_engine.errors import BackendError, ModelError
from unet_engine.model.file import open_model
from unet_engine.model.shipped import shipped_model

GPUS = machine.gpu_count() if record("tensorrt").installed else 0
WINDOW = (16, 16, 16)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv(engine_cache.FOLDER, str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def cells():
    return open_model(shipped_model("cells_3d.onnx"))


# --- the cache ---

KEY = {"network": "a", "shape": [1, 1, 16], "library": "x 1"}


def test_what_is_stored_under_a_key_comes_back_under_no_other():
    engine_cache.store("engine", KEY, b"bytes\nof an engine")
    assert engine_cache.load("engine", KEY) == b"bytes\nof an engine"
    for field, value in (("network", "b"), ("shape", [2, 1, 16]), ("library", "x 2")):
        assert engine_cache.load("engine", {**KEY, field: value}) is None
    assert engine_cache.load("timing", KEY) is None


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: d[:40] + b"x" + d[41:], lambda d: b"", lambda d: b"foreign"]
)
def test_a_damaged_or_foreign_file_is_as_good_as_none(damage):
    engine_cache.store("engine", KEY, b"bytes")
    path = engine_cache.folder() / f"{engine_cache.name_of(KEY)}.engine"
    path.write_bytes(damage(path.read_bytes()))
    assert engine_cache.load("engine", KEY) is None
    engine_cache.store("engine", KEY, b"new")
    assert engine_cache.load("engine", KEY) == b"new"


def test_an_engine_under_the_name_of_another_key_is_not_taken():
    engine_cache.store("engine", KEY, b"bytes")
    other = {**KEY, "network": "b"}
    folder = engine_cache.folder()
    shutil.copy(folder / f"{engine_cache.name_of(KEY)}.engine", folder / f"{engine_cache.name_of(other)}.engine")
    assert engine_cache.load("engine", other) is None


def test_a_folder_that_others_may_write_to_is_refused():
    engine_cache.folder().chmod(0o777)
    with pytest.raises(BackendError, match="can be written by others"):
        engine_cache.load("engine", KEY)


# --- choosing ---


def test_it_runs_on_gpus_alone_and_says_so(cells, monkeypatch):
    with pytest.raises(BackendError, match="NVIDIA GPUs alone"):
        choose_backend(cells, "cpu", "tensorrt")
    monkeypatch.setattr("unet_engine.backends.libraries.find_spec", lambda name: name)
    assert choose_backend(cells, "cuda") == "tensorrt"
    monkeypatch.setattr(
        "unet_engine.backends.libraries.find_spec", lambda name: None if name in tensorrt_api.MODULES else name
    )
    assert choose_backend(cells, "cuda") == "pytorch"
    without = (*tensorrt_api.MODULES, "torch")
    monkeypatch.setattr("unet_engine.backends.libraries.find_spec", lambda name: None if name in without else name)
    assert choose_backend(cells, "cuda") == "onnxruntime"


@pytest.mark.skipif(GPUS > 0, reason="this machine has a GPU")
def test_without_a_gpu_it_is_refused_before_any_runtime_is_made(cells):
    with pytest.raises(BackendError, match="this machine shows 0"):
        open_backend("tensorrt", Setup(cells, WINDOW, "cuda:0"))


def test_a_precision_without_a_graph_of_its_own_is_refused(cells):
    with pytest.raises(BackendError, match=r"has no fp16 graph for TensorRT; run: unet-engine quantize"):
        backend_module.network_of(Setup(cells, WINDOW, "cuda:0", "fp16"))


def test_a_window_that_makes_too_large_tensors_is_refused_by_name(cells):
    network = cells.path.read_bytes()
    tensorrt_api.check_sizes(cells.path, network, (1, 1, 64, 64, 64))
    with pytest.raises(
        ModelError, match=r"the result \w+ inside the network has [\d,]+ elements, and TensorRT takes fewer than 2\^31"
    ):
        tensorrt_api.check_sizes(cells.path, network, (1, 1, 1024, 512, 1024))


# --- building ---

needs_trt = pytest.mark.skipif(not record("tensorrt").installed, reason="TensorRT is not installed")
SHAPES = tensorrt_api.Shapes((1, 1, *WINDOW), (1, 1, *WINDOW), (2, 1, *WINDOW))


@needs_trt
def test_an_engine_is_built_once_and_again_only_where_something_changed(cells, monkeypatch, capsys):
    built = []
    build = tensorrt_api.build

    def counting(*args, **options):
        built.append(1)
        return build(*args, **options, target="SM89")

    monkeypatch.setattr(tensorrt_api, "build", counting)
    setup = Setup(cells, WINDOW, "cuda:0")
    network = backend_module.network_of(setup)
    engine = backend_module.engine_for(setup, network, "GPU A")
    assert "building an engine for cells_3d.onnx in fp32 on GPU A" in capsys.readouterr().err
    assert backend_module.engine_for(setup, network, "GPU A") == engine
    assert len(built) == 1
    backend_module.engine_for(setup, network, "GPU B")
    backend_module.engine_for(Setup(cells, (16, 16, 20), "cuda:0"), network, "GPU A")
    backend_module.engine_for(Setup(cells, WINDOW, "cuda:0", batch=2), network, "GPU A")
    assert len(built) == 4
    path = engine_cache.folder() / f"{engine_cache.name_of(backend_module.key_of(setup, network, 'GPU A'))}.engine"
    path.write_bytes(path.read_bytes()[:-5])
    backend_module.engine_for(setup, network, "GPU A")
    assert len(built) == 5


@needs_trt
def test_a_build_shows_progress_and_can_be_given_up(cells, monkeypatch):
    seen = []
    tensorrt_api.build(cells.path.read_bytes(), SHAPES, target="SM89", progress=lambda phase, done: seen.append(done))
    assert seen
    assert all(0 <= done <= 1 for done in seen)
    cancelled = threading.Event()

    def stop(phase, done):
        cancelled.set()
        job.cancel()

    job = tensorrt_api._Build(cells.path.read_bytes(), SHAPES, "SM89", b"", stop)
    job.run()
    assert cancelled.is_set()
    assert isinstance(job.error, tensorrt_api.Cancelled)
    assert not job.engine


@needs_trt
def test_an_operator_that_it_does_not_know_is_named():
    onnx = pytest.importorskip("onnx")
    kind, helper = onnx.TensorProto.FLOAT, onnx.helper
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Foo", ["c"], ["y"], name="odd", domain="mine")],
        "g",
        [helper.make_tensor_value_info("x", kind, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("y", kind, [1, 1, 8, 8])],
        [onnx.numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w")],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)], ir_version=10
    )
    shape = (1, 1, 8, 8)
    with pytest.raises(ModelError, match=r"TensorRT refuses Foo \(odd\)"):
        tensorrt_api.build(model.SerializeToString(), tensorrt_api.Shapes(shape, shape, shape), target="SM89")
    with pytest.raises(ModelError, match="TensorRT"):
        tensorrt_api.build(b"no network", tensorrt_api.Shapes(shape, shape, shape), target="SM89")


# --- on a device that knows what comes before what ---


def test_it_binds_the_pipelines_memory_and_launches_one_graph(monkeypatch):
    setup, contexts, device = doubling(monkeypatch)
    backend = open_on_device("tensorrt", setup)
    (context,) = contexts
    assert context.addresses == {"in": backend.input.region.address, "out": backend.output.region.address}
    assert device.seen == ["enqueue", "wait", "capture"], "warm before recording, waited for only then"
    backend.run(backend.stream.handle)
    backend.run(backend.stream.handle)
    assert device.seen[3:] == ["launch", "enqueue", "launch", "enqueue"]
    backend.close()
    with pytest.raises(BackendError, match="was closed"):
        backend.run(backend.stream.handle)
    assert not device.living


def test_every_slot_gives_the_double_of_its_own_input_in_any_order(monkeypatch):
    setup, _, device = doubling(monkeypatch)
    backend = open_backend("tensorrt", setup)
    device.seal()
    rng = np.random.default_rng(0)
    for _ in range(3):
        given = [rng.standard_normal((1, 1, 8, 8, 8), dtype=np.float32) for _ in range(backend.slots)]
        for slot, window in enumerate(given):
            backend.input(slot)[...] = window
            backend.start(slot)
        for slot in (*range(1, backend.slots), 0):
            np.testing.assert_array_equal(backend.result(slot), 2 * given[slot])


def test_closing_gives_back_all_memory_once(monkeypatch):
    setup, _, device = doubling(monkeypatch)
    backend = open_backend("tensorrt", setup)
    assert device.living
    backend.close()
    assert not device.living


def test_tensorrt_rtx_compiles_before_the_first_batch_and_keeps_what_it_compiled(monkeypatch):
    setup, _, _ = doubling(monkeypatch)
    made = as_rtx(monkeypatch)
    backend = open_on_device("tensorrt", setup)
    (config,) = made
    assert config.strategy == 2
    assert config.dynamic_shapes_kernel_specialization_strategy == "EAGER"
    assert backend.recorded
    backend.close()
    open_on_device("tensorrt", setup).close()
    assert made[1].cache.held == b"compiled", "of the run before"


@pytest.mark.parametrize("how", ["it says so", "recording fails"])
def test_a_network_that_cannot_be_recorded_runs_call_by_call(monkeypatch, how):
    setup, _, device = doubling(monkeypatch)
    if how == "it says so":
        monkeypatch.setattr(DoublingContext, "is_stream_capturable", lambda self, stream: False, raising=False)
    else:

        def fails(stream, what, work):
            raise BackendError("an operation is not permitted while a stream records")

        monkeypatch.setattr(device, "capture", fails)
    backend = open_on_device("tensorrt", setup)
    assert not backend.recorded
    assert "cannot be recorded as a CUDA graph and runs call by call" in backend.note
    array = np.from_dlpack(device.kernels.array(backend.input.region.address, setup.input_shape, "float32"))
    array[...] = 3
    device.seen.clear()
    backend.run(backend.stream.handle)
    assert device.seen == ["enqueue"]
    out = np.from_dlpack(device.kernels.array(backend.output.region.address, setup.input_shape, "float32"))
    assert (out == 6).all()
    backend.close()
    assert not device.living
    with pytest.raises(BackendError, match="was closed"):
        backend.run(backend.stream.handle)


@needs_trt
def test_the_gpu_is_current_in_the_thread_that_builds(cells):
    entered = []
    main = threading.get_ident()
    shapes = tensorrt_api.Shapes(SHAPES.best, SHAPES.best, SHAPES.best)
    tensorrt_api.build(
        cells.path.read_bytes(), shapes, target="SM89", enter=lambda: entered.append(threading.get_ident())
    )
    assert len(entered) == 1
    assert entered != [main]


@pytest.mark.skipif(GPUS == 0, reason="no GPU on this machine")
def test_on_a_gpu_it_gives_what_openvino_gives(cells):
    window = np.random.default_rng(0).random((1, 1, *WINDOW), dtype=np.float32)
    expected = open_backend("openvino", Setup(cells, WINDOW)).infer(window)
    got = open_backend("tensorrt", Setup(cells, WINDOW, "cuda:0")).infer(window)
    np.testing.assert_allclose(got, expected, atol=1e-3 * np.abs(expected).max())
