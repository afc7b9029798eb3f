"""What the package promises as a whole."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import fluxvit
from rooms import APART, FLOORS, circles, graph, room

ROOT = Path(__file__).parents[1]


def test_imports_point_down() -> None:
    level = {name: number for number, names in enumerate(FLOORS) for name in names}
    for module, targets in graph().items():
        home = room(module)
        for target in targets:
            there = room(target)
            assert level[there] <= level[home], f"{module} imports {target}, which is above it"
            assert there in APART.get(home, {there}), f"{module} imports {target}, which it must not know"


def test_no_modules_import_one_another() -> None:
    assert circles(graph()) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"], ["b", "c"]]


def test_public_names_import() -> None:
    for name in fluxvit.__all__:
        assert getattr(fluxvit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Predicktor'"):
        fluxvit.Predicktor  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, fluxvit; assert not {'torch', 'numpy', 'av'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_base_install_is_light() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[(.*?)^\]", text, re.S | re.M)
    assert block is not None
    assert len(re.findall(r'^\s*"', block[1], re.M)) <= 8
