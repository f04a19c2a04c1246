"""The command line. Parses words and says what happened; each verb's work lives in its own module.

Nothing heavy is imported before a verb needs it: `--help` answers at once.
"""

from __future__ import annotations

import gc
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from ssl_core.errors import DataError, InputError, IntermocoError
from tune_jobs.failures import Kind, explained, kind
from tune_jobs.opening import opened as _opened
from tune_jobs.options import RUNS, JsonOption, OutputOption, SetOption, StudyArgument
from tune_jobs.promotion.command import promote

if TYPE_CHECKING:
    from tune_jobs.ablate import Result
    from tune_jobs.inspection import Inspection
    from tune_jobs.plan import Plan
    from tune_jobs.search.search import Searched
    from tune_jobs.store import Store
    from tune_jobs.study import Study

app = typer.Typer(
    name="intermoco",
    help="MoCo with losses on intermediate blocks: pretrain, ablate and analyse on Ray, track in MLflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AddressOption = Annotated[
    str | None,
    typer.Option("--address", metavar="ADDR", envvar="RAY_ADDRESS", help="Ray cluster to join; else a local Ray."),
]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Print the plan; run nothing.")]
MeasureOption = Annotated[
    bool,
    typer.Option(
        "--measure",
        help="With --dry-run: do a few steps of each pretraining and fine-tuning here; say their time and memory.",
    ),
]


