"""The model card: what a registered model is, how good it is, and what it is not for. Markdown, made of plain values.

MLflow shows Markdown with tables but no embedded pictures, and at most 5,000 characters of it. So its description is
the card without what matters least there; the whole card lies with the run, its calibration plot beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.description import has_groups, images
from analysis.names import metric_name
from analysis.tables import markdown_text as safe
from tune_jobs.promotion import markup
from tune_jobs.promotion.gates import Gate
from tune_jobs.promotion.measured import Measured
from tune_jobs.promotion.registry import DESCRIPTION

PLOT = "calibration.svg"
WARNING = (
    "**Not for clinical use.** Artificial intelligence in medicine is still at an early stage. The paper that this "
    "method comes from warns that no tool or model of this kind should be deployed without sufficient evaluation, nor "
    "without proper approval by the FDA or the regulator in charge. No score on this card is such an evaluation or "
    "approval."
)
#: Sections that the description in MLflow goes without where it would be too long, in this order.
_DROPPED = ("Protocol", "Gates", "By class", "By group", "Calibration", "Data", "Limits")


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says. Values come as they are; the card escapes them."""

    model: str  # the registered model's name
    study: str
    question: str
    arm: str
    seed: int
    why: str  # this arm and seed
    mode: str
    fraction: float
    pretraining: str  # in words
    dataset: Mapping[str, Any]  # the summary of dataset.json
    accepted: Sequence[str]  # sentences on findings that would have stopped the study
    notes: Sequence[str]  # of the audit's other findings
    protocol: str
    switches: Mapping[str, str]
    seeds: Mapping[int, float]  # validation score of each of the arm's seeds
    metric: str
    measured: Measured
    temperature: float
    gates: Sequence[Gate]
    reason: str | None  # why a gate was passed over
    lineage: Mapping[str, str]
    exports: Sequence[str]


def card(facts: CardFacts) -> str:
    """The whole card."""
    return _joined(facts, [*_sections(facts).items()])


def description(facts: CardFacts) -> str:
    """The card for MLflow's page, within its limit."""
    sections = _sections(facts)
    for name in ("", *_DROPPED):
        sections.pop(name, None)
        text = _joined(facts, [*sections.items()], "" if not name else _WHOLE)
        if len(text) <= DESCRIPTION:
            return text
    return text[: DESCRIPTION - 1] + "…"


_WHOLE = "The whole card is the file `card.md` of the run that this version comes from."


def _joined(facts: CardFacts, sections: Sequence[tuple[str, Sequence[str]]], note: str = "") -> str:
    title = f"# {safe(facts.model)}: {safe(facts.arm)}, seed {facts.seed}"
    parts = [title, f"> {WARNING}", *([note] if note else [])]
    for name, lines in sections:
        parts += [f"## {name}", *lines]
    return "\n\n".join(parts) + "\n"


def _sections(facts: CardFacts) -> dict[str, Sequence[str]]:
    return {
        "What it is for": [*_purpose(facts)],
        "Data": [*_data(facts)],
        "Protocol": [*_protocol(facts)],
        "Test scores": [*_scores(facts)],
        "By class": [*_classes(facts)],
        "By group": [*_groups(facts)],
        "Calibration": [*_calibration(facts)],
        "Gates": [*_gates(facts)],
        "Limits": [*_limits(facts)],
        "Where it comes from": [
            markup.bullets({name: f"`{markup.code(value)}`" for name, value in facts.lineage.items()})
        ],
        "How to use it": [*_use(facts)],
    }


def _purpose(facts: CardFacts) -> Iterator[str]:
    task = facts.dataset["task"]
    names = [safe(str(name)) for name in facts.dataset["class_names"]]
    what = "says of each label whether an image has it" if task == "multilabel" else "tells classes of images apart"
    yield (
        f"Research on the data below: the model {what}: {', '.join(names[:_FEW])}"
        f"{f' and {len(names) - _FEW} more' if len(names) > _FEW else ''}. It gives probabilities, no diagnosis."
    )
    if facts.question:
        yield f"The study {safe(facts.study)} asked: {safe(facts.question)}"
    yield f"Chosen because {safe(facts.why)}."


_FEW = 20


def _data(facts: CardFacts) -> Iterator[str]:
    data = facts.dataset
    yield f"{safe(str(data['name']))}: {images(data)}; fingerprint `{markup.code(str(data['fingerprint']))}`."
    grouped = has_groups(data)
    head = ["", "images", *(["groups"] if grouped else [])]
    names = {"train": "training", "val": "validation", "test": "test"}
    yield markup.table(
        head,
        [[names[s], f"{data['n'][s]:,}", *([f"{data['groups'][s]:,}"] if grouped else [])] for s in names],
    )
    yield f"Splits: {safe(str(data.get('splits', 'not said')))}."
    if facts.accepted:
        yield f"**Accepted in spite of the audit:** {safe(' '.join(facts.accepted))}"
    if facts.notes:
        yield f"The audit also noted: {safe(' '.join(facts.notes))}"


