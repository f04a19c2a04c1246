"""Finished stages to tidy tables, one row a measurement, and the files that hold them: CSV, LaTeX, Markdown.

The tables are the paper's: linear (Table 1), label_efficiency (2), reuse (3), probing (4), ks (5).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pandas import DataFrame

from analysis.layout import CAPTIONS, legend, paper_layout
from ssl_core.errors import StageError

__all__ = [
    "COLUMNS",
    "NAMES",
    "Finished",
    "frame",
    "latex",
    "markdown",
    "markdown_text",
    "paper_layout",
    "tidy",
    "write",
]

NAMES = ("linear", "label_efficiency", "reuse", "probing", "ks")
COLUMNS = (
    *("dataset", "arm", "seed", "mode", "label_fraction", "block", "metric"),
    *("value", "low", "high", "n", "stage"),
)
#: What tells one measurement from another within a table.
IDENTITY = ("dataset", "arm", "seed", "mode", "label_fraction", "block", "metric")

_FLOATS = (
    *("label_fraction", "value", "low", "high", "paper_low", "paper_high"),
    *("null", "null_high", "off_diagonal", "floor"),
)
_INTEGERS = ("seed", "block", "n", "reference_seed")


@dataclass(frozen=True)
class Finished:
    """One finished stage as a study sees it.

    `labels` hold arm, seed, mode and label_fraction as the plan names them; `rows` is the stage's rows.json, or ()
    for a kind that measures nothing. A stage shared by two arms comes twice, once under each arm's labels.
    """

    kind: str
    key: str
    labels: Mapping[str, object]
    folder: Path
    rows: Sequence[Mapping[str, object]] = ()
    wall_seconds: float = 0.0
    accelerator_seconds: float = 0.0  # of all its workers together; 0 where it ran without
    peak_memory: int | None = None  # bytes, of the worker that took most; None where nobody measured it
    device: str = ""  # the accelerator's name, or cpu

    @property
    def name(self) -> str:
        """The stage's folder name, `<kind>-<key>`."""
        return f"{self.kind}-{self.key}"


def tidy(dataset: str, finished: Sequence[Finished]) -> dict[str, DataFrame]:
    """The tables named in `NAMES`, with `COLUMNS` first and each analysis' own columns after them.

    Rows keep the order of `finished`. A row's own keys override the stage's labels (the ks stage measures many arms).
    linear holds the linear mode and, as its reference, the supervised runs on all labels; label_efficiency holds the
    modes full and scratch. A study without finished stages has empty tables with all the columns.

    Raises StageError for a row without metric or value, and where two rows measure the same thing: their mean would
    count one run twice.
    """
    records: dict[str, list[dict[str, object]]] = {name: [] for name in NAMES}
    for stage in finished:
        for row in stage.rows:
            if row.get("metric") is None or "value" not in row:
                raise StageError(f"{stage.name}: row {dict(row)} lacks a metric or a value; run the stage again")
            own = {k: v for k, v in row.items() if v is not None or k not in stage.labels}
            record = {"dataset": dataset, **stage.labels, **own, "stage": stage.name}
            for name in _homes(stage, record):
                records[name].append(record)
    return {name: frame(name, rows) for name, rows in records.items()}


def _homes(stage: Finished, record: Mapping[str, object]) -> Iterator[str]:
    """Tables that a measurement belongs to."""
    match stage.kind, record.get("mode"):
        case "finetune", "linear":
            yield "linear"
        case "finetune", "full":
            yield "label_efficiency"
        case "finetune", "scratch":
            yield "label_efficiency"
            if record.get("label_fraction") == 1:
                yield "linear"
        case "finetune", mode:
            raise StageError(f"{stage.name}: mode {mode!r} belongs to no table; modes are linear, full and scratch")
        case "reuse", _:
            yield "reuse"
        case "probe", _:
            yield "probing"
        case "ks", _:
            yield "ks"


def frame(name: str, records: Sequence[Mapping[str, object]]) -> DataFrame:
    """A table from its rows, `COLUMNS` first; StageError where two rows measure the same thing."""
    extras = dict.fromkeys(key for record in records for key in record if key not in COLUMNS)
    table = DataFrame({key: [record.get(key) for record in records] for key in (*COLUMNS, *extras)}, dtype=object)
    table = table.astype({key: _type(key, table[key]) for key in table.columns})
    for _, same in table.groupby(list(IDENTITY), dropna=False, sort=False):
        if len(same) > 1:
            what = ", ".join(f"{key} {value}" for key, value in same.iloc[0][list(IDENTITY)].dropna().items())
            raise StageError(
                f"table {name}: {what} is measured {len(same)} times ({', '.join(dict.fromkeys(same['stage']))}); "
                "give the report each stage once"
            )
    return table


