"""Weights are found under whatever keys and prefixes a framework saved them, and go into the network whole or not at
all."""

import argparse

import numpy as np
import pytest

from support.command_line import cli

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from support import networks  # noqa: E402
from unet_engine.errors import ModelError, SettingsError  # noqa: E402
from unet_export.conversion.checkpoint import open_checkpoint  # noqa: E402
from unet_export.conversion.weights import fill, read_weights  # noqa: E402


class Small(nn.Module):
    def __init__(self, base=2):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, base, 3, padding=1), nn.BatchNorm2d(base))
        self.head = nn.Conv2d(base, 2, 1)

    def forward(self, x):
        return self.head(self.down(x))


class Buffered(Small):
    """Makes a buffer that training of an older version did not keep."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kernel", torch.ones(3))


def state(seed, network=Small):
    torch.manual_seed(seed)
    return {
        name: torch.rand(value.shape) if value.is_floating_point() else value
        for name, value in network().state_dict().items()
    }


def prefixed(prefix, values):
    return {prefix + name: value for name, value in values.items()}


def filled(tmp_path, saved, network=None, key=None):
    """A network after the checkpoint `saved` went into it, and what was told."""
    torch.save(saved, tmp_path / "c.ckpt")
    network, told = network or Small(), []
    fill(network, read_weights(tmp_path / "c.ckpt"), key, told.append)
    return network, told


def holds(network, values):
    own = network.state_dict()
    return all(torch.equal(own[name], value) for name, value in values.items() if "tracked" not in name)


RIGHT = state(1)


@pytest.mark.parametrize(
    "saved",
    [
        RIGHT,
        {"weights": RIGHT, "epoch": 3},
        {"params": RIGHT},
        {"model_state": RIGHT},
        {"ema_state_dict": prefixed("module.", RIGHT) | {"n_averaged": torch.tensor(3)}},
        {"checkpoint": {"nested": {"net": prefixed("a.b.c.", RIGHT)}}},
        prefixed("_orig_mod.", RIGHT),
        {"state_dict": prefixed("net._orig_mod.", RIGHT)},
        {"state_dict": {n.replace("down.", "down._orig_mod."): v for n, v in RIGHT.items()}},
        {"down": {n[5:]: v for n, v in RIGHT.items() if n[0] == "d"},
         "head": {n[5:]: v for n, v in RIGHT.items() if n[0] == "h"}},
        {"model": RIGHT, "optimizer": {"state": {0: {"step": torch.tensor(1)}}}, "loss": np.float64(0.5)},
        {"model": RIGHT, "best": np.float32(1), "curve": np.arange(3.0), "args": argparse.Namespace(lr=0.1)},
        {"model": {name: value.numpy() for name, value in RIGHT.items()}},
        (7, RIGHT),
        {name: value for name, value in RIGHT.items() if "tracked" not in name},
    ],
    ids=str,
)  # fmt: skip
def test_weights_are_found_under_any_key_and_prefix(tmp_path, saved):
    network, told = filled(tmp_path, saved)
    assert holds(network, RIGHT)
    assert not told


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda n: nn.ModuleDict({"model": n})])
def test_a_wrapper_that_only_the_factory_makes_is_seen_through(tmp_path, wrap):
    inside = Small()
    filled(tmp_path, {"state_dict": RIGHT}, wrap(inside))
    assert holds(inside, RIGHT)


def test_a_network_that_was_pickled_whole_gives_its_weights_and_runs_no_code(tmp_path):
    network = Small()
    network.load_state_dict(RIGHT)
    assert holds(filled(tmp_path, network)[0], RIGHT)
    assert holds(filled(tmp_path, {"model": network, "epoch": 1})[0], RIGHT)
    network.extra = nn.Conv2d(2, 2, 1)
    with pytest.raises(ModelError, match=r"holds extra\.weight, extra\.bias that the network lacks"):
        filled(tmp_path, network)


def test_weight_normalisation_of_the_old_kind_is_taken_by_the_networks_own_rules(tmp_path):
    old, new = Small(), Small()
    nn.utils.weight_norm(old.head)
    nn.utils.parametrizations.weight_norm(new.head)
    filled(tmp_path, {"state_dict": prefixed("module.", old.state_dict())}, new)
    x = torch.rand(1, 1, 4, 4)
    torch.testing.assert_close(new.eval()(x), old.eval()(x))


def test_buffers_that_the_factory_makes_stay_and_statistics_of_training_have_to_be_there(tmp_path):
    network, told = filled(tmp_path, RIGHT, Buffered())
    assert holds(network, RIGHT)
    assert torch.equal(network.kernel, torch.ones(3))
    assert "lacks the buffers kernel" in told[0]
    without = {name: value for name, value in RIGHT.items() if "running_mean" not in name}
    with pytest.raises(ModelError, match=r"lacks down\.1\.running_mean of the network"):
        filled(tmp_path, without)


def test_of_several_sets_the_plain_one_is_taken_and_told_and_others_can_be_named(tmp_path):
    both = {"state_dict": RIGHT, "ema_state_dict": state(2)}
    network, told = filled(tmp_path, both)
    assert holds(network, RIGHT)
    assert "state_dict is taken, not ema_state_dict" in told[0]
    assert holds(filled(tmp_path, both, key="ema_state_dict")[0], state(2))
    teams = prefixed("student.", RIGHT) | prefixed("teacher.", state(2))
    with pytest.raises(ModelError, match="several sets of weights that fit the network: student, teacher"):
        filled(tmp_path, teams)
    assert holds(filled(tmp_path, teams, key="teacher")[0], state(2))
    with pytest.raises(ModelError, match="--weights nobody names none"):
        filled(tmp_path, teams, key="nobody")


def test_a_part_of_the_weights_is_never_loaded_in_silence(tmp_path):
    rest = {"decoder.weight": torch.ones(2, 2, 1, 1)}
    with pytest.raises(ModelError, match=r"under encoder, but decoder\.weight beside it would be left out"):
        filled(tmp_path, prefixed("encoder.", RIGHT) | rest)
    network, told = filled(tmp_path, {"state_dict": prefixed("model.", RIGHT) | {"loss.weight": torch.ones(2)}})
    assert holds(network, RIGHT)
    assert "left out is what is no part of the network: state_dict.loss.weight" in told[0]
    with pytest.raises(ModelError, match=r"holds decoder\.weight that the network lacks"):
        filled(tmp_path, RIGHT | rest)
    half = {name: value for name, value in RIGHT.items() if "head" not in name}
    with pytest.raises(
        ModelError, match=r"lacks head\.weight, head\.bias of the network: the file holds 7 tensors such as "
    ):
        filled(tmp_path, {"state_dict": half})
    with pytest.raises(ModelError, match=r"down\.0\.weight is \(2, 1, 3, 3\), the network has \(4, 1, 3, 3\) \(and"):
        filled(tmp_path, RIGHT, Small(4))


@pytest.mark.parametrize(
    ("name", "words"),
    [("w.h5", "tf2onnx"), ("w.keras", "tf2onnx"), ("w.engine", "TensorRT")],
)
def test_files_of_other_libraries_are_named_with_what_to_do(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"\x89HDF\r\n")
    with pytest.raises(ModelError, match=words):
        open_checkpoint(tmp_path / name, "support.networks:group")


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"), (b"<!DOCTYPE html>", "web page"),
        (b'{"layers": 3}', "is JSON"), (b"\x80\x04}.", "plain pickle"), (b"", "is empty"), (b"weights", "no file of"),
    ],
)  # fmt: skip
def test_what_is_no_checkpoint_is_named_without_advice_to_run_it(tmp_path, start, words):
    (tmp_path / "w.pth").write_bytes(start)
    with pytest.raises(ModelError, match=words) as refused:
        read_weights(tmp_path / "w.pth")
    assert "weights_only" not in str(refused.value)


def test_what_a_file_holds_is_said_where_the_factory_is_missing(tmp_path):
    torch.save(RIGHT, tmp_path / "w.pth")
    with pytest.raises(SettingsError, match=r"9 tensors such as down\.0\.weight \(2×1×3×3\).*: --factory"):
        open_checkpoint(tmp_path / "w.pth")
    with pytest.raises(ModelError, match="is a folder"):
        open_checkpoint(tmp_path)


def test_the_command_takes_the_weights_that_are_named(tmp_path):
    network = networks.group().state_dict()
    torch.save({"student": network, "teacher": network}, tmp_path / "w.pth")
    factory = ["--factory", "support.networks:group", "--out", tmp_path / "n.onnx"]
    assert "name one with --weights" in cli("export", tmp_path / "w.pth", *factory).error
    assert "--weights x names none" in cli("export", tmp_path / "w.pth", *factory, "--weights", "x").error


def floats_as(change):
    return {name: change(value) if value.is_floating_point() else value for name, value in RIGHT.items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: (t * 127).to(torch.int8), "is of int8"), (lambda t: t > 0.5, "is of bool"),
        (lambda t: t * float("nan"), "NaN or infinity"), (lambda t: t.to("meta"), "no values"),
        (lambda t: t.to(torch.complex64), "is of complex64"),
    ],
)  # fmt: skip
def test_numbers_that_are_no_weights_are_refused(tmp_path, change, words):
    """Without their scale quantised numbers were loaded as they are."""
    for saved in (floats_as(change), {"state_dict": floats_as(change), "scales": {"down": torch.ones(3)}}):
        with pytest.raises(ModelError, match=words):
            filled(tmp_path, saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.half(), lambda t: t.bfloat16(), lambda t: t.double(),
        lambda t: t.to_sparse() if t.dim() > 1 else t,
        lambda t: torch.quantize_per_tensor(t, 1 / 127, 0, torch.qint8),
    ],
)  # fmt: skip
def test_numbers_are_those_that_are_multiplied_with(tmp_path, change):
    network, _ = filled(tmp_path, floats_as(change))
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, RIGHT[name], rtol=0, atol=5e-3)


@pytest.mark.parametrize(("kind", "atol"), [("bfloat16", 5e-3), ("float8_e4m3fn", 0.07), ("float64", 1e-6)])
def test_weights_of_another_type_become_float32_which_is_told(tmp_path, kind, atol):
    network, told = filled(tmp_path, floats_as(lambda t: t.to(getattr(torch, kind))))
    assert any(f"weights of {kind} become float32" in line for line in told)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, RIGHT[name], rtol=0, atol=atol)
    assert not any("become" in line for line in filled(tmp_path, RIGHT)[1])
