"""The stage store: one folder a finished stage, published by one rename with its manifest inside.

    <root>/stages/<kind>-<key>/manifest.json   and the stage's files
    <root>/stages/.work/<kind>-<key>-<random>  while it is being made; never read
    <root>/stages/.pack/data-<key>             a dataset while it is being packed; a killed run's is gone on with
    <root>/stages/.train/<kind>-<key>          checkpoints and attempts of a pretraining under way

A folder with a manifest is finished; anything else is not there. `root` is a folder that all nodes see.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_core.errors import ConfigError, StageError
from tune_jobs.failures import patiently
from tune_jobs.stage import VERSIONS, Stage

MANIFEST = "manifest.json"


class Store:
    """Finished stages below `<root>/stages`."""

    def __init__(self, root: Path | str) -> None:
        if "://" in str(root):
            raise ConfigError(
                f"output {root} is a URI; the stage store needs a folder, shared by all nodes on a cluster "
                "(NFS, a mounted bucket): give its path"
            )
        self.root = Path(root).expanduser().resolve()
        self.stages = self.root / "stages"

    def path(self, stage: Stage) -> Path:
        """Where the finished stage is, or will be."""
        return self.stages / stage.folder

    def find(self, kind: str, key: str) -> Path:
        """Folder of a finished stage, by identity; StageError if it is not there."""
        folder = self.stages / f"{kind}-{key}"
        if not (folder / MANIFEST).is_file():
            raise StageError(f"stage {folder.name} is not finished in {self.stages}; run the study again to make it")
        return folder

    def finished(self, stage: Stage) -> bool:
        """Whether it is there. Waits while storage refuses to tell."""
        return patiently((self.path(stage) / MANIFEST).is_file)

    def manifest(self, stage: Stage) -> dict[str, Any]:
        """The stage's manifest; StageError where it cannot be read."""
        return read_manifest(self.find(stage.kind, stage.key))

    def begin(self, stage: Stage) -> Path:
        """A new, empty working folder, on the same file system as the store so that publishing is one rename."""
        work = self.stages / ".work" / f"{stage.folder}-{uuid.uuid4().hex[:8]}"
        work.mkdir(parents=True)
        return work

    def train_folder(self, stage: Stage) -> Path:
        """Where a pretraining keeps its checkpoints, and notes its attempts, until it is published."""
        return self.stages / ".train" / stage.folder

    def forget_training(self, stage: Stage) -> None:
        """Remove the checkpoints of a pretraining that is published."""
        shutil.rmtree(self.train_folder(stage), ignore_errors=True)

    def publish(
        self, stage: Stage, work: Path, facts: Mapping[str, Any], *, digests: Mapping[str, str] | None = None
    ) -> Path:
        """Turn a working folder into a finished stage. `facts` (environment, seconds, ...) join the manifest.

        `digests` are the SHA-256 of files, by name below `work`, that are known already and need no reading again.

        Where the same stage was published meanwhile by somebody else, theirs stays and ours is dropped: the identity
        is the same, so are the results. Waits while storage refuses: the work may have taken hours.
        """
        patiently(lambda: self._publish(stage, work, facts, digests or {}))
        return self.path(stage)

    def _publish(self, stage: Stage, work: Path, facts: Mapping[str, Any], known: Mapping[str, str]) -> None:
        """Does what is left to do where an earlier call was cut short."""
        if not work.exists() and self.finished(stage):
            _flush(self.stages)
            return
        files = sorted(p for p in work.rglob("*") if p.is_file() and p != work / MANIFEST)
        manifest = {
            "kind": stage.kind,
            "version": VERSIONS.get(stage.kind, 0),
            "key": stage.key,
            "config": stage.config,
            "inputs": dict(stage.inputs),
            "files": {
                name: {"bytes": path.stat().st_size, "sha256": known.get(name) or file_digest(path)}
                for path in files
                for name in [path.relative_to(work).as_posix()]
            },
            **facts,
        }
        for path in files:
            _flush(path)
        _write_flushed(work / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
        try:
            work.rename(self.path(stage))
        except OSError:
            if not self.finished(stage):
                raise
            shutil.rmtree(work, ignore_errors=True)
        _flush(self.stages)

    def discard(self, work: Path) -> None:
        shutil.rmtree(work, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what a killed run left half-made. Call only while no other run uses this root."""
        shutil.rmtree(self.stages / ".work", ignore_errors=True)
        for folder in self.stages.glob(".train/*"):
            if (self.stages / folder.name / MANIFEST).is_file():  # killed between publishing and forgetting
                shutil.rmtree(folder, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """A finished stage's manifest, its files' sizes checked; StageError where they do not match, or lie elsewhere."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        sizes = {name: facts["bytes"] for name, facts in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StageError(f"{folder / MANIFEST} cannot be read ({error}); remove {folder} and run again") from error
    inside = folder.resolve()
    for name in (MANIFEST, *sizes):
        path = inside / name
        if path.resolve() != path or not path.is_relative_to(inside):  # MLflow is sent what lies there
            raise StageError(f"{folder / name} is a link or leads out of {folder}, and no stage is made so; remove it")
    for name, expected in sizes.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != expected:
            found = "missing" if size is None else f"{size} bytes"
            raise StageError(f"{path} is {found}, its manifest says {expected} bytes; remove {folder}, run again")
    return manifest


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_flushed(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
