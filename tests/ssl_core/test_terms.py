"""Loss terms read off the device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssl_core.errors import NonFiniteError
from ssl_core.terms import read_terms


def step(info_nce: float, loss: float) -> dict[str, Tensor]:
    return {"info_nce": torch.tensor(info_nce), "loss": torch.tensor(loss)}


def test_terms_are_read_step_by_step() -> None:
    assert read_terms([step(1, 2), step(3, 4)], 10) == [{"info_nce": 1, "loss": 2}, {"info_nce": 3, "loss": 4}]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_earliest_step_and_its_first_bad_term_are_named(bad: float) -> None:
    with pytest.raises(NonFiniteError, match=f"info_nce is {bad} at step 11; lower learning_rate"):
        read_terms([step(1, 2), step(bad, bad), step(bad, bad)], 10)
    with pytest.raises(NonFiniteError, match=r"loss is .* at step 10"):
        read_terms([step(1, bad), step(bad, bad)], 10)
