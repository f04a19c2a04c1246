"""Whether this machine can run a study: each look answers in one sentence, with the remedy where something is amiss."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from tune_jobs.reaper import PROC, descendants

GIB = 1024**3
CGROUP = Path("/sys/fs/cgroup")
#: Less disk than this is no room for one study's weights, and less than that is worth a remark; memory likewise.
DISK_LEAST, DISK_ENOUGH, MEMORY_ENOUGH = 1 * GIB, 10 * GIB, 4 * GIB
#: 127.0.0.1, the same in IPv6, and ::1, as /proc/net writes them.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}

State = Literal["ok", "note", "failed"]


class Answer(NamedTuple):
    """What a look found."""

    state: State
    text: str


#: A look at one part of the machine, for a study whose output goes to the folder it is given.
Look = Callable[[Path], Answer]


def python(_: Path) -> Answer:
    """Python's version against the least that the package asks for."""
    from packaging.specifiers import SpecifierSet

    version = platform.python_version()
    for wanted in _recorded("Requires-Python"):
        if not SpecifierSet(wanted).contains(version, prereleases=True):
            return Answer("failed", f"{version} runs, intermoco needs {wanted}")
    return Answer("ok", f"{version} on {platform.system()} {platform.machine()}, {sys.executable}")


def packages(_: Path) -> Answer:
    """Versions of what intermoco depends on against the least that it asks for; of its extras, what is there."""
    from packaging.requirements import Requirement

    there, amiss = [], []
    for text in _recorded("Requires-Dist"):
        requirement = Requirement(text)
        optional = requirement.marker is not None
        if optional and "dev" in str(requirement.marker):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            amiss += [] if optional else [f"{requirement.name} is not installed"]
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            amiss.append(f"{requirement.name} is {version}, intermoco needs {requirement.specifier}")
        there.append(f"{requirement.name} {version}")
    if amiss:
        return Answer("failed", f"{'; '.join(amiss)}: install intermoco again")
    if not there:
        return Answer("note", "intermoco runs without being installed, so nothing says which versions it needs")
    return Answer("ok", ", ".join(there))


def processor(_: Path) -> Answer:
    """Cores and memory that this process may use."""
    cores, memory = available_cores(), available_memory()
    text = f"{cores:g} cores, {memory / GIB:.1f} GiB of memory"
    if memory < MEMORY_ENOUGH:
        return Answer("note", f"{text}: less than {MEMORY_ENOUGH / GIB:g} GiB, so a study may be killed for memory")
    return Answer("ok", text)


def accelerators(_: Path) -> Answer:
    """The accelerators that torch sees."""
    import torch

    if not torch.cuda.is_available():
        return Answer("ok", "none: studies run on the CPU")
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return Answer("ok", ", ".join(f"{p.name} ({p.total_memory / GIB:.0f} GiB)" for p in found))


def precision(_: Path) -> Answer:
    """What `precision: auto` is here."""
    from ssl_core import devices

    device = devices.choose()
    native = devices.multiplies_bf16(device)
    auto = "bf16" if native else "float32"
    return Answer("ok", f"{device} multiplies {'bf16' if native else 'no bf16'} natively: precision auto is {auto}")


def disk(root: Path) -> Answer:
    """Free space below the output folder."""
    there = next(p for p in (root, *root.parents) if p.exists())
    free = shutil.disk_usage(there).free
    text = f"{free / GIB:.1f} GiB free at {root}"
    if free < DISK_LEAST:
        return Answer("failed", f"{text}, {DISK_LEAST / GIB:g} are needed; free some, or give another --output")
    if free < DISK_ENOUGH:
        return Answer("note", f"{text}: a large study may need more")
    return Answer("ok", text)


