"""`make bench`: each hot path against the straightforward way or against its own limit, in turns within one run.

    python -m tests.benchmarks.run [NAME ...] [--json FILE]

NAME is a part of a row's name; without one all rows are measured, some minutes. Absolute seconds differ between
machines and hours; the figures are what to compare. Exit 1 where a row falls short of its bound.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import torch

from tests.benchmarks.rows import Measured, Row

#: Modules whose ROWS are measured, in the order of the table.
MODULES = ("pretraining", "evaluation", "packing", "studies")


def rows() -> Iterator[Row]:
    for module in MODULES:
        yield from import_module(f"tests.benchmarks.{module}").ROWS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="a part of the names of the rows to measure")
    parser.add_argument("--json", type=Path, default=Path("runs/bench.json"), help="default: %(default)s")
    options = parser.parse_args()
    chosen = [row for row in rows() if not options.names or any(name in row.name for name in options.names)]
    if not chosen:
        parser.error(
            f"no row is named {' or '.join(options.names)}; there are: {', '.join(row.name for row in rows())}"
        )
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'path':44} {'against':44} {'ours':>10} {'other':>10} {'figure':>9}  bound")
    found = [(row, _measure(row)) for row in chosen]
    short = [row.name for row, measured in found if not row.holds(measured)]
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(_document(found), indent=1))
    print(f"{options.json}: {len(found)} rows, {len(short)} short of their bounds" + "".join(f"\n  {n}" for n in short))
    return 1 if short else 0


def _measure(row: Row) -> Measured:
    found = row.measure()
    other = "" if found.other is None else _seconds(found.other)
    bound = f"{'at most' if row.most else 'at least'} {row.bound:g}{_unit(row)}{'' if row.holds(found) else '  SHORT'}"
    spent = f"{_seconds(found.ours):>10} {other:>10}"
    print(f"{row.name:44} {row.against:44} {spent} {found.figure:>8.3g}{_unit(row)}  {bound}", flush=True)
    return found


def _unit(row: Row) -> str:
    return row.unit if row.unit == "x" else f" {row.unit}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


def _document(found: list[tuple[Row, Measured]]) -> dict[str, object]:
    """What the JSON file holds: the machine, and a row for each row."""
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__,
               "threads": torch.get_num_threads(), "measured": time.strftime("%Y-%m-%d %H:%M")}  # fmt: skip
    table = [
        {"path": row.name, "against": row.against, "bound": row.bound, "most": row.most, "unit": row.unit,
         "holds": row.holds(measured), **asdict(measured)}
        for row, measured in found
    ]  # fmt: skip
    return {"machine": machine, "rows": table}


if __name__ == "__main__":
    sys.exit(main())
