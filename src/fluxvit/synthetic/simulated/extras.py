"""Simulators are optional: where one is missing, say how to get it."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``.

    Raises:
        ValueError: It is not installed; the message names the extra that brings it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(f"{error}; install it with: pip install 'fluxvit[{extra}]'") from error
