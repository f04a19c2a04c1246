"""Packing goes on where it was killed, stays within its memory, and leaves the same bytes however it is run."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from threadpoolctl import threadpool_info

from ssl_core.data import packing, planning, sharding
from ssl_core.data.config import DatasetConfig
from ssl_core.data.dataset import TRAIN, Dataset
from ssl_core.data.likeness import describe
from ssl_core.data.listing import listing
from ssl_core.data.packing import fingerprint, pack
from ssl_core.data.shards import Shards
from ssl_core.errors import DataError

SIDE = 8


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder of two classes, 20 images of 8 px and several sizes each, one of them cut short."""
    rng = np.random.default_rng(0)
    for c, name in enumerate(("benign", "malignant")):
        for i in range(20):
            path = tmp_path / "tree" / name / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(256, size=(8 + i % 3, 9 + c), dtype=np.uint8)).save(path)
    broken = tmp_path / "tree" / "benign" / "07.png"
    broken.write_bytes(broken.read_bytes()[:60])
    return tmp_path / "tree"


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "SHARD_BYTES", SIDE * SIDE * 6)  # six images


def config(tree: Path, **settings: Any) -> DatasetConfig:
    return DatasetConfig(source="folder", path=str(tree), **({"size": SIDE} | settings))


def content(folder: Path) -> dict[str, str]:
    """Digests of all files, times of packing left out."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.name == "dataset.json":
            said = json.loads(data)
            del said["details"]["packing"], said["summary"]["packing"]
            data = json.dumps(said).encode()
        found[path.relative_to(folder).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


def test_a_packed_folder_holds_what_is_promised_row_by_row(tree: Path, tmp_path: Path) -> None:
    data = pack(config(tree), tmp_path / "out")
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {
        "images", "labels.npy", "splits.npy", "groups.npy", "ids.npy", "likeness.npz", "inventory.npz",
        "unreadable.json", "dataset.json", "shards.json",
    }  # fmt: skip
    assert sorted(p.name for p in (out / "images").iterdir()) == [f"{i:05d}.npy" for i in range(7)]
    assert isinstance(data.images, Shards)
    assert len(data) == 39
    likeness, inventory = np.load(out / "likeness.npz"), np.load(out / "inventory.npz")
    expected = describe(data.images[:])
    assert set(likeness) == set(expected)
    for key in expected:
        assert (likeness[key] == expected[key]).all()
    for i, name in enumerate(data.ids):
        with Image.open(tree / str(name)) as image:
            assert (inventory["width"][i], inventory["height"][i]) == image.size
    assert (inventory["bits"] == 8).all()
    assert (inventory["low"] == data.images[:].min(axis=(1, 2, 3))).all()
    assert (inventory["high"] == data.images[:].max(axis=(1, 2, 3))).all()
    [left_out] = json.loads((out / "unreadable.json").read_text())
    assert left_out["id"] == "benign/07.png"


def test_the_summary_says_what_packing_cost(tree: Path, tmp_path: Path) -> None:
    summary = pack(config(tree, name="biopsies"), tmp_path / "out").summary
    packing = summary["packing"]
    assert (summary["name"], summary["source"], summary["notes"], summary["unreadable"]) == (
        "biopsies",
        "folder",
        [],
        1,
    )
    assert (packing["images"], packing["resumed"]) == (40, 0)
    assert packing["images_per_second"] == pytest.approx(40 / packing["seconds"])
    files = [p for p in tree.rglob("*.png") if p.name != "07.png" or p.parent.name != "benign"]
    assert packing["source_bytes"] == sum(p.stat().st_size for p in files)
    assert packing["bytes"] == sum(p.stat().st_size for p in (tmp_path / "out" / "images").iterdir())
    assert Dataset.open(tmp_path / "out").summary == summary


def test_the_threads_of_blas_do_not_spin_while_images_are_decoded(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    def described(images: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(threads())
        return describe_all(images)

    describe_all, seen, before = sharding._described, list[list[int]](), threads()
    monkeypatch.setattr(sharding, "_described", described)
    pack(config(tree), tmp_path / "out", threads=2)
    assert len(seen) == 39
    assert {n for each in seen for n in each} == {1}
    assert threads() == before


def test_shards_that_are_made_side_by_side_take_one_thread_each(tree: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def elsewhere(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterable[Any]:
        seen.extend(task.threads for task in tasks if isinstance(task, sharding.ShardTask))
        return map(function, tasks)

    pack(config(tree), tmp_path / "out", threads=3, run=elsewhere)
    assert seen == [1] * 7
    (tmp_path / "out" / "dataset.json").unlink()
    seen.clear()
    pack(config(tree, size=2), tmp_path / "out", threads=3, run=elsewhere)  # all in one shard
    assert seen == [3]


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_deviation_are_those_of_the_training_pixels(tree: Path, tmp_path: Path, channels: int) -> None:
    for path in sorted(tree.rglob("*.png"))[20:30]:
        Image.fromarray(np.random.default_rng(1).integers(256, size=(9, 9, 3), dtype=np.uint8)).save(path)
    data = pack(config(tree, channels=channels), tmp_path / "out")
    pixels = data.images[data.rows(TRAIN)] / 255
    assert data.mean == pytest.approx(tuple(pixels.mean(axis=(0, 1, 2))), abs=1e-14)
    assert data.std == pytest.approx(tuple(pixels.std(axis=(0, 1, 2))), abs=1e-14)


def test_statistics_never_read_the_pixels_again(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("the shards were read")

    monkeypatch.setattr(Shards, "_map", refuse)
    pack(config(tree), tmp_path / "out")


def backwards(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterable[Any]:
    return [function(task) for task in reversed(tasks)]


def in_threads(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterable[Any]:
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(function, tasks))


@pytest.mark.parametrize(("run", "threads"), [(backwards, 1), (in_threads, 2), (packing.serial, 5)])
def test_the_bytes_do_not_depend_on_who_decodes_in_which_order(
    tree: Path, tmp_path: Path, run: Any, threads: int
) -> None:
    pack(config(tree), tmp_path / "a", threads=1)
    pack(config(tree), tmp_path / "b", run=run, threads=threads)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_arrays_are_packed_in_this_process_like_files(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(256, size=(40, 8, 10, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(40) % 2)

    def refuse(_function: Any, _tasks: Any) -> Any:
        raise AssertionError("sent away")

    npz = DatasetConfig(source="npz", path=str(tmp_path / "a.npz"), crop=6)
    data = pack(npz, tmp_path / "out", run=refuse)
    assert (data.images[:] == images[:, 1:7, 2:8]).all()
    assert len(list((tmp_path / "out" / "images").iterdir())) == 14  # of three images each
    inventory = np.load(tmp_path / "out" / "inventory.npz")
    assert (inventory["width"] == 10).all()
    assert (inventory["height"] == 8).all()
    grey = pack(DatasetConfig(source="npz", path=str(tmp_path / "a.npz"), size=5, channels=1), tmp_path / "grey")
    expected = Image.fromarray(images[3]).convert("L").resize((5, 5), Image.Resampling.BILINEAR)
    assert (grey.images[3][..., 0] == np.asarray(expected)).all()


def test_progress_counts_to_the_end(tree: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int, int]] = []
    data = pack(config(tree), tmp_path / "out", progress=lambda *said: told.append(said))
    assert [done for done, _, _ in told] == [0, 6, 12, 18, 24, 30, 36, 40]
    assert {total for _, total, _ in told} == {40}
    assert told[-1][2] == data.details["packing"]["source_bytes"]


KILLED = """
import os, signal, sys
from pathlib import Path
from ssl_core.data import packing, planning
from ssl_core.data.config import DatasetConfig
planning.SHARD_BYTES = 64 * 6

