"""The files of each promotion: `<root>/<study>/promotion/<n>/` with card.md, its plot, gates.json and exports.

One is made in `.new` and takes its number by a rename, once its version in MLflow is complete. What a killed process
left in `.new` is finished where its version is complete, else removed: `record.json`, written before, says which.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tune_jobs.promotion.runs import MODEL
from tune_jobs.store import Store
from tune_jobs.study import Study

RECORD = "record.json"


class Records:
    """The promotions of one study in one root; the root's lock is held."""

    def __init__(self, study: Study, store: Store) -> None:
        self.folder = store.root / study.study / "promotion"
        self.new = self.folder / ".new"

    @property
    def next(self) -> int:
        taken = [int(p.name) for p in self.folder.glob("[0-9]*") if p.name.isdigit()]
        return max(taken, default=0) + 1

    @contextlib.contextmanager
    def begun(self) -> Iterator[Path]:
        """An empty folder for the files of the next promotion.

        What comes to nothing is removed at the end; what has a version by then stays for `mend`, as after a kill.
        """
        shutil.rmtree(self.new, ignore_errors=True)
        self.new.mkdir(parents=True)
        try:
            yield self.new
        finally:
            if not (self.new / RECORD).is_file():
                shutil.rmtree(self.new, ignore_errors=True)  # not there where it has its number by now

    def say(self, facts: dict[str, Any]) -> None:
        """Which version the files belong to, before it is complete."""
        (self.new / RECORD).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def publish(self) -> Path:
        """Give the folder its number. The model in it is left out: MLflow has it, and the stage makes it anew."""
        shutil.rmtree(self.new / MODEL, ignore_errors=True)
        place = self.folder / str(self.next)
        self.new.rename(place)
        return place

    def mend(self, complete: Callable[[str, str], bool]) -> None:
        """Finish or remove what was left; `complete` knows of a model's name and version whether it is."""
        if not self.new.exists():
            return
        said = self.new / RECORD
        facts = json.loads(said.read_text(encoding="utf-8")) if said.is_file() else {}
        if facts and complete(facts["model"], facts["version"]):
            self.publish()
        else:
            shutil.rmtree(self.new)
