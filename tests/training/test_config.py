"""Every numeric setting has a range, and what lies outside is one line that names it."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from fluxvit.data.dataset import Augmentation
from fluxvit.models.config import FluxViTConfig
from fluxvit.training import config, recipes
from fluxvit.training.config import ModelSettings, NetworkSettings, TrainConfig
from fluxvit.training.recipes import MixingSettings, Recipe
from fluxvit.utils.schema import convert

KINDS = [
    kind
    for module in (config, recipes)
    for kind in vars(module).values()
    if isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == module.__name__
]
# What a kind cannot be made without, to vary one field of.
NEEDED: dict[str, dict[str, Any]] = {
    "PretrainRecipe": {"data": config.VideoSettings(), "teacher": recipes.TeacherSettings(source="x")},
    "ChatRecipe": {"data": config.VideoSettings(), "model": ModelSettings(init="x")},
    "ContrastiveRecipe": {"data": config.VideoSettings()},
    "RunRecipe": {"data": config.VideoSettings()},
    "Recipe": {"data": recipes.DataSettings()},
    "TeacherSettings": {"source": "x"},
}


def numbers(hint: Any) -> bool:
    return hint in (int, float) or (get_origin(hint) is tuple and get_args(hint)[0] in (int, float))


def numeric_fields() -> list[tuple[type, str, bool]]:
    found = []
    for kind in KINDS:
        hints = get_type_hints(kind)
        for field in fields(kind):
            if numbers(hints[field.name]):
                found.append((kind, field.name, get_origin(hints[field.name]) is tuple))
    return found


@pytest.mark.parametrize("bad", [-2, float("nan"), float("inf"), 10**30, 10**400, "x", True, None])
def test_bad_numbers_are_one_line_that_names_the_field(bad: Any) -> None:
    assert len(numeric_fields()) > 50
    for kind, name, is_tuple in numeric_fields():
        value = (bad, bad, bad)[: 2 if name == "betas" else 3] if is_tuple else bad
        with pytest.raises(ValueError, match=rf"\b{name}\b") as caught:
            kind(**{**NEEDED.get(kind.__name__, {}), name: value})
        assert "\n" not in str(caught.value)


def test_the_defaults_lie_in_their_ranges() -> None:
    for kind in KINDS:
        kind(**NEEDED.get(kind.__name__, {}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_grad": -1}, "clip_grad is -1.* of at least 0|clip_grad is -1, expected a number from 0"),
        ({"weight_decay": -5}, "weight_decay is -5, expected a number from 0"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] is 1.0, expected a number of at least 0 and below 1"),
        ({"ema": 1.5}, "ema is 1.5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"steps": 10.0}, "steps is 10.0, expected an integer"),
    ],
)
def test_ranges_of_training(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_warm_up_ends_before_the_run_and_grids_are_countable() -> None:
    data = recipes.DataSettings()
    with pytest.raises(ValueError, match="warmup_epochs is 5; it must be below epochs, which is 5"):
        Recipe(data, epochs=5, warmup_epochs=5)
    with pytest.raises(ValueError, match=r"grids\.frames .* more than 10000 grids"):
        config.GridSettings(frames=(1, 1 << 20, 1))
    with pytest.raises(ValueError, match=r"evaluation\.grid: grid '8' is neither"):
        config.EvalSettings(grid="8")
    with pytest.raises(ValueError, match=r"data\.sampling is 'spares', expected one of"):
        recipes.DataSettings(sampling="spares")


def test_a_misspelt_setting_gets_the_nearest_one() -> None:
    with pytest.raises(ValueError, match="augment has no setting called 'flp'; did you mean 'flip'"):
        convert({"flp": 0.5}, Augmentation, key="augment")
    with pytest.raises(ValueError, match="mixing has no setting called 'mixupp'; did you mean 'mixup'"):
        convert({"mixupp": 0.5}, MixingSettings, key="mixing")
    with pytest.raises(ValueError, match=r"augment\.flip is '0\.5'"):
        convert({"flip": "0.5"}, Augmentation, key="augment")
    assert convert({"crop_scale": [0.7, 1]}, Augmentation, key="augment").crop_scale == (0.7, 1.0)


def test_a_recipe_may_replace_every_field_of_the_network_but_what_the_data_tell() -> None:
    theirs, ours = (get_type_hints(kind, include_extras=True) for kind in (FluxViTConfig, NetworkSettings))
    del theirs["num_classes"], theirs["in_chans"], theirs["activation"], ours["activation"]
    assert ours == {name: hint | None for name, hint in theirs.items()}
    assert NetworkSettings().given == {}
    assert NetworkSettings(budgets=[8, 4], qkv_bias=False).given == {"budgets": (8, 4), "qkv_bias": False}
    with pytest.raises(ValueError, match=r"model\.settings\.budgets\[0\] is 'x', expected an integer"):
        NetworkSettings(budgets=("x",))
