"""The ``fluxvit`` command: one module a command, imported only when it is asked for."""

from __future__ import annotations

import difflib
import io
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from fluxvit.terminal import printable, say

COMMANDS = {
    "demo": "make a small data set, train on it, evaluate and report: a quarter of an hour",
    "pretrain": "learn the features of a frozen teacher, without labels",
    "train": "train a model by a recipe",
    "contrast": "train a dual encoder: videos and their captions meet in one space",
    "instruct": "teach a language model to read a video model's features: train a connector",
    "probe": "train classifiers on a frozen checkpoint's features",
    "evaluate": "test a checkpoint on labelled videos at several budgets, and report",
    "optimize": "find the best sampling for each budget, and write it beside the weights",
    "predict": "say what is to be seen in clips, at a budget",
    "retrieve": "test a dual encoder: find videos by captions, and captions by videos",
    "classes": "make a classifier of class names out of a dual encoder, without training",
    "index": "make the videos of a folder searchable",
    "search": "find moments in indexed videos, by a sentence or another video",
    "chat": "ask questions about a video",
    "quiz": "test a chat model on questions with answers to choose from",
    "describe": "let a chat model describe videos, and judge how much of what happens it tells",
    "convert": "turn one of the authors' or InternVideo2's .pth files into a checkpoint folder",
    "data": "check and make data sets",
    "info": "parameters and cost of a model at each budget",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 2 for bad input, 130 when interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        say(_usage())
        return 0 if argv else 2
    name = argv[0]
    if name == "--version":
        from fluxvit import __version__

        say(f"fluxvit {__version__}")
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(COMMANDS)}"
        return _fail(f"unknown command {name!r}; {hint}")
    _show_log()
    if isinstance(sys.stdout, io.TextIOWrapper):  # Some terminals know few letters: the others are spelt.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return import_module(f"fluxvit.cli.{name}").run(argv[1:])
    except ValueError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # The reader of our output has left, as `| head` does; nothing more may be written, even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            reason = "a file is where a folder is to be; choose another place, or move the file"
        return _fail(f"{error.filename or ''}: {reason}".removeprefix(": "))
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


class _Lines(logging.Handler):
    """Log records as one line each on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"fluxvit: {printable(record.getMessage())}", error=True)


def _show_log() -> None:
    """Show what the package logs, such as the device that is used and videos that are left out."""
    log = logging.getLogger("fluxvit")
    log.setLevel(logging.INFO)
    if not log.handlers:
        log.addHandler(_Lines())


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fluxvit COMMAND ...",
            "",
            "Budget-adaptive video transformers: train once, deploy at any budget.",
            "",
            *lines,
            "",
            "fluxvit COMMAND --help tells more.",
        ]
    )


_LONGEST = 1000  # Characters of an error; a value of any length may be quoted in it.


def _fail(message: str, code: int = 2) -> int:
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 3 :]}"
    say(f"fluxvit: {printable(message)}", error=True)
    return code
