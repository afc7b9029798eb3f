"""The table of ``benchmarks/trained_selectors.py``."""

from __future__ import annotations

from trained_selectors import report


def test_the_report_compares_training_at_the_same_test_selector_and_both_together() -> None:
    # Checkpoints 0 and 1 are the starts, 2 and 3 trained with "a", 4 and 5 with "b"; four clips.
    marks = {f"{used} 8 {number}": "0000" for used in "ab" for number in range(6)}
    marks |= {"a 8 2": "1000", "a 8 3": "1000", "b 8 4": "1111", "b 8 5": "1101", "b 8 3": "1000"}
    lines = "\n".join(report({"marks": marks}, [8], ["a", "b"], 2))
    assert "25.0 % (25.0 25.0)" in lines
    assert "87.5 % (100.0 75.0)" in lines
    assert "trained with b rather than a, tested with a: -25.0" in lines
    assert "trained with b rather than a, tested with b: +75.0" in lines
    assert "trained and tested with b rather than a: +62.5" in lines
    assert "(seeds +75.0 +50.0)" in lines


def test_the_report_has_the_selector_that_followed_its_model() -> None:
    # Two clips and one seed: the start, trained with "a", with "learned", and then its selector.
    marks = {f"{used} 8 {number}": "00" for used in ("a", "learned") for number in range(4)}
    marks |= {"learned 8 2": "10", "learned 8 3": "11"}
    lines = "\n".join(report({"marks": marks}, [8], ["a", "learned"], 1, followed=True))
    assert "learned, then its selector, rather than learned, tested with learned: +50.0" in lines
