"""What one process of a cluster, the driver or one on a node, says of where it runs and sees below the output folder.

All witnesses do the same things at the same time (tune_jobs.nodes): what one has written, locked or renamed, the others
must see.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

MB = 10**6
DRIVER = "the driver"
ROOMS = ("ssl_core", "analysis", "tune_jobs")
#: Why a witness drops out at once.
APART = f"does not see what {DRIVER} writes"
#: Files, and megabytes of each, by which bandwidth is measured; one object of the same size goes from node to node.
BULK, BULK_MB = 4, 8


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a process says of where it runs. Bytes; a folder's size is None where nothing can be said."""

    versions: Mapping[str, str]  # of Python and of what intermoco needs; "absent"
    code: Mapping[str, str]  # digests of intermoco's own files, by name
    token: bool  # whether Ray there asks for a token
    root_free: int
    temp_free: int
    temp: str
    devices: int | None = None  # accelerators that torch sees; None: not asked, or torch does not run
    drivers: tuple[str, ...] = ()  # "NVIDIA H100, driver 570.1", one an accelerator


@dataclass(frozen=True, kw_only=True)
class Storage:
    """What a process saw below the output folder."""

    error: str | None = None  # why it could not take part
    unseen: tuple[str, ...] = ()  # whose files did not appear here, or not whole
    locked: bool = False  # it got a lock that the driver held
    won: bool = False  # its folder took the name that all tried for
    owner: str | None = None  # who won, as seen from here
    written: float | None = None  # MB/s, the median of some files; None: not measured
    read: float | None = None  # of files that another node wrote


class Witness:
    """Speaks for the machine that it runs on."""

    def __init__(self, name: str) -> None:
        self.name = name

    def facts(self, root: str, packages: Sequence[str], thorough: bool) -> Facts:
        """Versions and free space; `thorough`: what torch and the driver say of accelerators too, in some seconds."""
        temp = tempfile.gettempdir()
        facts = Facts(
            versions={"python": platform.python_version(), **{name: _version(name) for name in packages}},
            code=code(),
            token=os.environ.get("RAY_AUTH_MODE", "").lower() == "token",
            root_free=shutil.disk_usage(_existing(Path(root))).free,
            temp_free=shutil.disk_usage(temp).free,
            temp=temp,
        )
        return replace(facts, devices=_devices(), drivers=_drivers()) if thorough else facts

    def write(self, folder: str, patience: float) -> Storage | str:
        """Write and flush a file of random bytes into the folder that the driver made; its digest, or what hindered."""
        if not _until(Path(folder).is_dir, time.monotonic() + patience):
            return Storage(error=APART)
        content = os.urandom(64 * 1024)
        try:
            _write(Path(folder) / _file(self.name), content)
        except OSError as error:
            return Storage(error=f"cannot write ({error})")
        return hashlib.sha256(content).hexdigest()

    def claim(self, folder: str) -> Storage:
        """Try for the lock that the driver holds, and for the folder name that all try for."""
        base = Path(folder)
        own = base / f"{_file(self.name)}.work"
        try:
            own.mkdir()
            _write(own / "owner", self.name.encode())
            with contextlib.suppress(OSError):  # another was first: its folder is not empty
                own.rename(base / "final")
            won = not own.exists()
            locked = self.name != DRIVER and _locks(base / "lock")
        except OSError as error:
            return Storage(error=f"cannot write, rename or lock ({error})")
        return Storage(won=won, locked=locked)

    def look(self, folder: str, digests: Mapping[str, str], patience: float) -> Storage:
        """Read what others wrote, and who owns the folder that all tried for."""
        until = time.monotonic() + patience
        unseen = [name for name, hashed in digests.items() if not _holds(Path(folder) / _file(name), hashed, until)]
        won = Path(folder) / "final" / "owner"
        _until(won.is_file, until)
        try:
            return Storage(unseen=tuple(unseen), owner=won.read_text())
        except OSError:
            return Storage(unseen=tuple(unseen))

    def write_bulk(self, folder: str) -> float | None:
        """MB/s at which files are written and flushed; None where that fails."""
        content = os.urandom(BULK_MB * MB)
        try:
            return _rate(lambda i: _write(Path(folder) / f"{_file(self.name)}.{i}", content))
        except OSError:
            return None

    def read_bulk(self, folder: str, other: str) -> float | None:
        """MB/s at which files are read that another has written; None where that fails."""
        try:
            return _rate(lambda i: _read_uncached(Path(folder) / f"{_file(other)}.{i}"))
        except OSError:
            return None

    def give(self) -> list[Any]:
        """A Ray object that lies here, in a list lest it be fetched before `take` looks at the clock."""
        import ray

        return [ray.put(os.urandom(BULK_MB * MB))]

    def take(self, given: list[Any]) -> float:
        """MB/s at which another's object comes here."""
        import ray

        began = time.perf_counter()
        ray.get(given[0])
        return BULK_MB / (time.perf_counter() - began)

    def now(self) -> float:
        """Seconds since 1970 by this machine's clock."""
        return time.time()


def code() -> dict[str, str]:
    """A digest of every file of intermoco's packages as they would be imported here."""
    found = {}
    for room in ROOMS:
        spec = importlib.util.find_spec(room)
        if spec is None or spec.origin is None:
            continue
        top = Path(spec.origin).parent
        for path in sorted(top.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                found[f"{room}/{path.relative_to(top).as_posix()}"] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return found


def digest(files: Mapping[str, str]) -> str:
    """One digest for all files."""
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:16]


def _locks(path: Path) -> bool:
    """Whether an exclusive lock is to be had, which is given back at once."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _holds(path: Path, hashed: str, until: float) -> bool:
    """Whether a file comes to hold what it should before a moment of the monotonic clock."""

    def whole() -> bool:
        with contextlib.suppress(OSError):
            return hashlib.sha256(path.read_bytes()).hexdigest() == hashed
        return False

    return _until(whole, until)


def _until(true: Callable[[], bool], until: float) -> bool:
    """Whether something comes true before a moment of the monotonic clock."""
    while not true():
        if time.monotonic() >= until:
            return False
        time.sleep(0.1)
    return True


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _read_uncached(path: Path) -> None:
    """Read a file; what this machine remembers of it is forgotten first."""
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.read()


def _rate(move: Callable[[int], None]) -> float:
    """MB/s of moving a file, the median of several."""
    rates = []
    for i in range(BULK):
        began = time.perf_counter()
        move(i)
        rates.append(BULK_MB / max(time.perf_counter() - began, 1e-6))
    return statistics.median(rates)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _devices() -> int | None:
    """Accelerators that torch sees in a process that may see them all: Ray hides them from one that holds none."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    ask = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=40, check=True, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return int(done.stdout)


def _drivers() -> tuple[str, ...]:
    """Accelerators and their drivers by NVIDIA's own tool; none where it is not there, or does not answer."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip().replace(", ", ", driver ") for line in done.stdout.splitlines() if line.strip())


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def _file(name: str) -> str:
    """A witness's name as the name of a file."""
    return "".join(c if c.isalnum() else "-" for c in name)
