"""Whether a cluster can run a study, from what its nodes say (tune_jobs.nodes): each judgement one answer, with the
remedy where something is amiss."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ssl_core.errors import ConfigError
from tune_jobs.machine import DISK_ENOUGH, DISK_LEAST, GIB, Answer
from tune_jobs.nodes import Statement, Survey, alive, alone, look_at_tracking, survey
from tune_jobs.witness import APART, DRIVER, Storage, digest

#: Seconds between two clocks that are worth a remark, and that are wrong: leases and tokens have run out by then.
CLOCK_NOTE, CLOCK_FAILED = 2.0, 60.0
#: MB/s of storage below which stages wait for it.
SLOW = 20.0
NAMED = 8  # nodes that a sentence names; the others are counted

#: What a survey says of one thing.
Judgement = Callable[[Survey], Answer]


def nodes(seen: Survey) -> Answer:
    """Which nodes there are, what they offer, and whether each answers."""
    known = [each.node for each in seen.nodes if each.node]
    cpus, accelerators = sum(n.cpus for n in known), sum(n.accelerators for n in known)
    count = "1 node" if len(known) == 1 else f"{len(known)} nodes"
    text = f"{count}, {cpus:g} CPUs, {accelerators:g} accelerators: " + _names(
        f"{each.name}{' head' if each.node.head else ''} {each.node.cpus:g} + {each.node.accelerators:g}"
        for each in seen.nodes
        if each.node
    )
    if amiss := [f"{each.name} {each.silence}" for each in seen.nodes if each.silence]:
        return Answer("failed", f"{text}. {_names(amiss)}: see what keeps it busy, or stop Ray there")
    if cpus == 0:
        return Answer("failed", f"{text}: nothing can run; start a node with --num-cpus")
    return Answer("ok", text)


def versions(seen: Survey) -> Answer:
    """Whether all run what the driver runs. Builds of one version (2.11+cpu, 2.11+cu128) may differ, with a remark."""
    assert seen.driver.facts is not None
    here = seen.driver.facts.versions
    amiss, builds = [_unable(each) for each in seen.nodes if each.error], []
    for each in seen.heard[1:]:
        there = each.facts.versions if each.facts else {}
        other = {name: there.get(name, "absent") for name in here if there.get(name, "absent") != here[name]}
        wrong = {n: v for n, v in other.items() if v.partition("+")[0] != here[n].partition("+")[0]}
        amiss += [f"{each.name} has {', '.join(f'{n} {v}' for n, v in wrong.items())}"] if wrong else []
        builds += [f"{each.name} {n} {v}" for n, v in other.items() if n not in wrong]
    if amiss:
        named = {n for each in seen.heard[1:] if each.facts for n, v in each.facts.versions.items() if v != here.get(n)}
        mine = ", ".join(f"{name} {here[name]}" for name in here if name in named)
        return Answer(
            "failed",
            f"{_names(amiss)}{f'; {DRIVER} has {mine}' if mine else ''}: install intermoco on every node with the same "
            "constraints.txt",
        )
    said = ", ".join(f"{name} {here[name]}" for name in ("python", "intermoco", "ray", "torch") if name in here)
    if builds:
        return Answer("note", f"{said}, but other builds on {_names(builds)}: last digits may depend on the node")
    return Answer("ok", f"{said}; all {len(here)} are equal everywhere")


def code(seen: Survey) -> Answer:
    """Whether all run the same intermoco, file by file: an edited copy on one node gives other numbers."""
    assert seen.driver.facts is not None
    here, amiss = seen.driver.facts.code, []
    for each in seen.heard[1:]:
        there = each.facts.code if each.facts else {}
        if files := sorted(name for name in {*here, *there} if here.get(name) != there.get(name)):
            amiss.append(f"{each.name} ({files[0]}{f' and {len(files) - 1} more' if len(files) > 1 else ''})")
    if amiss:
        return Answer("failed", f"other code than {DRIVER}'s on {_names(amiss)}: install the same intermoco there")
    return Answer("ok", f"the same {len(here)} files everywhere, digest {digest(here)}")


def accelerators_of_nodes(seen: Survey) -> Answer:
    """Whether torch sees what Ray offers, and whether accelerators and drivers are of one kind."""
    blind: list[str] = []
    kinds: set[str] = set()
    for each in seen.heard[1:]:
        if each.node is None or each.facts is None:
            continue
        devices = each.facts.devices
        if devices is not None and devices < each.node.accelerators:
            blind.append(f"{each.name} offers {each.node.accelerators:g}, torch sees {devices}")
        if each.node.accelerators:
            kinds.update(each.facts.drivers)
    if blind:
        return Answer("failed", f"{_names(blind)}: install the torch build and the driver that fit each other there")
    if len(kinds) > 1:
        return Answer("note", f"{_names(sorted(kinds))}: last digits may depend on the node")
    if kinds:
        return Answer("ok", f"{kinds.pop()} everywhere")
    count = sum(each.node.accelerators for each in seen.nodes if each.node)
    return Answer("ok", f"{count:g}; torch sees them" if count else "none: studies run on the CPU")


def clocks(seen: Survey) -> Answer:
    """How far the nodes' clocks are from the driver's."""
    known = [(abs(each.offset), each) for each in seen.heard[1:] if each.offset is not None]
    if not known:
        return Answer("note", "no node said what time it is")
    # an answer that came late says little: only what is certainly apart counts
    apart = [each for size, each in known if size - each.uncertainty > CLOCK_NOTE]
    text = _names(f"{each.name} {each.offset:+.1f} s" for each in apart)
    if any(size - each.uncertainty > CLOCK_FAILED for size, each in known):
        return Answer("failed", f"{text} from {DRIVER}'s clock: set the time by NTP (chrony, systemd-timesyncd)")
    if apart:
        return Answer("note", f"{text} from {DRIVER}'s clock; times in logs and MLflow will not agree")
    return Answer("ok", f"within {max(size + each.uncertainty for size, each in known):.3f} s of {DRIVER}'s")


def disks_of_nodes(seen: Survey) -> Answer:
    """Free space below the output folder and in each node's temporary folder."""
    free = {
        place: min(space)
        for each in seen.heard
        if each.facts
        for place, space in {
            f"{each.name}, output": [each.facts.root_free],
            f"{each.name}, {each.facts.temp}": [each.facts.temp_free],
        }.items()
    }
    small = {place: size for place, size in free.items() if size < DISK_ENOUGH}
    text = _names(f"{place}: {size / GIB:.1f} GiB free" for place, size in sorted(small.items(), key=lambda s: s[1]))
    if any(size < DISK_LEAST for size in small.values()):
        return Answer("failed", f"{text}; {DISK_LEAST / GIB:g} are needed")
    if small:
        return Answer("note", f"{text}; a large study may need more")
    place = min(free, key=free.__getitem__)
    return Answer("ok", f"at least {free[place] / GIB:.1f} GiB free everywhere ({place})")


