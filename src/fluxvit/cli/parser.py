"""The argument parser of all commands."""

from __future__ import annotations

from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from fluxvit.terminal import printable


class Parser(ArgumentParser):
    """jsonargparse's parser, with errors as one line of plain text and exit code 2."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"fluxvit {command}", description=description)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        cause = printable(" ".join(message.split()))
        self.exit(
            2, f"{self.prog}: {cause}\n(fluxvit {self.prog.split(' ', 1)[1]} --help lists the options)\n"
        )


def add_device(parser: ArgumentParser) -> None:
    """The option of all commands that run a model."""
    parser.add_argument(
        "--device", help="such as cuda, cuda:1, mps or cpu; default: the accelerator if there is one"
    )


def values(parser: ArgumentParser, argv: list[str]) -> dict[str, Any]:
    """Parsed arguments as plain values."""
    return vars(parser.parse_args(argv))
