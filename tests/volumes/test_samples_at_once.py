"""What lies behind a network is looked at in several places at once: each answer takes its time."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from support.waiting import PATIENCE
from unet_engine.pipeline.glances import Glances
from unet_engine.plan.box import Box
from unet_engine.volumes import samples

BOXES = [Box((i,), (i + 1,)) for i in range(8)]


class Meeting:
    """Answers once four ask; who asks alone is told so after a while."""

    def __init__(self, patience=PATIENCE):
        self._barrier, self._patience = threading.Barrier(4), patience

    def __call__(self, box):
        self._barrier.wait(self._patience)
        return box.lo[0]

    def token(self, box):
        return f"chunk {box.lo[0]}", str(self(box))


def test_samples_are_asked_for_at_once_and_come_in_order():
    assert samples._each(SimpleNamespace(units=(1,)), Meeting(), BOXES) == list(range(8))
    with pytest.raises(threading.BrokenBarrierError):
        samples._each(SimpleNamespace(units=None), Meeting(0.2), BOXES)


def test_glances_are_taken_again_at_once():
    glances, source = Glances(), SimpleNamespace(token=lambda box: (f"chunk {box.lo[0]}", str(box.lo[0])))
    for box in BOXES:
        glances.take(source, box, [(0, 0, box.lo[0])])
    source.token = Meeting().token
    assert list(glances.changed()) == []
    source.token = lambda box: (f"chunk {box.lo[0]}", "1")
    assert [what for _, what in glances.changed()] == [f"chunk {i}" for i in range(8) if i != 1]


def test_samples_behind_a_network_are_those_of_a_disk():
    image = np.arange(6 * 5 * 4, dtype=np.uint16).reshape(6, 5, 4)
    volume = SimpleNamespace(
        shape=image.shape, chunks=(2, 2, 2), channels=1, units=None, has_data=lambda box: box.lo[0] != 2,
        read=lambda box: image[box.slices()][None],
    )  # fmt: skip
    here = samples._read(_Volume(volume))
    volume.units = (2, 2, 2)
    there = samples._read(_Volume(volume))
    assert here[0] == there[0]
    np.testing.assert_array_equal(here[1], there[1])


@pytest.mark.parametrize(("there", "reads"), [(range(8), 1), ((0, 7), 2)], ids=["all", "two corners"])
def test_a_small_volume_on_a_disk_is_read_at_once_where_most_of_it_is_there(there, reads):
    image = np.arange(4 * 4 * 4, dtype=np.uint16).reshape(4, 4, 4)
    seen = []

    def read(box):
        seen.append(box)
        return image[box.slices()][None]

    stored = [box for i, box in enumerate(Box.of_shape(image.shape).cells((2, 2, 2))) if i in there]
    volume = _Volume(
        SimpleNamespace(
            shape=image.shape, chunks=(2, 2, 2), channels=1, units=None, has_data=stored.__contains__, read=read
        )
    )
    np.testing.assert_array_equal(
        samples.values(volume)[0], np.concatenate([image[box.slices()].ravel() for box in stored])
    )
    assert len(seen) == reads


class _Volume:
    def __init__(self, facts):
        self.__dict__.update(vars(facts))
