"""What identifies a dataset: the content of its files, and how they are packed. Decodes nothing; light to import."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_core.data.config import OWN_KEYS, DatasetConfig
from ssl_core.errors import DataError

if TYPE_CHECKING:
    from ssl_core.data.listing import Listing

#: Told now and then how far a long walk over images is: done, of how many, and bytes read of their files.
Progress = Callable[[int, int, int], None]

_FRESH_NS = 2_000_000_000  # a file changed this recently may change again within one tick of its clock
_READERS = 8  # threads; hashing runs outside Python's lock, and a network's files answer late
_TOGETHER = 1024  # files between two reports of progress
_MISSING = "missing"  # in place of the digest of a file that is not there
_UNSHAPING = frozenset({"path", "name", "accept", "lists"})  # `lists` is a path: its files' content counts


def fingerprint(config: DatasetConfig, *, cache: Path | None = None, progress: Progress | None = None) -> str:
    """sha256 over the source's content and the settings that shape what is packed; never of a path, a name or a date.

    `cache` is a JSON file of file digests, reused where a file's path, size and modification time are unchanged.
    Raises DataError where the source is missing or unreadable. A single image that is not there counts as missing.
    """
    from ssl_core.data.listing import listing

    return identity(config, listing(config), cache=cache, progress=progress)


def identity(
    config: DatasetConfig, found: Listing, *, cache: Path | None = None, progress: Progress | None = None
) -> str:
    """The fingerprint of a source whose listing is known already."""
    images, tables = found.paths or (), found.tables
    digests = _digests([*images, *tables.values()], cache, len(images), progress)
    names = [*(str(i) for i in found.ids[: len(images)]), *tables]
    content = {
        "settings": {f.name: getattr(config, f.name) for f in fields(config) if _shapes(f.name, config)},
        "lists": config.lists is not None,
        "files": sorted(zip(names, digests, strict=True)),
        "listing": _said(found),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _shapes(name: str, config: DatasetConfig) -> bool:
    return name not in _UNSHAPING and config.source in OWN_KEYS.get(name, (config.source,))


def _said(found: Listing) -> str:
    """Digest of what the listing says of its images: labels, groups, splits, in their order."""
    digest = hashlib.sha256(json.dumps([found.task, found.class_names, found.channels]).encode())
    for array in (found.ids, found.labels, found.groups, found.given):
        digest.update(b"none" if array is None else f"{array.dtype.kind}{array.shape}".encode())
        if array is not None:
            digest.update("\0".join(array.tolist()).encode() if array.dtype.kind == "U" else array.tobytes())
    return digest.hexdigest()


def _digests(paths: Sequence[Path], cache: Path | None, images: int, progress: Progress | None) -> list[str]:
    """sha256 of each file, from `cache` where it is up to date; new ones are added to it, also where this is stopped.

    The first `images` paths are images, which may be missing; the others are tables, which may not.
    """
    known, added = _read_cache(cache), False
    resolved: dict[Path, Path] = {}
    digests: list[str] = []
    total = 0

    def entry_of(path: Path) -> tuple[str, dict[str, Any] | None, bool]:
        """The file's place in the cache, its entry (None: it is missing), whether that is new and settled."""
        folder = resolved.get(path.parent)
        if folder is None:
            folder = resolved[path.parent] = path.parent.resolve()
        key = str(path.resolve() if path.is_symlink() else folder / path.name)
        try:
            stat, now = path.stat(), time.time_ns()
            state = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
            entry = known.get(key, {})
            if {k: entry.get(k) for k in state} == state:
                return key, entry, False
            with path.open("rb") as file:
                entry = {**state, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
            return key, entry, now - stat.st_mtime_ns > _FRESH_NS
        except (FileNotFoundError, NotADirectoryError):
            return key, None, False
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); check that it exists and its rights") from error

    pool = ThreadPoolExecutor(min(_READERS, len(paths)) or 1)
    try:
        for start in range(0, len(paths), _TOGETHER):
            for key, entry, new in pool.map(entry_of, paths[start : start + _TOGETHER]):
                if entry is None and len(digests) >= images:
                    raise DataError(f"{paths[len(digests)]} does not exist; check dataset.path and dataset.lists")
                if entry is not None and new:
                    known[key], added = entry, True
                digests.append(_MISSING if entry is None else str(entry["sha256"]))
                total += 0 if entry is None else int(entry["size"])
            if progress is not None:
                progress(len(digests), len(paths), total)
    finally:
        pool.shutdown(cancel_futures=True)
        if cache is not None and added:
            _write_cache(cache, known)
    return digests


def _read_cache(cache: Path | None) -> dict[str, dict[str, Any]]:
    try:
        known = json.loads(cache.read_text()) if cache is not None and cache.is_file() else {}
    except ValueError:
        return {}  # cut short by a crash: only time is lost
    return known if isinstance(known, dict) else {}


def _write_cache(cache: Path, known: dict[str, dict[str, Any]]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_name(f"{cache.name}.{os.getpid()}.tmp")
    partial.write_text(json.dumps(known))
    partial.replace(cache)
