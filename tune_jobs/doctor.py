"""The verb `doctor`: whether this machine, or a cluster, can run studies, and whether the method's invariants hold."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from tune_jobs.machine import LOOKS, Answer, Look, State, local_ray, mlflow_store
from tune_jobs.tracking_client import default_uri

if TYPE_CHECKING:
    from ssl_core.invariants import Invariant
    from tune_jobs.nodes import Survey

#: Looks that a cluster has its own answers to.
REPLACED = (local_ray, mlflow_store)
STYLE = {"ok": "green", "note": "yellow", "failed": "bold red"}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One thing that was looked at, or tried."""

    name: str
    state: State
    text: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All lines: the machine's, the cluster's where one was looked at, and the method's."""

    machine: tuple[Line, ...]
    method: tuple[Line, ...]
    cluster: tuple[Line, ...] = ()
    survey: Survey | None = None  # what the cluster's nodes said

    @property
    def lines(self) -> tuple[Line, ...]:
        return (*self.machine, *self.cluster, *self.method)

    @property
    def failed(self) -> list[str]:
        return [line.name for line in self.lines if line.state == "failed"]

    def as_json(self) -> dict[str, Any]:
        found = {
            "failed": self.failed,
            "seconds": round(sum(line.seconds for line in self.lines), 2),
            "machine": [asdict(line) for line in self.machine],
            "method": [asdict(line) for line in self.method],
        }
        if self.survey is None:
            return found
        return {**found, "cluster": [asdict(line) for line in self.cluster], "survey": self.survey.as_json()}


def examine(
    root: Path,
    *,
    looks: Sequence[Look] = LOOKS,
    invariants: Sequence[Invariant] | None = None,
    before: Callable[[str], None] | None = None,
    after: Callable[[Line], None] | None = None,
) -> Diagnosis:
    """Look at the machine, then try the method's invariants (all of them where none are given).

    `root` is the output folder that a study would be given; nothing is left in it. `before` and `after` hear of each
    line as it comes.
    """
    machine = []
    for look in looks:
        if before:
            before(_words(look.__name__))
        machine.append(_looked(look, root))
        if after:
            after(machine[-1])
    from ssl_core.invariants import INVARIANTS, Verdict, check

    method: list[Line] = []

    def heard(verdict: Verdict) -> None:
        state: State = "ok" if verdict.passed else "failed"
        method.append(Line(name=_words(verdict.name), state=state, text=verdict.text, seconds=verdict.seconds))
        if after:
            after(method[-1])

    check(
        INVARIANTS if invariants is None else invariants,
        before=(lambda invariant: before(_words(invariant.__name__))) if before else None,
        after=heard,
    )
    return Diagnosis(machine=tuple(machine), method=tuple(method))


def examine_cluster(
    root: Path,
    address: str,
    tracking: str,
    *,
    before: Callable[[str], None] | None = None,
    after: Callable[[Line], None] | None = None,
) -> tuple[Survey, tuple[Line, ...]]:
    """Ask every node of a cluster, for studies whose output goes to `root` and whose MLflow is at `tracking`.

    Raises ConfigError where no cluster answers at the address.
    """
    from tune_jobs import fitness
    from tune_jobs.cluster import joined_ray
    from tune_jobs.nodes import look_at_tracking, survey

    began = time.perf_counter()
    with joined_ray(address):
        seen = survey(root, thorough=True, said=before)
        if before:
            before("MLflow")
        seen = replace(seen, tracking=look_at_tracking(tracking, ask=True))
    seconds = time.perf_counter() - began
    lines = []
    for judgement in fitness.ALL:
        answer = judgement(seen)
        lines.append(Line(name=_words(judgement.__name__), state=answer.state, text=answer.text, seconds=seconds))
        seconds = 0.0  # all of it was for the first
        if after:
            after(lines[-1])
    return seen, tuple(lines)


def run(output: Path, *, address: str | None = None, tracking: str | None = None, as_json: bool) -> int:
    """Examine this machine, and the cluster at an address if one is given, and print each line as it comes; the exit
    status: 0 where all is well, 1 where something failed."""
    console, root = Console(markup=False, highlight=False), output.expanduser().resolve()

    def after(line: Line) -> None:
        show(line, console)

    with _waiting() as before:
        if address is None:
            found = examine(root, before=before, after=after)
        else:
            uri = tracking or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(root)
            seen, lines = examine_cluster(root, address, uri, before=before, after=after)
            looks = [look for look in LOOKS if look not in REPLACED]
            found = replace(examine(root, looks=looks, before=before, after=after), cluster=lines, survey=seen)
    seconds = sum(line.seconds for line in found.lines)
    console.print(
        f"{len(found.lines)} looked at in {seconds:.0f} s, {len(found.failed)} failed"
        + (f": {', '.join(found.failed)}" if found.failed else "")
    )
    if as_json:
        print(json.dumps(found.as_json()))
    return 1 if found.failed else 0


def show(line: Line, console: Console) -> None:
    """Print a line: its state, its name, and below the name what was seen."""
    indent = 2 + max(map(len, STYLE))
    console.print(Text.assemble((line.state.ljust(indent), STYLE[line.state]), (line.name, "bold")))
    console.print(Padding(line.text, (0, 0, 0, indent), expand=False))


@contextlib.contextmanager
def _waiting() -> Iterator[Callable[[str], None] | None]:
    """On a terminal, a line that says what is being looked at; it goes to stderr and leaves nothing."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with console.status("") as status:
        yield lambda name: status.update(Text(f"{name} ..."))


def _looked(look: Look, root: Path) -> Line:
    began = time.perf_counter()
    try:
        answer = look(root)
    except Exception as error:  # whatever it is, it is to be reported beside the others
        answer = Answer("failed", f"it stopped with {type(error).__name__}: {' '.join(str(error).split())}")
    return Line(name=_words(look.__name__), state=answer.state, text=answer.text, seconds=time.perf_counter() - began)


def _words(name: str) -> str:
    return name.replace("_", " ")
