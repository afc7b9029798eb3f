"""Hundreds of hostile files through the real commands.

``FLUXVIT_HOSTILE_CASES`` sets how many, ``FLUXVIT_HOSTILE_SEED`` which; ``pytest -m slow -s`` prints figures.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from good_files import good_files
from hostile import cases, run_case

CASES = int(os.environ.get("FLUXVIT_HOSTILE_CASES", "600"))
SEED = int(os.environ.get("FLUXVIT_HOSTILE_SEED", "14"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_hostile_files_are_refused_in_one_line(tmp_path: Path) -> None:
    good = good_files(tmp_path / "good")
    refused: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    faults, longest = [], 0.0
    for number, case in enumerate(cases(SEED, CASES)):
        folder = tmp_path / str(number)
        outcome = run_case(case, good, folder)
        shutil.rmtree(folder)
        (refused if outcome.refused else accepted)[case.kind] += 1
        longest = max(longest, outcome.seconds)
        if outcome.fault:
            faults.append(f"{number} {case.kind}, {case.name}, {' '.join(case.command)}\n    {outcome.fault}")
    print(
        f"\nseed {SEED}: {CASES} cases, {sum(refused.values())} refused, {sum(accepted.values())} taken, "
        f"{len(faults)} faults"
    )
    for kind in sorted(refused | accepted):
        print(f"{kind:24} {refused[kind]:4} refused {accepted[kind]:4} taken")
    print(f"longest {longest:.1f} s")
    assert not faults, "\n".join(faults)
    if CASES >= 600:
        assert sum(refused.values()) >= 300
