"""What callers give as a budget or a head is checked before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import small_model
from fluxvit import Budget, Predictor

VIDEO = torch.rand(1, 3, 8, 24, 24)


@pytest.mark.parametrize("budget", [np.int64(12), torch.tensor(12), Budget(tokens=12)])
def test_numbers_of_other_libraries_are_budgets(budget: Any, checkpoint: Path) -> None:
    model = small_model().eval()
    assert torch.equal(model(VIDEO, budget=budget).logits, model(VIDEO, budget=12).logits)
    assert Predictor(checkpoint, budget, device="cpu").plan == Predictor(checkpoint, 12, device="cpu").plan


@pytest.mark.parametrize(
    "budget", [0, -1, 12.0, 12.5, True, "12", float("nan"), 10**400, Budget(gflops=1), np.float32(12)]
)
def test_what_is_no_number_of_tokens_is_one_line(budget: Any) -> None:
    for given in (budget, [12, budget]):
        with pytest.raises(ValueError, match="budget") as caught:
            small_model()(VIDEO, budget=given)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("head", [-1, 99, 0.5, True, "0"])
def test_heads_that_do_not_exist(head: Any) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        small_model()(VIDEO, head=head)


@pytest.mark.parametrize("budget", [0, 36.5, True, "36", 10**400])
def test_predictor_refuses(budget: Any, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="budget"):
        Predictor(checkpoint, budget, device="cpu")
