"""Numbers of all settings are checked for type and range when the settings are made."""

from __future__ import annotations

import re
from dataclasses import fields
from functools import partial
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch

from fluxvit.cli import main
from fluxvit.demo import DemoConfig
from fluxvit.deploy.search.database import Filter
from fluxvit.deploy.search.index import IndexSettings
from fluxvit.evaluation.config import EvaluateConfig, ProbeConfig, RetrievalConfig, VideoQAConfig, Views
from fluxvit.optimization.config import OptimizeConfig
from fluxvit.synthetic.motionworld import MotionWorldConfig

# Each makes an object of good settings, some of which its arguments replace.
MAKERS = {
    EvaluateConfig: partial(EvaluateConfig, checkpoint="model", data="test.jsonl"),
    OptimizeConfig: partial(OptimizeConfig, checkpoint="model", data="val.jsonl"),
    ProbeConfig: partial(ProbeConfig, checkpoint="model", train="train.jsonl", val="val.jsonl"),
    RetrievalConfig: partial(RetrievalConfig, checkpoint="model", data="test.jsonl"),
    VideoQAConfig: partial(VideoQAConfig, checkpoint="model", data="test.jsonl"),
    DemoConfig: partial(DemoConfig),
    MotionWorldConfig: partial(MotionWorldConfig, videos=10),
    IndexSettings: partial(
        IndexSettings,
        checkpoint="model",
        grid="8x32",
        keep=20,
        head=None,
        selector="group_dynamic",
        seconds=4.0,
        shots=True,
    ),
    Filter: partial(Filter),
}
BAD = (-2, float("nan"), float("inf"), 10**40, 10**400, "x", True, [[1]])


def numbers(kind: type, value: Any = 1) -> list[str]:
    """Names of the fields that take numbers, or lists of numbers."""
    hints = get_type_hints(kind)
    return [field.name for field in fields(kind) if {int, float} & {*_leaves(hints[field.name])}]


def _leaves(hint: Any) -> list[Any]:
    return [leaf for part in get_args(hint) for leaf in _leaves(part)] or [hint]


@pytest.mark.parametrize("kind", MAKERS, ids=lambda kind: kind.__name__)
def test_bad_numbers_are_one_line_that_names_the_setting(kind: type) -> None:
    assert numbers(kind)
    for name in numbers(kind):
        is_list = isinstance(getattr(MAKERS[kind](), name), tuple)
        for bad in BAD:
            if kind is Filter and bad in (-2, 10**40):
                continue  # Moments before 1970 are times, too.
            with pytest.raises(ValueError, match=rf"^{name}\b.*(expected|must be)") as caught:
                MAKERS[kind](**{name: [bad] if is_list else bad})
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 300


@pytest.mark.parametrize("kind", MAKERS, ids=lambda kind: kind.__name__)
def test_null_is_taken_only_where_it_means_something(kind: type) -> None:
    made = MAKERS[kind]()
    for name in numbers(kind):
        if type(None) in _leaves(get_type_hints(kind)[name]):
            MAKERS[kind](**{name: None})
        else:
            with pytest.raises(ValueError, match=rf"^{name} is None, expected"):
                MAKERS[kind](**{name: None})
    assert made == MAKERS[kind]()


def test_scalars_of_numpy_and_pytorch_are_numbers() -> None:
    config = EvaluateConfig("model", "test.jsonl", batch_size=np.int64(8), plain_size=torch.tensor(32))  # type: ignore[arg-type]
    assert (config.batch_size, config.plain_size) == (8, 32)
    assert type(config.batch_size) is type(config.plain_size) is int
    assert MotionWorldConfig(np.int32(20)).counts["train"] == 20  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: MAKERS[EvaluateConfig](precision="fp8"),
            "precision is 'fp8', expected one of 'auto', 'bf16', 'fp32'",
        ),
        (
            lambda: MAKERS[RetrievalConfig](precision="fp8"),
            "precision is 'fp8', expected one of 'auto', 'bf16', 'fp32'",
        ),
        (
            lambda: MAKERS[VideoQAConfig](precision="fp8"),
            "precision is 'fp8', expected one of 'auto', 'bf16', 'fp32'",
        ),
        (lambda: MAKERS[EvaluateConfig](views=Views(0, 3)), "views[0] is 0, expected an integer from 1"),
        (lambda: MAKERS[ProbeConfig](lrs=()), "lrs is [], expected"),
        (lambda: Views.parse("0x3"), "views[0] is 0, expected an integer from 1 to 1000"),
        (lambda: Views.parse("4x1000000000"), "views[1] is 1000000000, expected an integer from 1 to 1000"),
        (lambda: Views.parse("4x" + "9" * 9999), "give CLIPSxCROPS"),
    ],
)
def test_choices_and_views_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_views_are_bounded_together() -> None:
    with pytest.raises(ValueError, match="views 100x100 are 10000 of each video"):
        MAKERS[EvaluateConfig](views=Views(100, 100))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("predict clip.mp4 --top x", "--top is 'x', expected an integer"),
        ("info fluxvit_small --tokens -5", "tokens[0] is -5, expected an integer of at least 1"),
        ("info fluxvit_small --tokens 5ms", "--tokens is '5ms', expected values separated"),
    ],
)
def test_bad_numbers_of_commands_name_the_option(
    command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == 2
    assert message in capsys.readouterr().err
