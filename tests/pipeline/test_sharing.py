"""Work on a block that several threads share: the same bytes as by one."""

from types import SimpleNamespace

import numpy as np
import pytest

from support.arrays import assert_same_bits
from unet_engine.model.last_layer import LastLayer
from unet_engine.model.onnx_rewrite import Rewriting
from unet_engine.pipeline.host import finish_on_host
from unet_engine.pipeline.job import Halo
from unet_engine.pipeline.reduction import REDUCTIONS
from unet_engine.pipeline.sharing import ALONE, Sharing, sharing_threads
from unet_engine.plan.box import Box
from unet_engine.profiling.recorder import PLAIN

CORE = Box((4, 8, 0), (11, 17, 30))
HALOS = (((0, 0, 0), Box((4, 8, 0), (7, 17, 30))), ((0, 1, 0), Box((5, 9, 3), (11, 10, 30))), ((1, 0, 0), CORE))


def finished(kind, sharing, shape=CORE.shape, halos=HALOS):
    rng = np.random.default_rng(0)
    core = rng.normal(size=(3, *shape)).astype(np.float32)
    given = [Halo(source, box, rng.normal(size=(3, *box.shape)).astype(np.float32)) for source, box in halos]
    last = LastLayer(Rewriting("x"), 3, 5, rng.normal(size=20).astype(np.float32).tobytes())
    job = SimpleNamespace(
        plan=SimpleNamespace(back=()),
        reduction=REDUCTIONS["labels"]("softmax", "uint8", last=last)
        if kind == "features"
        else REDUCTIONS[kind]("softmax", "float32" if kind == "probabilities" else "uint8"),
    )
    core_box = CORE if shape == CORE.shape else Box.of_shape(shape)
    task = SimpleNamespace(block=SimpleNamespace(core=core_box, write=core_box))
    return finish_on_host(job, task, core, given, PLAIN, sharing)


@pytest.mark.parametrize("kind", ["labels", "probabilities", "features"])
def test_several_threads_finish_a_block_as_one_does(kind):
    alone, finite = finished(kind, ALONE)
    for threads in (2, 3, 8):
        values, also = finished(kind, Sharing(threads))
        assert_same_bits(values, alone)
        assert finite is also is True
    flat = [finished(kind, sharing, (1, 5, 64), ())[0] for sharing in (ALONE, Sharing(4))]
    assert_same_bits(*flat)


def test_halos_are_copied_whole():
    values = np.random.default_rng(0).normal(size=(5, 4, 6, 7)).astype(np.float32)
    for threads in (1, 3, 8):
        copy = Halo((0, 0, 0), CORE, values[:, 1:, ::2]).copied(Sharing(threads)).values
        assert_same_bits(copy, values[:, 1:, ::2])
        assert copy.base is None


def test_what_fails_in_a_part_is_heard():
    def fail(part):
        raise MemoryError(str(part))

    with pytest.raises(MemoryError):
        Sharing(3).over(7, fail)


def test_two_cores_have_one_thread_and_many_have_more():
    assert [sharing_threads(n) for n in (1, 2, 15, 16, 32, 64, 256)] == [1, 1, 1, 2, 4, 8, 8]
