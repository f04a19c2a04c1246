"""What the nodes of a cluster say of themselves, and of the storage between them. Judged in tune_jobs.fitness.

Beside the driver a `Witness` speaks for every node: a process pinned to it that holds no CPU.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tune_jobs.machine import folder_below, required
from tune_jobs.witness import DRIVER, Facts, Storage, Witness, digest

#: Each witness reads the files of so many others, and all read the driver's.
PEERS = 16
#: Seconds that a file may take to be seen elsewhere: NFS clients remember for a while what was not there.
VISIBLE = 8.0
#: Seconds that a node has for an answer, its process's start included.
PATIENCE = 60.0


@dataclass(frozen=True, kw_only=True)
class Node:
    """What Ray says of a node that is alive."""

    id: str
    address: str
    host: str
    head: bool
    cpus: float
    accelerators: float

    @property
    def name(self) -> str:
        return f"{self.address} ({self.id[:8]})"


@dataclass(frozen=True, kw_only=True)
class Statement:
    """All that is known of one node, or of the driver."""

    name: str
    node: Node | None = None  # None: the driver
    silence: str | None = None  # it gave no answer in time
    error: str | None = None  # its answer was an error: intermoco does not run there
    facts: Facts | None = None
    storage: Storage | None = None
    offset: float | None = None  # seconds that its clock is ahead of the driver's; None: not asked
    uncertainty: float = 0.0  # of the offset, in seconds
    network: float | None = None  # MB/s of a Ray object that another node made


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where MLflow is."""

    uri: str  # masked
    on_disk: bool  # a file, which another node would look for on its own disk
    asked: bool = False
    error: str | None = None  # what it answered, if it was asked and something is wrong


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What all said."""

    root: str
    driver: Statement
    nodes: tuple[Statement, ...]
    alone: bool = False  # the cluster is one node, and the driver runs on it
    tracking: Tracking | None = None

    @property
    def heard(self) -> tuple[Statement, ...]:
        """The driver, and the nodes that answered."""
        return (self.driver, *(node for node in self.nodes if node.silence is None and node.error is None))

    def as_json(self) -> dict[str, Any]:
        found = asdict(self)
        for each in (found["driver"], *found["nodes"]):
            if each["facts"]:
                each["facts"]["code"] = digest(each["facts"]["code"])
        return found


def survey(
    root: Path, *, thorough: bool, patience: float = PATIENCE, said: Callable[[str], None] | None = None
) -> Survey:
    """Ask every node of the Ray that is joined; below `root` nothing is left. `thorough`: everything, in half a minute;
    else what a study cannot do without, in some seconds. `said` hears what is being asked.

    A node that does not answer within `patience` seconds is no longer asked; one that Ray has lost by then is left out.
    Raises OSError where the driver itself cannot write below `root`.
    """
    say = said or (lambda _: None)
    packages = required()
    with contextlib.ExitStack() as stack:
        panel = stack.enter_context(_panel(patience))
        say("what runs on the nodes")
        facts = panel.ask("facts", str(root), packages, thorough)
        say("the storage between the nodes")
        folder = stack.enter_context(folder_below(root))
        storage = _storage(panel, folder, thorough)
        clocks, network = {}, {}
        if thorough:
            say("clocks and network")
            network = _network(panel)
            clocks = {name: panel.clock(name) for name in panel.listening}
        nodes = panel.still_there()
    statements = {
        name: Statement(
            name=name,
            node=node,
            silence=panel.silent.get(name),
            error=panel.failing.get(name),
            facts=facts.get(name),
            storage=storage.get(name),
            offset=clocks.get(name, (None, 0.0))[0],
            uncertainty=clocks.get(name, (None, 0.0))[1],
            network=network.get(name),
        )
        for name, node in [(DRIVER, None), *((node.name, node) for node in nodes)]
    }
    driver = statements.pop(DRIVER)
    return Survey(root=str(root), driver=driver, nodes=tuple(statements.values()), alone=alone(nodes))


def alive() -> list[Node]:
    """The nodes that Ray takes for alive, the head first."""
    import ray

    found = [
        Node(
            id=node["NodeID"],
            address=node["NodeManagerAddress"],
            host=node["NodeManagerHostname"],
            head="node:__internal_head__" in node["Resources"],
            cpus=node["Resources"].get("CPU", 0.0),
            accelerators=node["Resources"].get("GPU", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(found, key=lambda node: (not node.head, node.address, node.id))


def alone(nodes: Sequence[Node]) -> bool:
    """Whether the cluster is one node with the driver on it, and so no more than a local run."""
    import ray

    if len(nodes) != 1 or ray.util.client.ray.is_connected():  # through ray:// the driver is somewhere else
        return False
    return bool(ray.get_runtime_context().get_node_id() == nodes[0].id)


def look_at_tracking(uri: str, *, ask: bool) -> Tracking:
    """Whether MLflow's store is a file, and with `ask` whether it answers."""
    from urllib.parse import urlsplit

    from tune_jobs.tracking_client import connect, mask, reason

    scheme = urlsplit(uri).scheme.partition("+")[0]
    found = Tracking(uri=mask(uri), on_disk=scheme in ("sqlite", "file") or (not scheme and uri != "databricks"))
    if not ask or found.on_disk:
        return found
    try:
        connect(uri).search_experiments(max_results=1)
    except Exception as error:  # MLflow and its stores raise many kinds
        return replace(found, asked=True, error=reason(error))
    return replace(found, asked=True)


