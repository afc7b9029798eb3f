"""Training of the learned selector."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.cli import main
from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.fluxvit import create_model
from fluxvit.synthetic.builder import make_dataset
from fluxvit.synthetic.motionworld import MotionWorldConfig
from fluxvit.training.recipes import TaskSettings
from fluxvit.training.tasks.classify import ClassifyTask
from fluxvit.training.tasks.selector import SelectorTask

CONFIGS = Path(__file__).parents[2] / "configs"


def nano(**settings: int) -> Checkpoint:
    torch.manual_seed(0)
    model = create_model("fluxvit_nano", depth=1, embed_dim=32, pool_dim=16, num_classes=16, **settings)
    return Checkpoint(model.eval(), grids=[SamplingGrid(4, 16, 16)])


def test_the_overlay_trains_the_selector_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = make_dataset(
        tmp_path / "mw", MotionWorldConfig(16, 0, "demo", val=2, test=1), workers=1, progress=False
    )
    start = nano()
    start.save(tmp_path / "start")
    command = [
        *("train", str(CONFIGS / "motionworld_nano.yaml"), str(CONFIGS / "overlays" / "selector.yaml")),
        *("--model.init", str(tmp_path / "start"), "--out", str(tmp_path / "run"), "--device", "cpu"),
        *("--data.train", str(data / "train.jsonl"), "--data.val", str(data / "val.jsonl")),
        *(
            "--data.workers",
            "0",
            "--data.cache",
            "",
            "--grids.frames",
            "[8,9,2]",
            "--grids.sizes",
            "[32,33,8]",
        ),
        *(
            "--grids.min_tokens",
            "64",
            "--grids.max_tokens",
            "64",
            "--epochs",
            "1",
            "--evaluation.grid",
            "8x32",
        ),
    ]
    other = create_model("fluxvit_nano", depth=1, embed_dim=32, pool_dim=16, num_classes=5)
    Checkpoint(other).save(tmp_path / "other")
    assert main([*command, "--model.init", str(tmp_path / "other")]) == 2
    assert "its classes are not those of the data" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(command) == 0
    trained = Checkpoint.load(tmp_path / "run" / "last")
    assert trained.selector == "learned"
    assert trained.model.config.selector_dim == 16
    state = trained.model.state_dict()
    for name, value in start.model.state_dict().items():
        assert torch.equal(state[name], value), name
    assert state["token_scorer.score.weight"].abs().max() > 0
    rows = (tmp_path / "run" / "validation.jsonl").read_text()
    assert all(f"accuracy@{budget}" in rows for budget in (16, 8, 4))


def test_it_learns_which_tokens_matter() -> None:
    checkpoint = nano(selector_dim=8)
    task = SelectorTask(checkpoint)
    assert not task.model.training
    video = torch.randn(8, 3, 8, 32, 32)
    video[..., :16] *= 0.1  # The left half moves less; a new selector leaves it out.
    task.model.patch_embed.norm_before = torch.nn.Identity()  # type: ignore[assignment]
    optimizer = torch.optim.AdamW(task.scorer.parameters(), lr=6e-3)
    losses = []
    for step in range(40):
        torch.manual_seed(step)
        loss = task({"video": video})["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert all(p.grad is None for name, p in task.named_parameters() if "token_scorer" not in name)


def test_a_classifier_trains_with_a_frozen_selector() -> None:
    task = ClassifyTask(nano(selector_dim=8), TaskSettings(selector="learned"))
    task({"video": torch.randn(2, 3, 8, 32, 32), "label": torch.tensor([0, 1])})["loss"].backward()
    frozen = {name for name, parameter in task.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in task.named_parameters() if "token_scorer" in name}
    with pytest.raises(ValueError, match="selector learned: the network has none"):
        ClassifyTask(nano(), TaskSettings(selector="learned"))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--task.selector", "tube"], "tube has nothing to train"),
        ([], "task.train selector: give the trained network, model.init"),
    ],
)
def test_bad_settings(options: list[str], fault: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["train", str(CONFIGS / "motionworld_nano.yaml"), str(CONFIGS / "overlays" / "selector.yaml")]
    assert main([*command, "--out", str(tmp_path / "run"), *options]) != 0
    assert fault in capsys.readouterr().err
