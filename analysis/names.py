"""Arms, scores and numbers as readers see them: in tables, figures and sentences alike."""

from __future__ import annotations

#: Scores that the paper prints in percent; the other metrics are shares or distances and stay as they are.
SCORES = ("auroc", "f1", "f1_macro")

_ARMS = {
    "moco": "MoCo",
    "moco_mse": "MoCo + MSE",
    "moco_barlow": "MoCo + Barlow Twins",
    "supervised": "Supervised",
    "paper_moco": "Paper: MoCo",
    "paper_mse": "Paper: MoCo + MSE",
    "paper_barlow": "Paper: MoCo + Barlow Twins",
}
_METRICS = {
    "auroc": "AUROC",
    "f1": "F1",
    "f1_macro": "macro F1",
    "cka_linear": "Linear CKA, debiased",
    "cka_rbf": "RBF CKA, debiased",
    "cka_authors": "RBF CKA as the paper's authors ran it",
    "cka": "RBF CKA",
    "ks": "KS distance",
    "ece": "Calibration error (ECE)",
    "brier": "Brier score",
}


def arm_name(arm: str) -> str:
    """An arm as readers know it from the paper; an arm of one's own keeps its name."""
    return _ARMS.get(arm, arm)


def metric_name(metric: str) -> str:
    return _METRICS.get(metric, metric)


def percent(fraction: float) -> str:
    """A label fraction in words: 0.01 is `1%`."""
    return f"{100 * fraction:.6g}%"


def number(value: float, metric: str) -> str:
    """A measurement with the decimals that it bears: scores as percent with one, CKA with two, distances with three."""
    text = f"{100 * value:.1f}" if metric in SCORES else f"{value:.{2 if metric.startswith('cka') else 3}f}"
    return text.replace("-", "−") if float(text) else text.removeprefix("-")
