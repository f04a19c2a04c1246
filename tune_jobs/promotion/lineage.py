"""Where a registered model comes from: the tags of its version, and the facts of its card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from tune_jobs.audit import accepted, opened
from tune_jobs.origin import git_commit
from tune_jobs.plan import as_config
from tune_jobs.prepare import summary
from tune_jobs.promotion.candidate import Candidate, standing
from tune_jobs.promotion.card import CardFacts
from tune_jobs.promotion.evidence import manifest
from tune_jobs.promotion.gates import Gate
from tune_jobs.promotion.measured import measure
from tune_jobs.promotion.packing import Package
from tune_jobs.protocol import departures
from tune_jobs.search.promotion import Promoted
from tune_jobs.store import Store


def identity(found: Promoted, candidate: Candidate, store: Store) -> dict[str, str]:
    """Tags that two versions of one model share, whenever they were made."""
    return {
        "intermoco.stage": candidate.stage.folder,
        "intermoco.weights": manifest(candidate, store)["files"]["model.pt"]["sha256"],
        "intermoco.scaled": json.dumps(found.study.promotion.temperature),
    }


def code() -> str:
    """Of this package, which packs and registers: version and commit."""
    return f"intermoco {version('intermoco')}, {git_commit() or 'no commit known'}"


def exact(text: str) -> bool:
    """Whether `code` names the very code: a checkout with changes, or none, may be anything."""
    return not text.endswith(("+changes", "known"))


def tags(
    found: Promoted, candidate: Candidate, store: Store, package: Package, gates: Sequence[Gate]
) -> dict[str, str]:
    """All that leads back: to study, arm, seed, stage, data and code; and how the champion's standing is found."""
    stage, about = candidate.stage, manifest(candidate, store)
    told = {
        "study": found.study.study,
        "arm": candidate.arm,
        "seed": str(candidate.seed),
        "mode": str(stage.labels["mode"]),
        "label_fraction": str(stage.labels["label_fraction"]),
        "candidate": candidate.name,
        "metric": candidate.metric,
        "seeds": json.dumps({str(seed): s.key for seed, s in sorted(candidate.siblings.items())}),
        "dataset": package.dataset.name,
        "fingerprint": candidate.data.config["fingerprint"],
        "data": candidate.data.folder,
        "temperature": repr(package.temperature),
        "git_commit": str(about.get("git_commit")),
        "code": code(),
        "gates": "; ".join(f"{gate.name} {'pass' if gate.passed else 'FAIL'}" for gate in gates),
    }
    if encoder := stage.inputs.get("encoder"):
        told["encoder"] = f"pretrain-{encoder}"
    return identity(found, candidate, store) | {f"intermoco.{name}": value for name, value in told.items()}


def card_facts(
    found: Promoted,
    candidate: Candidate,
    store: Store,
    package: Package,
    gates: Sequence[Gate],
    *,
    model: str,
    reason: str | None,
    exports: Sequence[str],
    lineage: Mapping[str, str],
) -> CardFacts:
    """What the card says. Opens the test predictions, now that all gates are passed."""
    from analysis.description import losses

    study, arm = found.study, found.study.arms[candidate.arm]
    data, folder = summary(store.find("data", candidate.data.key)), store.path(candidate.stage)
    config: Mapping[str, Any] | None = None if arm is None else as_config(arm)
    audit = opened(store, next(found.plan.of_kind("audit")))
    return CardFacts(
        model=model,
        study=study.study,
        question=study.question,
        arm=candidate.arm,
        seed=candidate.seed,
        why=candidate.why,
        mode=str(candidate.stage.labels["mode"]),
        fraction=float(candidate.stage.labels["label_fraction"]),
        pretraining=losses(config),
        dataset=data,
        accepted=accepted(study, audit),
        notes=[finding.text for finding in audit.findings if finding.severity == "note"],
        protocol=study.protocol,
        switches=departures(study),
        seeds=standing(candidate, store).scores,
        metric=candidate.metric,
        measured=measure(candidate, folder, package.dataset.class_names, package.temperature),
        temperature=package.temperature,
        gates=gates,
        reason=reason,
        lineage=lineage,
        exports=exports,
    )
