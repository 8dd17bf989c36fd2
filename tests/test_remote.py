"""Input and output behind the S3 protocol, spoken by a real server on loopback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from conftest import command, fake_model, make_volume, result_of

pytest.importorskip("s3fs", reason="s3fs is not installed")
moto = pytest.importorskip("moto.server", reason="moto is not installed")

IMAGE = np.random.default_rng(4).integers(0, 255, (20, 24, 30), dtype=np.uint8)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A server with an empty bucket ``lab``; the environment tells every process where it is."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", "key": "test", "secret": "test"}
    for name, value in options.items():
        monkeypatch.setitem(os.environ, f"FSSPEC_S3_{name.upper()}", value)
    monkeypatch.setitem(os.environ, "AWS_DEFAULT_REGION", "us-east-1")
    import s3fs

    files = s3fs.S3FileSystem(**options, skip_instance_cache=True)
    files.mkdir("lab")
    yield options
    files.rm("lab", recursive=True)  # what the server keeps outlives it in this process
    server.stop()


def test_from_bucket_to_bucket_gives_the_bytes_of_the_disk(s3: dict[str, Any], tmp_path: Path) -> None:
    make_volume("s3://lab/scan.zarr", IMAGE, storage_options=s3)
    local = make_volume(str(tmp_path / "scan.zarr"), IMAGE)
    model = fake_model(tmp_path)
    here = command("run", "--in", local, "--model", model, "--out", tmp_path / "o.zarr", "--output", "logits", "--json")
    there = command("run", "--in", "s3://lab/scan.zarr", "--model", model, "--output", "logits", "--json")
    assert there.code == 0, there.err
    assert there.json["out"] == "s3://lab/scan-id.zarr"
    assert there.json["windows_inferred"] == there.json["windows_planned"]
    stored = np.asarray(zarr.open_array("s3://lab/scan-id.zarr/0", mode="r", storage_options=s3)[...])
    assert stored.tobytes() == result_of(here.json["out"]).tobytes()


def test_a_remote_run_that_failed_can_be_resumed(s3: dict[str, Any], tmp_path: Path) -> None:
    make_volume("s3://lab/scan.zarr", IMAGE, storage_options=s3)
    model = Path(fake_model(tmp_path, fail_at=120))
    arguments = (
        "run",
        "--in",
        "s3://lab/scan.zarr",
        "--model",
        model,
        "--out",
        "s3://lab/o.zarr",
        "--output",
        "logits",
    )
    assert command(*arguments, "--json").code == 6
    assert command(*arguments).code == 8, "it exists"
    model.write_text(model.read_text().replace("fail_at = 120", "fail_at = 0"))
    said = command(*arguments, "--resume")
    assert said.code == 9, "another model file is another run"
    said = command(*arguments, "--overwrite", "--json")
    assert said.code == 0, said.err
    again = command(*arguments, "--resume", "--json")
    assert again.json["windows_inferred"] == 0
