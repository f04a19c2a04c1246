"""Every error that intermoco raises on purpose, one tree.

IntermocoError
├── InputError           bad input: found before work starts; the command line exits with 2
│   ├── ConfigError      a value that cannot be, a key that is not known
│   └── DataError        a dataset that is missing, unreadable or unfit for what is asked of it
├── CheckpointError      a checkpoint that is truncated or belongs to another configuration
├── MemoryExhaustedError an accelerator's memory that does not hold a step; names the settings that help
├── NonFiniteError       a loss or a feature that is NaN or infinite; names the step and the term
├── ExportError          an exported model that does not answer as the evaluated one does
├── StageError           a stage that failed or whose files do not match its manifest
└── TrackingError        an MLflow store out of reach, or one that refuses what it is sent (tune_jobs.tracking)

Each message carries the value and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class IntermocoError(Exception):
    """Root of every error raised on purpose."""


class InputError(IntermocoError, ValueError):
    """Bad input. A ValueError too, so that a validator (pydantic) reports it under the key it belongs to."""


class ConfigError(InputError):
    """A configuration value that cannot be, or an unknown key."""


class DataError(InputError):
    """A dataset that is missing, unreadable or unfit for what is asked of it."""


class CheckpointError(IntermocoError):
    """A checkpoint that is truncated, or was written under another configuration."""


class MemoryExhaustedError(IntermocoError):
    """An accelerator's memory that does not hold a training step."""


class NonFiniteError(IntermocoError):
    """A term that became NaN or infinite."""


class ExportError(IntermocoError):
    """An exported model that does not answer as the evaluated one does."""


class StageError(IntermocoError):
    """A stage that failed, or whose files do not match its manifest."""


def nearest(word: str, known: Iterable[str], *, count: int = 3) -> str:
    """Names closest to `word`, as the tail of an error message: `; did you mean a, b? Known: a, b, c`."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=count, cutoff=0.5)
    hint = f"; did you mean {', '.join(close)}?" if close else ";"
    return f"{hint} known: {', '.join(names)}"
