"""The way from the page to the study's runs in MLflow: by search, since ids are not known before MLflow is."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlencode

from analysis.facts import Tracking
from analysis.names import arm_name

#: Where `intermoco ui` shows a database, unless told another port.
LOCAL = "http://127.0.0.1:5000"


def where(tracking: Tracking | None, arms: Iterable[str]) -> dict[str, object] | None:
    """What the page says of MLflow: the experiment's link, and what to search for there; None without tracking.

    `local`: the link holds only while `command` runs.
    """
    if tracking is None:
        return None
    base = tracking.address or (LOCAL if tracking.command else None)
    own = term("study_key", tracking.study_key)
    return {
        "experiment": tracking.experiment,
        "link": base and experiment_link(base, tracking.experiment),
        "server": (base or "").partition("://")[2],
        "command": tracking.command,
        "local": tracking.address is None,
        "filter": own,
        "arms": [(arm_name(arm), f"{own} AND {term('arm', arm)}") for arm in arms],
    }


def experiment_link(address: str, experiment: str) -> str:
    """MLflow's list of experiments, narrowed to those with this name in theirs."""
    # its start page is about language models unless the address says otherwise
    query = urlencode({"workflowType": "machine_learning", "experimentSearchFilter": experiment})
    return f"{address.rstrip('/')}/#/experiments?{query}"


def term(tag: str, value: str) -> str:
    """A search for runs by one of our tags, as MLflow's search field reads it."""
    quoted = f"'{value}'" if "'" not in value else f'"{value}"'
    return f'tags."intermoco.{tag}" = {quoted}'
