"""The paper's Tables 1-5: the numbers as it prints them, and the same numbers in the units of our tables.

The files beside this module hold one published cell a row: dataset, arm, mode, label_fraction, block, metric, value,
low, high, note. Values are text as printed: scores in percent, CKA and KS as they are. Tables 1 and 4 print no label
fraction; it is 1.0, because Table 1's supervised column is Table 2's 100% row and Table 4's block 4 is Table 1. Table
3's column Performance is left out, because it repeats Table 2. Where a cell of Table 5 could not be read with
certainty its value is empty, and the note says so.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path

from analysis.names import SCORES

#: The paper's datasets, by the word of the source that reads them.
DATASETS = ("cxr14", "eyepacs", "idc")
#: The paper's tables, by the names of ours, in its order.
TABLES = ("linear", "label_efficiency", "reuse", "probing", "ks")
#: The arm whose model, fine-tuned on all labels, is the reference of Table 5.
KS_REFERENCE = {"cxr14": "moco", "eyepacs": "moco_mse", "idc": "moco_barlow"}

_FOLDER = Path(__file__).parent / "published"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One cell of the paper's tables; `printed`, `printed_low` and `printed_high` are its own characters."""

    table: str  # one of TABLES
    dataset: str  # one of DATASETS
    arm: str  # moco, moco_mse, moco_barlow, supervised
    mode: str  # linear, full, scratch, probe
    label_fraction: float
    block: int | None
    metric: str  # auroc, f1, cka, ks
    printed: str  # empty: not legible
    printed_low: str  # empty: the paper gives no interval
    printed_high: str
    note: str

    @property
    def number(self) -> int:
        """Of its table in the paper, from 1."""
        return TABLES.index(self.table) + 1

    @property
    def value(self) -> float | None:
        """In the units of our tables: scores in [0, 1]."""
        return self._own_units(self.printed)

    @property
    def low(self) -> float | None:
        return self._own_units(self.printed_low)

    @property
    def high(self) -> float | None:
        return self._own_units(self.printed_high)

    def _own_units(self, text: str) -> float | None:
        if not text:
            return None
        return float(Decimal(text) / 100 if self.metric in SCORES else Decimal(text))


@cache
def published() -> tuple[Published, ...]:
    """Every cell of Tables 1-5, table by table in the order of the paper."""
    return tuple(cell for table in TABLES for cell in _read(table))


def _read(table: str) -> Iterator[Published]:
    path = _FOLDER / f"table{TABLES.index(table) + 1}.csv"
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield Published(
                table=table,
                dataset=row["dataset"],
                arm=row["arm"],
                mode=row["mode"],
                label_fraction=float(row["label_fraction"]),
                block=int(row["block"]) if row["block"] else None,
                metric=row["metric"],
                printed=row["value"],
                printed_low=row["low"],
                printed_high=row["high"],
                note=row["note"],
            )
