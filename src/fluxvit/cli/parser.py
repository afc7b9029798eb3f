"""The argument parser of all commands."""

from __future__ import annotations

import re
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from fluxvit.schema import shown
from fluxvit.terminal import printable

# What jsonargparse says of a value of the wrong type.
_WRONG_TYPE = re.compile(
    r'Parser key "(?P<name>\w+)": Expected a <class \'(?P<kind>int|float)\'>\. Got value: (?P<value>.*)'
)
_KINDS = {"int": "an integer", "float": "a finite number"}


class Parser(ArgumentParser):
    """jsonargparse's parser, with errors as one line of plain text and exit code 2."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"fluxvit {command}", description=description)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        cause = printable(_plain(" ".join(message.split())))
        self.exit(
            2, f"{self.prog}: {cause}\n(fluxvit {self.prog.split(' ', 1)[1]} --help lists the options)\n"
        )


def _plain(message: str) -> str:
    """An error of jsonargparse in the words of the others."""
    match = _WRONG_TYPE.fullmatch(message)
    if match is None:
        return message
    return f"--{match['name']} is {shown(match['value'])}, expected {_KINDS[match['kind']]}"


def add_device(parser: ArgumentParser) -> None:
    """The option of all commands that run a model."""
    parser.add_argument(
        "--device", help="such as cuda, cuda:1, mps or cpu; default: the accelerator if there is one"
    )


def values(parser: ArgumentParser, argv: list[str]) -> dict[str, Any]:
    """Parsed arguments as plain values.

    Raises:
        ValueError: A text is empty that is not empty by default, as a variable of the shell that was never
            set leaves it: it would stand for the current folder, or for no option at all.
    """
    found = vars(parser.parse_args(argv))
    options = {action.dest: action for action in parser._actions}
    for name, value in found.items():
        if name in options and value in ("", [""]) and options[name].default != "":
            option = next(iter(options[name].option_strings), name)
            raise ValueError(f"{option} is empty; give a value, or leave it out")
    return found