def stopping(function, tasks):
    for i, task in enumerate(tasks):
        if i == 3:
            (task.folder / "images" / ".00003.npy.x.tmp").write_bytes(b"half a shard")
            os.kill(os.getpid(), signal.SIGKILL)
        yield function(task)

packing.pack(DatasetConfig(source="folder", path=sys.argv[1], size=8), Path(sys.argv[2]), run=stopping)
"""


def test_what_a_killed_run_finished_is_gone_on_with(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, str(tree), str(out)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    shards = sorted((out / "images").glob("[0-9]*.npy"))
    assert [p.name for p in shards] == ["00000.npy", "00001.npy", "00002.npy"]
    with pytest.raises(DataError):
        Dataset.open(out)
    before = [(p.stat().st_mtime_ns, p.stat().st_ino) for p in shards]
    packed = pack(config(tree), out)
    assert [(p.stat().st_mtime_ns, p.stat().st_ino) for p in shards] == before
    assert (packed.details["packing"]["images"], packed.details["packing"]["resumed"]) == (22, 18)
    pack(config(tree), tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


def interrupted(tree: Path, out: Path, after: int = 3) -> None:
    def stopping(function: Any, tasks: Sequence[Any]) -> Iterable[Any]:
        for i, task in enumerate(tasks):
            if i == after:
                raise KeyboardInterrupt
            yield function(task)

    with pytest.raises(KeyboardInterrupt):
        pack(config(tree), out, run=stopping)


@pytest.mark.parametrize("damage", ["shard", "facts", "no shard"])
def test_a_shard_that_a_crash_damaged_is_made_again(tree: Path, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    interrupted(tree, out)
    shard, facts = out / "images" / "00001.npy", out / "facts" / "00001.npz"
    match damage:
        case "shard":
            shard.write_bytes(shard.read_bytes()[:-9])
        case "facts":
            facts.write_bytes(facts.read_bytes()[:90])
        case "no shard":
            shard.unlink()
    assert pack(config(tree), out).details["packing"]["resumed"] == 12
    pack(config(tree), tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


def test_nothing_is_taken_over_from_other_images_or_settings(tree: Path, tmp_path: Path) -> None:
    interrupted(tree, tmp_path / "out")
    first = tree / "benign" / "00.png"
    Image.fromarray(np.full((9, 9), 7, np.uint8)).save(first)
    data = pack(config(tree), tmp_path / "out")
    assert (data.images[0] == 7).all()
    assert data.details["packing"]["resumed"] == 0
    assert pack(config(tree, size=4), tmp_path / "out").size == 4
    assert len(list((tmp_path / "out" / "images").iterdir())) == 2


def test_a_finished_folder_is_only_opened(tree: Path, tmp_path: Path) -> None:
    pack(config(tree), tmp_path / "out")
    before = content(tmp_path / "out")

    def refuse(_function: Any, _tasks: Any) -> Any:
        raise AssertionError("packed again")

    assert len(pack(config(tree), tmp_path / "out", run=refuse)) == 39
    assert content(tmp_path / "out") == before


def test_a_disk_that_is_too_small_is_said_before_anything_is_decoded(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 40 * SIDE * SIDE - 1}))
    with pytest.raises(DataError, match=r"need 0.0 GB, .* has 0.0 GB free; make room"):
        pack(config(tree), tmp_path / "out")
    assert not (tmp_path / "out" / "images").exists()


def test_files_that_only_this_machine_has_are_no_unreadable_images(tree: Path, tmp_path: Path) -> None:
    def elsewhere(function: Any, tasks: Sequence[Any]) -> Iterable[Any]:
        away = tree.rename(tree.with_name("away"))
        yield function(tasks[0])
        away.rename(tree)

    with pytest.raises(DataError, match=r"benign/00.png is here, but not on the machine"):
        pack(config(tree, channels=1), tmp_path / "out", run=elsewhere)


SERIES = """
import resource, sys
from pathlib import Path
from ssl_core.data.config import DatasetConfig
from ssl_core.data import planning
planning.SHARD_BYTES = int(sys.argv[3])
from ssl_core.data.packing import pack
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
pack(DatasetConfig(source="folder", path=sys.argv[1], size=8), Path(sys.argv[2]) / "warm", threads=2)
before = used()
pack(DatasetConfig(source="folder", path=sys.argv[1], size=256), Path(sys.argv[2]) / "out", threads=2)
print(used() - before)
"""


def test_memory_is_bounded_by_the_shard_and_not_by_the_dataset(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / "tree" / "ab"[i % 2] / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(64, 64), dtype=np.uint8)).save(path)
        for j in range(1, 50):
            path.with_name(f"{i:04d}-{j}.png").symlink_to(path.name)
    shard, whole = 8 << 20, 2000 * 256 * 256
    done = subprocess.run(
        [sys.executable, "-c", SERIES, str(tmp_path / "tree"), str(tmp_path), str(shard)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 4 * shard < whole / 3


# identity


def write_csv(path: Path, rows: Iterable[str]) -> None:
    path.write_text("\n".join(["path,label", *rows]) + "\n")


@pytest.fixture
def manifest(tree: Path) -> Path:
    write_csv(tree / "all.csv", (f"{p.relative_to(tree)},{p.parent.name}" for p in sorted(tree.rglob("*.png"))))
    return tree / "all.csv"


def manifest_config(path: Path, **settings: Any) -> DatasetConfig:
    return DatasetConfig(source="manifest", path=str(path), **settings)


def test_identity_follows_images_tables_and_settings(manifest: Path) -> None:
    before = fingerprint(manifest_config(manifest))
    assert fingerprint(manifest_config(manifest, name="x", accept=("unreadable_images",))) == before
    changes: dict[str, Callable[[], DatasetConfig]] = {
        "size": lambda: manifest_config(manifest, size=4),
        "crop": lambda: manifest_config(manifest, crop=4),
        "channels": lambda: manifest_config(manifest, channels=3),
        "intensity": lambda: manifest_config(manifest, intensity=(0, 100)),
        "split_seed": lambda: manifest_config(manifest, split_seed=2),
    }
    known = {before} | {fingerprint(change()) for change in changes.values()}
    assert len(known) == 1 + len(changes)
    image = manifest.parent / "benign" / "03.png"
    was = image.read_bytes()
    image.write_bytes(was + b"x")
    assert fingerprint(manifest_config(manifest)) not in known
    image.unlink()
    assert fingerprint(manifest_config(manifest)) not in known  # missing is a content too
    image.write_bytes(was)
    assert fingerprint(manifest_config(manifest)) == before
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([*lines[:2], lines[2].replace(",benign", ",malignant"), *lines[3:]]) + "\n")
    assert fingerprint(manifest_config(manifest)) not in known


def test_identity_stays_where_the_tree_is_moved(manifest: Path, tmp_path: Path) -> None:
    before = fingerprint(manifest_config(manifest))
    moved = manifest.parent.rename(tmp_path / "elsewhere") / manifest.name
    assert fingerprint(manifest_config(moved)) == before


def test_a_listing_that_says_otherwise_is_another_dataset(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a source's tables are: labels, groups and splits are part of the identity themselves."""
    import dataclasses

    from ssl_core.data import identity

    found = listing(config(tree))
    known = {identity.identity(config(tree), found)}
    for change in (
        {"labels": found.labels[::-1]},
        {"groups": found.ids[::-1]},
        {"given": np.arange(40, dtype=np.int8) % 3},
        {"class_names": ("x", "y")},
    ):
        known.add(identity.identity(config(tree), dataclasses.replace(found, **change)))
    assert len(known) == 5


def test_hashing_reports_progress_and_keeps_what_it_hashed_when_stopped(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssl_core.data import identity

    monkeypatch.setattr(identity, "_TOGETHER", 16)
    for path in tree.rglob("*.png"):
        os.utime(path, (time.time() - 60,) * 2)
    told: list[tuple[int, int, int]] = []

    def stop(done: int, total: int, read: int) -> None:
        told.append((done, total, read))
        if done == 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fingerprint(config(tree), cache=tmp_path / "digests.json", progress=stop)
    assert [done for done, _, _ in told] == [16, 32]
    assert len(json.loads((tmp_path / "digests.json").read_text())) == 32
    assert fingerprint(config(tree), cache=tmp_path / "digests.json") == fingerprint(config(tree))
