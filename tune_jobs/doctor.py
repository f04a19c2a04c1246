"""The verb `doctor`: whether this machine can run studies, and whether the method's invariants hold on it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from tune_jobs.machine import LOOKS, Answer, Look, State

if TYPE_CHECKING:
    from ssl_core.invariants import Invariant

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
    """All lines, the machine's and the method's."""

    machine: tuple[Line, ...]
    method: tuple[Line, ...]

    @property
    def failed(self) -> list[str]:
        return [line.name for line in (*self.machine, *self.method) if line.state == "failed"]

    def as_json(self) -> dict[str, Any]:
        return {
            "failed": self.failed,
            "seconds": round(sum(line.seconds for line in (*self.machine, *self.method)), 2),
            "machine": [asdict(line) for line in self.machine],
            "method": [asdict(line) for line in self.method],
        }


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


def run(output: Path, *, as_json: bool) -> int:
    """Examine, and print each line as it comes; the exit status: 0 where all is well, 1 where something failed."""
    console = Console(markup=False, highlight=False)
    with _waiting() as before:
        found = examine(output.expanduser().resolve(), before=before, after=lambda line: show(line, console))
    seconds = sum(line.seconds for line in (*found.machine, *found.method))
    count = len(found.machine) + len(found.method)
    console.print(
        f"{count} looked at in {seconds:.0f} s, {len(found.failed)} failed"
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
