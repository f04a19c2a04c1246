"""Optuna's storage of a search: opened, made whole or not at all, its study told from another's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import Study, StudyDirection

from ssl_core.errors import ConfigError, IntermocoError
from tune_jobs.search.config import MAXIMISED
from tune_jobs.tracking_client import mask

#: What a search says about itself, as an attribute of Optuna's study.
ATTR = "intermoco"
_SQLITE = "sqlite:///"
_PATIENCE = 60  # seconds that a writer waits for another, a dashboard say


def storage_url(url: str | None, folder: Path) -> str:
    """Where the search is kept: what the study names, or SQLite in the search's folder."""
    return url or f"{_SQLITE}{folder.absolute() / 'optuna.db'}"


def directions(objectives: Sequence[str]) -> list[StudyDirection]:
    """The score goes up, everything else down."""
    return [StudyDirection.MAXIMIZE if o in MAXIMISED else StudyDirection.MINIMIZE for o in objectives]


def create(url: str, name: str, identity: Mapping[str, str], objectives: Sequence[str]) -> Study:
    """The study of this name, made where it is missing; ConfigError where it is another search's."""
    storage = _connect(url)
    assert storage is not None
    study = optuna.create_study(
        study_name=name, storage=storage, directions=directions(objectives), load_if_exists=True
    )
    if study.user_attrs or study.get_trials(deepcopy=False):
        check(study, url, identity, objectives)
    # Study.set_metric_names does this, and warns that it is experimental
    storage.set_study_system_attr(study._study_id, "study:metric_names", list(objectives))
    study.set_user_attr(ATTR, {"identity": dict(identity), "objectives": list(objectives)})
    return study


def find(url: str, name: str, identity: Mapping[str, str], objectives: Sequence[str]) -> Study | None:
    """The study of this name, to be read alone; None where there is none. Creates nothing."""
    where = url
    if (path := sqlite_path(url)) is not None:
        if not path.is_file() or path.stat().st_size == 0:
            return None
        where = f"{_SQLITE}file:{quote(str(path))}?mode=ro&uri=true"
    storage = _connect(where, create=False)
    if storage is None or name not in optuna.get_all_study_names(storage):
        return None
    study = Study(study_name=name, storage=storage)
    if not study.user_attrs and not study.get_trials(deepcopy=False):
        return None  # killed before it was begun
    check(study, url, identity, objectives)
    return study


def check(study: Study, url: str, identity: Mapping[str, str], objectives: Sequence[str]) -> None:
    """ConfigError that names what differs between this search and the one that is stored."""
    stored: dict[str, Any] = study.user_attrs.get(ATTR, {})
    old = stored.get("identity", {})
    parts = [part for part in {**identity, **old} if identity.get(part) != old.get(part)]
    if list(stored.get("objectives", [])) != list(objectives) or study.directions != directions(objectives):
        parts.append("objectives")
    if parts:
        raise ConfigError(
            f"search.storage: {mask(url)} holds another search called {study.study_name}: it differs in "
            f"{', '.join(dict.fromkeys(parts))}; set search.storage, give another --output, or remove it"
        )


def sqlite_path(url: str) -> Path | None:
    """The file of a SQLite storage; None for any other."""
    return Path(url.removeprefix(_SQLITE)) if url.startswith(_SQLITE) else None


@contextlib.contextmanager
def in_words(url: str) -> Iterator[None]:
    """What goes wrong in the body as one line that names the storage, password hidden (ConfigError)."""
    try:
        yield
    except IntermocoError:
        raise
    except Exception as error:
        root = error.__cause__ or error
        text = str(getattr(root, "orig", root)).strip().splitlines()
        said = mask(text[0] if text else type(root).__name__)[:200]
        raise ConfigError(f"search.storage: {mask(url)} cannot be used: {said}") from error


def _connect(url: str, *, create: bool = True) -> BaseStorage | None:
    """Optuna's storage at this address. Without `create`: None where its tables are missing."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = sqlite_path(url)
    if path is not None and create and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        RDBStorage(f"{_SQLITE}{fresh}").engine.dispose()
        fresh.rename(path)  # a kill leaves all of its tables or none
    options: dict[str, Any] = {"connect_args": {"timeout": _PATIENCE}} if path is not None else {"pool_pre_ping": True}
    if not create:
        engine = sqlalchemy.create_engine(url, **options)
        missing = not sqlalchemy.inspect(engine).has_table("studies")
        engine.dispose()
        if missing:
            return None
    return optuna.storages.get_storage(RDBStorage(url, engine_kwargs=options, skip_table_creation=not create))
