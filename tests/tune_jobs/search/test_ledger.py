"""The ledger over a real storage: states that Optuna is told, kills at any write, duplicates, what is bad input."""

from __future__ import annotations

import math
import random
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
from ledgers import BASES, EPOCHS, EVALUATED, Toy, history, opened, outcome, planted, search, train
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from ssl_core.errors import ConfigError
from tune_jobs.search.ledger import Ledger

KINDS = ("tpe", "gp", "nsga2", "nsga3", "cmaes", "random", "grid")
WRITES = (
    "create_new_study", "set_study_user_attr", "set_study_system_attr", "_create_new_trial", "_set_trial_param",
    "set_trial_state_values", "set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr",
)  # fmt: skip


class Killed(BaseException):
    """What a SIGKILL leaves: nothing of this write and of what would have followed, or nothing of what follows."""


@pytest.fixture
def fuse(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Counts the storage's writes; `fuse["at"] = n` kills at the n-th from now, before or after it is stored."""
    state: dict[str, Any] = {"at": None, "after": False, "count": 0}

    def wrapped(write: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            state["count"] += 1
            burnt = state["at"] is not None and state["count"] >= state["at"]
            if burnt and not state["after"]:
                raise Killed
            result = write(*args, **kwargs)
            if burnt:
                raise Killed
            return result

        return call

    for name in WRITES:
        monkeypatch.setattr(RDBStorage, name, wrapped(getattr(RDBStorage, name)))
    return state


def test_a_search_from_its_start_to_its_end(tmp_path: Path) -> None:
    ledger = opened(search(warm_starts=({"loss": "both"},)), tmp_path)
    train(ledger)
    assert ledger.finished
    assert not ledger.exhausted
    assert ledger.next() is None
    trials = ledger.trials()
    assert [t.start for t in trials[:4]] == ["paper_moco", "paper_mse", "start_1", None]
    counts = ledger.counts
    assert counts["complete"] + counts["pruned"] == 12
    assert counts["pruned"] > 3
    whole = next(t for t in trials if t.state == "complete")
    assert whole.values == {"score": planted(whole.params)}
    assert whole.attrs["scores"] == {100: planted(whole.params)}
    assert whole.attrs["stages"] == ["a"]
    assert tuple(whole.curve) == EVALUATED
    assert whole.started is not None
    assert whole.ended is not None
    pruned = next(t for t in trials if t.state == "pruned")
    assert pruned.values == {}
    assert pruned.attrs["epochs"] == max(pruned.curve) < EPOCHS
    best = ledger.best(2)
    scores = sorted((t.values["score"] for t in trials if t.state == "complete"), reverse=True)
    assert [planted(s.params) for s in best] == scores[:2]
    assert best[0].arm == Toy().arm(best[0].params, BASES)


def test_optuna_reads_what_was_told(tmp_path: Path) -> None:
    ledger = opened(search(), tmp_path)
    train(ledger)
    study = optuna.load_study(study_name="toy", storage=f"sqlite:///{tmp_path}/optuna.db")
    assert study.metric_names == ["score"]
    assert [t.state.name for t in study.trials] == [t.state.upper() for t in ledger.trials()]
    assert study.best_value == ledger.trials()[ledger.best(1)[0].number].values["score"]
    for trial in study.get_trials(states=(TrialState.PRUNED,)):
        assert trial.value == trial.intermediate_values[trial.last_step]  # as Optuna's own `tell` leaves it


@pytest.mark.parametrize("kind", KINDS)
def test_kills_change_nothing(kind: str, tmp_path: Path, fuse: dict[str, Any]) -> None:
    given = search(sampler=kind, trials=8, scheduler="none" if kind.startswith("nsga") else "asha")
    train(whole := opened(given, tmp_path / "whole"))
    chance, kills = random.Random(1), 0
    while True:
        fuse.update(at=chance.randint(1, 80), after=chance.random() < 0.5, count=0)
        try:
            train(ledger := opened(given, tmp_path / "killed"))
        except Killed:
            kills += 1
            continue
        break
    fuse["at"] = None
    assert kills > 2
    assert history(ledger) == history(whole)
    assert ledger.counts["running"] == 0


def test_kills_at_every_write_of_the_beginning(tmp_path: Path, fuse: dict[str, Any]) -> None:
    given = search(trials=2, scheduler="none")
    train(whole := opened(given, tmp_path / "whole"))
    for at in range(1, 30, 2):
        folder = tmp_path / str(at)
        fuse.update(at=at, after=at % 4 == 1, count=0)
        with pytest.raises(Killed):
            train(opened(given, folder))
        fuse["at"] = None
        train(ledger := opened(given, folder))
        assert history(ledger) == history(whole), at


def test_a_kill_once_the_parents_of_a_generation_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NSGA keeps them with the study, before the trial that is their first child."""
    given = search(sampler="nsga3", objectives=("seconds", "score"), trials=9, scheduler="none")
    train(whole := opened(given, tmp_path / "whole"))
    write = RDBStorage.set_study_system_attr

    def killed(storage: Any, study_id: int, key: str, value: Any) -> None:
        write(storage, study_id, key, value)
        if "parent" in key:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RDBStorage, "set_study_system_attr", killed)
        with pytest.raises(Killed):
            train(opened(given, tmp_path / "killed"))
    train(ledger := opened(given, tmp_path / "killed"))
    assert history(ledger) == history(whole)


def test_a_running_trial_is_handed_out_again_with_its_number(tmp_path: Path) -> None:
    given = search()
    first = opened(given, tmp_path)
    train(first, trials=3)
    begun = [first.next(), first.next()]
    again = opened(given, tmp_path)
    assert [again.next(), again.next()] == begun
    assert opened(given, tmp_path, resume=False).next() not in begun


def test_what_was_decided_is_decided(tmp_path: Path, fuse: dict[str, Any]) -> None:
    """A kill between an evaluation and what follows from it: reported again, it gives the same decision."""
    given = search()
    for after in range(1, 8):
        folder = tmp_path / str(after)
        ledger = opened(given, folder)
        for score in (0.5, 0.6, 0.7):
            trial = ledger.next()
            assert trial is not None
            assert not ledger.report(trial.number, 1, score, {})
        trial = ledger.next()
        assert trial is not None
        fuse.update(at=after, after=True, count=0)
        try:
            assert ledger.report(trial.number, 1, 0.1, {})
        except Killed:
            pass
        else:
            break
        fuse["at"] = None
        again = opened(given, folder)
        assert again.report(trial.number, 1, 0.1, {}), after
        assert again.report(trial.number, 1, 0.1, {}), after
        assert again.trials()[trial.number].state == "pruned"
    else:
        raise AssertionError("never came through")


def test_a_step_reported_again_goes_on_as_before(tmp_path: Path) -> None:
    ledger = opened(search(), tmp_path)
    first, second = ledger.next(), ledger.next()
    assert first is not None
    assert second is not None
    assert not ledger.report(first.number, 1, 0.5, {})
    assert not ledger.report(first.number, 2, 0.4, {})
    for score in (0.9, 0.8):
        assert not ledger.report(second.number, 1, score, {})  # meanwhile others do better
    assert not ledger.report(first.number, 1, 0.0, {})
    assert not ledger.report(first.number, 2, 0.0, {})
    assert ledger.trials()[first.number].curve == {1: 0.5, 2: 0.4}


@pytest.mark.parametrize("kind", ["random", "grid"])
def test_no_arm_is_trained_twice_and_a_space_comes_to_its_end(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One loss and its blocks: 17 combinations that make 16 arms."""
    monkeypatch.setattr("tune_jobs.search.drawing.EXHAUSTED_AFTER", 60)
    given = search(sampler=kind, space=Toy(rates=False, losses=("none", "mse")), trials=50, scheduler="none")
    ledger, arms = opened(given, tmp_path), []
    while trial := ledger.next():
        arms.append(trial.arm)
        ledger.complete(trial.number, {"score": planted(trial.params)})
    assert all(a != b for i, a in enumerate(arms) for b in arms[:i])
    assert len(arms) == 16
    repeated = ledger.counts["duplicate"]
    assert repeated == 1 if kind == "grid" else repeated >= 60
    assert ledger.exhausted
    assert ledger.finished
    assert opened(given, tmp_path).finished
    records = ledger.trials()
    for record in records:
        if record.state == "duplicate":
            assert record.duplicate_of is not None
            here, there = (Toy().arm(records[n].params, BASES) for n in (record.number, record.duplicate_of))
            assert here == there
    study = optuna.load_study(study_name="toy", storage=f"sqlite:///{tmp_path}/optuna.db")
    states = {t.state for t in study.trials if "duplicate_of" in t.user_attrs}
    assert states == {TrialState.FAIL}


def test_a_warm_start_that_was_there_before_is_not_trained(tmp_path: Path) -> None:
    ledger = opened(search(warm_starts=({"loss": "mse"}, {"loss": "both"})), tmp_path)
    numbers = train(ledger, trials=3)
    assert numbers == [0, 1, 3]
    assert ledger.trials()[2].duplicate_of == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_an_objective_that_is_no_number_fails_its_trial(value: Any, tmp_path: Path) -> None:
    ledger = opened(search(objectives=("score", "peak_memory"), scheduler="none"), tmp_path)
    trial = ledger.next()
    assert trial is not None
    ledger.complete(trial.number, {**outcome(trial.params, 0.5), "peak_memory": value})
    record = ledger.trials()[trial.number]
    assert record.state == "failed"
    assert "peak_memory" in str(record.error)
    assert record.attrs["seconds"] > 0


def test_a_score_that_is_no_number_prunes(tmp_path: Path) -> None:
    ledger = opened(search(sampler="tpe"), tmp_path)
    train(ledger, curve=lambda params, epoch: math.nan if params["loss"] == "mse" else planted(params, epoch))
    states = {(t.start, t.state) for t in ledger.trials() if t.params["loss"] == "mse"}
    assert states == {("paper_mse", "failed"), (None, "pruned")}  # the paper's settings run to their ends


def test_ends_are_told_once(tmp_path: Path) -> None:
    ledger = opened(search(), tmp_path)
    trials = [ledger.next() for _ in range(3)]
    done, bad, stopped = (t.number for t in trials if t is not None)
    ledger.report(done, 1, 0.5, {})
    for _ in range(2):
        ledger.complete(done, outcome({}, 0.5))
        ledger.fail(bad, "no gradient")
        assert ledger.report(stopped, 1, 0.1, {"epochs": 1, "score": 0.1})
    ledger.fail(done, "late")
    ledger.complete(bad, outcome({}, 0.9))
    ledger.fail(stopped, "late")
    records = ledger.trials()
    assert [records[n].state for n in (done, bad, stopped)] == ["complete", "failed", "pruned"]
    assert records[done].values == {"score": 0.5}
    assert records[done].attrs["epochs"] == EPOCHS
    assert records[stopped].attrs == {"epochs": 1, "score": 0.1}
    assert records[bad].error == "no gradient"
    assert not ledger.report(done, 5, 0.0, {})


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "gp"])
def test_several_objectives(kind: str, tmp_path: Path) -> None:
    ledger = opened(search(sampler=kind, objectives=("seconds", "score"), trials=12), tmp_path)
    train(ledger)
    records = ledger.trials()
    assert ledger.counts["pruned"] > 2
    study = optuna.load_study(study_name="toy", storage=f"sqlite:///{tmp_path}/optuna.db")
    assert all(t.values is None for t in study.get_trials(states=(TrialState.PRUNED,)))
    assert {t.number for t in study.best_trials} == {t.number for t in records if t.pareto}
    best = [s.number for s in ledger.best(len(records))]
    front = [n for n in best if records[n].pareto]
    assert best[: len(front)] == front
    scores = [records[n].values["score"] for n in front]
    assert scores == sorted(scores, reverse=True)


