"""One run a study at a time, one promotion a root. The system frees a lock when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from typing import IO

from ssl_core.errors import InputError
from tune_jobs.store import Store


@contextlib.contextmanager
def running(study: str, store: Store) -> Iterator[None]:
    """Hold the study for this run. Where nobody else uses the root, sweep what a killed run left half-made.

    Raises InputError when another process is running the same study in the same root, and where a link would have the
    study write somewhere else.
    """
    folder = store.root / study
    require_no_links(study, store)
    folder.mkdir(parents=True, exist_ok=True)
    store.stages.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as own, (store.stages / ".lock").open("a+") as shared:
        if not _try(own, fcntl.LOCK_EX):
            own.seek(0)
            raise InputError(
                f"study {study} is already running in {store.root} (process {own.read().strip() or 'unknown'}); "
                "wait for it, or give another --output"
            )
        own.truncate(0)
        own.write(str(os.getpid()))
        own.flush()
        if _try(shared, fcntl.LOCK_EX):
            store.sweep()
        fcntl.flock(shared, fcntl.LOCK_SH)
        yield


def require_no_links(study: str, store: Store) -> None:
    """InputError where a link of whoever may write there too would have the study write, or remove, elsewhere."""
    folder, stages = store.root / study, store.stages
    half_made = (path for pattern in (".*", ".*/*", ".*/*/*") for path in stages.glob(pattern))
    for path in (folder, *folder.rglob("*"), stages, *half_made):
        if path.is_symlink():
            raise InputError(f"{path} is a link, and what a study writes stays below its output folder; remove it")


@contextlib.contextmanager
def promoting(store: Store, waits: Callable[[str], None]) -> Iterator[str]:
    """Hold the root's promotions, once no other process does; the root's own name, by which MLflow knows its versions.

    `waits` is told the number of the process that is waited for, where one is.
    """
    folder = store.stages / ".promotion"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as own:
        if not _try(own, fcntl.LOCK_EX):
            own.seek(0)
            waits(own.read().strip() or "unknown")
            fcntl.flock(own.fileno(), fcntl.LOCK_EX)
        own.truncate(0)
        own.write(str(os.getpid()))
        own.flush()
        name = folder / "owner"  # made once, while the lock is held; it moves with the root
        if not name.is_file():
            fresh = name.with_suffix(".new")
            fresh.write_text(uuid.uuid4().hex[:12])
            fresh.replace(name)
        yield name.read_text()


def _try(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file.fileno(), kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
