"""Files of state: whole or not there, refused when damaged or foreign."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
import torch

from ssl_core import checkpoint
from ssl_core.errors import CheckpointError

PAYLOAD = {
    "config": {"moco": {"queue": 4, "momentum": 0.99}, "crop": (0.4, 1.0), "mse": None, "dataset": "abc"},
    "weights": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, -1])},
    "history": [{"loss": 0.5}],
}


def test_a_payload_comes_back_as_it_was(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.pt", PAYLOAD)
    found = checkpoint.load(tmp_path / "c.pt", expect=PAYLOAD["config"])
    assert torch.equal(found["weights"]["a"], PAYLOAD["weights"]["a"])
    assert found["config"] == PAYLOAD["config"]
    assert found["history"] == PAYLOAD["history"]
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_the_same_payload_gives_the_same_bytes_under_any_name(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.pt", PAYLOAD)
    checkpoint.save(tmp_path / "other.pt", PAYLOAD)
    digest = checkpoint.digest(tmp_path / "c.pt")
    assert checkpoint.digest(tmp_path / "other.pt") == digest
    assert digest == hashlib.sha256((tmp_path / "c.pt").read_bytes()).hexdigest()


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    checkpoint.save(path, PAYLOAD)
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        checkpoint.save(path, {"not a value": lambda: None})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.99])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, share: float) -> None:
    path = tmp_path / "c.pt"
    checkpoint.save(path, PAYLOAD)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=r"c\.pt is truncated or damaged"):
        checkpoint.load(path)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save({"config": Path}, path)
    with pytest.raises(CheckpointError, match=r"c\.pt"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moco": {"queue": 4, "momentum": 0.996}}, r"moco\.momentum = 0\.99, this run has 0\.996"),
        ({"crop": (0.5, 1.0)}, r"crop = \(0\.4, 1\.0\), this run has \(0\.5, 1\.0\)"),
        ({"mse": {"pool": "grid"}}, r"mse = None, this run has \{'pool': 'grid'\}"),
        ({"dataset": "xyz"}, r"dataset = 'abc', this run has 'xyz'"),
        ({"seed": 1}, r"seed = 'nothing', this run has 1"),
    ],
)
def test_another_configurations_file_is_refused_with_key_and_both_values(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    checkpoint.save(tmp_path / "c.pt", PAYLOAD)
    with pytest.raises(CheckpointError, match=r"c\.pt was written with " + message):
        checkpoint.load(tmp_path / "c.pt", expect=PAYLOAD["config"] | change)  # type: ignore[operator]


def test_a_key_that_this_run_no_longer_has_is_a_difference_too(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.pt", PAYLOAD)
    expect = {key: value for key, value in PAYLOAD["config"].items() if key != "dataset"}  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="dataset = 'abc', this run has 'nothing'"):
        checkpoint.load(tmp_path / "c.pt", expect=expect)


def test_a_state_digest_is_of_names_and_values_not_of_layout() -> None:
    state = {"a": torch.rand(2, 3, 4, 4), "b": torch.tensor(1)}
    laid_out = {"b": state["b"], "a": state["a"].contiguous(memory_format=torch.channels_last)}
    digest = checkpoint.state_digest(state)
    assert checkpoint.state_digest(laid_out) == digest
    assert checkpoint.state_digest({"c": state["a"], "b": state["b"]}) != digest
    assert checkpoint.state_digest({"a": state["a"].reshape(3, 2, 4, 4), "b": state["b"]}) != digest
    changed = state["a"].clone()
    changed[1, 2, 3, 3] += 1e-6
    assert checkpoint.state_digest({"a": changed, "b": state["b"]}) != digest
