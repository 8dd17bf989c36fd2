"""Which output of several is taken, and whether one is smaller by a rim or of another resolution."""

from fractions import Fraction

import pytest

from unet_engine.errors import ModelError
from unet_engine.model.outputs import Output, choose, margin, scales
from unet_engine.units import times

WINDOW = (32, 32, 32)
FULL, HALF, QUARTER = (2, 32, 32, 32), (2, 16, 16, 16), (2, 8, 8, 8)


def taken(*outputs, **more):
    made = [o if isinstance(o, Output) else Output(*o) for o in outputs]
    index, note = choose("net.onnx", made, WINDOW, **more)
    return made[index].name, note


CLEAR = {
    "deep supervision, finest first": [("a", FULL), ("b", HALF), ("c", QUARTER)],
    "deep supervision, finest last": [("c", QUARTER), ("b", HALF), ("a", FULL)],
    "a class of the whole image beside it": [("b", (10,)), ("a", FULL), ("c", (10, 1, 1, 1))],
    "nothing as large as the input": [("b", QUARTER), ("a", HALF)],
    "a larger one beside it": [("b", (2, 64, 64, 64)), ("a", FULL)],
    "all larger": [("b", (2, 128, 128, 128)), ("a", (2, 64, 64, 64))],
    "a crop and a deeper one": [("b", (2, 12, 12, 12)), ("a", (2, 24, 24, 24))],
    "labels beside logits": [Output("b", FULL, is_labels=True), Output("a", FULL)],
    "logits and their probabilities": [Output("a", FULL), Output("b", FULL, same_as="a")],
    "probabilities and their logits": [Output("a", FULL, same_as="b"), Output("b", FULL)],
    "two that are made of a tensor inside": [Output("a", FULL, same_as="t"), Output("b", FULL, same_as="t")],
}


@pytest.mark.parametrize("outputs", CLEAR.values(), ids=CLEAR)
def test_what_the_shapes_decide(outputs):
    name, note = taken(*outputs)
    assert name == "a"
    assert "the output a (" in note
    assert "b (" in note
    assert "--head" in note


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("aux", "out"), "out"), (("seg", "seg_aux"), "seg"), (("ds2", "ds1", "mask"), "mask"),
        (("1876", "output", "1900"), "output"),
    ],
)  # fmt: skip
def test_what_a_name_decides(names, wanted):
    assert taken(*((n, FULL) for n in names))[0] == wanted


@pytest.mark.parametrize(
    "outputs",
    [
        [("nuclei", FULL), ("cells", FULL)],
        [("output", FULL), ("output_1", FULL)],
        [("probability", (1, 32, 32, 32)), ("rays", (96, 32, 32, 32))],
        [("aux1", FULL), ("aux2", FULL)],
        [("a", None), ("b", FULL)],
    ],
)
def test_a_tie_is_refused_with_names_and_shapes(outputs):
    with pytest.raises(ModelError, match="--head") as refused:
        taken(*outputs)
    for name, shape in outputs:
        assert f"{name} ({times(shape) if shape else 'of unknown shape'})" in str(refused.value)
    for name, _ in outputs:
        assert taken(*outputs, head=name) == (name, "")


def test_channels_of_a_spec_decide_before_resolution():
    rays = [("probability", (1, 32, 32, 32)), ("rays", (96, 32, 32, 32))]
    assert taken(*rays, channels=96)[0] == "rays"
    with pytest.raises(ModelError, match=r"probability \(1×32×32×32\).*3 channels"):
        taken(*rays, channels=3)


def test_a_head_that_is_not_there_and_no_output_at_all():
    with pytest.raises(ModelError, match=r"no output 'seg'; use --head with one of a \(2×32×32×32\)"):
        taken(("a", FULL), head="seg")
    assert taken(("a", FULL)) == ("a", "")
    with pytest.raises(ModelError, match="no output"):
        taken()


def test_a_rim_keeps_the_difference_and_a_stride_the_ratio():
    crop = scales(((32, 40), (20, 40)), ((64, 72), (52, 72)))
    assert crop == (1, 1)
    assert margin("net", (32, 40), (20, 40), crop) == (6, 0)
    for factor in (Fraction(1, 4), Fraction(1, 2), 2):
        sizes = int(32 * factor), int(64 * factor)
        found = scales(((32, 32), (32, sizes[0])), ((64, 64), (64, sizes[1])))
        assert found == (1, factor)
        with pytest.raises(ModelError, match="another resolution"):
            margin("net", (32, 32), (32, sizes[0]), found)


def test_a_smaller_output_of_one_size_is_asked_about():
    assert scales(((32,), (16,)), ((32,), (16,))) == (None,)
    with pytest.raises(ModelError, match=r"32 into 16.*cannot be told"):
        margin("net", (32,), (16,), (None,))
    assert margin("net", (32,), (32,), (None,)) == (0,)
    with pytest.raises(ModelError, match="both sides"):
        margin("net", (32,), (15,), (Fraction(1),))