def shared_storage(seen: Survey) -> Answer:
    """Whether what one writes below the output folder is there for the others."""
    apart = [each for each in seen.nodes if each.storage and each.storage.error]
    amiss = [f"{each.name} {each.storage.error}" for each in apart if each.storage]
    amiss += [
        f"{each.name} does not see what {_names(each.storage.unseen)} wrote"
        for each in seen.heard
        if each.storage and each.storage.unseen
    ]
    if seen.driver.storage and seen.driver.storage.error:
        amiss.append(f"{DRIVER} {seen.driver.storage.error}")
    if not amiss:
        count = sum(1 for each in seen.heard if each.storage)
        return Answer("ok", f"{seen.root}: what any of {count} processes wrote was read by the others")
    if len(apart) == len(seen.nodes) and all(each.storage and each.storage.error == APART for each in apart):
        return Answer(
            "failed",
            f"no node sees what {DRIVER} writes in {seen.root}: start intermoco on a node, or give an --output that is "
            "the same shared storage here and there",
        )
    return Answer("failed", f"{_names(amiss)} in {seen.root}: set --output to storage that all nodes mount at one path")


def locks(seen: Survey) -> Answer:
    """Whether a lock that one holds keeps the others out."""
    if amiss := [each.name for each, storage in _storages(seen) if storage.locked]:
        return Answer(
            "failed",
            f"{_names(amiss)} got a lock in {seen.root} that {DRIVER} held: two runs would not know of each other; "
            "mount it with locks that all nodes share (NFS 4; not nolock or local_lock), or set another --output",
        )
    return Answer("ok", f"a lock held by {DRIVER} is refused to all others")


