"""An MLflow that is not there, or leaves in the middle of a word: told with its address and what to do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from ssl_core.errors import ConfigError, StageError
from tune_jobs.tracking_client import IMPATIENCE, TrackingError, Unreached, connect, reached

REMEDY = (
    "; see that it runs, and that tracking.uri or MLFLOW_TRACKING_URI is right, then give the same command again: "
    "it goes on from there"
)


@pytest.fixture
def hangs_up() -> Iterator[int]:
    """Port of a server that closes every connection as soon as something was asked."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    with server.accept()[0] as asked:
                        asked.recv(9)
                        asked.shutdown(socket.SHUT_RDWR)
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)


def failure_at(uri: str) -> str:
    with pytest.raises(TrackingError) as failure, reached(uri):
        connect(uri).search_experiments()
    return str(failure.value)


def test_a_server_that_is_away_or_hangs_up_is_told_in_one_clear_sentence(
    hangs_up: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (IMPATIENCE | {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}).items():
        monkeypatch.setenv(name, value)
    assert failure_at("http://ada:secret@127.0.0.1:9") == (
        f"MLflow at http://ada:***@127.0.0.1:9 failed (ConnectionRefusedError: [Errno 111] Connection refused){REMEDY}"
    )
    assert failure_at(f"http://127.0.0.1:{hangs_up}") == (
        f"MLflow at http://127.0.0.1:{hangs_up} failed "
        f"(RemoteDisconnected: Remote end closed connection without response){REMEDY}"
    )


def test_what_a_replay_could_not_reach_is_told_alike_and_our_own_words_stay() -> None:
    with pytest.raises(TrackingError) as told, reached("sqlite:///x.db"):
        raise Unreached("OSError: disk is full")
    assert str(told.value) == f"MLflow at sqlite:///x.db failed (OSError: disk is full){REMEDY}"
    for error in (StageError("damaged"), TrackingError("experiment x was deleted in MLflow: restore it there")):
        with pytest.raises(type(error)) as failure, reached("sqlite:///x.db"):
            raise error
        assert failure.value is error


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("localhost:5000", "localhost:5000 without http:// or the like is a folder"),
        ("127.0.0.1:5000", "127.0.0.1:5000 without http:// or the like is a folder"),
        ("/srv/mlruns", "/srv/mlruns without http:// or the like is a folder"),
        ("file:///srv/mlruns", "file:///srv/mlruns is a folder"),
        ("htp://localhost:5000", "htp://localhost:5000 has a scheme that MLflow does not know"),
    ],
)
def test_an_address_that_is_none_is_bad_input(uri: str, why: str) -> None:
    with pytest.raises(ConfigError) as failure:
        connect(uri)
    assert str(failure.value).startswith(f"tracking.uri: {why}")
    assert "a server such as http://127.0.0.1:5000" in str(failure.value)
