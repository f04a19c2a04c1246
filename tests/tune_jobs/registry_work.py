"""What processes of their own do to a registry in test_registry.py: a picklable function each."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from killed import die_before
from mlflow_store import mlflow_client

from ssl_core.errors import StageError
from tune_jobs.locks import promoting
from tune_jobs.promotion.registry import CHAMPION, Registry
from tune_jobs.store import Store


def add(registry: Registry, *, complete: bool = True) -> Any:
    made = registry.create(run="0" * 32, source="file:///nowhere", tags={"intermoco.arm": "moco"}, description="card")
    if complete:
        registry.complete(made)
    return made


def better(registry: Registry) -> None:
    """The newest version becomes champion in the place of version 2."""
    newest = max(registry.versions(), key=int)
    if registry.aliases()[CHAMPION] != newest:
        registry.promote(registry.versions()[newest], expected="2", by="joe", why="better")


def back(registry: Registry) -> None:
    """Version 2 is champion no more."""
    if registry.aliases()[CHAMPION] == "2":
        registry.rollback(by="joe", why="oops")


def killed_while(act: Callable[[Registry], None], root: Path, call: int) -> None:
    mine = Registry(mlflow_client(root), "toy", "root-a")
    die_before(mine.client, call, "set_", "create_", "delete_")
    act(mine)


def take_a_turn(root: Path) -> None:
    """Promote a new version as `intermoco promote` of this root does."""
    with promoting(Store(root), lambda _: None) as owner:
        mine = Registry(mlflow_client(root), "toy", owner)
        mine.mend()
        before = mine.aliases().get(CHAMPION)
        made = add(mine, complete=False)
        time.sleep(0.1)  # another's `mend` would delete it now
        mine.complete(made)
        mine.promote(made, expected=before, by="joe", why="better")


def promote_at_once(root: Path, owner: str, gate: Any, results: Any) -> None:
    """Promote a new version in the place of version 1, at the same time as the others."""
    mine = Registry(mlflow_client(root), "toy", owner)
    made = add(mine)
    gate.wait()
    try:
        mine.promote(made, expected="1", by=owner, why="better")
        results.put((made.number, "moved"))
    except StageError as error:
        results.put((made.number, str(error)))
