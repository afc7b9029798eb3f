"""A command is a config dataclass and a function that takes an instance of it.

The fields of the dataclass are the options, its docstring is the help, and its type annotations are checked
by jsonargparse. A field with ``metadata={"positional": True}`` may be given without its name. An argument
that ends in ``.yaml`` is a file of options.
"""

from __future__ import annotations

import inspect
import json
import re
from argparse import Action, HelpFormatter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from shutil import get_terminal_size
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser
from jsonargparse.typing import register_type

from fluxvit.cli.commands import Command
from fluxvit.utils.schema import located, shown
from fluxvit.utils.terminal import say

_KINDS = {bool: "true or false", int: "an integer", float: "a finite number", str: "text"}


def run(name: str, command: Command, argv: Sequence[str]) -> int:
    """Parse the arguments of a command and run it; returns the exit code.

    Raises:
        ValueError: An option has a value that the command refuses, or the command fails on bad input.
    """
    config = parse(name, _load(command.config), argv)
    work = _load(command.run)
    result = _in_world(work, config) if command.distributed else work(config)
    if isinstance(result, int):
        return result
    if result is not None:
        say(f"wrote   {result}" if isinstance(result, Path) else result)
    return 0


def _load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(import_module(module), name)


def _in_world(work: Any, config: Any) -> Any:
    from fluxvit.utils.distributed import join_world, leave_world

    world = join_world(config.device)
    try:
        result = work(config, world)
    finally:
        leave_world(world)
    return result if world.is_main else None


def parse(name: str, kind: type, argv: Sequence[str]) -> Any:
    """The config of a command line.

    Args:
        name: The command, such as ``data check``.
        kind: Its config dataclass.
        argv: The arguments after the name.

    Raises:
        ValueError: An argument is unknown or missing, or a value has another type or range. An empty value is
            an error, too, because a shell variable that was never set leaves one. It may only take back a
            value of a file of options.
        SystemExit: With code 0 after ``--help`` and ``--print_config``.
    """
    parser = Parser(name, kind)
    settings = parser.parse_args(parser.named(argv))
    given = vars(parser.instantiate(settings)) | parser.several
    return kind(**{field.name: given[field.name] for field in fields(kind)})