def output_folder(root: Path) -> Answer:
    """Whether files can be made, flushed, locked and renamed below the output folder, as stages are."""
    try:
        with folder_below(root) as folder:
            work = folder / "work"
            work.mkdir()
            with (work / "file").open("wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.write(b"intermoco")
                file.flush()
                os.fsync(file.fileno())
            work.rename(folder / "final")
            whole = (folder / "final" / "file").read_bytes() == b"intermoco"
    except OSError as error:
        return Answer("failed", f"{root} takes no files ({error}); give another --output")
    if not whole:
        return Answer("failed", f"{root} loses what is written to it; give another --output")
    return Answer("ok", f"{root} takes files, locks and renames")


def local_ray(_: Path) -> Answer:
    """Whether a local Ray starts, runs a task, and listens on this machine alone."""
    from tune_jobs.cluster import local_ray

    with local_ray(cpus=1):
        import ray

        other = ray.get(ray.remote(num_cpus=1)(_where).remote(), timeout=60)
        sockets = listening(os.getpid())
    if other == os.getpid():
        return Answer("failed", "a task ran in this process, not in a worker of its own")
    if sockets is None:
        return Answer("note", "a task ran in a worker; without /proc its sockets cannot be looked at")
    outside = sorted(f"{name} ({address})" for address, name in sockets if address not in LOOPBACK)
    if outside:
        return Answer("failed", f"Ray listens beyond this machine: {', '.join(outside)}")
    return Answer("ok", f"a task ran in process {other}; all {len(sockets)} sockets listen on loopback alone")


def mlflow_store(root: Path) -> Answer:
    """Whether MLflow opens its default store below the output folder, or makes one where there is none yet."""
    from tune_jobs.tracking_client import connect, default_uri, reason

    try:
        if (root / "mlflow.db").is_file():
            count = len(connect(default_uri(root)).search_experiments())
            return Answer("ok", f"{default_uri(root)} opens and holds {count} experiments")
        with folder_below(root) as folder:
            connect(default_uri(folder)).search_experiments()
        return Answer("ok", f"a store can be made at {default_uri(root)}")
    except Exception as error:  # MLflow and its stores raise many kinds
        return Answer("failed", f"{default_uri(root)} does not open: {reason(error)}")


LOOKS: Sequence[Look] = (
    python,
    packages,
    processor,
    accelerators,
    precision,
    disk,
    output_folder,
    local_ray,
    mlflow_store,
)


def available_cores() -> float:
    """Cores that this process may use: its affinity, or its container's share where that is less."""
    cores = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    with contextlib.suppress(OSError, ValueError):  # no cgroup, or no limit in it
        quota, period = (CGROUP / "cpu.max").read_text().split()
        cores = min(cores, int(quota) / int(period))
    return cores


def available_memory() -> int:
    """Bytes of memory: the machine's, or its container's limit where that is less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):
        memory = min(memory, int((CGROUP / "memory.max").read_text()))
    return memory


def listening(root: int) -> set[tuple[str, str]] | None:
    """(address in hexadecimal, program) of every TCP socket that a process below `root` listens on; None: no /proc."""
    if not (PROC / "net" / "tcp").exists():
        return None
    addresses: dict[str, str] = {}
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (PROC / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A":  # LISTEN
                    addresses[f"socket:[{fields[9]}]"] = fields[1]
    found: set[tuple[str, str]] = set()
    for pid in (root, *descendants(root)):
        with contextlib.suppress(OSError):  # it ended meanwhile
            name = (PROC / str(pid) / "comm").read_text().strip()
            for handle in (PROC / str(pid) / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if (link := str(handle.readlink())) in addresses:
                        address, port = addresses[link].split(":")
                        found.add((address, f"{name} port {int(port, 16)}"))
    return found


@contextlib.contextmanager
def folder_below(root: Path) -> Iterator[Path]:
    """A folder below `root` for the body; it is gone afterwards, and so is what of `root` was not there."""
    missing = [p for p in (root, *root.parents) if not p.exists()]
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for path in missing:
            with contextlib.suppress(OSError):  # somebody else put something into it
                path.rmdir()


def required() -> tuple[str, ...]:
    """intermoco and what it depends on, extras left out."""
    from packaging.requirements import Requirement

    needed = [Requirement(text) for text in _recorded("Requires-Dist")]
    least = ("numpy", "ray", "torch", "torchvision")  # where nothing is recorded
    return tuple(sorted({"intermoco", *least, *(each.name for each in needed if each.marker is None)}))


def _where() -> int:
    return os.getpid()


def _recorded(field: str) -> list[str]:
    """What the installed package says of itself; nothing where it runs without having been installed."""
    try:
        return importlib.metadata.metadata("intermoco").get_all(field) or []
    except importlib.metadata.PackageNotFoundError:
        return []
