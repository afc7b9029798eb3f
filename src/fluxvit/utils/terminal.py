"""Prints text from files, such as labels, names and captions, without letting it command a terminal.

User names, passwords and tokens in addresses are masked.

A name may hold escape sequences that clear the screen or set the title of a window, characters that reverse
the direction of text, line breaks, and bytes that are not Unicode. They are printed as escapes such as
``\\x1b``.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Sequence
from typing import Any

# Control characters, separators of lines, marks of direction, and halves of surrogate pairs, which also stand
# for the bytes of names that are not UTF-8.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
# What comes before the last @ of an address, except behind the slash after a host and port. Lengths are
# limited, because the text may be a stranger's.
_CREDENTIALS = re.compile(r"(?<=://)(?![^\s/@:]{0,300}(?::\d{1,5})?/)[^\s\"'<>]{0,300}@(?=[^\s/@])")
# Values in the query of an address that are secrets by their names.
_SECRETS = re.compile(
    r"([?&][^\s=&?]{0,40}(?:user|login|pass|pwd|token|key|secret|auth|sig)[^\s=&?]{0,40}=)[^\s&#\"'<>()]+",
    re.I,
)
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def printable(text: object, keep: str = "") -> str:
    r"""Write the characters that a terminal would obey, or could not show, as escapes such as ``\x1b``.

    Args:
        text: Any object; its ``str`` is used.
        keep: Characters that are not changed, such as line breaks.
    """

    def shown(match: re.Match[str]) -> str:
        character = match[0]
        if character in keep:
            return character
        number = ord(character)
        if 0xDC80 <= number <= 0xDCFF:  # A byte that is not UTF-8.
            number -= 0xDC00
        return _SHORT.get(character, f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")

    return _UNPRINTABLE.sub(shown, mask_credentials(str(text)))


def mask_credentials(text: str) -> str:
    """Replace user names, passwords and tokens in the addresses of a text by ``***``."""
    if "://" not in text:
        return text
    return _SECRETS.sub(r"\1***", _CREDENTIALS.sub("***@", text))


def say(text: object = "", *, error: bool = False, end: str = "\n", flush: bool = False) -> None:
    """Print text of one or more lines, made `printable`.

    Args:
        error: Print to standard error.
        end: Text to print after it.
        flush: Print at once.
    """
    file = sys.stderr if error else sys.stdout
    print(printable(text, keep="\n\t"), end=end, file=file, flush=flush)


class _Lines(logging.Handler):
    """Log records as one line each on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"fluxvit: {printable(record.getMessage())}", error=True)


def show_log() -> None:
    """Show what the package logs, such as the device that is used."""
    log = logging.getLogger("fluxvit")
    log.setLevel(logging.INFO)
    if not log.handlers:
        log.addHandler(_Lines())


def json_line(value: Any) -> str:
    """A value as one line of JSON, in which characters that a terminal would obey are escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines in which the cells of each column start below each other; all rows have as many cells."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
