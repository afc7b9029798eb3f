"""The base of tasks. A task owns everything that is trained; the trainer is independent of loss and model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.dataset import Clip
from fluxvit.flux.cost import joint_macs
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.selection import Selector, get_selector
from fluxvit.models.adapters import merged_state
from fluxvit.models.fluxvit import FluxViT

Batch = Mapping[str, Tensor]
"""The tensors of a step by name, each with a leading batch axis B. ``video`` is one of them."""


class Task(nn.Module, ABC):
    """Everything that a run trains, with its loss, its batches and its checkpoints.

    Moving averages, data parallelism and saved states see this one module. Submodules name their parameters
    that must not decay by ``no_weight_decay``. A frozen network that should be neither saved nor copied, such
    as a teacher, must not be a submodule.

    Args:
        checkpoint: The video model and its metadata. Clips are normalised by its mean and standard deviation.
        selector: Selects the tokens of each budget.

    Raises:
        ValueError: The selector is ``learned``, and the model has none.
    """

    def __init__(self, checkpoint: Checkpoint, selector: str = "group_dynamic") -> None:
        super().__init__()
        self.model, self.checkpoint = checkpoint.model, checkpoint
        self.selector = get_selector(selector)
        scorer = self.model.token_scorer
        if scorer is not None:
            scorer.requires_grad_(False)  # No gradient passes through the choice of tokens.
        elif self.selector.reads == "thumbnails":
            raise ValueError(
                "task.selector learned: the network has none; set model.settings.selector_dim, such as 16, "
                "or start from a checkpoint that has one, model.init"
            )

    def collate(self, clips: Clip) -> Batch:
        """The batch of a step, on the CPU, with ``video`` as uint8 ``[B, 3, T, H, W]``."""
        return {"video": clips.video, "label": clips.label}

    def prepare(self, batch: Batch, seed: tuple[int, ...]) -> Batch:
        """A batch, or a part of one, on the device, as :meth:`forward` takes it: with normalised clips.

        Args:
            seed: Seed of everything random in it, different for each part.
        """
        return {**batch, "video": self.checkpoint.normalize(batch["video"])}

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """``{"loss": scalar, name of a metric: scalar}`` of a prepared batch."""

    def blocks(self) -> list[nn.Module]:
        """The transformer blocks that a step runs, which may be compiled."""
        return list(self.model.blocks)

    def validation_budgets(self, grid: SamplingGrid) -> Sequence[int]:
        """The token budgets at which the network is validated on a grid."""
        return self.model.config.budgets

    def count_tokens(self, video: Tensor) -> int:
        """Tokens that clips ``[B, 3, T, H, W]`` send through the blocks of the model, over all budgets."""
        config = self.model.config
        pool = config.pool(SamplingGrid(*video.shape[2:]))
        return len(video) * sum(min(budget, pool) for budget in config.budgets)

    def count_macs(self, video: Tensor) -> int:
        """Multiply-accumulates of a step with clips ``[B, 3, T, H, W]``; 0 if they are not counted.

        Of the networks of a task, only FluxViTs are counted. The backward pass is twice the forward pass, or
        once if the blocks have adapters, or nothing if they are frozen; recomputed activations do not count.
        """
        config = self.model.config
        trained = [parameter.requires_grad for parameter in self.model.blocks.parameters()]
        passes = 3 if all(trained) else 2 if any(trained) else 1
        grid = SamplingGrid(*video.shape[2:])
        return passes * len(video) * joint_macs(config.size, grid, config.budgets, self.selector)

    def no_weight_decay(self) -> set[str]:
        """Parameters of two or more axes that must not decay."""
        return {
            f"{child}.{name}"
            for child, module in self.named_children()
            if hasattr(module, "no_weight_decay")
            for name in module.no_weight_decay()  # type: ignore[operator]
        }

    def lr_scale(self, name: str) -> float:
        """Ratio of a parameter's learning rate to that of the run, before layer decay."""
        return 1.0

    def network(self, state: Mapping[str, Tensor]) -> nn.Module:
        """The network to evaluate and to keep, in eval mode and with adapters merged.

        Args:
            state: Weights named as in the task's state dict, such as their moving average. The network may
                share their memory: use it before the next step.
        """
        return self._video_model(state)

    def export(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write a checkpoint with the weights ``state``, as :meth:`network` takes them."""
        replace(self.checkpoint, model=self._video_model(state)).save(folder)

    def _video_model(self, state: Mapping[str, Tensor]) -> FluxViT:
        with torch.device("meta"):
            model = FluxViT(self.model.config)
        model.load_state_dict(merged_state(self.model, substate(state, "model.")), assign=True)
        return model.eval().requires_grad_(False)


def substate(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of a state dict whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def pooled_at_budgets(
    model: FluxViT, video: Tensor, budgets: Sequence[int | None], selector: str | Selector
) -> Iterator[tuple[Tensor, Tensor]]:
    """The pooled vectors of clips at each budget, by the head of the same number, and their self-alignment.

    Args:
        video: Normalised clips ``[B, 3, T, H, W]``, which are embedded once.
        budgets: One for each head, largest first; None keeps all tokens.

    Yields:
        Pooled vectors ``[B, P]``, and the alignment loss, a scalar: smooth L1 between unit vectors of this
        budget and those of the first, into which it passes no gradient. It is 0 for the first budget.
    """
    samples, _ = model.select_tokens(video, budgets, selector)
    anchor = None
    for head, (tokens, _) in enumerate(samples):
        pooled = model.forward_head(model.encode(tokens), head, pre_logits=True)
        if anchor is None:
            anchor = F.normalize(pooled.detach().float(), dim=-1)
            yield pooled, pooled.new_zeros((), dtype=torch.float32)
        else:
            yield pooled, F.smooth_l1_loss(model.align(pooled, head).float(), anchor)