class Parser(ArgumentParser):
    """The parser of a config dataclass. Errors are a ValueError of one line."""

    def __init__(self, name: str, kind: type) -> None:
        self.positionals = {
            field.name: field.default is MISSING and field.default_factory is MISSING
            for field in fields(kind)
            if field.metadata.get("positional")
        }  # Whether each must be given.
        self.several: dict[str, tuple[str, ...]] = {}
        self.options = option_types(kind)
        for hint in self.options.values():
            _register_types(hint)
        places = "".join(f"{self.shown_name(one)} " for one in self.positionals)
        super().__init__(
            prog=f"fluxvit {name}",
            description=inspect.cleandoc(kind.__doc__ or "").split("\n\nArgs:")[0].replace("`", ""),
            usage=f"fluxvit {name} {places}[OPTIONS.yaml] [--OPTION VALUE ...]",
            formatter_class=partial(_Formatter, self),  # type: ignore[arg-type]
        )
        self.add_class_arguments(kind, as_group=False)
        self.add_argument("--config", action="config", help="YAML file of options; --config may be left out")

    def named(self, argv: Sequence[str]) -> list[str]:
        """The arguments with each value joined to the name of its option, as in ``--grid=16x224``.

        Values without a name go to the positional fields in turn; a tuple takes all that are left.
        A switch that is given without a value is true. Tuples may be written with commas. The options of
        YAML files come first, so that the others replace them.
        """
        if not {"-h", "--help"}.isdisjoint(argv):
            return ["--help"]
        words, files, unnamed, printing = list(argv), list[str](), list[str](), list[str]()
        options: list[tuple[str, str]] = []
        while words:
            word = words.pop(0)
            name, has_value, value = word.removeprefix("--").partition("=")
            if word == "--print_config":
                printing = [word]
            elif not word.startswith("--"):
                (files if word.endswith((".yaml", ".yml")) else unnamed).append(word)
            else:
                value = value if has_value else self._value_after(name, words)
                if name == "config":
                    files.append(value)
                else:
                    self._check_known(name, "--", is_json=value.startswith("{"))
                    options.append((name, value))
        for name in self.positionals:
            if unnamed and _is_tuple(self.options[name]):
                # Not through jsonargparse, because YAML cannot hold names of files that are not Unicode.
                self.several[name] = tuple(unnamed)
                options.append((name, "[]" if all(unnamed) else ""))
                unnamed = []
            elif unnamed:
                options.append((name, unnamed.pop(0)))
        if unnamed:
            self.error(f"{' '.join(map(shown, unnamed))}: unexpected; the options begin with --")
        for name in [name for name, value in options if not value]:
            takes_back = (files or "." in name) and self.get_default(name) == ""
            if not takes_back:
                shown_name = name if name in self.positionals else f"--{name}"
                self.error(f"{shown_name} is empty; give a value, or leave it out")
        options = [*(option for file in files for option in self._of_file(file)), *options]
        return [*(self._joined(name, value) for name, value in options), *printing]

    def _value_after(self, name: str, words: list[str]) -> str:
        """The value of an option that is not joined to its name: the next of ``words``."""
        if _is_switch(self.options.get(name)) and words[:1] not in (["true"], ["false"], ["auto"]):
            return "true"
        if not words:
            self._check_known(name, "--")
            self.error(f"--{name} needs a value")
        return words.pop(0)

    def _check_known(self, name: str, prefix: str, is_json: bool = False) -> None:
        """Raise a ValueError unless this is an option, or a section that is given as JSON."""
        if self._is_section(name) and not is_json:
            first = next(one for one in self.options if one.startswith(f"{name}."))
            self.error(f"{prefix}{name} is a section; give its settings, such as {prefix}{first}")
        if name not in self.options and not self._is_section(name):
            near = get_close_matches(name, self.options, n=1)
            self.error(f"{prefix}{name} is unknown{f'; did you mean {prefix}{near[0]}?' if near else ''}")

    def _is_section(self, name: str) -> bool:
        return any(one.startswith(f"{name}.") for one in self.options)

    def _of_file(self, path: str) -> list[tuple[str, str]]:
        """The options of a YAML file and their values, as they would be written on the command line."""
        with located(path):
            try:
                content = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
            except OSError as error:
                self.error((error.strerror or str(error)).lower())
            except (UnicodeDecodeError, yaml.YAMLError) as error:
                mark = getattr(error, "problem_mark", None)
                self.error(f"not a YAML file{f' (see line {mark.line + 1})' if mark else ''}")
            return list(self._flattened(content))

    def _flattened(self, content: Any, section: str = "") -> Iterator[tuple[str, str]]:
        if not isinstance(content, Mapping):
            given = "null" if content is None else shown(content)
            reason = f"{section[:-1]} is {given}" if section else "it holds no options"
            self.error(f"{reason}; write each option as NAME: VALUE, on a line of its own")
        for key, value in content.items():
            name = f"{section}{key}"
            if self._is_section(name):
                yield from self._flattened(value, f"{name}.")
                continue
            self._check_known(name, "")
            if value is None and NoneType not in get_args(self.options[name]):
                self.error(f"{name} is null; give a value, or leave it out")
            is_plain = value is None or isinstance(value, list | int | float)
            yield name, json.dumps(value, default=str) if is_plain else str(value)

    def _joined(self, name: str, value: str) -> str:
        hint = self.options.get(name)
        if value == "null" and NoneType in get_args(hint):
            return f"--{name}=null"
        if _is_tuple(hint) and not value.lstrip().startswith("["):
            parts = [part.strip() for part in value.split(",")] if value else []
            if not all(parts):
                self.error(f"--{name} {shown(value)}: there is nothing between two commas")
            value = json.dumps(parts)
        return f"--{name}={value}"

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ValueError(f"{self._plain(' '.join(message.split()))} ({self.prog} --help lists the options)")

    def _plain(self, message: str) -> str:
        """An error of jsonargparse in plain words."""
        if missing := re.fullmatch(r"the following arguments are required: (.*)", message):
            return f"{', '.join(map(self.shown_name, missing[1].split(', ')))} is missing"
        found = re.fullmatch(r'Parser key "([\w.]+)": (.*)', message)
        if not found or found[1] not in self.options:
            return message
        name, reason = found.groups()
        if own := re.search(r"Not of type \w+: (.*)", reason):  # A message of its own.
            return f"--{name}: {own[1].split(' - Expected a')[0]}"
        value = re.search(r".*(?:Got|Given) value: (.*)", reason)
        text = value[1] if value else ""
        given = f"is {text if text[:1] == '[' else shown(text)}, expected" if value else "must be"
        return f"--{name} {given} {_described(self.options[name])}"

    def shown_name(self, name: str) -> str:
        """An option as the help names it: positional ones in capitals."""
        if name not in self.positionals:
            return f"--{name}"
        shown_name = f"{name.upper()} ..." if _is_tuple(self.options[name]) else name.upper()
        return shown_name if self.positionals[name] else f"[{shown_name}]"


