"""``fluxvit chat``: a conversation in the terminal."""

from __future__ import annotations

import sys

from fluxvit.deploy.chat import Chat
from fluxvit.deploy.config import ChatConfig
from fluxvit.utils.system import log_device
from fluxvit.utils.terminal import say


def run(config: ChatConfig) -> None:
    """Answer the questions of the command line, or those that are typed."""
    options = {name: getattr(config, name) for name in ("grid", "language", "device", "precision")}
    chat = Chat(config.checkpoint, config.budget, **options)
    vectors = chat.watch(config.clip, config.clips)
    log_device(chat.device)
    parts = f"{config.clips} clips, each " if config.clips > 1 else ""
    plan, language = chat.plan, chat.language.source
    say(f"{config.clip}: {parts}{plan.keep} tokens of {plan.grid}, {vectors} vectors for {language}")
    for question in config.questions or iter(_line, ""):
        if config.questions:
            say(f"> {question}")
        for piece in chat.ask(question, limit=config.limit, temperature=config.temperature):
            say(piece, end="", flush=True)
        say()


def _line() -> str:
    """A line from the keyboard."""
    if sys.stdin.isatty():
        say("> ", end="", flush=True)
    return sys.stdin.readline().strip()
