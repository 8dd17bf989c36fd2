"""MONAI bundles that are code, are hostile, broken or foreign: one line, and nothing runs unasked."""

import json
import re

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
monai = pytest.importorskip("monai")


from support import bundles  # noqa: E402
from support.importing import imported, refusal  # noqa: E402
from unet_export.importers.base import Wanted  # noqa: E402
from unet_export.importers.monai.config import Config, NeedsTrust  # noqa: E402
from unet_export.importers.monai.importer import MonaiBundle  # noqa: E402

pytestmark = pytest.mark.usefixtures("exported_once", "cache_of_its_own")


def config(trusted=False, **said):  # noqa: FBT002
    return Config("b", said, trusted=trusted)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$1 + 2 * 3", 7), ("@a", 4), ("$@a * 2", 8), ("$@b[1] + @a", 6), ("@b", [1, 2]), ("@c::d", 5), ("@c#d", 5),
        ("%c", {"d": 5}), ("$[@a] * 3", [4, 4, 4]), ("$'x' if @a > 3 else 'y'", "x"), ("$len(@b)", 2), ("$-@a // 3", -2),
        ("$@a in @b", False), ("$not @a", False), ("$monai.networks.layers.Norm.BATCH", "batch"), ("$Act.PRELU", "prelu"),
        ("$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')", "cpu"), ("$@b + [3]", [1, 2, 3]),
        ("$@bundle_root + '/models'", "./models"), ("$2**3", 8), ("$None", None), ("$tuple(@b)", (1, 2)),
    ],
)  # fmt: skip
def test_plain_expressions_are_computed(text, value):
    assert config(a=4, b=[1, 2], c={"d": 5}, bundle_root=".", x=text).value("x") == value


