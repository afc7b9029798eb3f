"""The rooms of the package, how they stand on one another, and who imports whom.

``python tests/rooms.py`` prints the rooms with their lines and the imports between them. ``test_package.py``
holds the floors.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "fluxvit"

FLOORS: tuple[frozenset[str], ...] = tuple(
    frozenset(names.split())
    for names in (
        "utils",
        "flux",
        "models video",
        "checkpoints data",
        "synthetic deploy",
        "evaluation hf serving",
        "optimization training",
        "demo",
        "cli",
    )
)
"""The rooms from the ground floor up. A room may import from its own floor and from those below."""

APART = {"flux": {"flux", "utils"}, "models": {"models", "flux", "utils"}, "video": {"video", "utils"}}
"""Rooms that import from these rooms only: the network knows no files, and the reader knows no network."""


def modules() -> dict[str, Path]:
    """The modules of the package by name, without those that stand for the package itself."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts not in (("__init__",), ("__main__",)):
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def room(module: str) -> str:
    """The room of a module; the files of the demo are a room of their own."""
    return module.split(".")[0].split("_")[0]


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules that a file imports at any place, but for type checkers alone."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.ImportFrom) and (child.module or "").startswith("fluxvit."):
                module = str(child.module).removeprefix("fluxvit.")
                names = {f"{module}.{alias.name}" for alias in child.names} & known.keys()
                found.update(names or {module})
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found & known.keys()


def graph() -> dict[str, set[str]]:
    """The imports of every module."""
    known = modules()
    return {name: imports(path, known) - {name} for name, path in known.items()}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another, directly or not."""
    reach = {name: set(targets) for name, targets in edges.items()}
    while True:
        wider = {name: targets.union(*(reach[one] for one in targets)) for name, targets in reach.items()}
        if wider == reach:
            break
        reach = wider
    return [
        sorted(one for one in targets if name in reach[one])
        for name, targets in reach.items()
        if name in targets
    ]


def main() -> None:
    known, edges = modules(), graph()
    lines = Counter[str]()
    for name, path in known.items():
        lines[room(name)] += len(path.read_text(encoding="utf-8").splitlines())
    arrows = Counter(
        (room(a), room(b)) for a, targets in edges.items() for b in targets if room(a) != room(b)
    )
    for number, names in enumerate(FLOORS):
        for name in sorted(names):
            targets = ", ".join(f"{b} {n}" for (a, b), n in sorted(arrows.items()) if a == name)
            print(f"{number}  {name:14} {lines[name]:6} lines  imports {targets or 'no other room'}")
    level = {name: number for number, names in enumerate(FLOORS) for name in names}
    up = [pair for pair in arrows if level[pair[0]] < level[pair[1]]]
    print(f"{sum(lines.values())} lines, {len(lines)} rooms, {len(arrows)} arrows, {len(up)} up, ", end="")
    print(f"{len(circles(edges))} modules in circles")


if __name__ == "__main__":
    main()
