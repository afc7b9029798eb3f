"""Reports: one safe, self-contained page with the parts there is data for, its figures, its table."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from fluxvit.data.manifest import Entry
from fluxvit.evaluation.report import figures
from fluxvit.evaluation.report.filmstrips import Filmstrip, best_and_worst
from fluxvit.evaluation.report.page import Section, write_report
from fluxvit.utils.drawing import inline_svg, svg

LIMIT = 5_000_000
NASTY = '<script>alert("x")</script> & $\\frac$'
VOID = {"meta", "link", "img", "br"}


def point(kind: str, budget: int, top1: float, classes: int = 3, **more: Any) -> dict[str, Any]:
    dense = kind != "plain"
    return {
        "kind": kind, "budget": budget, "grid": "16x24x32" if dense else "8x24", "frames": 16, "height": 24,
        "width": 32, "pool": 2 * budget if dense else budget, "keep": budget, "head": 0,
        "selector": "group_dynamic" if kind in ("plain", "optimised") else kind, "views": "1x1", "top1": top1,
        "low": top1 - 0.03, "high": top1 + 0.03, "correct": round(400 * top1), "total": 400, "top5": None,
        "mean_class": top1, "nll": 0.7, "per_class": [top1] * classes, "gmacs": budget / 1000,
        "latency_ms": None, **more,
    }  # fmt: skip


def results(**more: Any) -> dict[str, Any]:
    """Three classes named a, b and NASTY, at two budgets."""
    latency = {"p10": 4.0, "p50": 5.0, "p90": 6.5, "device": f"cpu {NASTY}"}
    points = [
        point("plain", 36, 0.6, confusion=[[9, 0, 0]] * 3),
        point("optimised", 36, 0.7, confusion=[[5, 1, 0], [0, 7, 0], [0, 2, 0]], latency_ms=latency),
        point("random", 36, 0.5, latency_ms=latency),
        point("plain", 18, 0.4, per_class=[0.5, 0.25, None]),
        point("optimised", 18, 0.65, per_class=[0.4, 0.75, None]),
        point("random", 18, 0.45),
    ]
    trials = [
        {"budget": budget, "grid": grid, "frames": 16, "accuracy": accuracy, "total": 90}
        for budget in (36, 18)
        for grid, accuracy in (("16x24x32", 0.511), ("16x24x32", 0.622), ("16x32", 0.433))
    ]
    return {
        "title": f"title {NASTY}", "checkpoint": f"checkpoint {NASTY}", "headline": f"headline {NASTY}",
        "chance": 1 / 3, "conditions": {"Machine": f"machine {NASTY}"},
        "protocol": {"seed": 0, "note": NASTY},
        "classes": ["a", "b", NASTY], "unreadable": [{"path": f"x {NASTY}.mp4", "error": "no stream"}],
        "points": points, "trials": trials, **more,
    }  # fmt: skip


def noise(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def strip(frames: np.ndarray, rows: int = 2) -> Filmstrip:
    predictions = [(200, NASTY, 0.9, True), (50, "rises", 0.5, False)]
    return Filmstrip(f"clip {NASTY}", NASTY, predictions, [(f"row {NASTY}", frames)] * rows)


def sections() -> list[Section]:
    return [
        Section(f"extra {NASTY}", f"text {NASTY}", columns=("Name", NASTY), rows=[(f"cell {NASTY}", 1.5)])
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "report"
    return write_report(folder, results(), [strip(noise(16, 24))], sections()).parent


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


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
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_everything_from_data_is_escaped(page: str) -> None:
    assert "<script" not in page
    names = re.findall(r"(\w+) &lt;script&gt;", page)
    expected = "title headline checkpoint machine cpu x clip row extra text cell"
    assert set(expected.split()) <= set(names)
    assert "&amp;lt;" not in page


def test_all_parts_are_there(page: str) -> None:
    assert page.count('<svg role="img" aria-label=') == 4
    assert page.count("data:image/jpeg;base64,") == 2 * 12
    assert page.count('rowspan="3"') == 2
    assert "+25.0</td>" in page
    for title in ("Accuracy against cost", "All points", "What the selector keeps", "Unreadable files"):
        assert f"<h2>{title}" in page


def test_figures_are_files_too_and_nothing_else_is_left(folder: Path) -> None:
    files = {f"accuracy_{cost}.svg" for cost in figures.COSTS} | {"search.svg"}
    assert {path.name for path in folder.iterdir()} == files | {"report.html"}
    ElementTree.parse(folder / "search.svg")


def test_gains_are_those_of_the_smallest_budget(page: str) -> None:
    text = " ".join(page.split())
    assert "At 18 tokens" in text
    assert "better than plain sampling in 1 of 2 classes and worse in 1" in text  # The third has no clips.
    assert page.rindex("+50.0</td>") < page.rindex("−10.0</td>")  # The largest first.
    assert "<td>2</td><td>100 % of 2</td>" in text  # The commonest confusion.


def test_heat_map_shows_the_best_trial_of_a_grid(page: str) -> None:
    assert page.count(">62.2</text>") == 2
    assert ">51.1</text>" not in page


def test_what_has_no_data_is_left_out_and_its_old_figures_go(tmp_path: Path) -> None:
    points = [point("plain", 36, 0.6, confusion=[[9, 0, 0], [0, 9, 0], [0, 0, 9]])]
    points.append({**points[0], "kind": "one grid"})
    kinds = {"one grid": "a model trained on this grid alone."}
    (tmp_path / "search.svg").write_bytes(b"old")
    (tmp_path / "notes.txt").write_text("somebody's own")
    bare = results(points=points, trials=[], unreadable=[], conditions={}, protocol={}, kinds=kinds)
    page = write_report(tmp_path, bare).read_text(encoding="utf-8")
    titles = re.findall("<h2>(.*)</h2>", page)
    assert titles == ["Accuracy against cost", "All points", "How to read this"]
    drawn = {f"accuracy_{cost}.svg" for cost in ("tokens", "gmacs")}
    assert {path.name for path in tmp_path.iterdir()} == drawn | {"report.html", "notes.txt"}
    assert "ms (10th" not in page
    assert kinds["one grid"] in page


def test_much_is_cut_to_what_can_be_read(tmp_path: Path) -> None:
    count = 400
    confusion = [[3 if i == j else 0 for j in range(count)] for i in range(count)]
    confusion[7][9] = 6
    gains = [i / count for i in range(count)]
    many = results(
        classes=[f"{i} {'long ' * 20}" for i in range(count)],
        points=[
            point("plain", 36, 0.5, count),
            point("optimised", 36, 0.6, count, per_class=gains, confusion=confusion),
        ],
        trials=[],
        unreadable=[{"path": f"{i}.mp4", "error": "empty"} for i in range(300)],
    )
    path = write_report(tmp_path, many, [strip(noise(12, 224), rows=4)] * 5)
    page = path.read_text(encoding="utf-8")
    assert "15 largest gains and the 15 smallest" in page
    assert "<td>6</td><td>67 % of 9</td>" in page
    assert "300 files could not be read" in page
    assert "and 100 more" in page
    assert path.stat().st_size < LIMIT


def test_a_single_point_and_an_empty_score_can_be_drawn() -> None:
    empty = {"low": 0.0, "high": 0.0, "latency_ms": {"p50": 3.0}}
    for cost in figures.COSTS:
        for top1 in (0.0, 1.0):
            drawn = figures.accuracy_figure([point("plain", 18, top1, **empty)], cost, 0.5)
            assert ">plain</text>" in inline_svg(drawn)


@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_drawing_holds_nothing_that_is_no_xml() -> None:
    drawn = figures.accuracy_figure([point("a\x00\x1b<&>--b", 18, 0.5)], "tokens", 0.5)
    ElementTree.fromstring(svg(drawn))
    inline = ElementTree.fromstring(inline_svg(drawn).replace("xlink:", ""))
    assert "a\\x00\\x1b<&>--b" in "".join(inline.itertext())


def test_best_and_worst_clips_are_whole_readable_videos(tmp_path: Path) -> None:
    names = list("abcdef")
    entries = [Entry(tmp_path / name, 0) for name in names]
    entries[0] = Entry(tmp_path / "a", 0, start=1.0, end=2.0)
    scores = torch.tensor([-0.1, -3.0, float("nan"), -1.0, -2.0, -0.5])
    titles = [title for title, _ in best_and_worst(scores, names, entries, count=2)]
    assert titles == ["best: f", "best: d", "worst: b", "worst: e"]
    titles = [title for title, _ in best_and_worst(scores, names, entries, count=3)]
    assert titles == ["best: f", "best: d", "best: e", "worst: b"]


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_package_names_the_cure(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"fluxvit\[report\]"):
        write_report(tmp_path / "report", results())
    assert list(tmp_path.iterdir()) == []
