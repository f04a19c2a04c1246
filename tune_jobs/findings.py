"""Finished stages to tables and report: reads the store, computes nothing that a stage computes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tune_jobs.audit import accepted, opened
from tune_jobs.coherence import label_fraction
from tune_jobs.labels import write_labels
from tune_jobs.locks import require_no_links
from tune_jobs.origin import git_commit
from tune_jobs.plan import Plan, as_config
from tune_jobs.prepare import summary
from tune_jobs.protocol import departures
from tune_jobs.readiness import queues, warnings
from tune_jobs.search.findings import search_findings
from tune_jobs.search.promotion import Promoted
from tune_jobs.stage import Stage, canonical
from tune_jobs.store import Store
from tune_jobs.study import SHARED, Study
from tune_jobs.tracking_page import tracked

if TYPE_CHECKING:
    from analysis.report import Facts
    from analysis.search import SearchFindings
    from analysis.tables import Finished


def write_report(
    found: Promoted, store: Store, failed: Mapping[str, str], command: str, *, always: bool = False
) -> dict[str, Any]:
    """Tables and page from what is finished; returns their paths. Built anew where what they show has changed.

    Stages that are not finished are named in the report. `always` builds it in any case. Raises StageError where the
    dataset is not even packed, and InputError where a link leads out of the study's folder.
    """
    from analysis.report import Facts, build

    study, full = found.study, found.plan
    require_no_links(study.study, store)
    folder = store.root / study.study
    data = next(full.of_kind("data"))
    finished = [finished_stage(s, store) for s in full.stages if store.finished(s)]
    waiting = {s.name: "not finished" for s in full.by_key.values() if not store.finished(s)}
    manifests = [store.manifest(s) for s in full.by_key.values() if store.finished(s)]
    dataset, accepted_findings = _dataset(study, full, store, summary(store.find("data", data.key)))
    facts = Facts(
        name=study.study,
        question=study.question,
        command=command,
        dataset=dataset,
        arms={name: None if arm is None else as_config(arm) for name, arm in study.arms.items()},
        downstream=_downstream(study),
        protocol=study.protocol,
        switches=departures(study),
        accepted=accepted_findings,
        notes=(*_warnings(study, dataset), *_scales(full, store)),
        baseline=study.baseline,
        metric=study.downstream.metric,
        seeds=study.seeds,
        versions=_versions(manifests),
        git_commits=tuple(sorted({m["git_commit"] for m in manifests if m.get("git_commit")})),
        tracking=tracked(study, full, store),
        decision=dataclasses.replace(study.decision, fraction=label_fraction(study.decision, study.downstream)),
        promote=_promoting(command),
        failed={**waiting, **failed},
    )
    page, mark = folder / "report" / "index.html", folder / "report" / ".shows"
    searched = search_findings(found)
    shows = _digest(facts, finished, searched)
    if always or not page.is_file() or not mark.is_file() or mark.read_text() != shows:
        mark.unlink(missing_ok=True)
        write_labels(study, full, store, folder / "tables")
        build(facts, finished, folder / "tables", folder / "report", searched)
        mark.write_text(shows)
    return {
        "report": str(page),
        "tables": [str(p) for p in sorted((folder / "tables").glob("*.csv"))],
    }


def _promoting(command: str) -> str:
    """The command that promotes, of the one that made the study: `--address` is no option of it."""
    words = [word for word in shlex.split(command) if not word.startswith("--address=")]
    words[1:2] = ["promote"]
    if "--address" in words:
        place = words.index("--address")
        del words[place : place + 2]
    return shlex.join(words)


def _dataset(study: Study, full: Plan, store: Store, facts: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the page says of the dataset, its audit included, and of the findings that the study accepts."""
    from ssl_core.data.audit import queue_findings

    stage = next(full.of_kind("audit"))
    if not store.finished(stage):
        return facts, ()
    audit = opened(store, stage)
    about_queues = queue_findings(facts["n"]["train"], queues(study, facts["n"]["train"]))
    rows = [*audit.as_rows(), *(finding.as_row() for finding in about_queues)]
    return {**facts, "audit": rows}, accepted(study, audit)


def _downstream(study: Study) -> dict[str, Any]:
    """Fine-tuning of all weights, with what it shares with the linear runs."""
    down = study.downstream
    shared = {name: getattr(down, name) for name in SHARED}
    return as_config(dataclasses.replace(down.full, **shared))


