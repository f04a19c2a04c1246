"""The doctor: what it says of a machine that is fit, of one that is not, and how it exits."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from rich.console import Console

from ssl_core.pretraining_invariants import queue_keeps_keys_at_its_wrap
from ssl_core.toy import Seen, Toy
from tune_jobs import doctor, machine
from tune_jobs.doctor import Line, examine, run, show
from tune_jobs.machine import Answer

LIGHT = (machine.python, machine.packages, machine.processor, machine.disk, machine.output_folder)


def test_this_machine_is_fit_for_the_tests_that_run_on_it(tmp_path: Path) -> None:
    root = tmp_path / "not" / "there"
    heard: list[str] = []
    found = examine(
        root, looks=LIGHT, invariants=(queue_keeps_keys_at_its_wrap,), before=heard.append, after=lambda _: None
    )
    assert found.failed == []
    assert heard == [line.name for line in (*found.machine, *found.method)]
    assert [line.name for line in found.method] == ["queue keeps keys at its wrap"]
    assert not (tmp_path / "not").exists(), "a look leaves nothing"
    by_name = {line.name: line.text for line in found.machine}
    assert by_name["python"].startswith(sys.version.split()[0])
    assert "torch 2." in by_name["packages"]
    assert "pytest" not in by_name["packages"]
    assert "GiB of memory" in by_name["processor"]
    json.dumps(found.as_json())


def test_a_failure_is_named_printed_and_exits_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken_law(toy: Toy) -> Seen:
        """Two and two are four."""
        return Seen(passed=False, text="2 + 2 = 5 [red]")

    def broken_look(root: Path) -> Answer:
        raise OSError("disk on fire")

    whole = doctor.examine
    monkeypatch.setattr(
        doctor, "examine", lambda root, **how: whole(root, looks=(broken_look,), invariants=(broken_law,), **how)
    )
    assert run(tmp_path, as_json=True) == 1
    printed = capsys.readouterr().out.splitlines()
    facts = json.loads(printed[-1])
    assert facts["failed"] == ["broken look", "broken law"]
    assert facts["method"][0]["text"] == "2 + 2 = 5 [red]"
    text = "\n".join(printed[:-1])
    assert "it stopped with OSError: disk on fire" in text
    assert "failed  broken law\n        2 + 2 = 5 [red]" in text
    assert "2 failed: broken look, broken law" in text

    monkeypatch.setattr(doctor, "examine", lambda root, **how: whole(root, looks=(), invariants=(), **how))
    assert run(tmp_path, as_json=False) == 0


def test_a_long_sentence_stays_beside_its_state() -> None:
    console = Console(width=40, record=True, force_terminal=False)
    show(Line(name="disk", state="note", text="word " * 20, seconds=0.0), console)
    first, *rest = console.export_text().splitlines()
    assert first.split() == ["note", "disk"]
    assert len(rest) > 1
    assert all(line.startswith(" " * 8 + "word") for line in rest)


def test_what_is_too_old_or_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = {
        "Requires-Python": [">=4.5"],
        "Requires-Dist": ["numpy>=999", "no-such-package>=1", 'no-such-extra>=1; extra == "x"', "torch>=2.0"],
    }
    monkeypatch.setattr(machine, "_recorded", recorded.__getitem__)
    assert machine.python(tmp_path) == Answer("failed", f"{sys.version.split()[0]} runs, intermoco needs >=4.5")
    state, text = machine.packages(tmp_path)
    assert state == "failed"
    assert "numpy is " in text
    assert "intermoco needs >=999; no-such-package is not installed: install intermoco again" in text
    assert "no-such-extra" not in text
    monkeypatch.setattr(machine, "_recorded", lambda field: [])
    assert machine.packages(tmp_path).state == "note"


@pytest.mark.parametrize(("free", "state"), [(2**29, "failed"), (2 * 2**30, "note"), (2**40, "ok")])
def test_a_full_disk_fails_and_a_small_one_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**41, 0, free))
    assert machine.disk(tmp_path / "deep" / "er").state == state


def test_an_output_that_is_no_folder_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    state, text = machine.output_folder(tmp_path / "file")
    assert state == "failed"
    assert "give another --output" in text
    assert (tmp_path / "file").exists()


def test_a_container_with_a_limit_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    assert machine.processor(tmp_path) == Answer(
        "note", "0.5 cores, 1.0 GiB of memory: less than 4 GiB, so a study may be killed for memory"
    )
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.processor(tmp_path).state == "ok"


def test_sockets_of_a_child_process_are_seen_with_their_address() -> None:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        own.listen()
        code = (
            "import socket; s = socket.socket(); s.bind(('0.0.0.0', 0)); s.listen(); "
            "print(s.getsockname()[1], flush=True); input()"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as child:
            assert child.stdout is not None
            port = int(child.stdout.readline())
            found = machine.listening(os.getpid())
            child.communicate("\n")
        assert found is not None
        addresses = {int(name.split()[-1]): address for address, name in found}
        assert addresses[own.getsockname()[1]] in machine.LOOPBACK
        assert addresses[port] not in machine.LOOPBACK


def test_ray_that_listens_outside_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a real local Ray does not; both looks share its start."""
    real: list[set[tuple[str, str]] | None] = []

    def listening(root: int) -> set[tuple[str, str]] | None:
        real.append(machine_listening(root))
        return {("00000000", "gcs_server port 6379")}

    machine_listening = machine.listening
    monkeypatch.setattr(machine, "listening", listening)
    state, text = machine.local_ray(tmp_path)
    assert (state, text) == ("failed", "Ray listens beyond this machine: gcs_server port 6379 (00000000)")
    assert real[0]
    assert {address for address, _ in real[0]} <= machine.LOOPBACK


def test_mlflows_store_opens_and_none_is_left(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    assert machine.mlflow_store(root) == Answer("ok", f"a store can be made at sqlite:///{root}/mlflow.db")
    assert not root.exists()
    root.mkdir()
    (root / "mlflow.db").write_text("no database at all, but long enough to be taken for one" * 40)
    state, text = machine.mlflow_store(root)
    assert state == "failed"
    assert "does not open" in text
