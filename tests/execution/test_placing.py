"""Which worker is given a bundle, without a cluster."""

from types import SimpleNamespace

from unet_engine.execution.dask.placing import ANYWHERE, Place, Placing


def bundle(number, share):
    return SimpleNamespace(id=(number,), share=share)


def deal(placing, number, share, *, is_late=False):
    found = placing.place(bundle(number, share), is_late=is_late)
    if found:
        placing.given((number,), found)
    return found


def test_a_bundle_goes_to_the_worker_whose_share_it_is_of():
    placing = Placing(2)
    placing.look({"a", "b"})
    assert [deal(placing, n, n % 2) for n in range(4)] == [Place("a", (0, 1)), Place("b", (1, 2))] * 2


def test_nobody_takes_of_another_share_but_who_has_nothing_to_do():
    placing = Placing(2)
    placing.look({"a", "b"})
    deal(placing, 0, 1)
    for n in range(1, 4):
        assert deal(placing, n, 0).worker == "a"
    assert deal(placing, 4, 0) is None, "a has three, and b one"
    placing.predicted((0,))
    assert deal(placing, 4, 0) == Place("b", (1, 2))
    assert deal(placing, 5, 0) is None
    placing.predicted((1,))
    assert deal(placing, 5, 0) == Place("a", (0, 1))


def test_who_comes_in_place_of_a_lost_worker_has_its_share():
    placing = Placing(3)
    placing.look({"a", "b", "c"})
    placing.look({"a", "c"})
    assert deal(placing, 0, 1) == Place("a", (0, 2)), "until somebody comes"
    placing.look({"a", "c", "d"})
    assert deal(placing, 1, 1) == Place("d", (1, 2))


def test_one_that_is_there_beside_takes_what_others_have_no_time_for():
    placing = Placing(2)
    placing.look({"a", "b", "c"})
    for n in range(3):
        assert deal(placing, n, 0).worker == "a"
    deal(placing, 3, 1)
    assert deal(placing, 4, 0) == Place("c", (0, 2))


def test_what_a_lost_worker_had_does_not_keep_its_seat_busy():
    placing = Placing(2)
    placing.look({"a", "b"})
    for n in range(3):
        deal(placing, n, 0)
    placing.look({"b", "e"})
    assert deal(placing, 3, 0) == Place("e", (0, 1))
    placing.look(set())
    assert deal(placing, 4, 0) == ANYWHERE


def test_of_the_last_ones_nobody_has_three():
    placing = Placing(2)
    placing.look({"a", "b"})
    workers = [deal(placing, n, 0, is_late=True) for n in range(4)]
    assert [place and place.worker for place in workers] == ["a", "a", "b", None]
