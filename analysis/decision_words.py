"""A decision as a person reads it: a table of configurations, and which one to ship, why, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable

from analysis.decision import Decision
from analysis.layout import MISSING
from analysis.model_costs import COSTS, objective_name
from analysis.names import SCORES, arm_name, metric_name, percent
from analysis.packed import duration
from analysis.ranking import SAME_COST, Configuration
from analysis.search import SearchCost
from analysis.search_words import capital, counted, listed

Name = Callable[[str], str]

#: Missing models named one by one, at most.
_NAMED = 4


def rows(decision: Decision, name: Name = arm_name) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table, the best mean first; `name` writes an arm."""
    ranking = decision.ranking
    others = [o for o in ranking.objectives[1:] if o not in COSTS]
    shown = [ranking.cost or "wall_seconds", "peak_memory", *(o for o in ranking.objectives if o in COSTS)]
    costs = list(dict.fromkeys(shown))
    header = ["rank", "arm", "mode", _heading(decision), "seeds"]
    header += [*(objective_name(o) for o in others), *(objective_name(c) for c in costs), "within 1 s.e."]
    header += ["front", "against the best"]
    found = []
    for c in ranking.configurations:
        values = [_value(decision, o, c.means[o]) for o in (*others, *costs)]
        score = _value(decision, decision.objective, c.means[decision.objective])
        score += "" if math.isnan(c.error) else f" ± {_value(decision, decision.objective, c.error)}"
        marks = ["" if c.rank is None else "yes" if mark else "no" for mark in (c.within, c.front)]
        place = MISSING if c.rank is None else f"{c.rank}{' ←' if c.arm == ranking.chosen else ''}"
        found.append([place, name(c.arm), c.mode, score, str(len(c.seeds)), *values, *marks, _verdict(decision, c)])
    return header, found


def sentences(decision: Decision, name: Name = arm_name, search: SearchCost | None = None) -> list[str]:
    """What to ship and why, how sure that is, what would change it, and what is missing.

    `search`: what finding some of the arms took; the costs are of making one model by settings that are known.
    """
    found = [
        _recommendation(decision, name),
        _reason(decision, name),
        _certainty(decision, name),
        _otherwise(decision, name),
        _seed(decision),
        _missing(decision, name),
        *decision.ranking.notes,
        _search(decision, search, name),
        "Chosen on validation images alone; no test image was looked at.",
    ]
    return [sentence for sentence in found if sentence]


def _recommendation(decision: Decision, name: Name) -> str:
    chosen = decision.ranking.of(decision.ranking.chosen)
    seeds = len(decision.ranking.seeds or chosen.seeds)
    score = _value(decision, decision.objective, chosen.means[decision.objective])
    error = "" if math.isnan(chosen.error) else f" ± {_value(decision, decision.objective, chosen.error)}"
    over = f"mean ± standard error over {seeds} seeds" if error else "one seed" if seeds == 1 else f"{seeds} seeds"
    how = {"full": "all weights fine-tuned", "scratch": "trained from random weights", "linear": "encoder frozen"}
    return (
        f"Ship {name(chosen.arm)}, {how[chosen.mode]} on {percent(decision.label_fraction)} of the labels: "
        f"validation {_objective(decision)} {score}{error} ({over})."
    )


def _reason(decision: Decision, name: Name) -> str:
    ranking = decision.ranking
    chosen, best, of = ranking.of(ranking.chosen), ranking.of(ranking.best), len(ranking.ranked)
    if of == 1:
        return "It is the only configuration that can be ranked so far."
    if chosen is not best:
        assert ranking.cost
        dear, cheap = best.means[ranking.cost], chosen.means[ranking.cost]
        return (
            f"It is {_difference(decision, chosen.gap)} worse than the best mean ({name(best.arm)}), within one "
            f"standard error of that difference ({_difference(decision, chosen.gap_error)}, paired by seed), and a "
            f"model of it takes {100 * (1 - cheap / dear):.0f}% less {objective_name(ranking.cost)}: "
            f"{_value(decision, ranking.cost, cheap)} instead of {_value(decision, ranking.cost, dear)}. "
            "The one-standard-error rule takes the cheapest that is not worse than the best."
        )
    lead = f"It has the best mean of {of} configurations"
    if ranking.cost is None:
        return f"{lead}; the study names no cost among decision.objectives that could speak for another."
    if len(ranking.seeds) < 2:
        return f"{lead}. One seed has no standard error, so nothing tells whether a cheaper one is as good."
    near = [name(c.arm) for c in ranking.ranked if c.within and c is not best]
    if not near:
        return f"{lead}, and no other comes within one standard error of the paired difference to it."
    return (
        f"{lead}; {listed(near)} {'comes' if len(near) == 1 else 'come'} within one standard error of it, but no such "
        f"configuration saves more than {percent(SAME_COST)} of its {objective_name(ranking.cost)}."
    )


