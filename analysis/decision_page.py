"""The report's section on which configuration to ship: what validation says, what each costs, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.decision import recommend
from analysis.decision_words import rows, sentences
from analysis.facts import Facts
from analysis.names import percent
from analysis.search import SearchCost
from analysis.search_tables import TextTable
from analysis.search_words import capital
from analysis.tables import Finished, markdown_text
from ssl_core.errors import DataError, InputError

#: Columns of words; the others hold numbers.
_WORDS = ("arm", "mode", "within 1 s.e.", "front", "against the best")


@dataclass(frozen=True, kw_only=True)
class DecisionSection:
    """What the template draws. Without a `table` no configuration can be ranked; `sentences` says why."""

    sentences: tuple[str, ...]
    table: TextTable | None = None
    command: str = ""  # that promotes the recommended one

    def markdown(self) -> str:
        """The section of report.md."""
        parts = ["## Which configuration to ship", *map(markdown_text, self.sentences)]
        parts += [self.table.markdown(), f"```\n{self.command}\n```"] if self.table else []
        return "\n\n".join(parts)


def section(facts: Facts, finished: Sequence[Finished], search: SearchCost | None = None) -> DecisionSection | None:
    """The section; None where the study says nothing of a decision. Raises DataError for damaged predictions.

    `search`: what the arms took that a search found.
    """
    if facts.decision is None:
        return None
    try:
        decision = recommend(finished, facts.decision, metric=facts.metric, baseline=facts.compared_with or "")
    except DataError:
        raise
    except InputError as error:  # no model is finished yet, or its score is undefined: the page says so
        return DecisionSection(sentences=(f"{capital(str(error))}.",))
    header, body = rows(decision)
    fraction = percent(decision.label_fraction)
    table = TextTable(
        name="decision",
        caption=f"Configurations by validation, fine-tuned on {fraction} of the labels.",
        legend="Score: mean ± standard error over seeds. Within 1 s.e.: no worse than the best by more than one "
        "standard error of their difference, paired by seed. Front: no other is as good and as cheap. The arrow marks "
        "the one to ship.",
        columns=[(capital(name), name not in _WORDS) for name in header],
        groups={"": body},
    )
    return DecisionSection(
        sentences=tuple(sentences(decision, search=search)),
        table=table,
        command=f"{facts.promote} --arm {decision.chosen.arm}",
    )