def test_an_objective_apart_from_the_score(tmp_path: Path) -> None:
    """The score prunes all the same, and no sampler takes a pruned trial's score for the objective."""
    ledger = opened(search(sampler="tpe", objectives=("ece",), trials=16), tmp_path)
    train(ledger)
    study = optuna.load_study(study_name="toy", storage=f"sqlite:///{tmp_path}/optuna.db")
    pruned = study.get_trials(states=(TrialState.PRUNED,))
    assert len(pruned) > 3
    assert all(t.values is None for t in pruned)
    assert ledger.best(1)[0].number == min(t.number for t in ledger.trials() if t.state == "complete")


def test_others_write_to_the_storage_too(tmp_path: Path) -> None:
    """What Optuna's own `enqueue_trial` asks for is tried; a trial that somebody else asked for is given up."""
    given = search()
    train(opened(given, tmp_path), trials=3)
    study = optuna.load_study(study_name="toy", storage=f"sqlite:///{tmp_path}/optuna.db")
    study.enqueue_trial({"loss": "both", "learning_rate": 0.5})
    study.enqueue_trial({"loss": "none", "learning_rate": 0.03, "moco.temperature": 0.07})
    study.ask({})  # takes the first of them off the queue, and never tells
    study.enqueue_trial({"loss": "both", "learning_rate": 0.5})
    ledger = opened(given, tmp_path)
    trial = ledger.next()
    assert trial is not None
    assert trial.params["learning_rate"] == 0.5
    assert trial.params["loss"] == "both"
    records = {t.number: t for t in ledger.trials()}
    assert records[4].duplicate_of == 0
    assert 3 not in records
    assert ledger.counts["failed"] == 0


