"""Ray: a local one started and stopped around a run, or a cluster joined by its address."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ssl_core.errors import ConfigError
from tune_jobs.reaper import reaping

#: Bytes of Ray's shared memory in a local run: stages hand over files, never objects.
OBJECT_STORE = 128 * 1024**2
LOOPBACK = "127.0.0.1"
STATE_API = "RAY_API_SERVER_ADDRESS"  # the environment variable in which Ray's processes look for their State API
WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"  # "0": nothing looks out for nodes that are about to be taken away
FILES = "intermoco-ray-"  # prefix of a local run's folder for Ray's files; the owner's process id follows
_running: set[str] = set()  # such folders of this process


@contextlib.contextmanager
def local_ray(cpus: int | None = None, *, dashboard: bool = False) -> Iterator[None]:
    """A Ray of this process alone: listens on 127.0.0.1 only, sends no usage statistics, leaves no file behind.

    `dashboard`: with Ray's dashboard and its State API, which frees what the workers of a killed trial held.
    """
    make_private()
    _remove_orphans()
    folder = tempfile.mkdtemp(prefix=f"{FILES}{os.getpid()}-")
    try:
        with reaping(folder), _dashboard_port() if dashboard else contextlib.nullcontext() as port:
            _start(folder, cpus, port)
            _running.add(folder)
            try:
                yield
            finally:
                _running.remove(folder)
                _stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_local() -> bool:
    """Whether this process is in the body of `local_ray`: one machine, and no other will join."""
    return bool(_running)


@functools.cache
def make_private() -> None:
    """Set, once in a process, what a local Ray reads as it is imported: listen on 127.0.0.1 only, ask for a token.

    Raises RuntimeError where Ray was imported before: it would listen to everybody, or refuse its own processes.
    """
    if "ray" in sys.modules:
        raise RuntimeError("ray was imported before tune_jobs.cluster.make_private() or local_ray() was called")
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray binds to every interface if it may form a cluster
    _quiet()
    # a token of this process alone, instead of the one that Ray would keep in the home folder
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault(WATCHER, "0")  # it would be a process for each of Train's runs


def _start(folder: str, cpus: int | None, port: int | None) -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=port is not None,
        dashboard_host=LOOPBACK,
        dashboard_port=port,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE,
        _temp_dir=folder,
    )


def _stop() -> None:
    import ray

    ray.shutdown()


@contextlib.contextmanager
def _dashboard_port() -> Iterator[int]:
    """A free port, known to every process of a Ray started in the body as that of its State API.

    Without being told they look for any Ray on the machine, and take another's or give up where there are several.
    """
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        port: int = free.getsockname()[1]
    before = os.environ.get(STATE_API)
    os.environ[STATE_API] = f"http://{LOOPBACK}:{port}"
    try:
        yield port
    finally:
        if before is None:
            del os.environ[STATE_API]
        else:
            os.environ[STATE_API] = before


@contextlib.contextmanager
def joined_ray(address: str) -> Iterator[None]:
    """A running cluster's Ray; ConfigError where nothing answers at the address."""
    _require_answer(address)
    _quiet()
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--address {address}: no Ray cluster answers there ({' '.join(str(error).split())[:300]}); "
            "one with a token wants RAY_AUTH_MODE=token and that token in ~/.ray/auth_token"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """ConfigError where no process listens at `host:port` (or `ray://host:port`): Ray itself tries for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon:  # "auto", "local": Ray knows how to find these
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--address {address}: no Ray cluster answers there ({error}); give host:port") from error


def _quiet() -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # also how often Train takes up reports
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_task_oom_retries", "3")  # of a task that a node has no memory for; Ray: without end
    # Train's actors hold no CPU; that there are more processes than CPUs is no news, and would tear the live table
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started on node")


def _remove_orphans() -> None:
    """Remove Ray's files of local runs whose process is gone: a killed one could not do it itself."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FILES}*"):
        owner = folder.name.removeprefix(FILES).split("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)
