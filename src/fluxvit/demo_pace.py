"""How many epochs the demo trains, so that it ends within the minutes that it was given."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from fluxvit.demo_config import DemoConfig
from fluxvit.utils.files import write_json
from fluxvit.utils.schema import read

# Testing one video takes as long as training on so many clips.
_CLIPS_PER_TEST = 10
# Share of the remaining time that is planned, because speeds vary.
_PLANNED = 0.9
# The smallest share of the epochs: a model that has hardly learned shows nothing.
_LEAST = 0.3


@dataclass(frozen=True)
class Pace:
    """How long the demo trains. It is decided once, so that an interrupted demo goes on as it began.

    Args:
        asked: Minutes and epochs of the options.
        epochs: Epochs that are trained.
        note: The decision in a sentence.
    """

    asked: tuple[float, float]
    epochs: float
    note: str


def choose_pace(config: DemoConfig, started: float, measure: Callable[[], float]) -> Pace:
    """Decide how long to train and keep the decision in ``pace.json``, or read it from there.

    Args:
        started: When the demo started, on the clock of ``time.monotonic``.
        measure: Returns the clips per second of training; not called if there is no limit of time.

    Raises:
        ValueError: The folder holds a demo with other minutes or epochs.
    """
    path, asked, epochs = Path(config.out, "pace.json"), (config.minutes, config.epochs), config.epochs
    if path.exists():
        pace = read(path, Pace)
        if pace.asked != asked:
            raise ValueError(
                f"{config.out} holds a demo with minutes and epochs {list(pace.asked)}, not {list(asked)}; "
                "choose another folder or remove it"
            )
        return pace
    note = f"All {epochs:g} epochs are trained, without a limit of time."
    if config.minutes:
        rate = measure()
        left = 60 * config.minutes - (time.monotonic() - started)
        tests = _CLIPS_PER_TEST * (config.val + config.test)
        share = (_PLANNED * left * rate - tests) / (2 * epochs * config.videos)
        # In steps of 5 %, so that noise changes nothing.
        epochs *= min(1.0, max(_LEAST, int(20 * share) / 20))
        note = (
            f"{epochs:g} of {config.epochs:g} epochs are trained, to end within {config.minutes:g} minutes; "
            f"the measured speed was {rate:.0f} clips a second."
        )
    pace = Pace(asked, epochs, note)
    write_json(path, asdict(pace))
    return pace