def test_looking_creates_nothing(tmp_path: Path) -> None:
    place: dict[str, Any] = {"url": None, "folder": tmp_path / "search", "name": "toy", "identity": {"data": "1"}}
    assert Ledger.look(search(), **place) is None
    assert not (tmp_path / "search").exists()
    train(ledger := opened(search(), tmp_path / "search"), trials=4)
    seen = Ledger.look(search(), **place)
    assert seen is not None
    assert seen.trials() == ledger.trials()
    assert seen.best(1) == ledger.best(1)
    assert Ledger.look(search(), **{**place, "name": "other"}) is None
    with pytest.raises(optuna.exceptions.StorageInternalError) as caught:
        seen.next()
    assert "readonly" in str(caught.value.__cause__)


def test_a_storage_of_another_search(tmp_path: Path) -> None:
    opened(search(), tmp_path, identity={"data": "1", "space": "a"})
    with pytest.raises(ConfigError, match=r"optuna.db holds another search called toy.*: it differs in data, space;"):
        opened(search(), tmp_path, identity={"data": "2", "space": "b"})
    with pytest.raises(ConfigError, match="differs in objectives"):
        opened(search(objectives=("ece",)), tmp_path, identity={"data": "1", "space": "a"})
    with pytest.raises(ConfigError, match="differs in data"):
        Ledger.look(search(), url=None, folder=tmp_path, name="toy", identity={"data": "2", "space": "a"})
    optuna.create_study(study_name="else", storage=f"sqlite:///{tmp_path}/optuna.db").ask()
    with pytest.raises(ConfigError, match="holds another search called else"):
        opened(search(), tmp_path, name="else")
    assert opened(search(), tmp_path, name="beside").next() is not None


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///{}/folder",
        "sqlite:///{}/text",
        "nothing",
        "postgresql://me:secret@127.0.0.1:1/db",
        "x://me:secret@h/d",
    ],
)
def test_a_storage_out_of_reach(url: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("no database" * 100)
    with pytest.raises(ConfigError, match=r"^search.storage: [^\n]* cannot be used: [^\n]+$") as caught:
        opened(search(), tmp_path, url=url.format(tmp_path))
    assert "secret" not in str(caught.value)


def test_cmaes_takes_one_objective(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cmaes takes one objective"):
        opened(search(sampler="cmaes", objectives=("score", "ece")), tmp_path)


def test_tables_are_there_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise Killed

    place: dict[str, Any] = {"url": None, "folder": tmp_path / "search", "name": "toy", "identity": {}}
    with monkeypatch.context() as patch:
        patch.setattr("optuna.storages._rdb.storage._VersionManager._init_alembic", killed)
        with pytest.raises(Killed):
            Ledger.open(search(), **place)
    assert not (tmp_path / "search" / "optuna.db").exists()
    assert Ledger.look(search(), **place) is None
    train(Ledger.open(search(trials=2), **place))
    database = sqlite3.connect(tmp_path / "search" / "optuna.db")
    assert database.execute("select count(*) from trials").fetchone() == (2,)
    database.close()


def test_an_interaction_is_found(tmp_path: Path) -> None:
    ledger = opened(search(sampler="tpe", trials=45), tmp_path)
    train(ledger)
    best = ledger.best(1)[0].params
    assert (best["block_1"], best["block_2"], best["block_3"]) == (False, True, True)


def test_importances_name_what_matters_and_what_was_left_out(tmp_path: Path) -> None:
    ledger = opened(search(scheduler="none", trials=20), tmp_path)
    train(ledger, trials=4)
    assert ledger.importances() == ([], ["Importances need 5 completed trials; there are 4."])
    train(ledger)
    rows, notes = ledger.importances()
    for evaluator in ("fanova", "ped_anova"):
        shares = [r["importance"] for r in rows if r["evaluator"] == evaluator]
        assert sum(shares) == pytest.approx(1)
        assert shares == sorted(shares, reverse=True)
    assert {r["parameter"] for r in rows if r["evaluator"] == "fanova"} == {
        "loss", "learning_rate", "moco.temperature",
    }  # fmt: skip
    conditional = {r["parameter"]: r for r in rows if r["evaluator"] == "ped_anova"}
    assert conditional["block_2"]["trials"] == sum("block_2" in t.params for t in ledger.trials()) < 20
    assert any("block_1, block_2, block_3, block_4, mse.scale" in n and n.startswith("fANOVA") for n in notes)
    assert ledger.importances() == (rows, notes)
