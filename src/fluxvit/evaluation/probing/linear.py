"""Linear probes: classifiers on vectors, trained at several settings at once on the same batches.

The vectors are standardised as by MAE's batch norm without affine (``main_linprobe.py``). `merge` folds that
into the linear layer, which becomes the head of an ordinary model whose trunk is untouched.

Shapes: N videos, B of them in a batch, F width of the vectors, S settings, O classes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fluxvit.evaluation.probing.features import Backbone
from fluxvit.models.config import FluxViTConfig
from fluxvit.models.fluxvit import FluxViT
from fluxvit.utils.progress import tracked


@dataclass(frozen=True)
class Setting:
    """Settings of AdamW; the learning rate falls to 0 along half a cosine."""

    lr: float
    weight_decay: float


@dataclass(frozen=True)
class Standardizer:
    """Layer norm, then mean 0 and deviation 1 of every channel over the training videos.

    Args:
        mean, deviation: float64 ``[F]``.
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def fit(cls, x: Tensor) -> Standardizer:
        """The standardizer of training vectors ``[N, F]``."""
        x = F.layer_norm(x, x.shape[-1:]).double()
        # MAE's batch norm adds the same to the variance.
        return cls(x.mean(0), (x.var(0, correction=0) + 1e-6).sqrt())

    def __call__(self, x: Tensor) -> Tensor:
        """Standardise vectors fp32 ``[N, F]``."""
        return ((F.layer_norm(x, x.shape[-1:]).double() - self.mean) / self.deviation).float()

    def fold(self, layer: nn.Linear) -> dict[str, Tensor]:
        """Weight and bias of ``layer`` for vectors that are layer-normalised and not standardised."""
        weight = layer.weight.detach().cpu().double() / self.deviation
        bias = layer.bias.detach().cpu().double() - weight @ self.mean
        return {"weight": weight.float(), "bias": bias.float()}


class LinearProbes(nn.ModuleList):
    """A linear layer ``[B, F]`` to ``[B, O]`` for each setting; all start from the same weights."""

    def __init__(self, settings: int, inputs: int, classes: int, seed: int) -> None:
        first = nn.Linear(inputs, classes)
        generator = torch.Generator().manual_seed(seed)
        nn.init.trunc_normal_(first.weight, std=0.02, generator=generator)
        nn.init.zeros_(first.bias)
        super().__init__(copy.deepcopy(first) for _ in range(settings))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[S, B, O]`` of vectors ``[B, F]``."""
        return torch.stack([layer(x) for layer in self])


def train_probes(
    probes: LinearProbes,
    x: Tensor,
    labels: Tensor,
    settings: Sequence[Setting],
    *,
    epochs: int,
    batch_size: int,
    seed: int = 0,
    progress: str | None = None,
) -> None:
    """Train every setting, in place, on the same batches. The settings do not influence each other.

    Args:
        x: Vectors ``[N, F]``.
        labels: Classes ``[N]``.
        settings: One for each probe.
        epochs: Passes over the videos.
        batch_size: Videos of a step.
        seed: Seed of the order of the videos.
        progress: Title of a progress bar; None shows none.
    """
    groups = []
    for layer, setting in zip(probes, settings, strict=True):
        groups.append({"params": [layer.weight], "lr": setting.lr, "weight_decay": setting.weight_decay})
        groups.append({"params": [layer.bias], "lr": setting.lr, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups)
    generator = torch.Generator().manual_seed(seed)
    steps = [
        batch
        for _ in range(epochs)
        for batch in torch.randperm(len(labels), generator=generator).split(batch_size)
    ]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(steps))
    for batch in tracked(steps, progress):
        batch = batch.to(x.device)
        optimizer.zero_grad()
        losses(probes(x[batch]), labels[batch]).sum().backward()
        optimizer.step()
        schedule.step()


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy ``[S]`` of logits ``[S, B, O]``, averaged over the batch."""
    return torch.stack([F.cross_entropy(rows, labels) for rows in logits])


@torch.no_grad()
def score_probes(probes: LinearProbes, x: Tensor, labels: Tensor) -> tuple[list[int], list[float]]:
    """Correct answers and mean cross-entropy of each setting; the latter is not finite if it diverged."""
    logits = probes(x)
    return (logits.argmax(-1) == labels).sum(1).tolist(), losses(logits, labels).tolist()


def merge(backbone: Backbone, readout: str, standardizer: Standardizer, probe: nn.Linear) -> FluxViT:
    """The backbone with one head, for the plan's budget, that computes what a probe does.

    Args:
        backbone: The frozen model, not in its inference form.
        readout: The vector that the probe reads: ``pooled`` or ``mean``.
        standardizer: Applied to the vector before the probe.

    Returns:
        A model on the CPU, in eval mode.
    """
    config = backbone.checkpoint.model.config
    state = {name: value.cpu() for name, value in backbone.checkpoint.model.state_dict().items()}
    head = {f"fc.{name}": value for name, value in standardizer.fold(probe).items()}
    if readout == "pooled":
        prefix = f"heads.{backbone.plan.head}."
        head |= {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(f"{prefix}pool.")}
    else:
        # A query of zero attends to all tokens alike.
        zero, one = torch.zeros(config.embed_dim, config.embed_dim), torch.eye(config.embed_dim)
        head |= {f"pool.{name}.weight": zero for name in "qk"}
        head |= {f"pool.{name}.weight": one for name in ("v", "proj")}
    changed = {
        "budgets": (backbone.plan.keep,),
        "pool_dim": backbone.widths[readout],
        "num_classes": probe.out_features,
    }
    model = FluxViT(FluxViTConfig.from_dict({**config.to_dict(), **changed}))
    trunk = {n: v for n, v in state.items() if not n.startswith(("heads.", "head_norm.", "aligners."))}
    # What is not given keeps its initial value: norms without effect, biases of 0.
    merged = {**model.state_dict(), **trunk, **{f"heads.0.{name}": value for name, value in head.items()}}
    model.load_state_dict(merged)
    return model.eval()
