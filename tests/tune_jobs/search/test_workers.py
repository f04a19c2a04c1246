"""Trials of several workers on a real local Ray: pruned, killed, failed; what they held is given back."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError

from ssl_core.errors import NonFiniteError, StageError
from tune_jobs.cluster import STATE_API, _dashboard_port
from tune_jobs.failures import Kind, kind
from tune_jobs.search.workers import Mailbox
from tune_jobs.store import read_manifest
from tune_jobs.workers import failure

pytestmark = pytest.mark.timeout(600)

HERE = Path(__file__).parent
GLOO = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Four trials; what happens to each, workers_on_ray.py says. It was seen with 20 too."""
    folder = tmp_path_factory.mktemp("workers")
    done = subprocess.run(
        [sys.executable, str(HERE / "workers_on_ray.py"), str(folder), "4"],
        capture_output=True, text=True, timeout=540, start_new_session=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def reports(folder: Path, number: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"reports-{number}").read_text().splitlines()]


def test_each_trial_ends_as_it_should(seen: tuple[Path, dict[str, Any]]) -> None:
    folder, found = seen
    assert found["ends"] == [[0, "DataError: no label is left"], [1, "pruned"], [2, "complete"], [3, "complete"]]
    assert [report["step"] for report in reports(folder, 1)] == [1]
    *told, end = reports(folder, 3)
    assert ([report["step"] for report in told], end["cached"]) == ([1, 2, 3], 1)


def test_what_was_killed_goes_on_from_its_checkpoint(seen: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = seen
    for number, steps, processes in ((0, [1, 2, 1, 2], 1), (2, [1, 2, 1, 2, 3], 2)):
        told = [report for report in reports(folder, number) if report["event"] == "evaluation"]
        assert [report["step"] for report in told] == steps
        assert told[0] | {"pid": 0, "time": 0} == told[2] | {"pid": 0, "time": 0}, "told again, not done again"
        for name in ("score", "ece"):
            assert told[1][name] == told[3][name], "done again from the same state"
        assert len({report["pid"] for report in told}) == processes
    *_, end = reports(folder, 2)
    manifest = read_manifest(folder / "runs" / "stages" / end["stages"][0])
    assert manifest["resumed_epoch"] == 1
    assert end["peak_memory"] == manifest["peak_memory"] > 50e6
    assert end["epochs"] == 3


def test_pruned_and_dead_trials_give_back_what_they_held(seen: tuple[Path, dict[str, Any]]) -> None:
    folder, found = seen
    assert found["groups"] == []
    assert found["cpus"] == 2
    (seconds,) = found["freed"]
    assert seconds < 10, "a pruned trial's workers"
    stages = folder / "runs" / "stages"
    assert list((stages / ".train").iterdir()) == []
    assert len(list((stages / ".work").iterdir())) == 1, "that of the killed process; the next run sweeps it"
    assert len(list(stages.glob("pretrain-*"))) == len(list(stages.glob("score-*"))) == 1


def test_a_local_ray_with_a_dashboard_listens_on_this_machine_alone(seen: tuple[Path, dict[str, Any]]) -> None:
    _, found = seen
    assert found["dashboard"]
    assert found["outside"] == []


def test_the_state_api_of_a_local_ray_is_known_to_its_processes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (None, "http://elsewhere:8265"):
        if before is None:
            monkeypatch.delenv(STATE_API, raising=False)
        else:
            monkeypatch.setenv(STATE_API, before)
        with _dashboard_port() as port:
            assert os.environ[STATE_API] == f"http://127.0.0.1:{port}"
        assert os.environ.get(STATE_API) == before


def test_an_error_tells_what_each_worker_says() -> None:
    own = NonFiniteError("step 3: mse_4 is NaN; lower it")
    assert failure({0: own, 1: NonFiniteError(str(own))}, HERE) is own
    assert failure({1: own}, HERE) is own
    several = failure({0: GLOO, 1: own, 2: RayActorError()}, HERE)
    assert isinstance(several, StageError)
    first, second, third = str(several).split("; worker ")
    assert first == "worker 1: NonFiniteError: step 3: mse_4 is NaN; lower it"
    assert second.startswith("0: RuntimeError: [gloo")
    assert third.startswith("2: RayActorError")


def test_a_worker_that_is_gone_is_no_error_of_the_training() -> None:
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
    from torch.distributed import DistBackendError

    lost = [RayActorError(), WorkerHealthCheckFailedError("killed", RayActorError()), GLOO, DistBackendError("NCCL")]
    assert {kind(error) for error in lost} == {Kind.LOST}
    own = [RuntimeError("shapes differ"), NonFiniteError("step 3"), OSError("disk full")]
    assert {kind(error) for error in own} == {Kind.OWN}


def test_a_mailbox_answers_each_letter_when_it_was_read() -> None:
    async def talk() -> tuple[list[Any], list[bool]]:
        mailbox = Mailbox()
        senders = [asyncio.create_task(mailbox.send(letter)) for letter in ("first", "second")]
        letters, answers = [], []
        for go_on in (True, False):
            letters.append(await mailbox.take())
            await asyncio.sleep(0)
            assert not senders[len(letters) - 1].done(), "answered before it was"
            await mailbox.answer(go_on)
            answers.append(await senders[len(letters) - 1])
        return letters, answers

    assert asyncio.run(talk()) == (["first", "second"], [True, False])
