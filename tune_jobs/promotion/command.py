"""The verb `promote`: what it is asked, and what it prints."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from ssl_core.errors import InputError
from tune_jobs.options import RUNS, JsonOption, OutputOption, SetOption, StudyArgument

if TYPE_CHECKING:
    from tune_jobs.promotion.promote import Promotion

#: What a model can be exported as, and the file's ending.
FORMATS = ("onnx", "pt2")


def promote(
    study: StudyArgument,
    arm: Annotated[str | None, typer.Option(metavar="ARM", help="The arm to ship; else the recommended one.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="SEED", help="Its seed; else the best on validation.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Promote though the champion is not beaten; needs --reason.")
    ] = False,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Why; recorded with the version.")] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Make the previous champion the champion again.")
    ] = False,
    export: Annotated[str | None, typer.Option(metavar="FORMATS", help="Write onnx, pt2 or both: onnx,pt2.")] = None,
    overrides: SetOption = None,
    output: OutputOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Check the gates, then register a study's model in MLflow as the champion; or go back to the one before."""
    formats = _formats(export)
    if force and not (reason and reason.strip()):
        raise InputError('--force: say why by --reason "..."; it is recorded with the version')
    if reason and not (force or rollback):
        raise InputError("--reason: belongs to --force or --rollback")
    if rollback:
        if arm is not None or seed is not None or force or formats:
            raise InputError("--rollback: goes with --reason alone; it takes the version that was champion before")
        _roll_back(study, overrides, output, reason, as_json)
        return
    from tune_jobs.opening import opened
    from tune_jobs.promotion.promote import Asked
    from tune_jobs.promotion.promote import promote as run

    found, store = opened(study, overrides, output)
    done = run(found, store, Asked(arm=arm, seed=seed, reason=reason if force else None, formats=formats), print)
    _print(done)
    if as_json:
        print(json.dumps(done.as_json()))
    if not done.is_champion:
        raise typer.Exit(1)


def _formats(export: str | None) -> tuple[str, ...]:
    formats = tuple(dict.fromkeys(word.strip() for word in (export or "").split(",") if word.strip()))
    if unknown := [word for word in formats if word not in FORMATS]:
        raise InputError(f"--export {unknown[0]}: is no format; use {' or '.join(FORMATS)}")
    return formats


def _roll_back(
    study: str, overrides: list[str] | None, output: OutputOption, reason: str | None, as_json: bool
) -> None:
    from tune_jobs.loading import load
    from tune_jobs.promotion.promote import roll_back
    from tune_jobs.store import Store

    resolved = load(study, overrides or ())
    done = roll_back(resolved, Store(output), reason)
    print(f"version {done.version} of {done.model} is champion again; previous is version {done.former}")
    if as_json:
        print(json.dumps({"study": resolved.study, "model": done.model, "version": done.version,
                          "former": done.former}))  # fmt: skip


def _print(done: Promotion) -> None:
    for sentence in done.mended:
        print(f"mended: {sentence}")
    match done.outcome:
        case "already":
            print(f"version {done.version} of {done.model} is this model, and the champion already: nothing changed")
        case "refused":
            print("not promoted: nothing was registered")
        case "promoted":
            former = f"; previous is version {done.former}" if done.former else ""
            print(f"version {done.version} of {done.model} is champion{former}")
            if done.record:
                print(f"card    {done.record / 'card.md'}")
            print(f"load    models:/{done.model}@champion from {done.tracking}")
