"""A sample of the hostile files of ``tests/slow``, which has hundreds."""

from __future__ import annotations

from pathlib import Path

import pytest

from good_files import good_files
from hostile import cases, run_case

SAMPLE = cases(seed=3, count=20)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return good_files(tmp_path_factory.mktemp("hostile") / "good")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(len(SAMPLE)))
def test_hostile_files_are_refused_in_one_line(number: int, good: Path, tmp_path: Path) -> None:
    outcome = run_case(SAMPLE[number], good, tmp_path / "case")
    assert not outcome.fault
