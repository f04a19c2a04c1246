"""The report's way into MLflow: an address without secrets, a search that finds the study's runs and no others."""

from pathlib import Path

import pytest

from analysis.facts import Tracking
from analysis.tracked import experiment_link, term, where
from tests.tune_jobs.finished_stages import finish_all, small, tiny
from tune_jobs.store import Store
from tune_jobs.tracking import default_uri, sync
from tune_jobs.tracking_client import connect
from tune_jobs.tracking_page import public, tracked


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("https://mlflow.example.org", "https://mlflow.example.org"),
        ("http://10.0.0.7:5000/lab/", "http://10.0.0.7:5000/lab"),
        ("https://me:secret@mlflow.example.org/lab", "https://mlflow.example.org/lab"),
        ("https://me:sec@ret@mlflow.example.org", "https://mlflow.example.org"),
        ("https://me:sec/ret@mlflow.example.org", None),
        ("https://me:sec@ret/x@mlflow.example.org", None),
        ("https://me:sec#ret@mlflow.example.org", None),
        ("https://secret@mlflow.example.org:444", "https://mlflow.example.org:444"),
        ("https://mlflow.example.org/?token=secret#secret", "https://mlflow.example.org"),
        ("http://[::1]:5000", "http://[::1]:5000"),
        ("sqlite:////shared/mlflow.db", None),
        ("postgresql://me:secret@db/mlflow", None),
        ("databricks", None),
    ],
)
def test_an_address_is_linked_without_user_password_or_query(uri: str, address: str | None) -> None:
    assert public(uri) == address


def test_a_database_is_opened_by_a_command_and_a_server_by_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    study, planned = tiny()
    at_home = tracked(study, planned, Store(tmp_path / "runs"))
    assert (at_home.address, at_home.command, at_home.experiment) == (None, "intermoco ui", "toy")
    moved = tracked(study, planned, Store(tmp_path / "other place"))
    assert moved.command == "intermoco ui --output 'other place'"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@db/mlflow")
    elsewhere = tracked(study, planned, Store(tmp_path / "runs"))
    assert elsewhere.command == "intermoco ui runs/toy/study.yaml"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example.org")
    served = tracked(study, planned, Store(tmp_path / "runs"))
    assert (served.address, served.command) == ("https://mlflow.example.org", "")
    assert "secret" not in f"{at_home}{moved}{elsewhere}{served}"


def test_the_searches_find_the_studys_runs_and_no_others(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "runs"
    root.mkdir()
    (root / "mlflow.db").write_bytes(empty_database.read_bytes())
    store = Store(root)
    study, planned = tiny()
    other, other_planned = tiny(seeds=[0])  # in the same experiment, with stages in common
    for each, its in ((study, planned), (other, other_planned)):
        finish_all(its, store)
        sync(each, its, store, uri=default_uri(root), folder=root / "toy")
    shown = where(tracked(study, planned, store), study.arms)
    assert shown is not None
    client = connect(default_uri(root))
    experiment = client.get_experiment_by_name(shown["experiment"]).experiment_id

    def found(search: object) -> list[tuple[str, str | None]]:
        runs = client.search_runs([experiment], str(search))
        return sorted((r.data.tags["intermoco.kind"], r.data.tags.get("intermoco.arm", "")) for r in runs)

    everything = found(shown["filter"])
    assert everything.count(("study", "")) == 1
    assert len(everything) == 1 + len(study.arms) + len(planned.stages)
    assert len(client.search_runs([experiment])) > len(everything)
    arms = dict(shown["arms"])  # type: ignore[call-overload]
    assert {arm for _, arm in found(arms["MoCo"])} == {"moco"}
    assert ("arm", "moco") in found(arms["MoCo"])


def test_a_page_names_the_server_or_the_command() -> None:
    remote = where(Tracking(experiment="a b", study_key="k", address="https://m.org/lab"), ("moco",))
    assert remote is not None
    assert remote["link"] == "https://m.org/lab/#/experiments?workflowType=machine_learning&experimentSearchFilter=a+b"
    assert (remote["server"], remote["local"]) == ("m.org/lab", False)
    local = where(Tracking(experiment="e", study_key="k", command="intermoco ui"), ())
    assert local is not None
    assert str(local["link"]).startswith("http://127.0.0.1:5000/#/experiments?")
    neither = where(Tracking(experiment="e", study_key="k"), ())  # Databricks, say
    assert neither is not None
    assert (neither["link"], neither["command"]) == (None, "")
    assert where(None, ("moco",)) is None


def test_an_arms_name_cannot_end_its_quotes() -> None:
    assert term("arm", "it's") == 'tags."intermoco.arm" = "it\'s"'
    assert experiment_link("http://h/", "a&b").endswith("experimentSearchFilter=a%26b")


def test_the_key_is_the_one_that_the_runs_carry() -> None:
    from tune_jobs.tracking_writer import study_key

    study, planned = small()
    assert tracked(study, planned, Store(Path("runs"))).study_key == study_key(study, planned)
