"""What docs/gpu.md says without a GPU is what the planner's geometry gives, and the graphs that a GPU is to run can be
built."""

import pytest

from support.paths import BENCHMARKS, DOCS


@pytest.fixture
def counts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_counts

    return gpu_counts


def test_the_tables_of_the_page_are_those_the_command_prints(counts):
    page = (DOCS / "gpu.md").read_text()
    assert counts.halo_table() in page
    assert counts.decoding_table() in page
    assert counts.block_table() in page


def test_a_block_sends_what_its_sums_reach_beyond_what_it_writes(counts):
    """Three classes on eight GPUs: every block is handed out alone, so all of its halos leave it."""
    plan, found = counts.plan_of(3), counts.halos(3, 8, 314)
    sent = [sum(box.size for _, box in task.halos) for c in plan.columns() for task in plan.tasks(c, lambda _: True)]
    assert found.length == 1
    assert found.blocks == len(sent)
    assert found.bytes == pytest.approx(4 * 3 * sum(sent) / len(sent))
    assert counts.halos(3, 2, 314).bytes < found.bytes, "handed out together, fewer leave"


def test_a_path_saves_only_what_sending_takes_longer_than_the_network(counts):
    h = counts.Halos(3, 2, 1, 1, network_seconds=0.01, bytes=1e8)
    assert h.saving(1e10) == 0
    assert h.saving(5e9) == pytest.approx(0.5)
    assert counts.Halos(3, 1, 1, 1, 0.01, 0).saving(1e9) == 0


def test_what_must_be_decoded_is_at_least_every_voxel_once_and_grows_with_chunks(counts):
    assert counts.new_voxels(314) < counts.decoding(314, 64) <= counts.decoding(314, 128)


@pytest.mark.slow
def test_the_graphs_for_tensorrt_have_quantised_convolutions_and_build(monkeypatch):
    pytest.importorskip("onnxscript")
    from unet_engine.backends import tensorrt_api
    from unet_engine.backends.libraries import record

    if not record("tensorrt").installed or "rtx" not in tensorrt_api.module().__name__:
        pytest.skip("TensorRT-RTX is not installed")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu_network import MLPerfUNet, typed_graphs

    graphs = typed_graphs(MLPerfUNet(3, (2, 3)).eval(), (32, 32, 32), 3)
    quantised = {name: sum(n.op_type == "QuantizeLinear" for n in g.graph.node) for name, g in graphs.items()}
    assert quantised["fp16"] == 0
    assert quantised["int8"] >= 5
    assert not any(n.op_type == "ConvTranspose" for g in graphs.values() for n in g.graph.node)
    shape = (1, 1, 32, 32, 32)
    engine, _ = tensorrt_api.build(
        graphs["int8"].SerializeToString(), tensorrt_api.Shapes(shape, shape, shape), target="SM80"
    )
    assert len(engine) > 1000
