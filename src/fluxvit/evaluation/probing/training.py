"""Probes: small classifiers on features, trained at several settings at once on the same batches.

All probes of a kind are one module whose parameters have a leading axis of settings, so that a batch of
features is read once for all of them. Nothing here knows where the features come from.

Shapes: N videos, B of them in a batch, C channels, P width of the pooled vector, S settings, H heads of D
channels, O classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from fluxvit.evaluation.metrics import average_precision, mean_of_classes

# Features of the videos of these numbers ``[B]``, on the device of the probes.
Fetch = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Setting:
    """Settings of AdamW; the learning rate falls to 0 along half a cosine."""

    lr: float
    weight_decay: float


class Probes(nn.Module):
    """One probe per setting. Every parameter has a leading axis of S; all settings start from the same draw.

    ``forward`` maps a batch of features to logits ``[B, S, O]``.
    """

    def __init__(self, settings: int, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name, shape in shapes.items():
            value = torch.zeros(shape)
            if len(shape) > 1:
                nn.init.trunc_normal_(value, std=0.02, generator=generator)
            self.register_parameter(name, nn.Parameter(value.expand(settings, *shape).clone()))

    def one(self, setting: int) -> dict[str, Tensor]:
        """The parameters of one setting, on the CPU, without the leading axis."""
        return {name: value.detach()[setting].cpu() for name, value in self.named_parameters()}


class LinearProbes(Probes):
    """Linear layers on a vector.

    Args:
        inputs: Width of the vector.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, settings: int, inputs: int, classes: int, seed: int) -> None:
        super().__init__(settings, {"weight": (classes, inputs), "bias": (classes,)}, seed)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs]`` to ``[B, S, O]``."""
        return torch.einsum("bf,sof->bso", x, self.weight) + self.bias


class AttentiveProbes(Probes):
    """Attention pooling, layer norm, linear layer: what `AttentionPool` and a model's classifier compute.

    Two things are left out because they change nothing: the affines of layer norms, which linear layers
    follow, and the bias of the keys, which shifts all attention scores of a query alike. And since there is
    one query a clip, keys and values are never formed: scores are products of ``W_k^T q`` with the tokens,
    and ``W_v`` is applied to the attended token. A token then costs 2 H C products a setting instead of
    2 C C, and all settings read the same tokens.

    Args:
        dim: Width C of the tokens.
        heads: Attention heads.
        width: Width P of the pooled vector.
    """

    q_weight: Tensor
    q_bias: Tensor
    k_weight: Tensor
    v_weight: Tensor
    v_bias: Tensor
    proj_weight: Tensor
    proj_bias: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, settings: int, dim: int, heads: int, width: int, classes: int, seed: int) -> None:
        shapes: dict[str, tuple[int, ...]] = {
            "q_weight": (dim, dim),
            "q_bias": (dim,),
            "k_weight": (dim, dim),
            "v_weight": (dim, dim),
            "v_bias": (dim,),
            "proj_weight": (width, dim),
            "proj_bias": (width,),
            "weight": (classes, width),
            "bias": (classes,),
        }
        super().__init__(settings, shapes, seed)
        self.heads = heads

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, tokens, C]`` to ``[B, S, O]``."""
        per_head = (self.heads, -1)
        query = F.layer_norm(tokens.mean(1), tokens.shape[-1:])
        tokens = F.layer_norm(tokens, tokens.shape[-1:])
        query = (torch.einsum("bc,sdc->bsd", query, self.q_weight) + self.q_bias).unflatten(2, per_head)
        query = torch.einsum("bshd,shdc->bshc", query, self.k_weight.unflatten(1, per_head))
        scores = torch.einsum("bshc,bnc->bshn", query, tokens) / (tokens.shape[-1] / self.heads) ** 0.5
        attended = torch.einsum("bshn,bnc->bshc", scores.softmax(-1), tokens)
        value = torch.einsum("bshc,shdc->bshd", attended, self.v_weight.unflatten(1, per_head)).flatten(2)
        pooled = torch.einsum("bsd,spd->bsp", value + self.v_bias, self.proj_weight) + self.proj_bias
        pooled = F.layer_norm(pooled, pooled.shape[-1:])
        return torch.einsum("bsp,sop->bso", pooled, self.weight) + self.bias


