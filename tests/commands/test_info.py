"""What ``info`` tells of a model file: each fact, and where it came from."""

import numpy as np
import pytest

from support.command_line import cli
from support.graphs import convolution, graph, node
from support.volumes import fake_model, make_volume
from unet_engine.backends import engine_cache
from unet_engine.backends.libraries import Library
from unet_engine.model.file import open_model
from unet_engine.model.spec import METADATA_KEY
from unet_engine.prepare import tiling_choice
from unet_engine.prepare.precision_proof import Proof, remember_proof
from unet_engine.prepare.tiling_choice import Learnt, Measured


def foreign(folder, *, end="Identity", free=False, spec=None, name="net.onnx"):
    nodes = [node("Conv", "x k", "c"), node(end, "c", "y")]
    size = None if free else 16
    return graph(folder / name, nodes, shape=(None, 1, size, size), spec=spec, k=convolution(channels_out=2))


def origins(*asked):
    said = cli("info", *asked, "--json")
    assert said.code == 0, said.err
    return said.json["origins"]


def test_a_foreign_graph(tmp_path):
    told = origins(foreign(tmp_path))
    assert {told[k] for k in ("channels_in", "channels_out", "window", "margin", "axes")} == {"graph"}
    assert told["activation"] == "guess by the number of channels"
    assert (told["normalization"], told["name"]) == ("default", "name of the file")
    assert origins(foreign(tmp_path, end="Sigmoid"))["activation"] == "graph"


def test_options_and_the_file_beside(tmp_path):
    model = foreign(tmp_path, free=True)
    assert origins(model, "--window", "16,16")["window"] == "--window"
    (tmp_path / "net.toml").write_text('activation = "none"\nwindow = [16, 16]\nhead = "y"\n')
    told = origins(model)
    assert (told["activation"], told["window"], "head" in told) == ("net.toml", "net.toml", False)
    assert origins(model, "--window", "32,32")["window"] == "--window"


def test_a_spec_in_the_file(tmp_path):
    spec = open_model(foreign(tmp_path)).spec
    assert set(origins(foreign(tmp_path, spec=spec, name="own.onnx")).values()) == {"the spec in the file"}
    assert set(origins(fake_model(tmp_path)).values()) == {"the spec in the file"}


def test_a_torchscript_with_its_spec_beside(tmp_path, trusting):
    torch = pytest.importorskip("torch")
    script = torch.jit.trace(torch.nn.Conv2d(1, 2, 1), torch.zeros(1, 1, 16, 16))
    spec = open_model(foreign(tmp_path)).spec
    torch.jit.save(script, str(tmp_path / "own.pt"), _extra_files={METADATA_KEY: spec.model_dump_json()})
    assert set(origins(str(tmp_path / "own.pt")).values()) == {"the spec in the file"}
    torch.jit.save(script, str(tmp_path / "bare.pt"))
    lines = [
        'name = "bare"', 'axes = "yx"', "channels_in = 1", "channels_out = 2", "window = [16, 16]",
        "window_min = [16, 16]", "window_step = [16, 16]", "margin = [0, 0]",
    ]  # fmt: skip
    (tmp_path / "bare.toml").write_text("\n".join(lines))
    told = origins(str(tmp_path / "bare.pt"))
    assert (told["axes"], told["activation"]) == ("bare.toml", "default")


def test_people_see_it_beside_the_fact(tmp_path):
    text = " ".join(cli("info", foreign(tmp_path)).out.split())
    assert "channels out 2 (graph)" in text
    assert "activation softmax (guess by the number of channels)" in text
    assert "origins" not in text


def test_the_second_opinion(tmp_path, asking, monkeypatch):
    pytest.importorskip("onnxruntime")
    model = foreign(tmp_path)

    def told():
        return cli("info", model, "--json").json["second_opinion"]

    assert told() == "not asked yet: the first run does"
    image = np.random.default_rng(0).normal(0, 1, (2, 20, 20)).astype(np.float32)
    run = cli("run", "--in", make_volume(tmp_path / "v.zarr", image), "--model", model, "--out", tmp_path / "o.zarr")
    assert run.code == 0, run.err
    assert told().startswith("openvino ")
    assert "agrees with onnxruntime" in told()
    assert cli("info", fake_model(tmp_path), "--json").json["second_opinion"] is None
    monkeypatch.setattr(Library, "installed", property(lambda library: library.name != "onnxruntime"))
    assert "no second library is installed" in told()


def test_a_model_tells_what_was_learnt_and_proved_of_it_here(tmp_path, monkeypatch):
    """Of this model alone, and nothing that another version wrote or somebody spoiled."""
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(cache))
    path = fake_model(tmp_path)
    model = open_model(path)
    nothing = cli("info", "--json", path).json
    assert nothing["tilings"] is None
    assert nothing["proofs"] is None
    for sha in (model.sha256, "another"):
        key = {"model": sha, "library": "openvino 2026", "precision": ["bf16"], "window": [64, 64, 64]}
        good, bad = (
            Measured(context=(96, 96, 96), margin=(m, m, m), agreement=0.99, least_dice=0.9, spare=m - 8)
            for m in (16, 0)
        )
        tiling_choice.remember(
            key,
            Learnt(
                tolerance=None, truth=False, yardstick=(160, 160, 160), weaker=False, bar_agreement=0.995,
                bar_dice=0.987, regions=("a", "b"), seed=0, most=10**6, budget=0.03, share=0.02,
                quantiles=((-1, 0, 0, 0, 2),), measured=(good, bad),
            ),
        )  # fmt: skip
        for window, reason in (((96, 96, 96), ""), ((128, 96, 96), "Dice of class 1 is 0.9")):
            remember_proof(
                key, Proof(window=window, regions=3, voxels=9, agreement=0.999, least_dice=0.99, max_error=0.1,
                reason=reason, volume="scan.zarr", quantiles=((-1, 0, 0, 0, 2),))
            )  # fmt: skip
    engine_cache.store("tiling", {"model": model.sha256, "precision": []}, b'[{"of": "another version"}]')
    told = cli("info", "--json", path).json
    assert told["tilings"] == [
        "bf16 with openvino 2026, windows of 64×64×64: 1 of 2 margins in 96×96×96 reach 0.99500 and least Dice 0.98700 of "
        "the model's own against windows of 160×160×160, 2 regions, values -1 to 2 once normalised"
    ]
    rest = "agreement 0.99900, least Dice 0.99000 with fp32, 3 regions of scan.zarr, values -1 to 2 once normalised"
    assert sorted(told["proofs"]) == [
        f"bf16 with openvino 2026, windows of 128×96×96: failed, Dice of class 1 is 0.9; {rest}",
        f"bf16 with openvino 2026, windows of 96×96×96: passed; {rest}",
    ]
    for kept in cache.glob("*.tiling*"):
        kept.write_bytes(kept.read_bytes()[:-1])
    assert cli("info", "--json", path).json["proofs"] is None
