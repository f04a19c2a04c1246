"""A study that was run before, as verbs find it that read and compute nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_core.errors import InputError

if TYPE_CHECKING:
    from tune_jobs.search.promotion import Promoted
    from tune_jobs.store import Store


def opened(study: str, overrides: Sequence[str] | None, output: Path) -> tuple[Promoted, Store]:
    """The study with its plan, and its store; InputError where nothing of it is finished."""
    from tune_jobs.loading import load
    from tune_jobs.prepare import planned
    from tune_jobs.search.promotion import promoted
    from tune_jobs.store import Store

    resolved, store = load(study, overrides or ()), Store(output)
    full = planned(resolved, store, remember=False)
    if not store.finished(next(full.of_kind("data"))):
        verb = "search" if resolved.search else "ablate"
        raise InputError(
            f"nothing of this study is finished in {store.root}: run `intermoco {verb}` first, with the same "
            "--output and --set"
        )
    return promoted(resolved, full, store), store