class _Formatter(HelpFormatter):
    """Help without markup and without Python's names of types."""

    def __init__(self, parser: Parser, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=min(get_terminal_size().columns, 110))
        self._parser = parser

    def add_arguments(self, actions: Iterable[Action]) -> None:
        super().add_arguments(sorted(actions, key=lambda one: one.dest not in self._parser.positionals))

    def start_section(self, heading: str | None) -> None:
        super().start_section((heading or "").replace("`", ""))

    def add_argument(self, action: Action) -> None:
        if action.dest == "print_config":
            action.help = "print all options as a YAML file that --config reads, and exit"
        # The file of one section of a recipe is left out: --config can do the same.
        if action.help != "Path to a configuration file.":
            super().add_argument(action)

    def _format_action_invocation(self, action: Action) -> str:
        if action.dest in self._parser.positionals:
            return self._parser.shown_name(action.dest)
        if action.dest == "print_config":
            return "--print_config"
        kind = self._parser.options.get(action.dest)
        if kind is None or get_origin(kind) is Literal:
            return super()._format_action_invocation(action)
        value = f"{action.dest.split('.')[-1].upper()}{',...' if _is_tuple(kind) else ''}"
        if _is_switch(kind):
            values = {False: "", "auto": "{auto,true,false}"}
            value = values.get(self._parser.get_default(action.dest), "{true,false}")
        return f"--{action.dest} {value}".rstrip()

    def _get_help_string(self, action: Action) -> str:
        text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", action.help or "").replace("`", "")
        name = action.dest
        default = self._parser.get_default(name) if name in self._parser.options else None
        if default is None or default is False or default in ("", (), {}):
            return text.replace("%", "%%")
        shown = ",".join(map(str, default)) if type(default) is tuple else str(default)
        shown = shown.lower() if default is True else shown
        return f"{text} (default: {shown})".replace("%", "%%")


def option_types(kind: Any, prefix: str = "") -> dict[str, Any]:
    """The type of each option of a config dataclass, those of its sections as ``section.name``."""
    hints, types = get_type_hints(kind), dict[str, Any]()
    for field in fields(kind):
        hint = hints[field.name]
        if is_dataclass(hint) and not hasattr(hint, "parse"):
            types |= option_types(hint, f"{prefix}{field.name}.")
        else:
            types[prefix + field.name] = hint
    return types


def _is_tuple(hint: Any) -> bool:
    """Whether a value is a tuple, or may be one instead of null."""
    return any(get_origin(kind) is tuple for kind in (hint, *_alternatives(hint)))


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union; none of any other type."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else ()


def _is_switch(hint: Any) -> bool:
    return hint is bool or bool in get_args(hint)


def _described(hint: Any) -> str:
    """A type in words."""
    if alternatives := _alternatives(hint):
        return " or ".join("null" if part is NoneType else _described(part) for part in alternatives)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if _is_tuple(hint):
        return f"values separated by commas, each {_described(get_args(hint)[0])}"
    return _KINDS.get(hint) or re.sub(r"\B([A-Z])", r" \1", hint.__name__).lower()


@cache
def _register_types(hint: Any) -> None:
    """Let jsonargparse read types that have a method ``parse``, wherever they stand in a type."""
    if hasattr(hint, "parse"):
        register_type(hint, str, lambda value: hint.parse(str(value)))
    for part in get_args(hint):
        _register_types(part)
