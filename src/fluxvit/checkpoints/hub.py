"""Functions for loading from the ``transformers`` library, which is an extra."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn


def transformers_library(what: str) -> Any:
    """The library; raises a ValueError if it is not installed.

    Args:
        what: Plural name of what needs it, for the message.
    """
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise ValueError(
            f"{what} from Hugging Face need the package transformers: pip install 'fluxvit[huggingface]'"
        ) from None


def check_source(source: str) -> None:
    """Raise a ValueError if a source is neither a folder nor a possible name on the hub."""
    if not Path(source).is_dir() and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source):
        raise ValueError("there is no such folder.")


@contextmanager
def explained(what: str, source: str, types: Sequence[str] = ()) -> Iterator[None]:
    """Turn errors in loading into a ValueError that names the source and possible other sources.

    Args:
        what: Name of what is loaded, for the message.
        types: Supported types of model, if not all are.
    """
    try:
        yield
    except Exception as error:  # A damaged folder can make the library fail in any way.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if not isinstance(error, (OSError, ValueError)):
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}."
        supported = f", of a supported type: {', '.join(types)}" if types else ""
        raise ValueError(
            f"no {what} from {source!r}: {reason} Give a folder with config.json and weights, or a name on "
            "the Hugging Face hub (without internet, fetch it beforehand: hf download NAME --local-dir "
            f"FOLDER){supported}"
        ) from error


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Suppress progress bars and reports of weights that are not needed, such as those of another tower."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def blocks_of(network: nn.Module) -> nn.ModuleList:
    """The first list of modules; its path differs between networks and versions of transformers."""
    return next(module for module in network.modules() if isinstance(module, nn.ModuleList))