def _warnings(study: Study, dataset: Mapping[str, Any]) -> list[str]:
    arms = [arm for arm in study.arms if study.dataset_of(arm) == study.dataset]
    found = warnings(study, arms, dataset["n"]["train"], dataset["channels"])
    return [f"{text[:1].upper()}{text[1:]}." for text in found]


def _scales(full: Plan, store: Store) -> Iterator[str]:
    """What `scale: auto` picked: a sentence an arm, the mean over its finished seeds."""
    picked: dict[str, dict[str, list[float]]] = {}
    for stage in full.of_kind("pretrain"):
        losses = [name for name in ("mse", "barlow") if (stage.config[name] or {}).get("scale") == "auto"]
        if losses and store.finished(stage):
            lines = (store.path(stage) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            for name, value in json.loads(lines[-1]).items():
                if name.startswith(tuple(f"scale_{loss}_" for loss in losses)):
                    of_arm = picked.setdefault(stage.labels["arm"], {})
                    of_arm.setdefault(name.removeprefix("scale_"), []).append(value)
    for arm, scales in picked.items():
        means = [f"{name.replace('_', ' of block ')} {fmean(values):.3g}" for name, values in sorted(scales.items())]
        yield (
            f"Arm {arm} measured its scales at the start, where each block's loss then equals InfoNCE "
            f"(mean over seeds): {', '.join(means)}."
        )


def finished_stage(stage: Stage, store: Store) -> Finished:
    """A finished stage as the analyses see it."""
    from analysis.tables import Finished

    folder = store.path(stage)
    rows, manifest = folder / "rows.json", store.manifest(stage)
    return Finished(
        kind=stage.kind,
        key=stage.key,
        labels=stage.labels,
        folder=folder,
        rows=json.loads(rows.read_text()) if rows.is_file() else (),
        wall_seconds=manifest["wall_seconds"],
        accelerator_seconds=manifest["accelerator_seconds"],
        peak_memory=manifest.get("peak_memory"),
        device=manifest["environment"].get("device", ""),
    )


def _digest(facts: Facts, finished: Sequence[Finished], searched: SearchFindings | None) -> str:
    """What a page shows, and the code that draws it, in one hash."""
    shown = {
        "search": repr(searched and (searched.trials.to_csv(), searched.importances.to_csv(), searched.promoted)),
        "facts": dataclasses.asdict(facts),
        "stages": [[stage.key, dict(stage.labels)] for stage in finished],
        "code": [version("intermoco"), git_commit()],
    }
    return hashlib.sha256(canonical(shown).encode()).hexdigest()


def _versions(manifests: list[dict[str, Any]]) -> dict[str, str]:
    """Package versions that the stages ran with; all of them where they differ."""
    seen: dict[str, set[str]] = {}
    for manifest in manifests:
        for name, value in manifest["environment"].items():
            if isinstance(value, str):
                seen.setdefault(name, set()).add(value)
    return {name: ", ".join(sorted(values)) for name, values in sorted(seen.items())}


_ARMS_ABREAST = 6  # in the terminal's table


def scores_at_a_glance(tables: Path, metric: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows for the terminal: a mode and label fraction a row, an arm a column (of many arms, the other way
    round); mean and half the range.

    An arm without pretraining stands beside those that are fine-tuned in full: both train all weights.
    """
    import pandas as pd

    parts = [pd.read_csv(tables / f"{name}.csv") for name in ("linear", "label_efficiency")]
    scores = pd.concat([p for p in parts if len(p)] or parts)
    scores = scores[scores["metric"] == metric].drop_duplicates(["stage", "arm"]).replace({"mode": {"scratch": "full"}})
    arms = list(dict.fromkeys(scores["arm"]))
    groups: Any = scores.sort_values("label_fraction", kind="stable").groupby(["mode", "label_fraction"], sort=False)
    rows = []
    for (mode, fraction), part in sorted(groups, key=lambda group: group[0][0] != "linear"):
        cells = (part.loc[part["arm"] == arm, "value"] for arm in arms)
        texts = (f"{v.mean():.3f} ± {(v.max() - v.min()) / 2:.3f}" if len(v) else "" for v in cells)
        rows.append([mode, f"{100 * fraction:g}%", *texts])
    header = ["mode", "labels", *arms]
    if len(arms) <= _ARMS_ABREAST:
        return header, rows
    columns = list(zip(header, *rows, strict=True))  # too many for a line: an arm a row
    return ["arm", *(f"{mode} {labels}" for mode, labels in (row[:2] for row in rows))], [list(c) for c in columns[2:]]
