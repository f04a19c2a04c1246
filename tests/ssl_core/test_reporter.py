"""The log that a loop leaves."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from ssl_core.reporter import JsonLinesReporter, MetricsLog

ROW = {"step": 3, "loss": 0.1}


def test_metrics_are_printed_one_json_object_a_line() -> None:
    stream = io.StringIO()
    reporter = JsonLinesReporter(stream)
    reporter.metrics(ROW)
    reporter.metrics({"step": 4})
    reporter.checkpoint(Path("checkpoint.pt"))
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [ROW, {"step": 4}]


def test_the_log_begins_with_the_history_whatever_was_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    MetricsLog(path, [{"step": 1}]).append({"step": 2})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1}, {"step": 2}]


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        MetricsLog(tmp_path / "metrics.jsonl").append({"loss": float("nan")})