def _type(key: str, values: pd.Series[Any]) -> str:
    if key in _FLOATS:
        return "float64"
    if key in _INTEGERS:
        return "Int64"
    if key == "uninformative":
        return "boolean"
    return "string" if key in COLUMNS or values.map(lambda v: v is None or isinstance(v, str)).all() else "object"


def markdown(layout: DataFrame) -> str:
    """A layout as a Markdown table; nested headings are joined in one line."""
    head = [*(str(n or "") for n in layout.index.names), *(" · ".join(_parts(c)) for c in layout.columns)]
    body = [[*_parts(i), *row] for i, row in zip(layout.index, layout.to_numpy().tolist(), strict=True)]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(markdown_text(str(cell)) for cell in line) + " |" for line in lines) + "\n"


def latex(layout: DataFrame, caption: str, label: str) -> str:
    """A layout as a LaTeX table of the booktabs and multirow packages; every text in it is escaped."""
    safe = layout.map(_latex_text)
    safe.index = _relabelled(layout.index)
    safe.columns = _relabelled(layout.columns)
    text: str = safe.to_latex(
        escape=False, caption=_latex_text(caption), label=f"tab:{label}", position="htbp", multicolumn_format="c"
    )
    return text


def write(
    tables: Mapping[str, DataFrame],
    folder_tables: Path,
    folder_report: Path,
    *,
    metric: str | None = None,
    before: str = "",
    after: str = "",
) -> list[Path]:
    """Write `<name>.csv` (tidy) for each table, `<name>.tex` and one report.md (the paper's arrangement).

    Args:
        metric: the score that the arrangements show; None shows every score that was measured. CSVs hold all.
        before, after: Markdown around the tables of report.md.

    Returns the paths written. A float read back from a CSV is the float that was written.
    """
    folder_tables.mkdir(parents=True, exist_ok=True)
    folder_report.mkdir(parents=True, exist_ok=True)
    written, sections = [], []
    for name, table in tables.items():
        path = folder_tables / f"{name}.csv"
        table.to_csv(path, index=False, lineterminator="\n")
        written.append(path)
        if name not in CAPTIONS:
            continue
        layout = paper_layout(name, table, metric=metric, scores=tables.get("label_efficiency"))
        if layout.empty:
            continue
        caption = f"{CAPTIONS[name]} {legend(name, table)}"
        path = folder_report / f"{name}.tex"
        path.write_text(latex(layout, caption, name), encoding="utf-8")
        written.append(path)
        sections.append(f"{markdown_text(caption)}\n\n{markdown(layout)}")
    path = folder_report / "report.md"
    path.write_text("\n".join(part for part in (before, *sections, after) if part), encoding="utf-8")
    return [*written, path]


def _parts(label: object) -> list[str]:
    return [str(part) for part in label] if isinstance(label, tuple) else [str(label)]


def _relabelled(labels: pd.Index) -> pd.Index:
    """The same labels escaped for LaTeX."""
    names = [_latex_text(str(name)) if name else None for name in labels.names]
    if isinstance(labels, pd.MultiIndex):
        return pd.MultiIndex.from_tuples([tuple(map(_latex_text, _parts(each))) for each in labels], names=names)
    return pd.Index([_latex_text(str(each)) for each in labels], name=names[0])


_MARKDOWN = str.maketrans(
    {"\\": "\\\\", "|": "\\|", "*": "\\*", "`": "\\`", "<": "&lt;", "&": "&amp;", "\n": " ", "[": "\\[", "]": "\\]"}
)
_LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "~": "\\textasciitilde{}",
        "^": "\\textasciicircum{}",
        "\\": "\\textbackslash{}",
        "<": "\\textless{}",
        ">": "\\textgreater{}",
        "\n": " ",
        "–": "--",
        "−": "$-$",
        "±": "$\\pm$",
        "†": "\\dag{}",
    }
)


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is."""
    return text.translate(_MARKDOWN)


def _latex_text(text: str) -> str:
    return text.translate(_LATEX)
