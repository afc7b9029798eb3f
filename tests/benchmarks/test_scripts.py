"""The scripts of ``benchmarks/`` and ``examples/`` import what the package has, and show their help."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

SCRIPTS = sorted(
    path.stem
    for folder in ("benchmarks", "examples")
    for path in (Path(__file__).parents[2] / folder).glob("*.py")
    if "\ndef main()" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_show_their_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    if name == "kept_tokens":
        pytest.importorskip("matplotlib")
    script = import_module(name)
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 0
    assert f"usage: {name}.py" in capsys.readouterr().out
