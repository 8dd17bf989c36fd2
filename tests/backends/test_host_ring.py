"""A network on a device behind a ring of host memory: the same bytes as on the host, no race, nothing allocated per
batch, nothing left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.volumes import fake_model
from unet_engine.backends.base import Backend, Setup
from unet_engine.backends.host_ring import HostRing
from unet_engine.backends.libraries import open_backend, open_on_device
from unet_engine.devices.simulated import RaceError, SimulatedDevice
from unet_engine.errors import BackendError
from unet_engine.model.file import open_model

pytestmark = pytest.mark.usefixtures("trusting")

WINDOW = (8, 12, 8)


def ring(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, room: int = 2**34, batch: int = 1, **model: Any
) -> tuple[Backend, SimulatedDevice]:
    """The fake network, with two channels in and three out, on a simulated device."""
    device = SimulatedDevice(room)
    monkeypatch.setattr("unet_engine.backends.libraries.open_device", lambda name: device)
    path = fake_model(folder, channels_in=2, channels_out=3, margin=(1, 1, 1), **model)
    return open_backend("fake", Setup(open_model(path), WINDOW, "simulated", batch=batch)), device


def batches(n: int, shape: tuple[int, ...]) -> list[Any]:
    rng = np.random.default_rng(2)
    return [rng.standard_normal(shape, dtype=np.float32) for _ in range(n)]


@pytest.mark.parametrize("batch", [1, 3])
def test_it_gives_the_bytes_of_the_host_from_any_slot_and_allocates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    backend, device = ring(tmp_path, monkeypatch, batch=batch)
    on_host = open_backend("fake", Setup(backend.setup.model, WINDOW, batch=batch))
    assert (backend.name, backend.version) == (on_host.name, on_host.version)
    device.seal()
    pinned, events = device.counts["pinned"], device.counts["event"]
    given = batches(3 * backend.slots - 1, backend.setup.input_shape)
    for first in range(0, len(given), backend.slots):
        flight = list(enumerate(given[first : first + backend.slots]))
        for slot, values in flight:
            backend.input(slot)[...] = values
            backend.start(slot)
        for slot, values in reversed(flight):
            assert backend.result(slot).tobytes() == on_host.infer(values).tobytes()
    assert (device.counts["pinned"], device.counts["event"], device.counts["drain"]) == (pinned, events, 0)
    assert device.counts["fake network"] == len(given)
    on_host.close()
    backend.close()
    assert not device.living


def test_a_slot_is_filled_and_read_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _ = ring(tmp_path, monkeypatch)
    assert backend.slots >= 3
    for slot in range(backend.slots):
        values = backend.input(slot)
        assert values is backend.input(slot)
        assert (values.shape, values.dtype.name, values.flags.c_contiguous) == ((1, 2, *WINDOW), "float32", True)
        backend.start(slot)
        assert backend.result(slot) is backend.result(slot)
    assert len({backend.input(slot).ctypes.data for slot in range(backend.slots)}) == backend.slots


def test_filling_a_slot_that_is_in_flight_is_a_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _ = ring(tmp_path, monkeypatch)
    backend.start(0)
    backend.start(1)
    with pytest.raises(RaceError, match="the host writes"):
        backend.start(0)


@pytest.mark.parametrize("event", ["copied", "computed", "done"])
def test_every_event_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event: str) -> None:
    """What the simulated device proves: without one of the events there is a race."""
    backend, device = ring(tmp_path, monkeypatch)
    assert isinstance(backend, HostRing)
    dropped = [getattr(slot, event) for slot in backend._ring]
    record = device.record
    monkeypatch.setattr(device, "record", lambda e, stream: None if e in dropped else record(e, stream))

    def two_batches() -> None:
        for slot in range(2):
            backend.start(slot)
            backend.result(slot)

    with pytest.raises(RaceError):
        two_batches()


def test_what_fails_is_named_by_its_slot_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, device = ring(tmp_path, monkeypatch, fail_at=2)
    with pytest.raises(BackendError, match="slot 1 was not started"):
        backend.result(1)
    given = batches(2, backend.setup.input_shape)
    for slot, values in enumerate(given):
        backend.input(slot)[...] = values
        backend.start(slot)
    assert np.isfinite(backend.result(0)).all()
    for _ in range(2):
        with pytest.raises(BackendError, match="fails at window 2"):
            backend.result(1)
    backend.close()
    assert not device.living


def test_memory_that_is_not_there_is_named_and_all_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendError, match="out of memory on simulated: input of a slot needs"):
        ring(tmp_path, monkeypatch, room=25_000)
    device = SimulatedDevice()
    monkeypatch.setattr("unet_engine.backends.libraries.open_device", lambda name: device)
    opened = open_on_device("fake", Setup(open_model(tmp_path / "id.fake.toml"), WINDOW, "simulated"))
    device.room = device.used + 10_000
    with pytest.raises(BackendError, match="out of memory"):
        HostRing(opened)
    assert not device.living


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_pytorchs_own_types_and_memory_order_come_out_as_rows(tmp_path: Path, precision: str) -> None:
    """Channels last and 16 bits on the device; float32 in C order goes in, rows of the network's type come out."""
    torch = pytest.importorskip("torch")
    from unet_engine.model.spec import METADATA_KEY

    model = open_model(fake_model(tmp_path, channels_in=2, channels_out=3, window=WINDOW))
    torch.manual_seed(1)
    network = torch.jit.trace(torch.nn.Conv3d(2, 3, 3, padding=1).eval(), torch.zeros(1, 2, *WINDOW))
    path = tmp_path / "net.pt"
    torch.jit.save(network, str(path), _extra_files={METADATA_KEY: model.spec.model_dump_json()})
    backend = open_backend("pytorch", Setup(open_model(path), WINDOW, "simulated", precision))
    (given,) = batches(1, backend.setup.input_shape)
    got = backend.infer(given)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert got.dtype.name == str(kind).removeprefix("torch.")
    assert backend.result(0).flags.c_contiguous
    with torch.inference_mode(), torch.autocast("cpu", kind, enabled=precision != "fp32"):
        expected = network(torch.from_numpy(given).to(kind)).float().numpy()
    tolerance = {"fp32": 1e-6, "bf16": 2e-2, "fp16": 2e-3}[precision]
    np.testing.assert_allclose(np.asarray(got, np.float32), expected, atol=tolerance * np.abs(expected).max())
    backend.close()
