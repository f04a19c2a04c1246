"""Trials on a real local Ray: killed, interrupted, gone on with; processes that die; errors that have to surface."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from marked_search import EPOCHS, line_search, opened, worth

pytestmark = pytest.mark.timeout(300)

HERE = Path(__file__).parent
TRIALS, KILLS = 8, 2  # what it is to show was seen with 20 trials and 5 kills too


def start(program: str, *words: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(HERE / program), *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def ended_well(process: subprocess.Popen[str]) -> Any:
    """What the program printed, which has to be all that was printed."""
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    assert err == ""
    return json.loads(out)


def left_over(session: int) -> list[str]:
    """Commands of living processes of the session, or that name its Ray's files."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            state, _, _, owner = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if state != "Z" and (int(owner) == session or f"intermoco-ray-{session}-" in line):
            found.append(line)
    return found


def gone(session: int, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while left := left_over(session):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def epochs_done(folder: Path) -> int:
    return sum(len(file.read_text().splitlines()) for file in folder.glob("epochs-*[0-9]"))


def history(folder: Path) -> list[tuple[Any, ...]]:
    ledger = opened(folder, line_search(trials=TRIALS))
    return [(t.number, t.state, dict(t.params), dict(t.values), dict(t.curve)) for t in ledger.trials()]


def without_ray(folder: Path) -> None:
    """The same search, one trial after the other in this process."""
    ledger = opened(folder, line_search(trials=TRIALS))
    while suggestion := ledger.next():
        score = 0.0
        for epoch in range(1, EPOCHS + 1):
            score = worth(suggestion.arm.learning_rate, epoch)
            if ledger.report(suggestion.number, epoch, score, {}):
                break
        else:
            ledger.complete(suggestion.number, {"score": score})


def test_a_search_that_is_killed_and_interrupted_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    without_ray(whole)
    chance = random.Random(KILLS)
    for kill in range(KILLS):
        process = start("marked_search.py", broken, TRIALS)
        before, more = epochs_done(broken), chance.randint(1, 8)
        while epochs_done(broken) < before + more:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.1))
        process.send_signal(signal.SIGINT if kill == 1 else signal.SIGKILL)
        out, err = process.communicate(timeout=60)
        assert process.returncode == (130 if kill == 1 else -signal.SIGKILL), err
        assert out + err == ""
        gone(process.pid)
    process = start("marked_search.py", broken, TRIALS)
    counts = ended_well(process)
    gone(process.pid)

    assert history(broken) == history(whole)
    assert counts["running"] == 0
    assert counts["complete"] + counts["pruned"] == TRIALS
    done = Counter(int(line.split()[0]) for line in (broken / "ends").read_text().splitlines())
    assert done == Counter(number for number, state, *_ in history(broken) if state == "complete"), "lost or repeated"
    for number, state, _, _, curve in history(broken):
        trained = (broken / f"epochs-{number}").read_text().splitlines()
        assert trained == [str(epoch) for epoch in range(1, (EPOCHS if state == "complete" else max(curve)) + 1)]
    assert not (broken / ".tune").exists()


def test_what_may_happen_to_a_trial_ends_that_trial_alone_and_what_happens_to_the_search_surfaces(
    tmp_path: Path,
) -> None:
    process = start("trials_on_ray.py", tmp_path)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    *said, last = out.splitlines()
    seen = json.loads(last)
    # 2 and 3 died once; 4 was pruned and died before the next trial had its process
    assert seen["ends"] == [
        [0, "complete"], [1, "ValueError: one line"], [2, "complete"], [3, "complete"], [4, "pruned"],
        [5, "it ended without a result"], [6, "complete"], [7, "pruned"],
    ]  # fmt: skip
    epochs = {0: [1, 2, 3], 2: [1, 2, 3], 3: [1, 1, 2, 3], 4: [1, 2], 5: [1, 2, 3], 6: [1, 2, 3], 7: [1, 2, 3]}
    assert seen["steps"] == [[number, epoch] for number, done in epochs.items() for epoch in done]
    assert [number for event, number, *_ in seen["events"] if event == "started"] == list(range(8))
    assert (tmp_path / "left-7").exists(), "the last trial was stopped before it had tidied up"

    tries = [(tmp_path / f"process-{number}").read_text().split() for number in range(8)]
    assert [len(pids) for pids in tries] == [1, 1, 2, 2, 1, 1, 1, 1]
    pids = [pid for trial in tries for pid in trial]
    assert len(set(pids)) == 4, "a process trains trial after trial, until it dies"

    assert seen["two"] == [[number, "complete"] for number in range(4)]
    assert seen["workers"] == [[0, "complete"], [1, "complete"]]
    assert seen["free"] == [2.0, 2.0], "the driver of two workers holds a CPU that they wait for"
    assert seen["none"] == []
    assert seen["error"] == "disk full"
    assert seen["left"] == []
    others = [line for line in (*said, *err.splitlines()) if "(raylet)" not in line]
    assert others == [], "Tune prints"
    gone(process.pid)
