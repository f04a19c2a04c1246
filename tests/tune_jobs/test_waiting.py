"""A study that comes before the nodes do waits for them, on a cluster alone, and says for what."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from studies import miniature

from ssl_core.errors import InputError
from tune_jobs import waiting
from tune_jobs.plan import plan
from tune_jobs.room import Capacity
from tune_jobs.runner import check_fits

pytestmark = pytest.mark.timeout(60)

STAGES = plan(miniature(resources={"workers": 2, "accelerators": 1}), "f").stages


def fit(nodes: Iterator[Capacity]) -> Capacity:
    """The capacity, where the study fits into it."""
    found = next(nodes)
    check_fits(STAGES, found)
    return found


def test_nodes_that_join_meanwhile_are_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waiting, "_AGAIN", 0.01)
    nodes = iter([Capacity(1.0), Capacity(2.0, 1.0), Capacity(4.0, 2.0), Capacity(8.0, 4.0)])
    assert waiting.await_room(lambda: fit(nodes), patience=60) == Capacity(4.0, 2.0)
    (said,) = capsys.readouterr().err.splitlines()
    assert said == (
        "note: pretrain moco seed 0 needs 2 workers with 2 CPUs and 2 accelerators in all, each worker whole on a "
        "node; the cluster has 1 and 0 on 1 node; lower resources.workers, resources.cpus or resources.accelerators; "
        "waiting up to 60 s for nodes that may join"
    )


def test_no_node_that_joins_is_the_error_that_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    for patience, looks in ((0.0, 1), (0.05, 2)):
        seen: list[Capacity] = []

        def look(seen: list[Capacity] = seen) -> Capacity:
            seen.append(Capacity(1.0))
            return fit(iter(seen[-1:]))

        with pytest.raises(InputError, match=r"the cluster has 1 and 0 on 1 node; lower resources\.workers"):
            waiting.await_room(look, patience=patience)
        assert len(seen) >= looks
        assert ("waiting" in capsys.readouterr().err) == (patience > 0), "a local run does not wait"
