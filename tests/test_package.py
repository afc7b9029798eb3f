"""What the package promises as a whole."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fluxvit

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "fluxvit"
FLOORS = [
    {"flux", "files", "machine", "schema", "weights", "state_dicts", "terminal"},
    {"models", "video"},
    {"data", "checkpoints", "releases", "dual_checkpoints", "chat_checkpoints"},
    {"deploy", "training", "evaluation"},
    {"demo"},
    {"cli"},
]


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def floor(name: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if name in names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    home = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if home in ("__init__", "__main__"):
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fluxvit."):
            target = node.module.split(".")[1]
            assert floor(target) <= floor(home), f"{path}:{node.lineno} imports fluxvit.{target}"
            if home in ("flux", "models", "video") and target in ("flux", "models", "video"):
                # The network knows no files, the reader no network.
                assert target in {"flux": {"flux"}, "models": {"models", "flux"}, "video": {"video"}}[home]


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
