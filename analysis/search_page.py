"""The report's section on a search, for the page and for report.md, and its CSV files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pandas import DataFrame

from analysis import search_tables
from analysis.facts import Facts
from analysis.search import SearchFindings, block_effects
from analysis.search_sentences import block_words, found, importance_words, pruning, tried
from analysis.tables import markdown_text


def section(search: SearchFindings, judged: DataFrame, facts: Facts) -> dict[str, Any]:
    """What the template draws: sentences, and tables where there is something to show."""
    blocks = effects(search)
    fresh = search_tables.fresh(search, judged, facts)
    return {
        "sentences": [*tried(search), *found(search, confirmed=fresh is not None)],
        "saved": pruning(search),
        "best": search_tables.best_trials(search),
        "fresh": fresh,
        "importances": search_tables.importances(search),
        "importance_words": importance_words(search),
        "blocks": search_tables.blocks(search, blocks),
        "block_words": block_words(search, blocks),
        "notes": list(search.notes),
    }


def section_markdown(shown: Mapping[str, Any], figures: Sequence[str]) -> str:
    """The section of report.md."""
    parts = ["## The search", *map(markdown_text, shown["sentences"])]
    parts += [shown[name].markdown() for name in ("best", "fresh") if shown[name]]
    parts += [markdown_text(shown["importance_words"])] if shown["importance_words"] else []
    parts += [shown[name].markdown() for name in ("importances", "blocks") if shown[name]]
    parts += [markdown_text(shown["block_words"])] if shown["block_words"] else []
    parts += [markdown_text(shown["saved"])] if shown["saved"] else []
    parts += [f"Figures: {', '.join(f'`{name}.png`' for name in figures)}."] if figures else []
    parts += ["\n".join(f"- {markdown_text(note)}" for note in shown["notes"])] if shown["notes"] else []
    return "\n\n".join(parts)


def write(search: SearchFindings | None, folder: Path) -> None:
    """tables/search.csv, search_importances.csv and search_blocks.csv; an earlier search's do not stay."""
    for name in ("search", "search_importances", "search_blocks"):
        (folder / f"{name}.csv").unlink(missing_ok=True)
    if search is not None:
        folder.mkdir(parents=True, exist_ok=True)
        tables = {"search": search.trials, "search_importances": search.importances, "search_blocks": effects(search)}
        for name, table in tables.items():
            table.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")


def effects(search: SearchFindings) -> DataFrame:
    """search_blocks.csv: `block_effects` on each objective."""
    tables = [block_effects(search.trials, objective) for objective in search.objectives]
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else tables[0]
