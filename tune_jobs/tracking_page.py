"""Where a reader of the report finds the study in MLflow. Asks no server: the report does not wait for one."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tune_jobs.plan import Plan
from tune_jobs.store import Store
from tune_jobs.study import Study
from tune_jobs.tracking_client import default_uri, is_database

if TYPE_CHECKING:
    from analysis.facts import Tracking


def tracked(study: Study, plan: Plan, store: Store) -> Tracking:
    """The experiment, the study's key among its runs, and the page to open or the command that opens one."""
    from analysis.facts import Tracking
    from tune_jobs.ablate import tracking_uri
    from tune_jobs.tracking_writer import study_key

    uri = tracking_uri(study, store)
    return Tracking(
        experiment=study.tracking.experiment or study.study,
        study_key=study_key(study, plan),
        address=public(uri),
        command=_command(study, store, uri) if is_database(uri) else "",
    )


def public(uri: str) -> str | None:
    """A server's address without user, password, query and fragment; None where it is no http(s) address.

    None, too, where an @ comes after the host: it may end a password with a slash in it, and what stands before it
    would be shown.
    """
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme not in ("http", "https") or not host or "@" in f"{parts.path}{parts.query}{parts.fragment}":
        return None
    return f"{parts.scheme}://{host}{parts.path.rstrip('/')}"


def _command(study: Study, store: Store, uri: str) -> str:
    root = os.path.relpath(store.root)
    root = str(store.root) if root.startswith("..") else root
    words = ["intermoco", "ui"]
    if uri != default_uri(store.root):
        words.append(os.path.join(root, study.study, "study.yaml"))  # noqa: PTH118  a word of a command line
    return shlex.join([*words, *(["--output", root] if root != "runs" else [])])