HOSTILE = [
    "$__import__('os').system('touch ran')", "$open('ran', 'w')", "$().__class__.__bases__[0].__subclasses__()",
    "$[x for x in (1,)]", "$(lambda: 1)()", "$'{0.__class__}'.format(1)", "$exec('1')", "$eval('1')", "$getattr(1, 'real')",
    "$'%099999999d' % 1", "$torch.load('x')", "$@a.__class__", "$print(1)", "$f'{1}'", "$(y := 1)",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_expressions_that_are_code_need_trust(tmp_path, text):
    with pytest.raises(NeedsTrust):
        config(a=4, x=text).value("x")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", HOSTILE[:2])
@pytest.mark.parametrize("key", ["network_def", "inferer", "preprocessing"])
def test_a_hostile_bundle_is_refused_in_one_line_and_runs_nothing(tmp_path, text, key):
    folder = bundles.bundle(tmp_path / "b", **{key: text})
    if key == "network_def":
        path = folder / "configs" / "inference.json"
        said = json.loads(path.read_text())
        path.write_text(json.dumps(said | {"network_def": {**bundles.NETWORK, "norm": text}}))
    assert "--trust" in refusal(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text", ["$2 ** 99999999", "$'a' * 99999999999", "$[0] * 10**9", "$9**64 ** 64", "$1 / 0", "$(", "$'a' + 1"]
)
def test_expressions_without_end_or_sense_are_one_line(text):
    with pytest.raises((Exception,)) as refused:
        config(x=text).value("x")
    assert type(refused.value).__name__ in ("ModelError", "NeedsTrust")


@pytest.mark.parametrize(
    "said", [{"x": "@x"}, {"x": "@y", "y": "@x"}, {"x": ["@x"]}, {"x": "$@x + 1"}, {"x": "@nothing"}]
)
def test_references_in_circles_or_to_nothing_are_one_line(said):
    with pytest.raises(Exception, match=r"circle|not there"):
        config(**said).value("x")


def test_what_other_files_say_and_relative_ids_are_put_in_as_monai_does_it(tmp_path, monkeypatch):
    """A preprocessing in another file was none, without a word."""
    from monai.bundle import ConfigParser

    from unet_export.importers.monai.joined import joined

    said = {
        "a": 1, "whole": "%configs/more.yaml", "one": "%configs/more.yaml::pre#0::n", "more": ["%configs/more.yaml#pre"],
        "b": {"up": "@##a", "beside": "@#c::0", "c": ["$@::1 + @###a", 3], "d": "@a"}, "mail": "who@where.json",
    }  # fmt: skip
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/more.yaml").write_text("pre: [{n: 7, m: '@a'}]\nroi: [1, 2]\n")
    monkeypatch.chdir(tmp_path)
    theirs = ConfigParser(json.loads(json.dumps(said)))
    theirs.resolve_macro_and_relative_ids()
    yaml = pytest.importorskip("yaml")
    found = joined(said, lambda name: yaml.safe_load((tmp_path / name).read_text()))
    assert found == {k: v for k, v in theirs.get().items() if not k.startswith("_")}
    assert Config("b", found, trusted=False).value("b") == {"up": 1, "beside": 4, "c": [4, 3], "d": 1}


@pytest.mark.parametrize(
    "said", ["%configs/gone.yaml::pre", "%../../etc/a.json", "%configs/metadata.json::gone", "@#####a"]
)
def test_what_leads_to_no_file_of_the_bundle_is_named(tmp_path, said):
    folder = bundles.bundle(tmp_path / "b")
    path = folder / "configs/inference.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"preprocessing": said}))
    assert re.search("lacks the file|outside of it|leads nowhere", refusal(folder))


def test_references_that_grow_without_end_are_one_line():
    said = {"a0": list(range(10))} | {f"a{i}": [f"@a{i - 1}"] * 10 for i in range(1, 10)}
    with pytest.raises(Exception, match="more than one does"):
        config(**said).value("a9")


# --- what is missing or foreign ---


def test_a_network_that_is_not_listed_needs_trust(tmp_path):
    folder = bundles.bundle(tmp_path / "b")
    path = folder / "configs" / "inference.json"
    said = json.loads(path.read_text())
    for target in ("os.system", "scripts.net.Mine", "torch.nn.Linear", "monai.networks.nets.Classifier"):
        path.write_text(json.dumps(said | {"network_def": {"_target_": target, "command": "touch ran"}}))
        assert "--trust" in refusal(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_the_bundles_own_network_is_built_with_trust(tmp_path):
    folder = bundles.bundle(tmp_path / "b")
    (folder / "scripts").mkdir()
    (folder / "scripts" / "__init__.py").write_text("")
    (folder / "scripts" / "own_net.py").write_text(
        "from monai.networks.nets import UNet\n\n\nclass Mine(UNet):\n    pass\n"
    )
    path = folder / "configs" / "inference.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"network_def": said["network_def"] | {"_target_": "scripts.own_net.Mine"}}))
    assert "--trust" in refusal(folder)
    _, model = imported(folder, "--trust")
    assert model.credit.certificate[0].largest_difference < 1e-3


def test_model_ts_with_trust(tmp_path):
    folder = bundles.bundle(tmp_path / "b")
    (folder / "models" / "model.pt").unlink()
    assert "model.ts" in refusal(folder)
    torch.jit.trace(bundles.network(), torch.zeros(1, 1, 16, 16, 16)).save(str(folder / "models" / "model.ts"))
    assert "--trust" in refusal(folder)
    assert imported(folder, "--trust")[1].credit.certificate[0].largest_difference < 1e-3


@pytest.mark.parametrize("file", ["configs/metadata.json", "configs/inference.json", "models/model.pt"])
def test_files_that_are_cut_are_one_line(tmp_path, file):
    folder = bundles.bundle(tmp_path / "b")
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: len(data) // 2])
    assert file.rpartition("/")[2] in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("authors", 3),
        ("references", {"a": 1}),
        ("network_data_format", "x"),
        ("network_data_format", {"inputs": [None], "outputs": 1}),
    ],
)
def test_metadata_of_wrong_types_say_nothing(tmp_path, key, value):
    folder = bundles.bundle(tmp_path / "b")
    file = folder / "configs" / "metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    assert MonaiBundle().read(folder, Wanted(str(folder), "net.onnx"), [].append).members


def test_weights_of_another_network_are_named(tmp_path):
    folder = bundles.bundle(tmp_path / "b")
    torch.save({"a.weight": torch.zeros(3)}, folder / "models" / "model.pt")
    assert "lacks" in refusal(folder)


def test_a_pickle_in_the_place_of_weights_runs_nothing(tmp_path):
    folder = bundles.bundle(tmp_path / "b")
    import os

    class Evil:
        def __reduce__(self):
            return os.system, ("touch ran",)

    torch.save({"state_dict": Evil()}, folder / "models" / "model.pt")
    refusal(folder)
    assert not (tmp_path / "ran").exists()
