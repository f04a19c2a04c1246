"""Champion, previous and rollback on a real MLflow registry, with processes that are killed and that come together."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killed import ended
from mlflow_store import mlflow_client
from registry_work import add, back, better, killed_while, promote_at_once, take_a_turn

from ssl_core.errors import InputError, StageError
from tests.processes import CONTEXT
from tune_jobs.promotion import registry as module
from tune_jobs.promotion.registry import CHAMPION, COMPLETE, PREVIOUS, REPLACES, SINCE, UNTIL, WHY, Registry

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def root(tmp_path: Path, empty_database: Path) -> Path:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def registry(root: Path) -> Registry:
    return Registry(mlflow_client(root), "toy", "root-a")


def crown(registry: Registry, count: int) -> None:
    """So many versions, each champion after the one before."""
    for _ in range(count):
        before = registry.aliases().get(CHAMPION)
        registry.promote(add(registry), expected=before, by="joe", why="better")


def tags(registry: Registry, number: str) -> dict[str, str]:
    return dict(registry.versions()[number].tags)


def test_a_first_champion_has_no_previous(registry: Registry) -> None:
    assert (registry.aliases(), registry.versions(), registry.champion()) == ({}, {}, None)
    crown(registry, 1)
    assert registry.aliases() == {CHAMPION: "1"}
    found = tags(registry, "1")
    assert (found[COMPLETE], found[REPLACES], found[WHY]) == ("true", "", "better")
    assert UNTIL not in found
    with pytest.raises(InputError, match="no champion before version 1 to go back to"):
        registry.rollback(by="joe", why="oops")
    assert registry.aliases() == {CHAMPION: "1"}
    assert registry.mend() == []


def test_the_former_champion_is_kept_and_a_rollback_undone_by_another(registry: Registry) -> None:
    crown(registry, 3)
    assert registry.aliases() == {CHAMPION: "3", PREVIOUS: "2"}
    assert UNTIL in tags(registry, "2")
    assert registry.rollback(by="ann", why="worse on the ward") == ("2", "3")
    assert registry.aliases() == {CHAMPION: "2", PREVIOUS: "3"}
    assert (tags(registry, "2")[WHY], UNTIL in tags(registry, "2"), UNTIL in tags(registry, "3")) == (
        "worse on the ward", False, True,
    )  # fmt: skip
    assert registry.mend() == []
    assert registry.rollback(by="ann", why="no, better") == ("3", "2")
    assert registry.aliases() == {CHAMPION: "3", PREVIOUS: "2"}
    assert registry.mend() == []


def test_nothing_moves_where_the_champion_is_another_than_the_one_compared_with(registry: Registry) -> None:
    crown(registry, 2)
    late = add(registry)
    with pytest.raises(StageError, match="was version 1 and is version 2 now: another promotion came between"):
        registry.promote(late, expected="1", by="joe", why="")
    assert registry.aliases() == {CHAMPION: "2", PREVIOUS: "1"}
    assert REPLACES not in tags(registry, "3")


def test_no_model_no_rollback_and_none_is_made(registry: Registry) -> None:
    with pytest.raises(InputError, match="toy has no champion"):
        registry.rollback(by="joe", why="")
    assert registry.client.search_registered_models() == []


def test_half_made_versions_of_this_root_are_deleted_and_those_of_others_kept(root: Path, registry: Registry) -> None:
    crown(registry, 1)
    add(registry, complete=False)
    other = Registry(registry.client, "toy", "root-b")
    add(other, complete=False)
    assert registry.mend() == ["version 2 of toy was half made and is deleted"]
    assert sorted(registry.versions()) == ["1", "3"]
    assert registry.aliases() == {CHAMPION: "1"}


# killed


def trials(root: Path, tmp: Path, prepare: Callable[[Registry], None], act: Callable[[Registry], None]) -> list[Any]:
    """What is left in a copy of the store where `act` is killed before its 1st, 2nd, ... write, then mended."""
    prepare(Registry(mlflow_client(root), "toy", "root-a"))
    left: list[Any] = []
    for call in range(100):
        place = tmp / f"copy-{call}"
        place.mkdir()
        shutil.copy(root / "mlflow.db", place / "mlflow.db")
        code = ended(killed_while, act, place, call)
        after = Registry(mlflow_client(place), "toy", "root-a")
        seen = after.aliases()
        after.mend()
        left.append((seen, after.aliases(), {n: UNTIL in v.tags for n, v in after.versions().items()}))
        assert after.mend() == [], "mended once is mended"
        act(after) if code else None
        if code == 0:
            return [*left, after.aliases()]
        assert code == -signal.SIGKILL
    raise AssertionError("never came to its end")


def test_a_promotion_killed_anywhere_leaves_the_old_champion_or_the_new_one(root: Path, tmp_path: Path) -> None:
    def prepare(registry: Registry) -> None:
        crown(registry, 2)
        add(registry)

    *left, end = trials(root, tmp_path, prepare, better)
    assert end == {CHAMPION: "3", PREVIOUS: "2"}
    old = {CHAMPION: "2", PREVIOUS: "1"}
    assert [aliases for _, aliases, _ in left if aliases not in (old, end)] == []
    assert {seen[CHAMPION] for seen, _, _ in left} == {"2", "3"}
    for seen, aliases, until in left:
        champion = seen[CHAMPION]
        assert champion == "2" or seen[PREVIOUS] == "2", "there is a way back as soon as there is a new champion"
        assert aliases[CHAMPION] == champion, "mending moves no champion"
        assert not until[champion]
    assert len(left) >= 8


def test_a_rollback_killed_anywhere_leaves_the_old_champion_or_the_new_one(root: Path, tmp_path: Path) -> None:
    *left, end = trials(root, tmp_path, lambda registry: crown(registry, 2), back)
    assert end == {CHAMPION: "1", PREVIOUS: "2"}
    assert {tuple(sorted(aliases.items())) for _, aliases, _ in left} == {
        ((CHAMPION, "1"), (PREVIOUS, "2")),
        ((CHAMPION, "2"), (PREVIOUS, "1")),
    }


# at the same time


def test_processes_of_one_root_take_turns(root: Path) -> None:
    Registry(mlflow_client(root), "toy", "x")._ensure()
    together = [CONTEXT.Process(target=take_a_turn, args=(root,)) for _ in range(3)]
    for process in together:
        process.start()
    for process in together:
        process.join(60)
    assert [process.exitcode for process in together] == [0, 0, 0]
    found = Registry(mlflow_client(root), "toy", "x")
    assert found.aliases() == {CHAMPION: "3", PREVIOUS: "2"}
    assert [found.versions()[n].tags[REPLACES] for n in "123"] == ["", "1", "2"]
    assert {v.tags[module.OWNER] for v in found.versions().values()} == {(root / "stages/.promotion/owner").read_text()}


def test_of_several_roots_with_one_server_one_moves_and_the_others_are_told(root: Path, registry: Registry) -> None:
    crown(registry, 1)

    gate, results = CONTEXT.Barrier(3), CONTEXT.Queue()
    owners = [f"root-{i}" for i in range(3)]
    together = [CONTEXT.Process(target=promote_at_once, args=(root, owner, gate, results)) for owner in owners]
    for process in together:
        process.start()
    found = dict(results.get(timeout=60) for _ in together)
    for process in together:
        process.join(60)
    (winner,) = [number for number, said in found.items() if said == "moved"]
    assert registry.aliases() == {CHAMPION: winner, PREVIOUS: "1"}
    assert all("another promotion came between" in said for number, said in found.items() if number != winner)
    assert not [name for name in registry.client.get_registered_model("toy").tags if name.startswith(module.FLAG)]


def test_the_flag_of_a_killed_process_of_another_root_is_taken_down(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEASE", 0.3)
    monkeypatch.setattr(module, "LOOK", 0.1)
    crown(registry, 1)
    registry.client.set_registered_model_tag("toy", f"{module.FLAG}root-z", "killed")
    clock = time.monotonic()
    crown(registry, 1)
    assert time.monotonic() - clock > 0.3
    assert registry.aliases() == {CHAMPION: "2", PREVIOUS: "1"}
    assert tags(registry, "2")[SINCE]


def test_a_process_that_sees_another_flag_does_not_move(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the other's flag is up it writes no alias."""
    monkeypatch.setattr(module, "LOOK", 0.05)
    crown(registry, 1)
    made = add(registry)
    registry.client.set_registered_model_tag("toy", f"{module.FLAG}root-z", "alive")
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        assert registry.aliases() == {CHAMPION: "1"}
        if looks == 3:
            registry.client.delete_registered_model_tag("toy", f"{module.FLAG}root-z")

    monkeypatch.setattr(module.time, "sleep", sleep)
    registry.promote(made, expected="1", by="joe", why="")
    assert looks >= 3
    assert registry.aliases() == {CHAMPION: "2", PREVIOUS: "1"}