def _protocol(facts: CardFacts) -> Iterator[str]:
    whole = {"full": "all weights were fine-tuned", "scratch": "all weights were trained from scratch"}
    how = whole.get(facts.mode, "a linear classifier was trained on the frozen encoder")
    yield (
        f"{safe(facts.pretraining)} Then {how} on {100 * facts.fraction:g}% of the training labels, and the weights "
        f"selected on validation. Protocol {safe(facts.protocol)}"
        + (f", with {len(facts.switches)} settings of its own:" if facts.switches else ".")
    )
    if facts.switches:
        yield markup.bullets({f"`{markup.code(key)}`": safe(value) for key, value in facts.switches.items()})
    over = ", ".join(f"{value:.4f} (seed {seed})" for seed, value in facts.seeds.items())
    yield f"{metric_name(facts.metric)} on validation of the arm's seeds, of which this model is one: {over}."
    if facts.temperature != 1:
        yield (
            f"Logits are divided by the temperature {facts.temperature:.4g}, fitted on validation, before they become "
            "probabilities."
        )


def _scores(facts: CardFacts) -> Iterator[str]:
    rows = [
        [
            metric_name(str(row["metric"])),
            markup.share(row["value"]),
            markup.interval(row["low"], row["high"]),
            f"{row['n']:,}",
        ]
        for row in facts.measured.scores
    ]
    yield markup.table(["score", "test", "95% interval", "images"], rows)
    yield (
        f"Intervals are percentiles of {facts.measured.replicates:,} bootstrap resamples "
        f"{'of groups' if has_groups(facts.dataset) else 'of images'}. They say nothing of other seeds, hospitals or "
        "scanners."
    )


def _classes(facts: CardFacts) -> Iterator[str]:
    word = "label" if facts.dataset["task"] == "multilabel" else "class"
    rows = [
        [safe(c.name), f"{c.images:,}", markup.estimate(c.recall), markup.estimate(c.auroc)]
        for c in facts.measured.classes
    ]
    yield markup.table([word, "test images", "recall (95% interval)", "AUROC (95% interval)"], rows)
    if facts.dataset["task"] == "binary":
        yield "Recall of the first class is the specificity, of the second the sensitivity, both at 0.5."


def _groups(facts: CardFacts) -> Iterator[str]:
    found = facts.measured.groups
    if not found.sizes:
        yield "Each test image is its own group: how scores differ between patients, slides or sites is not known."
        return
    yield (
        f"{found.groups:,} groups (patients, slides) with {found.images:,} test images. Each group counted once, "
        f"{markup.estimate(found.accuracy)} of a group's images are called right; in the worst tenth of the groups at "
        f"most {markup.share(found.worst_decile)}; in {found.none_right:,} groups none."
    )
    yield markup.table(
        ["groups of", "groups", "images", "called right (95% interval)"],
        [[s.name, f"{s.groups:,}", f"{s.images:,}", markup.estimate(s.accuracy)] for s in found.sizes],
    )


def _calibration(facts: CardFacts) -> Iterator[str]:
    val, test = facts.measured.calibration["validation"], facts.measured.calibration["test"]
    yield (
        f"Expected calibration error {test.ece:.4f} and Brier score {test.brier:.4f} on test ({val.ece:.4f} and "
        f"{val.brier:.4f} on validation). The plot is `{PLOT}`, beside this card."
    )
    yield markup.table(
        ["probability", "test predictions", "mean probability", "happened"],
        [
            [f"{b.low:.1f} to {b.high:.1f}", f"{b.n:,}", markup.share(b.confidence), markup.share(b.happened)]
            for b in test.bins
        ],
    )


def _gates(facts: CardFacts) -> Iterator[str]:
    yield markup.bullets({("pass" if g.passed else "**FAIL**") + f", {g.name}": safe(g.sentence) for g in facts.gates})
    if facts.reason is not None:
        yield f"**Promoted by force.** The reason given: {safe(facts.reason)}"


def _limits(facts: CardFacts) -> Iterator[str]:
    yield (
        "Scores hold for images like those of this dataset, prepared and split as above. Nothing here was measured on "
        "another hospital, scanner, population or time, and nothing by age, sex or origin: the data does not say them."
    )
    if len(facts.seeds) < 2:
        yield "One seed was trained: what chance contributes is not known."
    yield (
        "The model answers any image that it can read, also one that shows something else altogether. Arm, seed and "
        "weights are recommended by validation scores alone; whoever names an arm may have seen the test scores, which "
        "the study's report shows."
    )


def _use(facts: CardFacts) -> Iterator[str]:
    yield (
        "The preprocessing is inside: give images as they are (uint8, any size, or the bytes of a file). The model's "
        "`requirements.txt` names the few packages that it needs. With MLFLOW_TRACKING_URI set to this MLflow, in "
        "Python:"
    )
    yield f'```\nmodel = mlflow.pyfunc.load_model("models:/{facts.model}@champion")\n```'
    yield "or as a server:"
    yield f"```\nmlflow models serve -m models:/{facts.model}@champion --env-manager local --port 5001\n```"
    if facts.exports:
        yield f"Exported as {', '.join(f'`{markup.code(name)}`' for name in facts.exports)}, beside this card."
