"""A promotion whose MLflow takes a while to store the model, or leaves before the aliases are moved."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow_store import mlflow_client
from studies import miniature

from tune_jobs.promotion.place import Place, held
from tune_jobs.promotion.runs import PromotionRuns
from tune_jobs.store import Store
from tune_jobs.tracking_client import IMPATIENCE, TrackingError

SECONDS = 1.5  # until the server has stored a file
TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"


@pytest.fixture
def slow() -> Iterator[tuple[str, list[str]]]:
    """Address of an artifact store that answers late, and the names of what it has stored."""
    stored: list[str] = []

    class Store(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(SECONDS)
            stored.append(self.path.rpartition("/")[2])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/store", stored
    server.shutdown()
    server.server_close()


def test_a_server_may_take_its_time_to_store_a_model(
    tmp_path: Path, empty_database: Path, slow: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (IMPATIENCE | {TIMEOUT: "1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}).items():
        monkeypatch.setenv(name, value)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.pt").write_bytes(b"weights")
    address, stored = slow
    client = mlflow_client(tmp_path)
    runs = PromotionRuns(client, client.create_experiment("wards", artifact_location=address), "owner")
    _, source = runs.begin("promotion", {}, None, "card", tmp_path / "model")
    assert stored == ["model.pt"]
    assert source.startswith(address)
    assert os.environ[TIMEOUT] == "1"


def cut_short(place: Place, version: str | None) -> None:
    """What is written before MLflow leaves: the card, and which version it belongs to, where there is one."""
    with place.reached(), place.records.begun() as work:
        (work / "card.md").write_text("card")
        if version:
            place.records.say({"model": "miniature", "version": version, "run": ""})
        raise ConnectionError("MLflow left")


def test_files_of_a_version_outlive_an_error_and_others_do_not(tmp_path: Path, empty_database: Path) -> None:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    with held(miniature(), Store(tmp_path)) as place:
        with pytest.raises(TrackingError, match="MLflow left"):
            cut_short(place, None)
        assert list(place.records.folder.iterdir()) == []
        version = place.registry.create(run="0" * 32, source="file:///nowhere", tags={}, description="")
        place.registry.complete(version)
        with pytest.raises(TrackingError, match="MLflow left"):
            cut_short(place, version.number)
        place.mend()
        found = place.records.folder.rglob("*.md")
        assert [path.relative_to(place.records.folder).as_posix() for path in found] == ["1/card.md"]
