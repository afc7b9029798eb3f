"""Sphinx roles in docstrings, such as ``:func:`~fluxvit.load```, become plain code on the pages."""

from __future__ import annotations

import re
from typing import Any

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):<code>~?(?:[\w.]*\.)?(\w+)</code>")


def on_page_content(html: str, **_: Any) -> str:
    """Called by MkDocs for each page."""
    return ROLE.sub(r"<code>\1</code>", html)
