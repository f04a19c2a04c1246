"""Packing on a real Ray leaves the bytes that packing in process leaves; a study's dataset is packed once."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ssl_core.data import planning
from ssl_core.data.config import DatasetConfig
from ssl_core.data.dataset import Dataset
from ssl_core.data.packing import pack
from ssl_core.errors import DataError
from tune_jobs import packing
from tune_jobs.cluster import local_ray
from tune_jobs.packing import Bar, OnRay, over_tasks
from tune_jobs.prepare import packed, planned
from tune_jobs.store import Store


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(60):
        path = tmp_path / "tree" / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(8, 8), dtype=np.uint8)).save(path)
    return tmp_path / "tree"


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "SHARD_BYTES", 8 * 8 * 10)  # ten images


def files(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "dataset.json"
    }


def fail_or_die(task: tuple[Path, str]) -> int:
    """Tells its process; the first time, dies without a word."""
    folder, what = task
    if what == "fail":
        raise DataError("image 3 is odd")
    if what == "die" and not (folder / "died").exists():
        (folder / "died").touch()
        os._exit(1)
    return os.getpid()


def test_ray_leaves_the_bytes_that_one_process_leaves(tree: Path, tmp_path: Path) -> None:
    config = DatasetConfig(source="folder", path=str(tree))
    alone = pack(config, tmp_path / "alone")
    started = []

    @contextlib.contextmanager
    def start() -> Iterator[None]:
        started.append(True)
        with local_ray(cpus=2):
            yield

    with OnRay(start) as run:
        spread = pack(config, tmp_path / "spread", run=run)
        assert started == [True]
        pids = set(over_tasks(fail_or_die, [(tmp_path, "ok"), (tmp_path, "die"), (tmp_path, "ok")]))
        assert os.getpid() not in pids
        assert (tmp_path / "died").exists()  # and was tried again elsewhere
        with pytest.raises(DataError, match="image 3 is odd"):
            list(over_tasks(fail_or_die, [(tmp_path, "ok"), (tmp_path, "fail")]))
    assert files(tmp_path / "alone") == files(tmp_path / "spread")
    assert (alone.mean, alone.std) == (spread.mean, spread.std)


def no_ray() -> Any:
    raise AssertionError("Ray was started")


def test_one_shard_needs_no_ray(tmp_path: Path) -> None:
    with OnRay(no_ray) as run:
        assert list(run(str, [1])) == ["1"]
        assert list(run(str, [])) == []
        with pytest.raises(AssertionError, match="Ray was started"):
            list(run(str, [1, 2]))


def test_arrays_are_packed_without_ray_and_published_once(tmp_path: Path) -> None:
    study, store = study_of(DatasetConfig(source="digits")), Store(tmp_path)
    stage = next(planned(study, store).of_kind("data"))
    dataset, now = packed(study.dataset, store, stage, {"git_commit": "c"}, on_ray=no_ray)
    assert now
    assert len(dataset) == 1797
    manifest = store.manifest(stage)
    for name, facts in manifest["files"].items():
        assert facts["sha256"] == hashlib.sha256((store.path(stage) / name).read_bytes()).hexdigest()
    assert {"images/00000.npy", "likeness.npz", "inventory.npz", "unreadable.json"} <= set(manifest["files"])
    assert packed(study.dataset, store, stage, {}, on_ray=no_ray)[1] is False


def study_of(dataset: DatasetConfig) -> Any:
    """What packing looks at of a study."""
    from studies import miniature

    return dataclasses.replace(miniature(), dataset=dataset)


def folder_study(tree: Path) -> Any:
    return study_of(DatasetConfig(source="folder", path=str(tree)))


def test_a_killed_packing_is_gone_on_with_and_moved_not_copied(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, store = folder_study(tree), Store(tmp_path / "root")
    stage = next(planned(study, store).of_kind("data"))
    made: list[int] = []

    def few(function: Any, tasks: Any) -> Iterator[Any]:
        for task in tasks:
            if len(made) == 2:
                raise KeyboardInterrupt
            made.append(task.index)
            yield function(task)

    monkeypatch.setattr(packing, "over_tasks", few)
    with pytest.raises(KeyboardInterrupt):
        packed(study.dataset, store, stage, {}, on_ray=contextlib.nullcontext)
    assert not store.finished(stage)
    with pytest.raises(DataError):
        Dataset.open(store.stages / ".pack" / stage.folder)
    store.sweep()  # as the next run does
    inodes = {p.name: p.stat().st_ino for p in (store.stages / ".pack" / stage.folder / "images").iterdir()}
    assert sorted(inodes) == ["00000.npy", "00001.npy"]
    monkeypatch.setattr(packing, "over_tasks", lambda function, tasks: map(function, tasks))
    dataset, now = packed(study.dataset, store, stage, {}, on_ray=contextlib.nullcontext)
    assert now
    assert dataset.details["packing"]["resumed"] == 20
    final = store.path(stage) / "images"
    assert all((final / name).stat().st_ino == inode for name, inode in inodes.items())
    assert not (store.stages / ".pack" / stage.folder).exists()


def test_two_studies_of_one_dataset_pack_it_once(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, store = folder_study(tree), Store(tmp_path / "root")
    stage = next(planned(study, store).of_kind("data"))
    made: list[int] = []

    def counted(function: Any, tasks: Any) -> Iterator[Any]:
        for task in tasks:
            made.append(task.index)
            yield function(task)

    monkeypatch.setattr(packing, "over_tasks", counted)
    results: list[bool] = []

    def one() -> None:
        results.append(packed(study.dataset, store, stage, {}, on_ray=contextlib.nullcontext)[1])

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False, True]
    assert sorted(made) == list(range(6))


def test_shards_are_not_read_again_to_be_published(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tune_jobs import store as module

    read: list[str] = []
    monkeypatch.setattr(module, "file_digest", lambda path: read.append(path.name) or "0" * 64)
    monkeypatch.setattr(packing, "over_tasks", lambda function, tasks: map(function, tasks))
    study, store = folder_study(tree), Store(tmp_path / "root")
    stage = next(planned(study, store).of_kind("data"))
    packed(study.dataset, store, stage, {}, on_ray=contextlib.nullcontext)
    assert "labels.npy" in read
    assert not [name for name in read if name[0].isdigit()]


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=120), text


def test_progress_in_plain_lines_comes_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(packing.time, "monotonic", lambda: now[0])
    out, text = console(terminal=False)
    with Bar("packing cxr14", console=out) as bar:
        bar(1000, 5000, 0)  # 1,000 of an earlier run
        for second in range(1, 41):
            now[0] = 100.0 + second
            bar(1000 + 100 * second, 5000, 2_500_000 * second)
    lines = text.getvalue().splitlines()
    assert lines == [
        "packing cxr14: 2,000 of 5,000 images, 100 images/s, 2.5 MB/s, 30.0 s left",
        "packing cxr14: 3,000 of 5,000 images, 100 images/s, 2.5 MB/s, 20.0 s left",
        "packing cxr14: 4,000 of 5,000 images, 100 images/s, 2.5 MB/s, 10.0 s left",
        "packing cxr14: 5,000 of 5,000 images, 100 images/s, 2.5 MB/s, in 40.0 s",
    ]


def test_what_is_done_in_a_moment_says_nothing_and_a_terminal_sees_a_bar() -> None:
    out, text = console(terminal=False)
    with Bar("packing digits", console=out) as bar:
        bar(0, 10, 0)
        bar(10, 10, 100)
    assert text.getvalue() == ""
    out, text = console(terminal=True)
    with Bar("packing digits", console=out) as bar:
        bar(0, 10, 0)
        bar(4, 10, 100)
    assert "packing digits" in text.getvalue()
    assert "4 of 10 images" in text.getvalue()