def renames(seen: Survey) -> Answer:
    """Whether one, and only one, of several that rename a folder to the same name at the same time succeeds."""
    taking_part = _storages(seen)
    winners = [each.name for each, storage in taking_part if storage.won]
    owners = {storage.owner for _, storage in taking_part}
    if len(winners) != 1 or owners != set(winners):
        return Answer(
            "failed",
            f"of {len(taking_part)} that renamed a folder to one name in {seen.root} {len(winners)} succeeded: stages "
            "cannot be published there; set --output to a file system with atomic renames (NFS, Lustre, a local disk)",
        )
    return Answer("ok", f"of {len(taking_part)} that renamed a folder to one name at once, one succeeded")


def bandwidth(seen: Survey) -> Answer:
    """MB/s of storage with all at work at once, and of objects between nodes."""
    rates = {
        "written": [(s.written, each.name) for each, s in _storages(seen) if s.written is not None],
        "read": [(s.read, each.name) for each, s in _storages(seen) if s.read is not None],
        "from node to node": [(each.network, each.name) for each in seen.heard if each.network is not None],
    }
    words = []
    for what, known in rates.items():
        if known:
            least, name = min(known)
            words.append(
                f"{least:.0f}{f' to {max(known)[0]:.0f}' if len(known) > 1 else ''} MB/s {what} ({name} least)"
            )
    if not words:
        return Answer("note", "nothing could be measured")
    if min(rates["written"] + rates["read"], default=(SLOW, ""))[0] < SLOW:
        return Answer("note", f"{', '.join(words)}: below {SLOW:g} MB/s stages wait for the storage")
    return Answer("ok", ", ".join(words))


def tracking_server(seen: Survey) -> Answer:
    """Whether MLflow's store is a server. That it is down is a remark: `intermoco sync` catches up."""
    tracking = seen.tracking
    if tracking is None:
        return Answer("ok", "nothing is tracked")
    if tracking.on_disk and not seen.alone:
        return Answer(
            "failed",
            f"{tracking.uri} is a file, which only one machine should open: start an MLflow server, and set tracking: "
            "{uri: http://...} in the study or MLFLOW_TRACKING_URI",
        )
    if tracking.error:
        return Answer("note", f"{tracking.uri} does not answer ({tracking.error}); a study runs, and `intermoco sync` "
                      "catches up")  # fmt: skip
    return Answer("ok", f"{tracking.uri}{' answers' if tracking.asked else ''}")


def authentication(seen: Survey) -> Answer:
    """Whether Ray asks for a token everywhere."""
    if open_to_all := [each.name for each in seen.heard if each.facts and not each.facts.token]:
        return Answer(
            "note",
            f"without a token on {_names(open_to_all)}: whoever reaches Ray's ports can run code; set "
            "RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN_PATH for every node and for intermoco",
        )
    return Answer("ok", "Ray asks for a token everywhere")


#: What a study cannot do without.
GATE: Sequence[Judgement] = (versions, code, shared_storage, locks, renames, tracking_server)
ALL: Sequence[Judgement] = (
    nodes,
    versions,
    code,
    accelerators_of_nodes,
    clocks,
    disks_of_nodes,
    shared_storage,
    locks,
    renames,
    bandwidth,
    tracking_server,
    authentication,
)


def require_fit(root: Path, tracking: str | None) -> None:
    """Look, in some seconds, whether the nodes of the Ray that is joined can work together; a node alone always can.

    `tracking` is MLflow's URI, if the run tracks. Raises ConfigError that says what to set.
    """
    if alone(alive()):
        return
    seen = survey(root, thorough=False)
    if tracking is not None:
        seen = replace(seen, tracking=look_at_tracking(tracking, ask=False))
    if seen.alone:  # the others were lost meanwhile
        return
    for each in seen.nodes:
        if each.silence:
            print(f"note: {each.name} {each.silence}, so nothing is known of it", file=sys.stderr)
    answers = [judgement(seen) for judgement in GATE]
    if amiss := [answer.text for answer in answers if answer.state == "failed"]:
        raise ConfigError(
            "\n  ".join(["this cluster cannot run a study (intermoco doctor --address says more):", *amiss])
        )


def _storages(seen: Survey) -> list[tuple[Statement, Storage]]:
    """Those who took part to the end."""
    return [(each, each.storage) for each in seen.heard if each.storage and each.storage.error is None]


def _unable(each: Statement) -> str:
    return f"{each.name} cannot run this intermoco ({each.error})"


def _names(words: Iterable[str]) -> str:
    known = list(words)
    rest = len(known) - NAMED
    return ", ".join(known[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
