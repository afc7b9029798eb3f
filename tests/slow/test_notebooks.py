"""The cells of the notebooks run one after the other, and what they show is so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"


def run(name: str) -> dict[str, Any]:
    """The names that a notebook has defined in the end."""
    names: dict[str, Any] = {}
    for cell in json.loads((DOCS / name).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    return names


def test_the_selector_is_worth_something_in_the_quick_start() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    right = run("quickstart.ipynb")["right"]
    assert right[18, "group_dynamic"] > right[18, "random"]


def test_the_model_is_fine_tuned_in_the_notebook_of_hugging_face() -> None:
    pytest.importorskip("transformers")
    names = run("huggingface.ipynb")
    assert names["accuracy"][72] > 0.8
    assert names["losses"][-1] < 0.2 * names["losses"][0]
    assert min(names["scores"].values()) > 0.8
