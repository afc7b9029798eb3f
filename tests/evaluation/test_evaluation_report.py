"""The report of an evaluation: its page, its figures as files, its table; with little data, and with much."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from test_report import Balance, noise, strip

from fluxvit.evaluation.evaluation_figures import COSTS, accuracy_against, short_name, spread
from fluxvit.evaluation.evaluation_report import write_evaluation_report

NASTY = '<script>alert("x")</script> & $\\frac$'


def point(kind: str, budget: int, top1: float, classes: int = 3, **more: Any) -> dict[str, Any]:
    dense = kind != "plain"
    return {
        "kind": kind, "budget": budget, "grid": "16x24x32" if dense else "8x24", "frames": 16, "height": 24,
        "width": 32, "pool": 2 * budget if dense else budget, "keep": budget, "head": 0,
        "selector": "group_dynamic" if kind in ("plain", "optimised") else kind, "views": "1x1", "top1": top1,
        "low": top1 - 0.03, "high": top1 + 0.03, "correct": round(400 * top1), "total": 400, "top5": None,
        "mean_class": top1, "nll": 0.7, "ece": 0.05, "per_class": [top1] * classes, "gmacs": budget / 1000,
        "latency_ms": None, **more,
    }  # fmt: skip


def results(**more: Any) -> dict[str, Any]:
    """Of three classes named a, b and NASTY, at two budgets."""
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
        {"budget": budget, "grid": grid, "frames": 16, "height": 24, "width": 32, "head": head,
         "selector": "group_dynamic", "accuracy": accuracy, "low": 0.1, "high": 0.9, "correct": 1,
         "total": 90}
        for budget in (36, 18)
        for grid, head, accuracy in (("16x24x32", 0, 0.511), ("16x24x32", 1, 0.622), ("16x32", 0, 0.433))
    ]  # fmt: skip
    return {
        "title": f"title {NASTY}", "checkpoint": f"checkpoint {NASTY}", "headline": f"headline {NASTY}",
        "chance": 1 / 3, "conditions": {"Machine": f"machine {NASTY}"},
        "protocol": {"seed": 0, "note": NASTY},
        "classes": ["a", "b", NASTY], "unreadable": [{"path": f"x {NASTY}.mp4", "error": "no stream"}],
        "points": points, "trials": trials, **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    return write_evaluation_report(folder / "report", results(), [strip(noise(4, 24))]).parent


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_is_well_formed_safe_and_loads_nothing(page: str) -> None:
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert all(load.startswith(("data:", "#")) for load in parser.loads)
    assert "<script" not in page
    for where in ("title", "headline", "checkpoint", "machine", "cpu", "x"):
        assert f"{where} &lt;script&gt;" in page
    assert page.count('<svg role="img" aria-label=') == 6


def test_figures_are_files_too_and_nothing_else_is_left(folder: Path) -> None:
    names = {
        "accuracy_tokens",
        "accuracy_gmacs",
        "accuracy_milliseconds",
        "search",
        "class_gains",
        "confusion",
    }
    files = {f"{name}{suffix}" for name in names for suffix in (".png", ".svg")}
    assert {path.name for path in folder.iterdir()} == files | {"report.html", "points.csv"}
    assert (folder / "search.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (folder / "search.svg").read_text(encoding="utf-8")


def test_the_table_has_every_point(folder: Path) -> None:
    with (folder / "points.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["kind"], row["budget"]) for row in rows] == [
        (point["kind"], str(point["budget"])) for point in results()["points"]
    ]
    assert float(rows[1]["latency_p50_ms"]) == 5.0
    assert rows[0]["latency_p50_ms"] == rows[0]["top5"] == ""
    assert float(rows[4]["top1"]) == 0.65


def test_gains_are_those_of_the_smallest_budget(page: str) -> None:
    assert "+25.0</td>" in page
    assert "better than plain sampling in 1 of 2 classes and worse in 1" in page  # The third has no clips.
    assert page.index("+50</text>") < page.index("−10</text>")  # The largest first.


def test_heat_map_shows_the_best_of_heads(page: str) -> None:
    assert page.count(">62.2</text>") == 2
    assert ">51.1</text>" not in page


def test_what_has_no_data_is_left_out_and_its_old_figures_go(tmp_path: Path) -> None:
    bare = results(points=[point("plain", 36, 0.6)], trials=[], unreadable=[], chance=None)
    (tmp_path / "search.png").write_bytes(b"old")
    (tmp_path / "notes.txt").write_text("somebody's own")
    page = write_evaluation_report(tmp_path, bare, []).read_text(encoding="utf-8")
    for title in ("What the selector keeps", "How the grids", "What each class", "Confusions", "Unreadable"):
        assert f"<h2>{title}" not in page
    drawn = {f"accuracy_{cost}.{kind}" for cost in ("tokens", "gmacs") for kind in ("png", "svg")}
    assert {path.name for path in tmp_path.iterdir()} == drawn | {"report.html", "points.csv", "notes.txt"}
    assert "ms (10th" not in page


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
    path = write_evaluation_report(tmp_path, many, [strip(noise(12, 224), rows=4)] * 4)
    page = path.read_text(encoding="utf-8")
    assert "15 largest gains and the 15 smallest" in page
    assert page.count("…</text>") == 30
    assert "<td>6</td><td>67 % of 9</td>" in page
    assert not (tmp_path / "confusion.png").exists()
    assert "300 files could not be read" in page
    assert "and 100 more" in page
    assert path.stat().st_size < 5_000_000


def test_a_single_point_and_an_empty_score_can_be_drawn() -> None:
    for cost in COSTS[:2]:
        drawn = accuracy_against([point("plain", 18, 0.03)], cost, 0.5, 9.0).inline()
        assert ">plain</text>" in drawn


def test_labels_are_spread_within_limits() -> None:
    placed = spread([50.0, 50.0, 99.0, 2.0], 5, 0, 100)
    assert sorted(placed) == [2.5, 50.0, 55.0, 99.0]
    crowded = sorted(spread([98.0, 99.0, 97.0], 5, 0, 100))
    assert crowded == [90.0, 95.0, 100.0]


def test_long_names_are_cut() -> None:
    assert short_name("x" * 36) == "x" * 36
    assert short_name("x" * 37) == "x" * 35 + "…"
