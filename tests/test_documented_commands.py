"""Every command that the documentation shows is one that ``fluxvit`` understands."""

from __future__ import annotations

import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from fluxvit.cli import main
from fluxvit.cli.command import option_types, parse
from fluxvit.cli.commands import COMMANDS
from rooms import FLOORS, SOURCE

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))

EXAMPLES = {
    "train": "configs/folder.yaml",
    "pretrain": "configs/pretrain/motionworld_nano.yaml",
    "train-contrastive": "configs/contrastive/motionworld_nano.yaml",
    "train-chat": "configs/chat/motionworld_smollm2.yaml",
}
"""What stands for a recipe of the reader's own, such as ``RECIPE.yaml``."""

TINY = {
    "bench": "--budget=6 --precision=fp32 --backend=plain --runs=1 --video=clip.mp4",
    "export": "--budget=6",
    "evaluate": "--grid=8x24 --budgets=12,6 --latency=false",
    "label": "--budget=12",
    "optimize": "--frames=4,8 --sizes=16,24 --budgets=12,6",
    "predict": "--budget=12",
    "stream": "--budget=12",
    "train": "--model.name=fluxvit_nano --grids.frames=[4,7,2] --grids.sizes=[16,25,8] --grids.min_tokens=4 "
    "--grids.max_tokens=30 --epochs=1 --warmup_epochs=0 --optim.batch_size=4 --data.workers=0 "
    "--optim.precision=fp32 --evaluation.grid=4x16 --model.settings.budgets=[12,6] "
    "--model.settings.embed_dim=32 --model.settings.depth=1 --model.settings.pool_dim=16",
}
"""The commands of the README, and what makes them run in a second or two."""


def commands(path: Path) -> list[str]:
    """The commands that a page shows in its bash blocks, or a recipe in its comments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        shown = "\n".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    else:
        shown = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.S | re.M))
    return re.findall(r"(?<![\w'/-])fluxvit [a-z].*", shown.replace("\\\n", " "))


def arguments(command: str) -> tuple[str, list[str]]:
    """The name of a command and its arguments, without pipes, comments and marks of what may be left out."""
    command = re.sub(r"\[--\S+ \.\.\.\]|[\[\]](?![\d'])", " ", command.rstrip("'"))
    words = [word for word in shlex.split(command, comments=True) if word != "..."]
    if "|" in words:
        words = words[: words.index("|")]
    name = command_name(words[1:])
    return name, [
        EXAMPLES[name] if name in EXAMPLES and word.endswith(".yaml") and "/" not in word else word
        for word in words[1 + len(name.split()) :]
    ]


def command_name(words: list[str]) -> str:
    """The longest name of a command with which the words begin, or else the first word."""
    names = [" ".join(words[:length]) for length in (3, 2, 1)]
    return next((name for name in names if name in COMMANDS), names[-1])


SHOWN = [(path, command) for path in (*PAGES, *RECIPES) for command in commands(path)]


@pytest.mark.parametrize(
    ("path", "command"), SHOWN, ids=[f"{path.name}-{i}" for i, (path, _) in enumerate(SHOWN)]
)
def test_documented_commands_are_understood(
    path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    name, rest = arguments(command)
    assert name in COMMANDS, f"{path}: {command}"
    module, config = COMMANDS[name].config.split(":")
    parse(name, getattr(import_module(module), config), rest)


def test_commands_that_are_mentioned_exist() -> None:
    for path in PAGES:
        for command in re.findall(r"`fluxvit ([a-z][^`]*)`", path.read_text(encoding="utf-8")):
            words = command.split()
            group = any(one.startswith(f"{command} ") for one in COMMANDS)  # Such as data make.
            known = command_name(words) in COMMANDS or group or words[0] == "help"
            assert known, f"{path}: fluxvit {command}"


def test_options_and_settings_that_are_mentioned_exist() -> None:
    options = {"config", "print_config", "help"}
    for command in COMMANDS.values():
        module, config = command.config.split(":")
        options.update(option_types(getattr(import_module(module), config)))
    sections = {name.partition(".")[0] for name in options if "." in name}
    known = options | sections | {name.rpartition(".")[0] for name in options if "." in name}
    for path in PAGES:
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
        for code in re.findall(r"`([^`\n]+)`", text):
            named = re.findall(r"--([\w.]+)", code) if code.startswith(("--", "fluxvit ")) else []
            setting = re.match(r"(\w+)\.[\w.]+", code)
            if setting and setting[1] in sections and not code.endswith(".safetensors"):
                named.append(setting[0])
            for name in named:
                assert name in known, f"{path}: {code}"


def test_the_architecture_page_names_files_and_rooms_that_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in re.findall(r"`([a-z_]+/[\w/]*(?:\.py)?)`", page):
        home = ROOT if name.split("/")[0] in ("configs", "src", "tests") else SOURCE
        assert (home / name).exists(), name
    rooms = re.findall(r"^\| (\d) \| `(\w+)[./]", page, re.M)
    assert sorted(rooms) == sorted((str(floor), room) for floor, names in enumerate(FLOORS) for room in names)


def test_the_names_and_pages_of_the_reference_exist() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r": ([\w/]+\.md)$", config, re.M)
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(pages)
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.M):
            module, _, attribute = name.rpartition(".")
            assert hasattr(import_module(module), attribute), f"{page}: {name}"


@pytest.mark.parametrize("name", ["quickstart.ipynb", "huggingface.ipynb"])
def test_the_cells_of_a_notebook_are_python(name: str) -> None:
    """``tests/slow/test_notebooks.py`` runs them."""
    cells = json.loads((ROOT / "docs" / name).read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 4
    for source in code:
        compile(source, name, "exec")
    assert not any(cell.get("outputs") for cell in cells)


def test_every_recipe_says_how_it_is_run() -> None:
    for path in RECIPES:
        shown = [word for command in commands(path) for word in arguments(command)[1]]
        assert path.relative_to(ROOT).as_posix() in shown, path


def test_commands_of_the_readme_run_one_after_the_other(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")  # The target of export.
    pytest.importorskip("pyarrow")  # The table of label.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    classes = ["one", "other"]
    for name in classes:
        (tmp_path / "clips" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "clips" / name / f"{number}.mp4").write_bytes(clip.read_bytes())
    for split in ("val", "test"):
        rows: list[dict] = [{"manifest": 1, "classes": classes}]
        for label in range(2):
            copy = tmp_path / f"{split}{label}.mp4"
            copy.write_bytes(clip.read_bytes())
            rows.append({"path": copy.name, "label": label})
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ran = set()
    for command in commands(ROOT / "README.md"):
        name, rest = arguments(command)
        rest = ["clip.mp4" if word == "/dev/video0" else word for word in rest]
        assert main([*name.split(), *rest, *TINY[name].split()]) == 0, command
        ran.add(name)
    assert ran == {*TINY}
    assert (tmp_path / "runs" / "page" / "report.html").exists()
