"""What the report says about a search, in sentences that claim no more than validation can."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pandas import DataFrame

from analysis.names import SCORES, arm_name, metric_name, percent
from analysis.packed import duration
from analysis.search import MAXIMISED, SearchFindings, completed, ranked, saved
from analysis.search_words import counted, listed, objective_name, objective_text, start_name


def summary(search: SearchFindings) -> str:
    """A sentence for the top of the page."""
    tried_out = f"A search tried {counted(len(search.trials), 'configuration')}, judged on validation images alone"
    if not search.promoted:
        return f"{tried_out}; none of them is trained again on fresh seeds, so nothing on this page confirms any."
    arms = listed([arm_name(arm) for arm in search.promoted.values()])
    best = f"best are the arms {arms}" if len(search.promoted) > 1 else f"best is the arm {arms}"
    return f"{tried_out}; its {best}, for seeds that the search never saw to confirm or not."


def tried(search: SearchFindings) -> Iterator[str]:
    """How many trials, what became of them, and what they were judged by."""
    states = search.trials["state"].value_counts()
    words = {
        "complete": "ran to the end",
        "pruned": "stopped early by the scheduler",
        "failed": "failed",
        "running": "not finished",
    }
    fates = [f"{states[state]} {word}" for state, word in words.items() if states.get(state)]
    again = (
        f" {counted(search.duplicates, 'more suggestion').capitalize()} repeated an earlier trial and "
        f"{'was' if search.duplicates == 1 else 'were'} not trained again."
        if search.duplicates
        else ""
    )
    began = int(search.trials["start"].notna().sum())
    given = f"{began} given in advance, the others " if 0 < began < len(search.trials) else ""
    source = "given in advance" if began == len(search.trials) else f"{given}suggested by {_sampler(search)}"
    yield (
        f"{counted(len(search.trials), 'configuration')}, {source}: {listed(fates)}.{again} "
        f"Each is judged by a linear probe on block {search.block}, trained on {percent(search.fraction)} of the "
        f"training labels and scored by {metric_name(search.metric)} on the validation images; no trial reads a test "
        "image."
    )


def _sampler(search: SearchFindings) -> str:
    return {"tpe": "TPE", "gp": "GP", "nsga2": "NSGA-II", "nsga3": "NSGA-III", "cmaes": "CMA-ES"}.get(
        search.sampler, f"{search.sampler} search"
    )


def found(search: SearchFindings, *, confirmed: bool) -> Iterator[str]:
    """The best against the paper's settings; `confirmed`: where fresh seeds are compared below."""
    done = ranked(search)
    if done.empty:
        yield "No trial has run to its end, so there is nothing to rank and no effect to estimate."
        return
    best, values = done.iloc[0], done[search.main]
    name = objective_name(search.main, search.metric)
    if len(search.objectives) > 1:
        front = int(done["pareto"].sum())
        yield (
            f"Objectives are {listed([objective_name(o, search.metric) for o in search.objectives])}: of "
            f"{counted(len(done), 'completed trial')}, {front} {'is' if front == 1 else 'are'} on the Pareto front, "
            "beaten by no other in all of them."
        )
    yield (
        f"{'Among those, the' if len(search.objectives) > 1 else 'The'} best {name} is that of trial {best['trial']}: "
        f"{objective_text(best[search.main], search.main, search.metric)}{unit(search)}"
        f"{_against_paper(search, float(best[search.main]), best['start'])}."
    )
    yield (
        f"It is the {'highest' if search.main in MAXIMISED else 'lowest'} of {counted(len(values), 'value')} on the "
        "same validation images, picked for being so, and flatters itself by that. Validation says what to try; "
        + (
            "whether it holds is for the fresh seeds and the test images to say, below."
            if confirmed
            else "whether it holds is for fresh seeds and the test images to say, which has not been done yet."
        )
    )


def unit(search: SearchFindings) -> str:
    return "%" if search.main == "score" and search.metric in SCORES else ""


def _against_paper(search: SearchFindings, value: float, start: Any) -> str:
    paper = search.trials[search.trials["start"].astype(str).str.startswith("paper_")]
    if len(paper) == 0:
        return ""
    if isinstance(start, str) and start.startswith("paper_"):
        return f", which is the {start_name(start)} itself: the search found nothing better"
    done = completed(paper, search.main)
    missing = len(paper) - len(done)
    stopped = f"; {missing} of the paper’s {len(paper)} settings did not run to the end" if missing else ""
    if done.empty:
        return ", with no setting of the paper’s run to its end to compare with"
    rows = done.sort_values(search.main, ascending=search.main not in MAXIMISED)
    nearest = rows.iloc[0]
    gap = abs(value - float(nearest[search.main]))
    points = " points" if unit(search) else ""
    others = ", ".join(
        f"{start_name(row['start'])} {objective_text(row[search.main], search.main, search.metric)}"
        for row in rows.to_dict("records")
    )
    side = "above" if search.main in MAXIMISED else "below"
    return (
        f", {objective_text(gap, search.main, search.metric)}{points} {side} the best of the paper’s settings there "
        f"({others}{stopped})"
    )


def importance_words(search: SearchFindings) -> str:
    if search.importances.empty:
        return ""
    trials, count = int(search.importances["trials"].max()), len(search.parameters)
    few = f" With {trials} trials for {count} parameters, read the order, if anything." if trials < 10 * count else ""
    return (
        f"Estimated from {counted(trials, 'completed trial')}. fANOVA asks what explains the spread of the objective, "
        "PED-ANOVA what sets the best trials apart; where they disagree, neither is settled. Both see only trials "
        f"that were not stopped early, and more of them where the sampler expected good values.{few}"
    )


def block_words(search: SearchFindings, effects: DataFrame) -> str:
    """How to take the effects of blocks, or why there are none."""
    table = effects[(effects["objective"] == search.main) & (effects["kind"] == "main")]
    if table.empty:
        return ""
    if table["effect"].isna().all():
        why = listed(list(dict.fromkeys(table["reason"])))
        return f"What each block’s loss does cannot be told yet: {why}."
    return (
        "Trials that were stopped early are not in these effects. That takes away bad trials, and more of them on the "
        "worse side of a comparison, so that effects in either direction tend to look smaller than they are."
    )


def pruning(search: SearchFindings) -> str:
    """The compute that pruning saved."""
    if search.scheduler == "none":
        return ""
    spared = saved(search.trials, search.curves if search.on == "epochs" else search.curves.iloc[:0])
    if not spared.pruned:
        return f"No trial has been stopped early by {_scheduler(search)}, so nothing was saved."
    spent = f"Training took {duration(spared.seconds_run)} in all trials together. "
    epochs = counted(round(spared.epochs), "epoch") if spared.epochs else ""
    seconds = (
        f"about {duration(spared.seconds)}, {percent(round(spared.share, 2))} of what the same trials would have taken "
        "to their ends, each at its own pace"
        if spared.seconds
        else ""
    )
    amount = listed([part for part in (epochs, seconds) if part]) or "an amount that is not known"
    unknown = f" The time of {spared.unknown} of them is not known and not counted." if spared.unknown else ""
    return (
        f"{spent}Stopping {counted(spared.pruned, 'trial')} early with {_scheduler(search)} saved {amount}."
        f"{unknown} What a stopped trial would have become is not known; it may have been a late starter."
    )


def _scheduler(search: SearchFindings) -> str:
    return {"asha": "ASHA", "hyperband": "HyperBand", "median": "the median rule"}.get(
        search.scheduler, search.scheduler
    )
