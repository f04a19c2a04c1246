"""Files of weights and state: written whole or not at all, read without running code, refused when they do not fit."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_core.errors import CheckpointError


def save(path: Path, payload: Mapping[str, Any]) -> None:
    """Write `payload` (tensors, numbers, strings, and dicts, lists and tuples of them) to `path`.

    A reader sees the old file or the new one, never a part: the bytes reach the disk before the name does. The same
    payload gives the same bytes, whatever the path.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(dict(payload), file)  # a handle, because torch writes a path's name into the file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, *, expect: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The payload of `path`, tensors on the CPU. With `expect`, its `config` entry must equal `expect`.

    Raises CheckpointError, naming the path, if the file is missing, damaged or was written under another
    configuration; the message then holds the first key that differs and both values.
    """
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is truncated or damaged ({_first_line(error)}); delete it to start anew"
        ) from error
    if not isinstance(payload, dict):
        raise CheckpointError(f"{path} holds a {type(payload).__name__}, not a checkpoint; delete it to start anew")
    if expect is not None:
        for key, was, now in _differences(payload.get("config", {}), expect):
            raise CheckpointError(
                f"{path} was written with {key} = {was!r}, this run has {now!r}; "
                "delete it to start anew, or give this run a folder of its own"
            )
    return payload


def digest(path: Path) -> str:
    """SHA-256 of the file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a state dict's names, shapes, types and values, wherever and in whatever layout its tensors lie."""
    sha = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        values = tensor.detach().cpu()
        sha.update(f"{name}|{tuple(values.shape)}|{values.dtype}|".encode())
        sha.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


_ABSENT = "nothing"


def _differences(was: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of every leaf that differs; tuples and lists are alike."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for name in [*now, *(n for n in was if n not in now)]:
            yield from _differences(was.get(name, _ABSENT), now.get(name, _ABSENT), f"{key}.{name}" if key else name)
    elif isinstance(was, list | tuple) and isinstance(now, list | tuple):
        if list(was) != list(now):
            yield key, was, now
    elif was != now:
        yield key, was, now
