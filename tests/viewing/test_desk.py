"""The server behind the viewer, asked as a browser asks it: who gets in, and what is answered."""

import json
import socket
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from support.volumes import make_volume
from support.waiting import PATIENCE, wait_until
from unet_engine.errors import InputError, OutputError
from unet_engine.plan.box import Box
from unet_engine.viewing.demand import Sight
from unet_engine.viewing.panes import pane_of
from unet_engine.viewing.tables import Entry

pytest.importorskip("neuroglancer")
from unet_engine.viewing.desk import PAUSE, Desk

RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(1, 200, (20, 22, 70), np.uint8)
BLOBS = np.kron(RANDOM.integers(0, 5, (5, 11, 35)), np.ones((4, 2, 2), int)).astype(np.uint16)


def fetched(url):
    """What is answered, and its code."""
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.fixture(scope="module")
def panes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("panes")
    ome = {"ome": "0.5", "axes": "zyx", "scale": (4.0, 1.0, 1.0), "unit": "micrometer"}
    return [
        pane_of(make_volume(folder / "image.zarr", NOISE, **ome)),
        pane_of(make_volume(folder / "labels.zarr", BLOBS, **ome)),
        pane_of(make_volume(folder / "floats.zarr", np.stack([NOISE / 7, NOISE / 9]), ome="0.5", axes="czyx",
                            scale=(1, 4.0, 1.0, 1.0), unit="micrometer")),
    ]  # fmt: skip


@pytest.fixture
def desk(panes):
    made = Desk(panes, asked=panes[1].path)
    yield made
    made.close()


def base(desk):
    return desk.url.split("/v/")[0]


def layers(desk):
    return {one["name"]: one for one in desk._viewer.shared_state.raw_state["layers"]}


def piece(desk, name, factors, box, channels=()):
    """A piece as the viewer asks for it: axes x, y, z and the channel."""
    key = layers(desk)[name]["source"][0]["url"].rpartition("/")[2]
    lo, hi = [*reversed(box.lo), *(0 for _ in channels)], [*reversed(box.hi), *channels]
    scale = [*reversed(factors), *(1 for _ in channels)]
    return fetched(
        f"{base(desk)}/neuroglancer/raw/{key}/{','.join(map(str, scale))}/{','.join(map(str, lo))}/{','.join(map(str, hi))}"
    )


def test_pieces_are_the_voxels(desk):
    box = Box((3, 4, 5), (13, 16, 60))
    assert piece(desk, "image.zarr", (1, 1, 1), box) == (200, NOISE[box.slices()].tobytes())
    assert piece(desk, "labels.zarr", (1, 1, 1), box) == (200, BLOBS[box.slices()].tobytes())
    code, floats = piece(desk, "floats.zarr", (1, 1, 1), box, (2,))
    assert code == 200
    np.testing.assert_array_equal(
        np.frombuffer(floats, np.float32).reshape(2, *box.shape)[1], (NOISE / 9)[box.slices()].astype(np.float32)
    )


def test_coarser_pieces_of_labels_hold_labels_and_those_of_images_means(desk):
    box = Box((0, 0, 0), (20, 11, 35))
    assert piece(desk, "labels.zarr", (1, 2, 2), box) == (200, BLOBS[:, ::2, ::2].tobytes())
    _, got = piece(desk, "image.zarr", (1, 2, 2), box)
    means = NOISE.reshape(20, 11, 2, 35, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(np.frombuffer(got, np.uint8).reshape(box.shape), means, atol=0.51)


@pytest.mark.parametrize(
    ("factors", "lo", "hi"),
    [
        ((1, 1, 1), (0, 0, 0), (21, 1, 1)), ((2, 2, 2), (0, 0, 0), (11, 1, 1)), ((1, 1, 1), (5, 5, 5), (5, 6, 6)),
        ((0, 1, 1), (0, 0, 0), (1, 1, 1)), ((1024, 1024, 1024), (0, 0, 0), (1, 1, 1)),
    ],
)  # fmt: skip
def test_pieces_that_are_none_are_refused(desk, factors, lo, hi):
    assert piece(desk, "labels.zarr", factors, Box(lo, hi))[0] == 400


def mesh(desk, number):
    """Code and corners of the surface of an object, x, y, z."""
    key = layers(desk)["labels.zarr"]["source"][0]["url"].rpartition("/")[2]
    code, found = fetched(f"{base(desk)}/neuroglancer/mesh/{key}/{number}")
    count = int.from_bytes(found[:4], "little") if code == 200 else 0
    return code, np.frombuffer(found, np.float32, 3 * count, 4).reshape(-1, 3) if count else None


def test_objects_have_surfaces(panes):
    shown = Desk(panes)
    try:
        for number in (1, 3):
            code, corners = mesh(shown, number)
            assert code == 200
            where = np.argwhere(number == BLOBS)[:, ::-1]
            size = np.array(shown._served["labels.zarr"].dimensions.scales)
            assert corners.min(0) == pytest.approx(where.min(0) * size, abs=1.01 * size.max())
            assert corners.max(0) == pytest.approx((where.max(0) + 1) * size, abs=1.01 * size.max())
        assert mesh(shown, 77)[0] == 404
    finally:
        shown.close()


def test_surfaces_that_cannot_be_made_are_refused_each_time(panes, monkeypatch):
    """Who asked second waited for ever, and with it the end of the command."""
    shown = Desk(panes)
    try:
        served = shown._served["labels.zarr"]

        def broken(*_):
            raise InputError("a chunk cannot be read")

        monkeypatch.setattr(served, "_voxels", broken)
        assert [mesh(shown, 1)[0] for _ in range(2)] == [405, 405]
        monkeypatch.undo()
        assert mesh(shown, 1)[0] == 200
    finally:
        shown.close()


def test_nobody_gets_in_without_the_token(desk):
    token = desk.url.rstrip("/").rpartition("/")[2]
    assert len(token) == 48
    assert fetched(desk.url)[0] == 200
    wrong = ("0" if token[0] != "0" else "1") + token[1:]
    key = layers(desk)["image.zarr"]["source"][0]["url"].rpartition("/")[2]
    inner = key.partition(".")[2]
    desk.list_objects(desk.panes[1], [Entry(1, "", 1, (0.0, 0.0, 0.0))])
    for path in (
        f"/v/{wrong}/", "/v//", "/", f"/neuroglancer/info/{wrong}.{inner}", f"/neuroglancer/info/{inner}",
        f"/events/{wrong}?c=1&gc=1&gs=1", f"/u/{wrong}/objects", f"/u/{wrong}/objects/1", "/u/", f"/u/{token}/nothing",
        f"/u/{token}/objects/2", f"/u/{token}/../etc/passwd", f"/v/{token}/../../etc/passwd",
    ):  # fmt: skip
        assert fetched(base(desk) + path)[0] in (403, 404), path


def test_two_viewers_have_other_tokens(panes, desk):
    first = desk.url
    desk.close()
    other = Desk(panes[:1])
    assert other.url != first
    other.close()
    desk._threads = []
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(first, timeout=PATIENCE)


def test_it_listens_on_this_machine_alone(desk):
    import psutil

    port = int(desk.url.split(":")[2].split("/")[0])
    mine = [c for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port]
    assert [c.laddr.ip for c in mine] == ["127.0.0.1"]


def test_no_credentials_of_the_user_are_given_to_pages(desk):
    token = desk.url.rstrip("/").rpartition("/")[2]
    request = urllib.request.Request(f"{base(desk)}/credentials/{token}", data=b'{"key": "google"}', method="POST")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=PATIENCE)
    assert refused.value.code == 403


