import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from tune_jobs.cluster import make_private

sys.path.insert(0, str(Path(__file__).parent))
make_private()  # before any test imports Ray


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    def relax(connection: Any, _: Any) -> None:
        if type(connection).__module__ == "sqlite3":
            connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", relax)
    yield
    event.remove(Engine, "connect", relax)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables: making them takes seconds, copying them does not."""
    from tune_jobs.tracking_client import connect, default_uri

    root = tmp_path_factory.mktemp("empty")
    connect(default_uri(root))
    return root / "mlflow.db"
