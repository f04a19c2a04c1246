"""How a dataset was packed and what its audit found, in words, from the summary of dataset.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def unreadable(dataset: Mapping[str, Any]) -> str:
    """How many listed images are missing from the packed dataset; empty where none is."""
    match dataset.get("unreadable"):
        case None | 0:
            return ""
        case 1:
            return "One image that the source lists could not be read and was left out."
        case count:
            return f"{count:,} images that the source lists could not be read and were left out."


def packing(dataset: Mapping[str, Any]) -> str:
    """What packing took: images, bytes, time and rate; empty where the summary does not say."""
    cost = dataset.get("packing") or {}
    if cost.get("images") is None or cost.get("seconds") is None:
        return ""
    source, packed = cost.get("source_bytes"), cost.get("bytes")
    read = f" ({size(source)})" if source else ""
    into = f" into {size(packed)}" if packed else ""
    rate = cost.get("images_per_second")
    each = f", {rate:,.0f} images a second" if rate is not None else ""
    return f"Packing {cost['images']:,} images{read}{into} took {duration(cost['seconds'])}{each}."


def findings(dataset: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """What the audit found, findings that stop a study first; None where the summary holds no audit."""
    if dataset.get("audit") is None:
        return None
    found = [
        {
            "name": str(each["name"]).replace("_", " "),
            "count": f"{each['count']:,}" if each.get("count") is not None else "",
            "text": str(each.get("text", "")),
            "examples": [str(example) for example in each.get("examples", ())],
            "stops": each.get("severity") == "stops",
        }
        for each in dataset["audit"]
    ]
    return sorted(found, key=lambda each: not each["stops"])


def size(amount: float) -> str:
    """Bytes in decimal units, at least two digits: `1.2 GB`, `360 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "bytes" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"


def duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
