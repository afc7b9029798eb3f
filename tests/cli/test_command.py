"""Command lines made of config dataclasses."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from msgspec import Meta

from fluxvit.cli import main
from fluxvit.cli.command import Parser, option_types, parse
from fluxvit.cli.commands import COMMANDS
from fluxvit.evaluation.config import EvaluateConfig, Views
from fluxvit.flux.budget import Budget
from fluxvit.flux.grid import SamplingGrid
from fluxvit.training.recipes import PretrainRecipe, Recipe
from fluxvit.utils.options import POSITIONAL
from fluxvit.utils.schema import check


@dataclass(frozen=True)
class Section:
    """A section.

    Args:
        rate: A rate.
    """

    rate: Annotated[float, Meta(ge=0)] = 1.0
    text: str = "given"

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Config:
    """Do something.

    Args:
        source: What it reads.
        files: What it reads besides.
        budgets: What it spends.
        kind: Which ``kind``.
        fast: Whether it hurries.
        count: How many.
        sides: Which sides.
        section: A section.
    """

    source: str = field(metadata=POSITIONAL)
    files: tuple[str, ...] = field(default=(), metadata=POSITIONAL)
    budgets: tuple[Budget, ...] = ()
    kind: Literal["one", "other"] = "one"
    fast: bool = False
    count: int | None = None
    sides: tuple[int, ...] | None = (1,)
    empty: str = ""
    section: Section = field(default_factory=Section)


def read(*argv: str) -> Config:
    return parse("thing", Config, argv)


def test_values_go_to_the_positional_fields_in_turn() -> None:
    assert read("a") == Config("a")
    assert read("a", "b,c", "--count", "3", "d") == Config("a", ("b,c", "d"), count=3)
    assert read("--source=a", "--files", "b,c") == Config("a", ("b", "c"))
    assert read("-", "--count=-3") == Config("-", count=-3)


def test_names_of_files_need_not_be_unicode() -> None:
    assert read("a", "b\udcff.mp4").files == ("b\udcff.mp4",)


def test_tuples_are_written_with_commas_or_as_yaml() -> None:
    budgets = (Budget(tokens=1024), Budget(latency_ms=20))
    assert read("a", "--budgets", "1024, 20ms").budgets == budgets
    assert read("a", "--budgets", "[1024, 20ms]").budgets == budgets
    assert read("a", "--sides", "8,4").sides == read("a", "--sides=[8, 4]").sides == (8, 4)
    assert read("a", "--sides", "null").sides is None


def test_a_switch_needs_no_value() -> None:
    assert read("a", "--fast", "--count", "1").fast
    assert read("--fast", "a") == Config("a", fast=True)
    assert not read("a", "--fast", "false").fast


def test_a_file_of_options_and_what_the_command_line_takes_back(tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(
        "source: a\nbudgets: [12, 3gflops]\nsides: 4\ncount: null\nempty: full\nsection: {rate: 2}\n"
    )
    budgets = (Budget(tokens=12), Budget(gflops=3))
    expected = Config("a", (), budgets, sides=(4,), empty="full", section=Section(2.0))
    assert read(str(path)) == expected
    assert read(str(path), "b", "--empty", "", "--section.rate", "3") == Config(
        "b", (), budgets, sides=(4,), section=Section(3.0)
    )


def test_the_printed_config_can_be_read_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["m", "d.jsonl", "--budgets", "12,20ms", "--views", "4x3", "--grid", "8x24x32"]
    with pytest.raises(SystemExit):
        parse("evaluate", EvaluateConfig, [*arguments, "--print_config"])
    (tmp_path / "e.yaml").write_text(capsys.readouterr().out)
    found = parse("evaluate", EvaluateConfig, [str(tmp_path / "e.yaml")])
    assert found == parse("evaluate", EvaluateConfig, arguments)
    assert (found.views, found.grid) == (Views(4, 3), SamplingGrid(8, 24, 32))
    assert yaml.safe_load((tmp_path / "e.yaml").read_text())["budgets"] == ["12 tokens", "20 ms"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "SOURCE is missing"),
        (["a", "--conut", "3"], "--conut is unknown; did you mean --count?"),
        (["a", "--count", "x"], "--count is 'x', expected an integer or null"),
        (["a", "--count"], "--count needs a value"),
        (["a", "--kind", "third"], "--kind is 'third', expected one of one, other"),
        (["a", "--budgets", "many"], "--budgets: budget 'many': give tokens (1024)"),
        (["a", "--budgets", "1,,2"], "--budgets '1,,2': there is nothing between two commas"),
        (["a", "--section.rate", "fast"], "--section.rate is 'fast', expected a finite number"),
        (["a", "--section.rate", "-1"], "rate is -1.0, expected"),
        (["a", "--empty", ""], "--empty is empty; give a value, or leave it out"),
        (["a", "--section.text", ""], "--section.text is empty; give a value, or leave it out"),
        (["", "b"], "source is empty; give a value, or leave it out"),
        (["nowhere.yaml"], "nowhere.yaml: no such file or directory"),
        (["a", "--section", "3"], "--section is a section; give its settings, such as --section.rate"),
        (["a", "--section=null"], "--section is a section"),
        (
            ["a", "--sides", "4,x"],
            "--sides is ['4', 'x'], expected values separated by commas, each an integer",
        ),
    ],
)
def test_bad_arguments(argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read(*argv)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "options.yaml: no such file or directory"),
        ("a: [1", "options.yaml: not a YAML file (see line"),
        ("\xff\xfe", "options.yaml: not a YAML file"),
        ("", "options.yaml: it holds no options; write each option as NAME: VALUE"),
        ("- 1", "options.yaml: it holds no options"),
        ("conut: 3", "options.yaml: conut is unknown; did you mean count?"),
        ("section: {rat: 3}", "options.yaml: section.rat is unknown; did you mean section.rate?"),
        ("section: 3", "options.yaml: section is 3; write each option as NAME: VALUE, on a line of its own"),
        ("section:", "options.yaml: section is null; write each option as NAME: VALUE"),
        ("budgets: 12,", "--budgets '12,': there is nothing between two commas"),
        ("source:", "options.yaml: source is null; give a value, or leave it out"),
        ("count: x", "--count is 'x', expected an integer or null"),
        ("section: {rate: -1}", "rate is -1.0, expected"),
    ],
)
def test_bad_files_of_options(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read("a", str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_every_option(name: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["help", *name.split()]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: fluxvit {name}")
    assert "`" not in shown
    module, kind = COMMANDS[name].config.split(":")
    config = getattr(import_module(module), kind)
    parser = Parser(name, config)
    silent = [
        action.dest
        for action in parser._actions
        if action.dest in option_types(config) and len((action.help or "").split()) < 2
    ]
    assert not silent


def test_configs_import_no_pytorch() -> None:
    modules = sorted({command.config.split(":")[0] for command in COMMANDS.values()})
    code = f"import sys, {', '.join(modules)}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_runs_a_command_exists() -> None:
    for command in COMMANDS.values():
        module, name = command.run.split(":")
        assert callable(getattr(import_module(module), name))


def test_recipes_are_configs() -> None:
    assert parse("train", Recipe, ["--data.train", "x.jsonl", "--optim.betas", "0.9,0.95"]).optim.betas == (
        0.9,
        0.95,
    )
    assert parse("pretrain", PretrainRecipe, ["--data.train=x", "--teacher.source=t"]).teacher.source == "t"