@app.command()
def ablate(
    study: StudyArgument,
    overrides: SetOption = None,
    output: OutputOption = RUNS,
    address: AddressOption = None,
    dry_run: DryOption = False,
    measure: MeasureOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a study: pretrain, fine-tune, probe, compare; write its tables and report."""
    from tune_jobs.loading import load

    resolved = load(study, overrides or ())
    if measure and not dry_run:
        raise InputError("--measure goes with --dry-run: it measures on this machine and runs nothing of the study")
    if dry_run:
        _print_plan(resolved, output, as_json, measure=measure)
        return
    from tune_jobs.ablate import ablate as run

    command = _command()
    try:
        result = run(resolved, root=output, address=address, command=command)
    except KeyboardInterrupt:
        print(f"\nInterrupted. What was finished is kept; go on with: {command}", file=sys.stderr)
        raise typer.Exit(130) from None
    _print_result(result)
    if as_json:
        print(json.dumps(result.as_json()))
    if result.failed:
        raise typer.Exit(1)


@app.command()
def search(
    study: StudyArgument,
    overrides: SetOption = None,
    output: OutputOption = RUNS,
    address: AddressOption = None,
    dry_run: DryOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search a study's space with Ray Tune and Optuna, then run the study with the best trials as arms."""
    from tune_jobs.loading import load
    from tune_jobs.search.search import require_search

    resolved = load(study, overrides or ())
    require_search(resolved)
    if dry_run:
        _print_plan(resolved, output, as_json)
        return
    from tune_jobs.search.search import search as run

    command = _command()
    try:
        searched = run(resolved, root=output, address=address, command=command)
    except KeyboardInterrupt:
        print(f"\nInterrupted. Finished trials and stages are kept; go on with: {command}", file=sys.stderr)
        raise typer.Exit(130) from None
    _print_trials(searched)
    _print_result(searched.result)
    if as_json:
        print(json.dumps(searched.as_json()))
    if searched.failed:
        raise typer.Exit(1)


@app.command()
def report(
    study: StudyArgument,
    overrides: SetOption = None,
    output: OutputOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Rebuild tables and report from finished stages; compute nothing."""
    from tune_jobs.findings import write_report

    found, store = _opened(study, overrides, output)
    written = write_report(found, store, {}, _command("search" if found.study.search else "ablate"), always=True)
    print(f"report  {written['report']}")
    if as_json:
        print(json.dumps({"study": found.study.study, **_counts(found.plan, store), **written}))


@app.command()
def best(
    study: StudyArgument,
    overrides: SetOption = None,
    output: OutputOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Rank a study's configurations by validation and cost, and say which to ship, why, and how sure that is."""
    from tune_jobs.best import decide, show

    found, store = _opened(study, overrides, output)
    show(found, decide(found, store), _command("promote"), as_json=as_json)


@app.command()
def data(
    study: StudyArgument,
    overrides: SetOption = None,
    output: OutputOption = RUNS,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pack and audit a study's dataset: counts, groups, leaks between splits, duplicates, label fractions."""
    from tune_jobs.audit import enforce
    from tune_jobs.inspection import inspect
    from tune_jobs.loading import load
    from tune_jobs.store import Store

    resolved = load(study, overrides or ())
    seen = inspect(resolved, Store(output), address)
    _print_data(seen)
    if as_json:
        print(json.dumps(seen.as_json()))
    enforce(resolved, seen.audit)


app.command()(promote)


@app.command()
def sync(
    study: StudyArgument,
    overrides: SetOption = None,
    output: OutputOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Replay finished stages into MLflow; replaying twice changes nothing."""
    from tune_jobs import tracking
    from tune_jobs.ablate import replay, tracking_uri

    found, store = _opened(study, overrides, output)
    uri = tracking_uri(found.study, store)
    with tracking.reached(uri):
        done = replay(found, store)
    print(f"MLflow at {tracking.mask(uri)}: {done.created} runs written, {done.already_there} already there")
    if as_json:
        print(json.dumps({"study": found.study.study, "created": done.created, "already_there": done.already_there,
                          "tracking": tracking.mask(uri)}))  # fmt: skip


@app.command()
def ui(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="Open the store that this study names.")
    ] = None,
    overrides: SetOption = None,
    output: OutputOption = RUNS,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Open MLflow on the right store, on 127.0.0.1."""
    from tune_jobs.ui import serve

    raise typer.Exit(serve(study, overrides or (), output, port))


@app.command()
def doctor(
    output: OutputOption = RUNS,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="ADDR", envvar="RAY_ADDRESS", help="Ray cluster to ask, node by node, too."),
    ] = None,
    tracking: Annotated[
        str | None,
        typer.Option(metavar="URI", help="The cluster's MLflow, as tracking.uri of a study; else MLFLOW_TRACKING_URI."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine, or a cluster from every node of it, and the method's invariants, in about a minute."""
    from tune_jobs.doctor import run

    if tracking and not address:
        raise InputError("--tracking belongs to a cluster: give its --address too")
    raise typer.Exit(run(output, address=address, tracking=tracking, as_json=as_json))


def main() -> NoReturn:
    """Entry point: bad input exits 2 with one message, a failure 1."""
    gc.set_threshold(50_000, 20, 100)  # MLflow and pandas bring a million objects to stay: a sixth of a cached study
    try:
        app()  # words usage errors itself, and exits with 2
    except InputError as error:
        _fail(error, 2)
    except IntermocoError as error:
        _fail(error, 1)
    except OSError as error:
        if kind(error) is Kind.OWN:
            raise
        _fail(explained(error, Path(error.filename or ".").parent), 1)
    sys.exit(0)


def _fail(error: BaseException, status: int) -> NoReturn:
    from tune_jobs.tracking_client import mask

    print(f"intermoco: {mask(str(error))}", file=sys.stderr)
    sys.exit(status)


def _command(verb: str | None = None) -> str:
    """The command as it was typed, to be typed again, but for passwords: it is printed and stands in the report."""
    from tune_jobs.tracking_client import mask

    words = [w for w in sys.argv[1:] if w not in ("--json", "--dry-run")]
    return shlex.join(["intermoco", *map(mask, [verb, *words[1:]] if verb else words)])


def _counts(full: Plan, store: Store) -> dict[str, int]:
    finished = sum(store.finished(stage) for stage in full.by_key.values())
    return {"executed": 0, "cached": finished, "failed": 0, "skipped": len(full.by_key) - finished}


def _print_plan(study: Study, output: Path, as_json: bool, *, measure: bool = False) -> None:
    """Resolved values, then every stage. A dataset that is not there leaves the stages without their identities."""
    from tune_jobs.overview import overview, protocol_lines
    from tune_jobs.plan import plan
    from tune_jobs.prepare import planned
    from tune_jobs.store import Store

    store, absent = Store(output), ""
    try:
        full = planned(study, store, remember=False)
    except DataError as error:
        full, absent = plan(study, "unknown"), str(error)
    cached = {key for key, stage in full.by_key.items() if not absent and store.finished(stage)}
    print(f"study {study.study}: {len(study.arms)} arms, {len(study.seeds)} seeds, {len(full.by_key)} stages")
    print("\n".join(protocol_lines(study)))
    print(f"\n{overview(study)}")
    for key, stage in full.by_key.items():
        state = "cached" if key in cached else "to run"
        needs = f"{stage.demand.workers} x {stage.demand.cpus:g} CPU"
        print(f"  {state}  {stage.kind if absent else stage.folder:28}  {needs}  {stage.name}")
    if absent:
        print(f"note: {absent}; what is cached cannot be said", file=sys.stderr)
    measured = {}
    if measure and not absent:
        from dataclasses import asdict

        from tune_jobs.rehearsal import rehearse

        found = rehearse(full, store)
        print("\n".join(found.lines))
        measured = {"measured": asdict(found)}
    if as_json:
        print(json.dumps({"study": study.study, "stages": len(full.by_key), "cached": len(cached),
                          "to_run": len(full.by_key) - len(cached), "executed": 0, **measured}))  # fmt: skip


def _print_result(result: Result) -> None:
    from rich.console import Console
    from rich.table import Table

    from tune_jobs.failures import one_line
    from tune_jobs.findings import scores_at_a_glance
    from tune_jobs.watch import duration

    outcome, metric = result.outcome, result.metric
    header, rows = scores_at_a_glance(Path(result.written["tables"][0]).parent, metric)
    table = Table(
        *header, box=None, title=f"{result.study}: test {metric}, mean ± half the seeds' range", title_justify="left"
    )
    for row in rows:
        table.add_row(*row)
    Console(markup=False).print(table)
    for key, error in outcome.failed.items():
        print(f"failed: {result.plan.by_key[key].name}: {one_line(error)}", file=sys.stderr)
    print(
        f"{len(outcome.executed)} stages run, {len(outcome.cached)} kept from before, {len(outcome.failed)} failed, "
        f"{len(outcome.skipped)} skipped in {duration(result.wall_seconds)}"
    )
    if result.late:
        print(result.late, file=sys.stderr)
    print(f"report  {result.written['report']}")
    print(f"MLflow  {result.written['tracking']}  (intermoco ui)")


def _print_trials(searched: Searched) -> None:
    """What became of the trials, and the best of them beside the paper's settings."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*searched.header, box=None, title=searched.title, title_justify="left")
    for row in searched.rows:
        table.add_row(*row)
    Console(markup=False).print(table)
    for name, error in searched.failures.items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    print(searched.sentence)


def _print_data(seen: Inspection) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    facts = seen.facts
    size, channels = facts["size"], facts["channels"]
    console.print(f"{facts['name']}: {size} x {size} px, {'grey' if channels == 1 else 'RGB'}, {facts['task']}")
    console.print(f"splits {facts['splits']}; fingerprint {facts['fingerprint'][:16]}")
    for note in facts["notes"]:
        console.print(f"source  {note}", soft_wrap=True)
    console.print(seen.packing)
    splits = facts["n"]
    table = Table("", *splits, *(f"{100 * part['fraction']:g}% of train" for part in seen.fractions), box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("images", *map(str, splits.values()), *(str(part["n"]) for part in seen.fractions))
    table.add_row("groups", *map(str, facts["groups"].values()), *(str(part["groups"]) for part in seen.fractions))
    for name in facts["class_names"]:
        counts = [facts["classes"][split][name] for split in splits]
        table.add_row(name, *map(str, counts), *(str(part["classes"][name]) for part in seen.fractions))
    console.print(table)
    console.print(f"the fractions' images are those of seed {seen.seed}; each fraction holds the smaller ones")
    for line in seen.findings:
        console.print(line, soft_wrap=True)


if __name__ == "__main__":
    main()
