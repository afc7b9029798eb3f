"""The ``fluxvit`` command. What a command needs is imported only when it runs."""

from __future__ import annotations

import difflib
import io
import os
import sys
from collections.abc import Sequence

from fluxvit.cli.commands import COMMANDS, GROUPS
from fluxvit.utils.system import Stopped
from fluxvit.utils.terminal import printable, say, show_log


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 2 for bad input, 130 when interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["help"]:
        argv = [*argv[1:], "--help"]
    # Names of commands have up to three words.
    words = next((words for words in (3, 2) if " ".join(argv[:words]) in COMMANDS), 1)
    name, rest = " ".join(argv[:words]), argv[words:]
    if not argv or argv[0] in ("-h", "--help"):
        say(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from fluxvit import __version__

        say(f"fluxvit {__version__}")
        return 0
    if name not in COMMANDS:
        known = [command for command in COMMANDS if command.startswith(f"{argv[0]} ")]
        if known and rest[:1] in ([], ["-h"], ["--help"]):
            say(_usage(known))
            return 0 if rest else 2
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(known or COMMANDS)}"
        return _fail(f"unknown command {name!r}; {hint}")
    show_log()
    if isinstance(sys.stdout, io.TextIOWrapper):  # Letters that the terminal lacks are escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        from fluxvit.cli.command import run

        return run(name, COMMANDS[name], rest)
    except SystemExit as end:  # After --help and --print_config.
        return int(end.code or 0)
    except Stopped as stop:
        return _fail(str(stop), 130)
    except ValueError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # The reader of the output has left, as `| head` does: nothing more may be written, even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            reason = "a file is where a folder must be; choose another folder, or move the file"
        return _fail(f"{error.filename or ''}: {reason}".removeprefix(": "))
    except KeyboardInterrupt:
        cure = "; the same command goes on" if COMMANDS[name].resumes else ""
        return _fail(f"interrupted{cure}", 130)


def _usage(names: Sequence[str] = ()) -> str:
    """The list of commands, or of some of them, group by group."""
    width = max(map(len, COMMANDS))
    lines = ["usage: fluxvit COMMAND ...", ""]
    lines += [] if names else ["Budget-adaptive video transformers: train once, deploy at any budget.", ""]
    for group, members in GROUPS.items():
        rows = [
            f"  {name:{width}}  {COMMANDS[name].summary}" for name in members if name in (names or COMMANDS)
        ]
        lines += [f"{group}:", *rows, ""] if rows else []
    return "\n".join([*lines, "fluxvit help COMMAND lists the options of a command."])


_LONGEST = 1000  # Characters of an error; a value of any length may be quoted in it.


def _fail(message: str, code: int = 2) -> int:
    if os.environ.get("RANK", "0") != "0" and code == 130:
        return code  # The main process prints it.
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 3 :]}"
    say(f"fluxvit: {printable(message)}", error=True)
    return code
