"""The way to an MLflow store: its address, a client that neither chatters nor waits for long, errors in words."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ssl_core.errors import ConfigError, IntermocoError

#: MLflow's defaults wait over four minutes for a server that is down.
IMPATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}


#: What stands where a password was.
HIDDEN = "***"


class TrackingError(IntermocoError):
    """An MLflow store that was not reachable, or that refused what it was sent."""


class Unreached(TrackingError):
    """What MLflow, its database or its artifact store raised instead of an answer, in one line, password hidden."""


def default_uri(root: Path) -> str:
    """SQLite below the output folder."""
    return f"sqlite:///{root / 'mlflow.db'}"


def mask(text: str) -> str:
    """`text`, a URI or a message with one in it, with passwords and tokens hidden."""
    text = re.sub(r"(://[^:/?#\s]*):.*@", rf"\1:{HIDDEN}@", text)  # a password may hold an @ or a space
    text = re.sub(r"\b([\w.+-]+):(?!//)[^\s/@]+@", rf"\1:{HIDDEN}@", text)  # of an address without its scheme
    text = re.sub(r"(?i)((?:password|passwd|pwd|secret|token)(?:=|%3D))[^&;\s]+", rf"\1{HIDDEN}", text)
    return re.sub(r"(?i)([?&;][\w.-]*(?:key|secret|pass|credential|sig)[\w.-]*=)[^&;\s]+", rf"\1{HIDDEN}", text)


def is_database(uri: str) -> bool:
    """Whether MLflow's own client writes there; else a server does."""
    return urlsplit(uri).scheme.partition("+")[0] in {"sqlite", "postgresql", "mysql", "mssql"}


def require_own(key: str, uri: str, root: Path, table: str, instead: str) -> None:
    """ConfigError where a study's `key` would have SQLite make a file outside `root`, or write into another's there.

    What such a file holds are the study's own words, which a shell or cron would go through line by line. `table`: one
    that a database has which is what `key` asks for.
    """
    scheme, _, place = uri.partition("://")
    if scheme.partition("+")[0] != "sqlite":
        return
    name = place.removeprefix("/").partition("?")[0]
    path = Path(name).resolve()
    if name.startswith("file:") or not (path.is_relative_to(root) or _has_table(path, table)):
        raise ConfigError(
            f"{key}: {mask(uri)} cannot be used: a study makes no file outside {root}; name one below it, or {instead}"
        )


def _has_table(path: Path, name: str) -> bool:
    if not path.is_file():
        return False
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        try:
            return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [name]).fetchone())
        except sqlite3.DatabaseError:
            return False


def connect(uri: str) -> Any:
    """An MLflow client that neither chatters nor phones home."""
    scheme = uri.partition(":")[0]
    if scheme == "file" or ("://" not in uri and scheme not in _WITHOUT_SLASHES):
        without = "" if scheme == "file" else " without http:// or the like"
        raise ConfigError(
            f"tracking.uri: {mask(uri)}{without} is a folder, which MLflow no longer writes to; {_ADDRESSES}"
        )
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    if not is_database(uri):
        for name, value in IMPATIENCE.items():
            os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic", "urllib3"):  # what goes wrong is raised; importing mlflow sets its level
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        if path.exists():
            _require_database(path)
        else:
            _create_whole(path, MlflowClient)
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

    try:
        return MlflowClient(tracking_uri=uri)
    except UnsupportedModelRegistryStoreURIException as error:
        raise ConfigError(f"tracking.uri: {mask(uri)} has a scheme that MLflow does not know; {_ADDRESSES}") from error


_WITHOUT_SLASHES = ("databricks", "databricks-uc", "uc")
_ADDRESSES = "give a database such as sqlite:////shared/mlflow.db, a server such as http://127.0.0.1:5000, or null"


@contextlib.contextmanager
def reached(uri: str) -> Iterator[None]:
    """What keeps MLflow from its work within, as a TrackingError that has the address and the remedy."""
    try:
        yield
    except Unreached as error:
        raise _hindered(uri, str(error)) from error
    except IntermocoError:
        raise
    except Exception as error:  # MLflow, its database drivers and its artifact stores raise many kinds
        raise _hindered(uri, reason(error)) from error


def _hindered(uri: str, said: str) -> TrackingError:
    return TrackingError(
        f"MLflow at {mask(uri)} failed ({said}); see that it runs, and that tracking.uri or MLFLOW_TRACKING_URI is "
        "right, then give the same command again: it goes on from there"
    )


def _require_database(path: Path) -> None:
    """TrackingError where the file is no SQLite database: MLflow would try for two minutes to open it."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        try:
            connection.execute("PRAGMA schema_version")
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # locked, or not to be read: MLflow says how that goes on
                return
            raise TrackingError(f"{path} is no database ({error}); move it away and run `intermoco sync`") from error


def _create_whole(path: Path, client: Any) -> None:
    """Make a SQLite store under another name, then rename it: MLflow refuses one whose migrations were cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    client(tracking_uri=f"sqlite:///{fresh}").search_experiments()  # its first question creates the tables
    fresh.rename(path)


def experiment(client: Any, name: str, uri: str, root: Path) -> str:
    """Id of the experiment. A server chooses where its artifacts lie; for a database they lie below the root."""
    found = client.get_experiment_by_name(name)
    if found is None:
        location = (root / "mlartifacts").as_uri() if is_database(uri) else None
        return str(client.create_experiment(name, artifact_location=location))
    if found.lifecycle_stage != "active":
        raise TrackingError(f"experiment {name} was deleted in MLflow: restore it there, or set tracking.experiment")
    place = urlsplit(found.artifact_location)
    if place.scheme == "file" and is_database(uri) and not Path(unquote(place.path)).parent.is_dir():
        raise TrackingError(
            f"experiment {name} keeps its artifacts in {unquote(place.path)}, which is no longer there; set "
            "tracking.experiment to a new name, or remove mlflow.db if it holds nothing else: stages stay"
        )
    return str(found.experiment_id)


def ui_command(uri: str, root: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """Command, and environment to add, that shows a database's MLflow on 127.0.0.1 alone.

    The uri goes by the environment: it may hold a password, and a command line is there for all to read.
    """
    server = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": (root / "mlartifacts").as_uri(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its job runner costs half a minute at the start, and 1.5 GB
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return [sys.executable, *server], environment


def ui_page(port: int) -> str:
    """Address to open. MLflow's start page is about language models unless its address says otherwise."""
    return f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning"


def reason(error: Exception) -> str:
    """An error in one line, password hidden: what the network said, where it was the network."""
    root = root_cause(error)
    text = " ".join(str(root).split())
    return mask(f"{type(root).__name__}: {text}" if text else type(root).__name__)[:300]


def root_cause(error: BaseException) -> BaseException:
    """The innermost cause if that is a failing connection or file, else the error itself."""
    root = error
    while inner := root.__cause__ or root.__context__ or _carried(root):
        root = inner
    return root if isinstance(root, OSError) else error


def _carried(error: BaseException) -> BaseException | None:
    """The error that urllib3's ProtocolError has as its second argument, and not as its cause."""
    return next((value for value in error.args if isinstance(value, OSError)), None)
