"""The audit as a stage, and what of it stops a study."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ssl_core.errors import DataError
from tune_jobs.stage import Stage
from tune_jobs.store import Store
from tune_jobs.study import Study

if TYPE_CHECKING:
    from ssl_core.data.audit import Audit
    from ssl_core.data.dataset import Dataset

FILE = "audit.json"


def audited(store: Store, stage: Stage, dataset: Dataset, facts: Mapping[str, Any]) -> tuple[Audit, bool]:
    """The audit of a packed dataset, and whether it was made just now. It depends on the packed dataset alone."""
    from ssl_core.data.audit import audit

    if store.finished(stage):
        return opened(store, stage), False
    started, clock = time.time(), time.monotonic()
    work = store.begin(stage)
    try:
        found = audit(dataset, store.find("data", stage.inputs["data"]))
        (work / FILE).write_text(json.dumps(found.as_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        seconds = {"started": started, "wall_seconds": time.monotonic() - clock, "accelerator_seconds": 0.0}
        store.publish(stage, work, {**facts, **seconds, "environment": {"cpus": os.cpu_count()}})
    except BaseException:
        store.discard(work)
        raise
    return found, True


def opened(store: Store, stage: Stage) -> Audit:
    """The finished audit."""
    from ssl_core.data.audit import Audit

    return Audit.from_json(json.loads((store.path(stage) / FILE).read_text(encoding="utf-8")))


def enforce(study: Study, audit: Audit) -> None:
    """DataError that names each finding which stops the study and is not accepted by its YAML."""
    from ssl_core.data.audit import stopping

    found = stopping(audit, study.dataset.accept)
    if not found:
        return
    names = [finding.name for finding in found]
    said = "\n".join(f"  {finding.name}: {finding.text}" for finding in found)
    raise DataError(
        f"the audit of {study.dataset.name or study.dataset.source} stops this study:\n{said}\n"
        f"mend the data, or accept by name what cannot be mended: dataset.accept: "
        f"[{', '.join([*study.dataset.accept, *names])}]"
    )


def accepted(study: Study, audit: Audit) -> tuple[str, ...]:
    """A sentence for each finding that would have stopped the study, had its YAML not accepted it."""
    from ssl_core.data.audit import stopping

    return tuple(finding.text for finding in stopping(audit, ()) if finding.name in study.dataset.accept)
