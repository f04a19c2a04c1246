"""What an error means for the run: tried again or not, how often, and what a person is told.

lost     a worker, its node, or its touch with the others: tried again `resources.restarts` times
passing  storage that refuses for a while: tried again after growing pauses, for five minutes in all
full     a disk or a quota without room: fails at once, saying where and how much there is
own      anything else, a bug or bad input: fails at once, for it would fail again
"""

from __future__ import annotations

import errno
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import TypeVar

from ssl_core.errors import StageError

log = logging.getLogger(__name__)

T = TypeVar("T")

#: What a network file system says while its server is away, and a local one while it is remounted.
REFUSALS = frozenset(
    {
        errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.EROFS,
        errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ENOLINK,
        errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
    }
)  # fmt: skip
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})

#: Seconds of pauses in all before a refusal counts as for good; the longest single pause.
PATIENCE, LONGEST_PAUSE = 300.0, 30.0

#: Ray's errors that no other worker or node would mend.
_RAY_OWN = {"RuntimeEnvSetupError", "TaskCancelledError", "TaskUnschedulableError", "ActorUnschedulableError"}


class Kind(IntEnum):
    """From the least to the gravest: of several errors at once, the gravest is the cause of the others."""

    LOST = 0
    PASSING = 1
    FULL = 2
    OWN = 3


def kind(error: BaseException) -> Kind:
    """What an error means; where it wraps another or was raised from a refusal of storage, what that one means."""
    if isinstance(error, OSError) and error.errno in REFUSALS:
        return Kind.PASSING
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return Kind.FULL
    wrapped = _wrapped(error)
    if wrapped:
        return gravest(wrapped)
    if _is_loss(error):
        return Kind.LOST
    below = kind(error.__cause__) if isinstance(error.__cause__, Exception) else Kind.OWN
    return below if below in (Kind.PASSING, Kind.FULL) else Kind.OWN


def gravest(errors: Iterable[BaseException]) -> Kind:
    return max(map(kind, errors))


def _wrapped(error: BaseException) -> list[BaseException]:
    """The errors that Ray's task or Ray Train's run failed with."""
    if not _is_of(error, "ray"):
        return []
    workers = list(getattr(error, "worker_failures", {}).values())
    one = getattr(error, "cause", None) or getattr(error, "controller_failure", None)
    return workers or ([one] if isinstance(one, BaseException) else [])


def _is_loss(error: BaseException) -> bool:
    """Whether a worker is gone or has lost touch with another, which is no error of the work itself."""
    if _is_of(error, "ray"):  # Ray says that the worker died, or does not answer
        return type(error).__name__ not in _RAY_OWN
    if _is_of(error, "torch"):
        from torch.distributed import DistError

        return isinstance(error, DistError)
    return type(error) is RuntimeError and "gloo" in str(error)


def _is_of(error: BaseException, package: str) -> bool:
    return type(error).__module__.split(".")[0] == package


def pauses(patience: float = PATIENCE) -> Iterator[float]:
    """Seconds to wait before each further try: 1, 2, 4, ... 30, 30, until they add up to `patience`."""
    pause, left = 1.0, patience
    while left > 0:
        yield min(pause, left)
        left -= pause
        pause = min(2 * pause, LONGEST_PAUSE)


def patiently(do: Callable[[], T], *, patience: float = PATIENCE) -> T:
    """What `do` returns; called again after growing pauses while storage refuses, for `patience` seconds at most."""
    for pause in pauses(patience):
        try:
            return do()
        except Exception as error:
            if kind(error) is not Kind.PASSING:
                raise
            log.warning("storage refuses (%s); trying again in %g s", error, pause)
        time.sleep(pause)
    return do()


def explained(error: BaseException, root: Path) -> BaseException:
    """The error as a person should read it: where the remedy lies outside the study's code, one that names it."""
    text = " ".join(str(error).split())[:300]
    if type(error).__name__ == "OutOfMemoryError" and _is_of(error, "torch"):
        return StageError(
            f"out of memory on the accelerator ({text}); set pretrain.micro_batch to auto, raise resources.workers or "
            "lower batch_size; for stages that share an accelerator raise resources.accelerator_share"
        )
    match kind(error):
        case Kind.FULL:
            return StageError(
                f"no room left ({text}) on {_rooms(root)}, what was half-written removed; make room, or move the root "
                "to where there is more and give it as --output, and run again: what was finished stays"
            )
        case Kind.PASSING:
            return StageError(
                f"storage at {root} has refused for {PATIENCE:g} s ({text}); run again when it is back, "
                "what was finished stays"
            )
        case Kind.LOST if type(error).__name__ == "OutOfMemoryError":
            return StageError(
                f"ended by Ray, because its node had no memory left ({text}); raise resources.cpus, so that fewer "
                "stages share a node, or lower batch_size"
            )
        case _:
            return error


def one_line(error: BaseException) -> str:
    """An error's kind and message, without its traceback."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _rooms(root: Path) -> str:
    """The folders that a stage writes to, with the bytes free in each."""
    folders = dict.fromkeys([root, Path(tempfile.gettempdir())])
    return " or ".join(f"{folder} ({_free(folder)} bytes free)" for folder in folders)


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free:,}"
    except OSError:
        return "unknown"