class _Panel:
    """A witness for each node and one for the driver, who are asked together."""

    def __init__(self, nodes: Sequence[Node], patience: float) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        self._ray = ray
        self.nodes, self.patience = nodes, patience
        self.own = Witness(DRIVER)
        self.silent: dict[str, str] = {}
        self.failing: dict[str, str] = {}
        actor = ray.remote(num_cpus=0)(Witness)
        self._actors = {n.name: actor.options(scheduling_strategy=On(n.id, soft=False)).remote(n.name) for n in nodes}

    @property
    def listening(self) -> list[str]:
        return [name for name in self._actors if name not in self.silent and name not in self.failing]

    def ask(self, method: str, *arguments: Any) -> dict[str, Any]:
        """Answers by name, the driver's first."""
        return self.ask_each(method, dict.fromkeys((DRIVER, *self.listening), arguments))

    def ask_each(self, method: str, arguments: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
        """Answers of those who are named, each with arguments of its own. Who does not answer is not asked again."""
        refs = {
            name: getattr(self._actors[name], method).remote(*given)
            for name, given in arguments.items()
            if name in self.listening
        }
        found = {DRIVER: getattr(self.own, method)(*arguments[DRIVER])} if DRIVER in arguments else {}
        if refs:
            self._ray.wait(list(refs.values()), num_returns=len(refs), timeout=self.patience)
        for name, ref in refs.items():
            try:
                found[name] = self._ray.get(ref, timeout=0.1)
            except self._ray.exceptions.GetTimeoutError:
                self.silent[name] = f"gave no answer within {self.patience:g} s"
            except self._ray.exceptions.RayTaskError as error:
                self.failing[name] = _in_a_line(error)
            except self._ray.exceptions.RayError as error:
                if getattr(error, "actor_init_failed", False):  # its code could not be imported
                    self.failing[name] = _in_a_line(error)
                else:
                    self.silent[name] = f"gave no answer ({_in_a_line(error)})"
        return found

    def still_there(self) -> list[Node]:
        """The nodes that Ray has not lost meanwhile."""
        if not self.silent:
            return list(self.nodes)
        there = {node.id for node in alive()}
        return [node for node in self.nodes if node.id in there]

    def clock(self, name: str) -> tuple[float | None, float]:
        """Seconds that a node's clock is ahead, and its uncertainty: half of the shortest of five round trips."""
        best: tuple[float | None, float] = (None, 0.0)
        for _ in range(5):
            began, at = time.perf_counter(), time.time()
            there = self.ask_each("now", {name: ()}).get(name)
            trip = time.perf_counter() - began
            if there is not None and (best[0] is None or trip / 2 < best[1]):
                best = (there - (at + trip / 2), trip / 2)
        return best

    def dismiss(self) -> None:
        for actor in self._actors.values():
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)


@contextlib.contextmanager
def _panel(patience: float) -> Iterator[_Panel]:
    panel = _Panel(alive(), patience)
    try:
        yield panel
    finally:
        panel.dismiss()


def _storage(panel: _Panel, folder: Path, thorough: bool) -> dict[str, Storage]:
    """Everyone writes, everyone locks and renames, everyone reads; whoever cannot go on drops out with the reason."""
    place = str(folder)
    with (folder / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        written = panel.ask("write", place, VISIBLE)
        found = {name: answer for name, answer in written.items() if isinstance(answer, Storage)}
        digests = {name: answer for name, answer in written.items() if isinstance(answer, str)}
        claims = panel.ask_each("claim", dict.fromkeys(digests, (place,)))
    seen = panel.ask_each("look", {name: (place, _peers(name, digests), VISIBLE) for name in digests})
    for name, storage in seen.items():
        found[name] = replace(claims[name], unseen=storage.unseen, owner=storage.owner)
    if thorough:
        measured = [name for name, storage in found.items() if storage.error is None]
        others = {name: measured[i - 1] for i, name in enumerate(measured)}
        rates = panel.ask_each("write_bulk", dict.fromkeys(measured, (place,)))
        reads = panel.ask_each("read_bulk", {name: (place, other) for name, other in others.items()})
        for name in measured:
            found[name] = replace(found[name], written=rates.get(name), read=reads.get(name))
    return found


def _network(panel: _Panel) -> dict[str, float]:
    """MB/s at which each node gets an object from the one before it, one after another; nothing for a single node."""
    names, found = panel.listening, {}
    if len(names) < 2:
        return {}
    given = panel.ask_each("give", dict.fromkeys(names, ()))
    for i, name in enumerate(names):
        if names[i - 1] in given:
            found.update(panel.ask_each("take", {name: (given[names[i - 1]],)}))
    return found


def _peers(name: str, digests: Mapping[str, str]) -> dict[str, str]:
    """The digests that a witness compares: the driver reads everyone's, others the driver's and the next few."""
    others = list(digests)
    if name != DRIVER:
        at = others.index(name)
        others = [DRIVER, *(others[at + 1 :] + others[:at])[:PEERS]]
    return {other: digests[other] for other in others if other != name and other in digests}


def _in_a_line(error: BaseException) -> str:
    """The last line of an error that says something: Ray puts the cause there, below a remote traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