def _certainty(decision: Decision, name: Name) -> str:
    ranking = decision.ranking
    others = [c for c in ranking.ranked if c.arm != ranking.best]
    pairs = len(ranking.ranked) * (len(ranking.ranked) - 1) // 2
    if not others or not ranking.seeds:  # a note says that no seed is common
        return ""
    if all(c.verdict.startswith("needs more seeds") for c in others):
        return (
            f"{counted(len(ranking.seeds), 'seed').capitalize()} can never be significant: the exact paired test needs "
            f"at least {ranking.seeds_needed} for {counted(pairs, 'comparison')} of arms. Read this order as a "
            "direction, not as a finding."
        )
    worse = [name(c.arm) for c in others if c.verdict == "worse"]
    open_ = [name(c.arm) for c in others if c.verdict != "worse"]
    best, parts = name(ranking.best), []
    if worse:
        parts.append(f"{best} is better than {listed(worse)}")
    if open_:
        parts.append(f"no difference is shown between {best} and {listed(open_)}")
    return (
        f"By the exact paired test over {len(ranking.seeds)} seeds, Holm over {counted(pairs, 'comparison')}: "
        f"{'; '.join(parts)}."
    )


def _otherwise(decision: Decision, name: Name) -> str:
    """What would have led to another choice."""
    ranking = decision.ranking
    chosen, best = ranking.of(ranking.chosen), ranking.of(ranking.best)
    if chosen is not best:
        return f"Were cost no matter (decision.objectives: [{decision.objective}]), it would be {name(best.arm)}."
    cost = ranking.cost
    cheaper = [c for c in ranking.ranked if cost and c.means[cost] < best.means[cost] and c.front and not c.within]
    if not cheaper or len(ranking.seeds) < 2:
        return ""
    near = min(cheaper, key=lambda c: c.gap - c.gap_error)
    assert cost
    saved = 1 - near.means[cost] / best.means[cost]
    return (
        f"The nearest cheaper one is {name(near.arm)}, with {100 * saved:.0f}% less {objective_name(cost)}: it is "
        f"{_difference(decision, near.gap)} worse, and would be chosen were that no more than one standard error, "
        f"{_difference(decision, near.gap_error)}."
    )


def _seed(decision: Decision) -> str:
    model, of = decision.chosen, len(decision.ranking.of(decision.ranking.chosen).seeds)
    if of == 1:
        return ""
    value = _value(decision, decision.objective, model.value)
    return (
        f"Of its {of} models that of seed {model.seed} does best on validation ({value}) and is the one to promote. "
        "A figure picked as the best of several flatters: judge it by its test score, in the report."
    )


def _missing(decision: Decision, name: Name) -> str:
    missing, ranking = decision.missing, decision.ranking
    parts = []
    if missing:
        named = [f"{name(arm)} seed {seed}" for arm, seed in missing[:_NAMED]]
        rest = len(missing) - len(named)
        named += [f"{rest} more"] if rest else []
        verb = "is" if len(missing) == 1 else "are"
        parts.append(f"{capital(counted(len(missing), 'model'))} of this study {verb} not finished ({listed(named)}), "
                     "and may change this.")  # fmt: skip
    if any(set(c.seeds) != set(ranking.seeds) for c in ranking.ranked) and ranking.seeds:
        seeds = listed([str(seed) for seed in ranking.seeds])
        parts.append(f"Arms are compared over seed{'s' if len(ranking.seeds) > 1 else ''} {seeds}, which all of them "
                     "have.")  # fmt: skip
    parts += [f"{name(c.arm)} is {c.note}." for c in ranking.configurations if c.rank is None]
    return " ".join(parts)


def _search(decision: Decision, search: SearchCost | None, name: Name) -> str:
    arms = [name(c.arm) for c in decision.ranking.configurations if search and c.arm in search.arms]
    if not search or not arms:
        return ""
    took = duration(search.accelerator_seconds or search.seconds)
    what = "accelerator time" if search.accelerator_seconds else "wall time"
    trials = counted(search.trials, "trial")
    return (
        f"What the search took to find {listed(arms)} is in none of these costs: training its {trials} took {took} of "
        f"{what}. It is paid once, and not again for another model with the same settings."
    )


def _verdict(decision: Decision, c: Configuration) -> str:
    if c.rank is None:
        return "not ranked"
    if c.arm == decision.ranking.best:
        return "best mean"
    return "needs more seeds" if c.verdict.startswith("needs more seeds") else f"{c.verdict} (p = {c.p:.2g})"


def _heading(decision: Decision) -> str:
    return _objective(decision) + (" (%)" if _in_percent(decision, decision.objective) else "")


def _objective(decision: Decision) -> str:
    """The first objective, as in the middle of a sentence."""
    return metric_name(decision.metric) if decision.objective == "score" else objective_name(decision.objective)


def _in_percent(decision: Decision, objective: str) -> bool:
    return objective == "worst_class" or (objective == "score" and decision.metric in SCORES)


def _value(decision: Decision, objective: str, value: float) -> str:
    """With the decimals and the unit that it bears; `–` for none."""
    if math.isnan(value):
        return MISSING
    match objective:
        case "accelerator_seconds" | "wall_seconds":
            return duration(value)
        case "peak_memory":
            return f"{value / 2**20:,.0f} MiB"
        case _ if _in_percent(decision, objective):
            return f"{100 * value:.2f}"
        case _:
            return f"{value:.4f}"


def _difference(decision: Decision, value: float) -> str:
    points = " points" if _in_percent(decision, decision.objective) else ""
    return _value(decision, decision.objective, value) + points
