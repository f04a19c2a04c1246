"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="A YAML file, or the name of a packaged study.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key of the study, e.g. --set seeds=[0,1,2]."),
]
OutputOption = Annotated[Path, typer.Option("--output", metavar="ROOT", help="Folder of stages, tables, reports.")]
JsonOption = Annotated[bool, typer.Option("--json", help="End the output with one line of JSON.")]

RUNS = Path("runs")
