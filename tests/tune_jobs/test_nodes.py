"""A cluster that is fit for a study, one that is not, and what is said of it: judgements alone, then on real nodes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ssl_core.errors import InputError
from tune_jobs import fitness
from tune_jobs.cli import app
from tune_jobs.machine import GIB, Answer
from tune_jobs.nodes import Node, Statement, Survey, Tracking, look_at_tracking
from tune_jobs.witness import APART, DRIVER, Facts, Storage, Witness, code, digest

pytestmark = pytest.mark.timeout(600)

PROJECT = Path(__file__).parents[2]
FACTS = Facts(
    versions={"python": "3.11.7", "intermoco": "0.1.0", "ray": "2.60.0", "torch": "2.15.0+cu128", "numpy": "2.4.6"},
    code={"ssl_core/losses.py": "aa", "tune_jobs/cli.py": "bb"},
    token=True,
    root_free=500 * GIB,
    temp_free=100 * GIB,
    temp="/tmp",
    devices=2,
    drivers=("NVIDIA H100, driver 570.1",) * 2,
)
STORAGE = Storage(owner=DRIVER, written=400.0, read=800.0)


def statement(number: int, *, node: dict[str, Any] | None = None, **other: Any) -> Statement:
    """A node with two accelerators and nothing amiss, but for what is given."""
    plain = Node(id=f"{number}" * 56, address=f"10.0.0.{number}", host="", head=number == 1, cpus=8, accelerators=2)
    here = replace(plain, **(node or {}))
    return Statement(**{"name": here.name, "node": here, "facts": FACTS, "storage": STORAGE, "offset": 0.01,
                        "uncertainty": 0.001, "network": 900.0, **other})  # fmt: skip


def a_survey(*nodes: Statement, **other: Any) -> Survey:
    driver = Statement(name=DRIVER, facts=FACTS, storage=replace(STORAGE, won=True))
    server = Tracking(uri="http://mlflow:5000", on_disk=False, asked=True)
    return Survey(**{"root": "/mnt/runs", "driver": driver, "nodes": nodes, "tracking": server, **other})


def other_facts(**values: Any) -> dict[str, Any]:
    return {"facts": replace(FACTS, **values)}


def other_storage(**values: Any) -> dict[str, Any]:
    return {"storage": replace(STORAGE, **values)}


def with_version(**versions: str) -> dict[str, Any]:
    return other_facts(versions={**FACTS.versions, **versions})


GOOD = (statement(1), statement(2), statement(3))


def test_nodes_that_agree_are_fit() -> None:
    found = {judgement.__name__: judgement(a_survey(*GOOD)) for judgement in fitness.ALL}
    assert {name for name, answer in found.items() if answer.state != "ok"} == set()
    assert found["nodes"].text.startswith("3 nodes, 24 CPUs, 6 accelerators: 10.0.0.1 (11111111) head 8 + 2, ")
    assert found["code"].text == f"the same 2 files everywhere, digest {digest(FACTS.code)}"
    assert found["clocks"].text == "within 0.011 s of the driver's"
    assert set(fitness.GATE) <= set(fitness.ALL)


AMISS = {
    "silent": (fitness.nodes, {"silence": "gave no answer within 60 s"}, "failed", "gave no answer within 60 s: see"),
    "torch": (fitness.versions, with_version(torch="2.14.0"), "failed", "has torch 2.14.0; the driver has torch 2.15"),
    "absent": (fitness.versions, other_facts(versions={"python": "3.11.7"}), "failed", "numpy absent"),
    "builds": (fitness.versions, with_version(torch="2.15.0+cpu"), "note", "torch 2.15.0+cpu: last digits may"),
    "broken": (fitness.versions, {"error": "No module"}, "failed", "cannot run this intermoco (No module): install"),
    "edited": (fitness.code, other_facts(code={**FACTS.code, "ssl_core/losses.py": "a"}), "failed", "ssl_core/losses"),
    "more": (fitness.code, other_facts(code={"new.py": "1"}), "failed", "(new.py and 2 more)"),
    "blind": (fitness.accelerators_of_nodes, other_facts(devices=0), "failed", "offers 2, torch sees 0: install"),
    "driver": (fitness.accelerators_of_nodes, other_facts(drivers=("T4, driver 1",)), "note", "T4, driver 1: last dig"),
    "late": (fitness.clocks, {"offset": -3.0}, "note", "-3.0 s from the driver's clock"),
    "wrong": (fitness.clocks, {"offset": 61.0}, "failed", "+61.0 s from the driver's clock: set the time"),
    "slow answer": (fitness.clocks, {"offset": 3.0, "uncertainty": 2.0}, "ok", "within 5.000 s"),
    "root": (fitness.disks_of_nodes, other_facts(root_free=GIB // 2), "failed", "2.2.2.2, output: 0.5 GiB free; 1 are"),
    "temp": (fitness.disks_of_nodes, other_facts(temp_free=5 * GIB), "note", ", /tmp: 5.0 GiB free; a large"),
    "apart": (fitness.shared_storage, {"storage": Storage(error=APART)}, "failed", f"{APART} in /mnt/runs: set --out"),
    "closed": (fitness.shared_storage, {"storage": Storage(error="cannot write (EACCES")}, "failed", "cannot write (E"),
    "unseen": (fitness.shared_storage, other_storage(unseen=("10.0.0.9",)), "failed", "does not see what 10.0.0.9 wr"),
    "lock": (fitness.locks, other_storage(locked=True), "failed", "got a lock in /mnt/runs that the driver held"),
    "two won": (fitness.renames, other_storage(won=True), "failed", "of 4 that renamed a folder to one name in /mnt/r"),
    "other owner": (fitness.renames, other_storage(owner="me"), "failed", "cannot be published there"),
    "slow": (fitness.bandwidth, other_storage(read=3.0), "note", "3 to 800 MB/s read (2.2.2.2 least)"),
    "open": (fitness.authentication, other_facts(token=False), "note", "without a token on 2.2.2.2: whoever"),
}  # fmt: skip


@pytest.mark.parametrize("case", AMISS)
def test_the_node_that_differs_is_named_with_the_remedy(case: str) -> None:
    judgement, what, state, text = AMISS[case]
    changed = statement(2, **what)
    for place in range(3):  # wherever it stands among the others
        nodes = [statement(1), statement(3)]
        nodes.insert(place, changed)
        answer = judgement(a_survey(*nodes))
        assert answer.state == state, answer.text
        assert text in answer.text.replace(changed.name, "2.2.2.2")
        assert state == "ok" or changed.name in answer.text or case in ("driver", "two won", "other owner")
        unjudged = {j for j in fitness.ALL if j not in (judgement, fitness.accelerators_of_nodes)}
        assert all(j(a_survey(*nodes)).state == "ok" for j in unjudged), "nothing else is amiss"


def test_a_driver_outside_is_told_so() -> None:
    outside = [statement(i, storage=Storage(error=APART)) for i in (1, 2)]
    state, text = fitness.shared_storage(a_survey(*outside))
    assert state == "failed"
    assert text.startswith("no node sees what the driver writes in /mnt/runs: start intermoco on a node")


def test_many_nodes_are_counted_after_the_first() -> None:
    many = [statement(9, node={"address": f"10.0.1.{i}"}, **with_version(ray="2.59.0")) for i in range(50)]
    many = [replace(each, name=f"node {i}") for i, each in enumerate(many)]
    text = fitness.versions(a_survey(*many)).text
    assert "node 7 has ray 2.59.0 and 42 more; the driver has ray 2.60.0: install" in text
    assert "node 8" not in text


@pytest.mark.parametrize(
    ("uri", "on_disk"),
    [
        ("sqlite:////mnt/runs/mlflow.db", True),
        ("sqlite+pysqlite:///mlflow.db", True),
        ("/mnt/runs/mlruns", True),
        ("mlruns", True),
        ("file:///mnt/runs/mlruns", True),
        ("http://10.0.0.1:5000", False),
        ("https://mlflow.example.org", False),
        ("postgresql+psycopg2://mlflow@10.0.0.1/mlflow", False),
        ("databricks", False),
    ],
)
def test_a_tracking_store_on_disk_is_refused_where_there_are_nodes(uri: str, on_disk: bool) -> None:
    tracking = look_at_tracking(uri, ask=False)
    state, text = fitness.tracking_server(a_survey(*GOOD, tracking=tracking))
    assert state == ("failed" if on_disk else "ok")
    assert ("MLFLOW_TRACKING_URI" in text) == on_disk
    assert fitness.tracking_server(a_survey(GOOD[0], tracking=tracking, alone=True)).state == "ok"


def test_a_server_that_is_down_is_a_remark_and_its_password_stays_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracking = look_at_tracking("http://me:canary@127.0.0.1:9", ask=True)
    assert tracking.asked
    assert tracking.error
    answer = fitness.tracking_server(a_survey(*GOOD, tracking=tracking))
    assert answer.state == "note"
    assert "does not answer" in answer.text
    assert "intermoco sync" in answer.text
    assert "canary" not in answer.text + repr(tracking)


def test_witnesses_that_share_a_folder_see_each_other(tmp_path: Path) -> None:
    """Eight at once: one takes the name, none the lock, and what was written is what is read."""
    names = [DRIVER, *(f"10.0.0.{i} (node {i})" for i in range(7))]
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        digests = {name: Witness(name).write(str(tmp_path), 0) for name in names}
        assert len(set(map(str, digests.values()))) == 8
        claims: list[Storage] = []
        threads = [threading.Thread(target=lambda n=n: claims.append(Witness(n).claim(str(tmp_path)))) for n in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [claim.error for claim in claims] == [None] * 8
    assert sum(claim.won for claim in claims) == 1
    assert not any(claim.locked for claim in claims)
    known = {name: str(hashed) for name, hashed in digests.items()}
    seen = [Witness(name).look(str(tmp_path), known, 0) for name in names]
    assert {storage.unseen for storage in seen} == {()}
    assert len({storage.owner for storage in seen}) == 1
    late = Witness("late").claim(str(tmp_path))  # the lock is free by now, the name is not
    assert late.locked
    assert not late.won

    first = next(path for path in tmp_path.iterdir() if hashlib.sha256(_content(path)).hexdigest() == known[DRIVER])
    first.write_bytes(first.read_bytes()[:-1])
    assert Witness(names[1]).look(str(tmp_path), known, 0).unseen == (DRIVER,), "a file that is not whole is not seen"
    assert Witness("apart").write(str(tmp_path / "elsewhere"), 0) == Storage(error=APART)
    assert not (tmp_path / "elsewhere").exists()


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def test_bandwidth_is_measured(tmp_path: Path) -> None:
    written, read = Witness("a").write_bulk(str(tmp_path)), Witness("b").read_bulk(str(tmp_path), "a")
    assert written is not None
    assert read is not None
    assert min(written, read) > 1
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 32_000_000
    assert Witness("b").read_bulk(str(tmp_path), "nobody") is None


def test_the_code_is_that_of_all_rooms() -> None:
    files = code()
    for path in (
        "ssl_core/losses.py",
        "ssl_core/data/dataset.py",
        "analysis/ks.py",
        "tune_jobs/presets/quickstart.yaml",
    ):
        assert files[path] == hashlib.sha256((PROJECT / path).read_bytes()).hexdigest()[:16]
    assert digest(files) == digest(dict(reversed(files.items())))
    assert digest({**files, "ssl_core/losses.py": "changed"}) != digest(files)


def test_tracking_of_no_cluster_is_bad_input() -> None:
    done = CliRunner().invoke(app, ["doctor", "--tracking", "http://mlflow:5000"], env={"RAY_ADDRESS": ""})
    assert isinstance(done.exception, InputError)
    assert "--address" in str(done.exception)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What nodes_scenario.py saw of a head and three nodes on loopback, in namespaces that end with it."""
    alone = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
    up = "ip link set lo up && exec "
    if not shutil.which("unshare") or subprocess.run([*alone, "sh", "-c", up + "true"], check=False).returncode:
        pytest.skip("several nodes on one machine need namespaces of their own (unshare), which are not permitted here")
    # Ray's sockets want short names
    folder = Path("/tmp") / f"im-{secrets.token_hex(4)}"
    for name in ("shared", "cwd", "copy", "broken/tune_jobs"):
        (folder / name).mkdir(parents=True)
    for room in ("ssl_core", "analysis", "tune_jobs"):
        shutil.copytree(PROJECT / room, folder / "copy" / room, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "copy" / "ssl_core" / "losses.py").open("a") as file:
        file.write("# edited\n")
    (folder / "copy" / "intermoco-0.0.9.dist-info").mkdir()
    (folder / "copy" / "intermoco-0.0.9.dist-info" / "METADATA").write_text("Name: intermoco\nVersion: 0.0.9\n")
    (folder / "broken" / "tune_jobs" / "__init__.py").write_text("raise ImportError('not installed')\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"PYTHONPATH": str(PROJECT / "tests/startup"), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    scenario = [sys.executable, str(Path(__file__).with_name("nodes_scenario.py")), str(folder), "127.0.0.1:7391"]
    try:
        done = subprocess.run(
            [*alone, "sh", "-c", up + '"$@"', "sh", *scenario],
            env=environment, cwd=folder / "cwd", capture_output=True, text=True, check=False, timeout=560,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        left = {path.name for path in (folder / "shared").rglob("*")}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {**json.loads(done.stdout.splitlines()[-1]), "left": left}


def test_a_head_with_the_driver_on_it_is_as_good_as_a_local_run(seen: dict[str, Any]) -> None:
    assert seen["alone"] == ""


def test_two_good_nodes_are_fit_and_tell_everything(seen: dict[str, Any]) -> None:
    found = {name: Answer(*answer) for name, answer in seen["good"].items()}
    ignored = {"disks_of_nodes"}  # this machine's own
    assert {name: a.text for name, a in found.items() if a.state != "ok" and name not in ignored} == {}
    assert seen["two"] == ""
    assert seen["seconds"] < 15
    driver, (head, node) = seen["survey"]["driver"], seen["survey"]["nodes"]
    assert (head["node"]["head"], node["node"]["head"]) == (True, False)
    assert head["name"] != node["name"]
    for each in (head, node):
        assert each["facts"]["versions"] == driver["facts"]["versions"]
        assert each["facts"]["versions"]["python"] == sys.version.split()[0]
        assert {"ray", "torch", "torchvision", "numpy", "intermoco"} < set(each["facts"]["versions"])
        assert each["facts"]["code"] == digest(seen["files"])
        assert each["facts"]["devices"] is not None
        assert abs(each["offset"]) < 1, "one machine has one clock"
        assert min(each["storage"]["written"], each["storage"]["read"], each["network"]) > 0


def test_two_nodes_want_a_tracking_server(seen: dict[str, Any]) -> None:
    assert "mlflow.db is a file" in seen["sqlite"]
    assert "set tracking: {uri: http://...} in the study or MLFLOW_TRACKING_URI" in seen["sqlite"]
    assert "storage" not in seen["sqlite"]


def test_a_node_that_says_nothing_is_not_waited_for(seen: dict[str, Any]) -> None:
    assert seen["silent"]["silence"] == "gave no answer within 3 s"
    assert seen["silent"]["facts"] is None


def test_the_doctor_names_each_node_that_is_not_fit(seen: dict[str, Any]) -> None:
    assert seen["doctor_exit"] == 1
    *_, last = seen["doctor"].splitlines()
    found = json.loads(last)
    assert found["failed"] == ["versions", "code", "shared storage"]
    texts = {line["name"]: line["text"] for line in found["cluster"]}
    fit = {each["name"] for each in seen["survey"]["nodes"]}
    bad = [each for each in found["survey"]["nodes"] if each["name"] not in fit]
    (odd,) = [each for each in bad if each["facts"]]
    (broken,) = [each for each in bad if each["error"]]
    assert odd["facts"]["versions"]["intermoco"] == "0.0.9"
    assert f"{odd['name']} has intermoco 0.0.9" in texts["versions"]
    assert f"{broken['name']} cannot run this intermoco (ImportError: not installed)" in texts["versions"]
    assert "same constraints.txt" in texts["versions"]
    assert f"{odd['name']} (ssl_core/losses.py)" in texts["code"]
    assert f"{odd['name']} {APART} in" in texts["shared storage"]
    assert not any(name in texts["versions"] + texts["code"] + texts["shared storage"] for name in fit)
    states = {line["name"]: line["state"] for line in found["cluster"]}
    assert states["tracking server"] == "note", "it is down, and that costs no study anything"
    assert "3 failed: versions, code, shared storage" in seen["doctor"]


def test_ablate_refuses_with_2_and_says_what_to_set(seen: dict[str, Any]) -> None:
    assert seen["exit"] == 2, seen["said"]
    said = seen["said"].partition("intermoco: ")[2]
    assert said.startswith("this cluster cannot run a study")
    for words in ("set --output to storage that all nodes mount", "same constraints.txt", "MLFLOW_TRACKING_URI"):
        assert words in said
    assert seen["left"] <= {"stages", ".lock", "quickstart"}, "nothing was packed, and no look left anything"
