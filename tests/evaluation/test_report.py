"""The report: one safe, self-contained page with the parts there is data for."""

from __future__ import annotations

import builtins
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluxvit.evaluation.report import Strip, write_report

LIMIT = 3_000_000
NASTY = '<script>alert("x")</script> & $\\frac$'
SECTIONS = {
    "curve": "Accuracy at each token budget",
    "trials": "How the grid of each budget was chosen",
    "controls": "Controls",
    "factors": "Accuracy of each factor",
    "training": "Training",
    "conditions": "Conditions",
}
VOID = {"meta", "link", "img", "br"}


def score(accuracy: float, **more: Any) -> dict[str, Any]:
    return {"accuracy": accuracy, "low": accuracy - 0.03, "high": accuracy + 0.03, "total": 400, **more}


def results() -> dict[str, Any]:
    budgets = (200, 100, 50, 25)  # Four: more than fit into one row of panels.
    return {
        "title": f"demo {NASTY}",
        "headline": f"headline {NASTY}",
        "notes": [f"note {NASTY}"],
        "chance": 0.0625,
        "conditions": {"Machine": f"two cores {NASTY}"},
        "curve": [
            {
                "budget": budget,
                "plain": score(0.6, grid="16x40", pool=budget, correct=240, gmacs=0.2),
                "optimised": score(0.7, grid="24x48", pool=432, correct=280, gmacs=0.21),
            }
            for budget in budgets
        ],
        "trials": [
            score(0.5 + frames / 100, budget=budget, grid=f"{frames}x{size}", frames=frames)
            for budget in budgets
            for frames in (16, 24)
            for size in (40, 48)
        ],
        "controls": [
            score(0.06, name="single frame", detail=f"detail {NASTY}"),
            score(0.2, name=NASTY, detail="leaks"),
        ],
        "factors": {
            "names": ["slide", NASTY],
            "rows": [{"budget": budget, "plain": [0.9, 0.8], "optimised": [0.95, 0.7]} for budget in budgets],
        },
        "training": [
            {"step": step, "loss": 8 / (1 + step), "accuracy@200": step / 500, "accuracy@50": float("nan")}
            for step in range(500)
        ],
    }


def strip(frames: np.ndarray, rows: int = 2) -> Strip:
    answers = [(200, NASTY, 0.9, True), (50, "rises", 0.5, False)]
    return Strip(f"clip {NASTY}", NASTY, answers, [(f"row {NASTY}", frames)] * rows)


def noise(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def write(path: Path, results: dict[str, Any], strips: list[Strip]) -> str:
    write_report(path, results, strips)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("report") / "report.html", results(), [strip(noise(16, 40))])


class Balance(HTMLParser):
    """Fails where an element is closed that is not the one last opened; collects what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open = self.open if tag in VOID else self.open[:-1]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing(page: str) -> None:
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert all(load.startswith(("data:", "#")) for load in parser.loads)
    assert not re.search(r"url\((?!#)|@import", page)


def test_everything_from_data_is_escaped(page: str) -> None:
    assert "<script" not in page
    for where in ("demo", "headline", "note", "two cores", "detail", "clip", "row"):
        assert f"{where} &lt;script&gt;" in page


def test_all_parts_are_there(page: str) -> None:
    assert all(f"<h2>{title}" in page for title in SECTIONS.values())
    assert page.count('<svg role="img" aria-label=') == 4
    assert page.count("data:image/jpeg;base64,") == 2 * 12
    assert "+10.0" in page
    assert "no better than guessing" in page
    assert "<td>better than guessing" in page
    assert "--budget 25 --explain" in page
    assert len(page) < LIMIT


def test_ids_are_unique_across_figures(page: str) -> None:
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("missing", SECTIONS)
def test_a_part_without_data_is_left_out(tmp_path: Path, missing: str) -> None:
    page = write(tmp_path / "report.html", {missing: results()[missing]}, [])
    assert [key for key, title in SECTIONS.items() if f"<h2>{title}" in page] == [missing]
    empty = write(tmp_path / "report.html", {missing: type(results()[missing])()}, [])
    assert not any(f"<h2>{title}" in empty for title in SECTIONS.values())
    assert 'class="film"' not in page


def test_many_large_frames_stay_within_the_limit(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", {}, [strip(noise(12, 224), rows=4)] * 5)
    assert (tmp_path / "report.html").stat().st_size < LIMIT


def test_frames_must_be_uint8_pictures() -> None:
    with pytest.raises(ValueError, match=r"float64 \[2, 4, 4, 3\]"):
        strip(np.zeros((2, 4, 4, 3)))


def test_a_missing_matplotlib_names_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def without_matplotlib(name: str, *args: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return load(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ValueError, match=r"fluxvit\[report\]"):
        write_report(tmp_path / "report.html", results(), [])
    assert list(tmp_path.iterdir()) == []