def train_probes(
    probes: Probes,
    fetch: Fetch,
    labels: Tensor,
    settings: Sequence[Setting],
    *,
    epochs: int,
    batch_size: int,
    seed: int = 0,
    progress: str | None = None,
) -> None:
    """Train every setting, in place, on the same batches. None has an influence on another.

    Args:
        labels: Classes ``[N]``, or multi-hot ``[N, O]`` for binary cross-entropy of each class by itself.
        settings: One for each probe.
        epochs: Passes over the videos.
        batch_size: Videos a step.
        seed: Seed of the order of the videos.
        progress: Title of a progress bar; None for none.
    """
    parameters = list(probes.parameters())
    # The optimiser sees each setting as parameters of its own, which are views of the stacked ones.
    views = [[parameter.detach()[s] for parameter in parameters] for s in range(len(settings))]
    groups = [
        {
            "params": [view for view in views[s] if (view.ndim > 1) == decays],
            "lr": setting.lr,
            "weight_decay": setting.weight_decay if decays else 0.0,
        }
        for s, setting in enumerate(settings)
        for decays in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups)
    peaks = [group["lr"] for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(seed)
    steps = [
        batch
        for _ in range(epochs)
        for batch in torch.randperm(len(labels), generator=generator).split(batch_size)
    ]
    shown = track(
        steps,
        progress or "",
        console=Console(stderr=True),  # What is printed may go to a file.
        transient=True,
        disable=progress is None,
    )
    for step, batch in enumerate(shown):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * step / len(steps)))
        batch = batch.sort().values  # Files are read forwards.
        loss = losses(probes(fetch(batch)), labels[batch].to(parameters[0].device)).sum()
        gradients = torch.autograd.grad(loss, parameters)
        for s, own in enumerate(views):
            for view, gradient in zip(own, gradients, strict=True):
                view.grad = gradient[s]
        optimizer.step()


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits ``[B, S, O]``, averaged over the batch: ``[S]``.

    With multi-hot labels ``[B, O]`` it is the binary one, averaged over the classes, too.
    """
    if labels.ndim == 2:
        targets = labels[:, None].expand_as(logits)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean((0, 2))
    targets = labels[:, None].expand(-1, logits.shape[1])
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(0)


@torch.no_grad()
def score_probes(
    probes: Probes, fetch: Fetch, labels: Tensor, batch_size: int
) -> tuple[list[int], list[float]]:
    """Correct answers and mean cross-entropy of each setting; the latter is not finite if it diverged.

    Args:
        labels: Classes ``[N]``.
    """
    device = next(probes.parameters()).device
    hits, sums = [], []
    for batch in torch.arange(len(labels)).split(batch_size):
        logits, target = probes(fetch(batch)), labels[batch].to(device)
        hits.append((logits.argmax(-1) == target[:, None]).sum(0))
        sums.append(losses(logits, target).cpu().double() * len(batch))
    return torch.stack(hits).sum(0).tolist(), (torch.stack(sums).sum(0) / len(labels)).tolist()


@torch.no_grad()
def rank_probes(
    probes: Probes, fetch: Fetch, labels: Tensor, missed: Tensor, batch_size: int
) -> tuple[list[float], list[float]]:
    """Mean average precision and mean binary cross-entropy of each setting.

    Args:
        labels: Multi-hot ``[N, O]``.
        missed: The same of videos that cannot be read, and are never found, ``[M, O]``.
    """
    rows = [probes(fetch(batch)).cpu() for batch in torch.arange(len(labels)).split(batch_size)]
    logits, targets = torch.cat(rows), torch.cat([labels, missed])
    lost = torch.full(missed.shape, torch.nan)
    figures = [
        mean_of_classes(average_precision(torch.cat([one, lost]), targets)) for one in logits.unbind(1)
    ]
    return figures, losses(logits, labels).tolist()