def test_a_port_that_is_taken_is_told(panes):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OutputError, match=r"--port .*choose another one"):
            Desk(panes, port=taken.getsockname()[1])


def test_names_are_read_from_the_same_server(tmp_path):
    from dataclasses import replace

    labels = make_volume(tmp_path / "l.zarr", BLOBS)
    desk = Desk([replace(pane_of(labels), names=("background", "cell"), colours=("#000000", "#ff0000"))])
    try:
        _, names = layers(desk)["l.zarr"]["source"]
        code, said = fetched(names.removeprefix("precomputed://") + "/info")
        assert code == 200
        assert json.loads(said)["inline"]["properties"][0]["values"] == ["background", "cell"]
    finally:
        desk.close()


def test_the_link_of_an_object_takes_the_viewer_to_it(desk):
    url = desk.list_objects(desk.panes[1], [Entry(3, "cell", 12, (8.0, 9.0, 40.0))])
    assert b'href="objects/3"' in fetched(url)[1]
    assert fetched(f"{url}/3")[0] == 200  # after it was sent on to the viewer
    state = desk._viewer.shared_state.raw_state
    assert state["position"] == pytest.approx([40.0, 9.0, 8.0])
    assert layers(desk)["labels.zarr"]["segments"] == ["3"]
    assert state["selectedLayer"]["layer"] == "labels.zarr"


def test_what_is_asked_for_and_where_one_looks_is_told(desk):
    asked, looked, renewed = [], [], []
    desk.ask, desk.looked = lambda *piece: asked.append(piece), looked.append
    desk.renewed = lambda: renewed.append(1)
    piece(desk, "labels.zarr", (1, 2, 2), Box((0, 8, 16), (20, 11, 35)))
    piece(desk, "image.zarr", (1, 1, 1), Box((0, 0, 0), (1, 1, 1)))
    assert asked == [(Box((0, 16, 32), (20, 22, 70)), (1, 2, 2))]
    with desk._viewer.txn() as state:
        state.position = [10.5, 11.5, 12.5]
    assert looked[-1] == Sight((12.5, 11.5, 10.5), (0, 1, 2))
    wait_until(lambda: renewed)  # once nobody moves


def test_a_page_that_tells_the_state_it_was_given_has_not_moved(desk):
    """Else all pieces would be asked for anew just when the first picture is there."""
    looked, renewed = [], []
    desk.looked, desk.renewed = looked.append, lambda: renewed.append(1)
    given = desk._viewer.state.to_json()
    desk._viewer.set_state({**given, "showAxisLines": False})
    time.sleep(2 * PAUSE)
    assert not looked
    assert not renewed
    desk._viewer.set_state({**given, "position": [3.5, 4.5, 5.5]})
    wait_until(lambda: renewed)
    assert looked[-1].at == (5.5, 4.5, 3.5)


def test_what_is_computed_is_asked_for_again(desk):
    before = desk._viewer.config_state.raw_state.get("sourceGenerations")
    desk.changed()
    wait_until(lambda: desk._viewer.config_state.raw_state.get("sourceGenerations") != before)
    desk.say("3 of 4 blocks are computed")
    assert "3 of 4" in str(desk._viewer.config_state.raw_state["statusMessages"])
