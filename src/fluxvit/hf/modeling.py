"""FluxViT models for transformers. They wrap :class:`fluxvit.FluxViT`, which computes everything."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput, can_return_tuple

from fluxvit.checkpoints.checkpoint import Checkpoint, check_plain
from fluxvit.flux.budget import Budget
from fluxvit.flux.grid import SamplingGrid
from fluxvit.hf.configuration import FluxViTConfig
from fluxvit.hf.model_card import CARD, may_replace_card, model_card
from fluxvit.models.fluxvit import FluxViT

M = TypeVar("M", bound="FluxViTPreTrainedModel")


@dataclass
class FluxViTModelOutput(ModelOutput):
    """Features of clips.

    ``last_hidden_state`` [B, 1 + K, C], class token first; ``pooler_output`` [B, P], the pooled vector;
    ``kept`` int64 [B, K], ascending indices of the kept tokens in the pool, or None if all were kept;
    ``hidden_states``, if asked for, the tokens before the first block and after each block.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    kept: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class FluxViTClassifierOutput(ModelOutput):
    """Classes of clips.

    ``loss``, if there are labels; ``logits`` [B, classes]; ``pooler_output`` [B, P], the pooled vector;
    ``kept`` as in :class:`FluxViTModelOutput`, or one such tensor [K] a clip if clips differ in grid or
    budget.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    pooler_output: Tensor | None = None
    kept: Tensor | tuple[Tensor | None, ...] | None = None


class FluxViTPreTrainedModel(PreTrainedModel):
    """What all FluxViT models share: the network ``model``, and how it is loaded, saved and published."""

    config_class = FluxViTConfig
    # The weights of checkpoint folders have no prefix. Those that are saved here have this one, which fluxvit
    # removes when it reads a folder.
    base_model_prefix = "model"
    main_input_name = "pixel_values_videos"
    input_modalities = "video"
    supports_gradient_checkpointing = True
    gradient_checkpointing = False
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012

    config: FluxViTConfig

    def __init__(self, config: FluxViTConfig) -> None:
        super().__init__(config)
        if config._attn_implementation != "sdpa":
            raise ValueError(
                f"attn_implementation {config._attn_implementation!r}: FluxViT has sdpa, PyTorch's "
                "scaled_dot_product_attention, which chooses a kernel itself; leave the option out"
            )
        # from_pretrained(id2label=...) leaves the numbers of the former labels.
        config.label2id = {str(label): int(i) for i, label in (config.id2label or {}).items()}
        self.model = FluxViT(config.architecture)
        self._is_marked = False
        self.post_init()

    @classmethod
    def from_pretrained(cls: type[M], pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a folder that ``save_pretrained`` or fluxvit has written, or a model on the hub.

        Arguments and return value are those of transformers; ``budget`` sets the default budget.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.plan_table is None:
            model.config.read_plans(pretrained_model_name_or_path, **kwargs)
        return loaded

    @classmethod
    def from_checkpoint(cls: type[M], checkpoint: Checkpoint | str | os.PathLike[str]) -> M:
        """The model of a checkpoint of fluxvit, whose weights it shares.

        Args:
            checkpoint: A checkpoint, a checkpoint folder, or the name of a checkpoint of the package.
        """
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint.load(Path(checkpoint))
        check_plain(checkpoint.model)
        with torch.device("meta"):
            model = cls(FluxViTConfig.from_checkpoint(checkpoint))
        model.model = checkpoint.model
        return model.eval()

    def to_checkpoint(self) -> Checkpoint:
        """A checkpoint that shares the weights of this model, such as for :class:`fluxvit.Predictor`."""
        return self.config.to_checkpoint(self.model)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """Write a folder that transformers and fluxvit load, with a model card unless it has another one.

        Arguments are those of transformers; instead of ``push_to_hub=True`` call :meth:`push_to_hub`.
        """
        if kwargs.pop("push_to_hub", False):
            raise ValueError("save_pretrained(push_to_hub=True): save, and then call push_to_hub")
        super().save_pretrained(save_directory, is_main_process, **kwargs)
        card = Path(save_directory) / CARD
        if is_main_process and may_replace_card(card):
            card.write_text(model_card(self.config, card.absolute().parent.name), encoding="utf-8")

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:  # type: ignore[override]
        """Upload what ``save_pretrained`` writes. A model card that somebody wrote in the repository stays.

        Args:
            repo_id: Name of the repository, which is made if there is none.
            kwargs: ``private``, ``token``, and arguments of ``huggingface_hub.HfApi.upload_folder``, such as
                ``commit_message``, ``revision`` and ``create_pr``.

        Returns:
            The address of the commit.
        """
        api, private = HfApi(token=kwargs.pop("token", None)), kwargs.pop("private", None)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / CARD).write_text(model_card(self.config, repo_id), encoding="utf-8")
            self.save_pretrained(folder)
            with suppress(EntryNotFoundError):
                there = Path(api.hf_hub_download(repo_id, CARD, revision=kwargs.get("revision")))
                if not may_replace_card(there):
                    (Path(folder) / CARD).unlink()
            options = {"commit_message": "Upload model", **kwargs}
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **options))

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Does nothing: every folder that is saved names its classes."""

    def get_input_embeddings(self) -> torch.nn.Module:
        """The projection of patches."""
        return self.model.patch_embed.proj

    def init_weights(self) -> None:
        """A new network has initialised itself."""

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialise what the loaded weights lack, such as a classifier of other classes."""
        missing = {
            name: value
            for name, value in self.model.named_parameters()
            if not getattr(value, "_is_hf_initialized", False)
        }
        if missing:
            fresh = FluxViT(self.model.config).state_dict()
            for name, value in missing.items():
                value.copy_(fresh[name])

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable | None = None,
        every_n_layers: int = 1,
    ) -> None:
        if every_n_layers != 1:
            raise ValueError(f"every_n_layers {every_n_layers}: FluxViT checkpoints all blocks or none")
        self.gradient_checkpointing = enable
        self.model.set_grad_checkpointing(enable)

    # Inputs ----------------------------------------------------------------------------------------------

    def _clips(self, videos: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Clips as the network takes them, ``[B, C, T, H, W]``, or a list of ``[C, T, H, W]`` if they differ.

        Raises:
            ValueError: They have another number of axes.
        """
        clips = [video[0] if video.ndim == 5 and len(video) == 1 else video for video in videos]
        if not clips or any(clip.ndim != 4 for clip in clips):
            raise ValueError(
                "pixel_values_videos must be [B, T, C, H, W], or a list of clips [T, C, H, W], got "
                + (
                    str(list(videos.shape))
                    if isinstance(videos, Tensor)
                    else str([list(v.shape) for v in videos])
                )
            )
        if isinstance(videos, Tensor) and videos.ndim == 5:
            return videos.transpose(1, 2)
        if len({clip.shape for clip in clips}) == 1:
            return torch.stack(list(clips)).transpose(1, 2)
        return [clip.transpose(0, 1) for clip in clips]

    def _inputs(
        self, videos: Tensor | Sequence[Tensor], budget: int | Sequence[int] | Tensor | None
    ) -> tuple[Tensor | list[Tensor], list[int | None]]:
        """The clips, as a list if they differ in grid or budget, and the budget of each.

        Raises:
            ValueError: A budget is no number of tokens, or is larger than the pool of its clip.
        """
        if self.training and not self._is_marked:
            self.config.mark_trained()
            self._is_marked = True
        clips = self._clips(videos)
        given: Any = self.config.budget if budget is None else budget
        if isinstance(given, Tensor):
            given = given.tolist()
        budgets = list(given) if isinstance(given, list | tuple) else [given] * len(clips)
        if len(budgets) != len(clips):
            raise ValueError(f"{len(budgets)} budgets for {len(clips)} clips: give one, or one for each clip")
        for tokens, shape in {(tokens, clip.shape[-3:]) for tokens, clip in zip(budgets, clips, strict=True)}:
            if tokens is not None:
                self._check_budget(tokens, SamplingGrid(*shape))
        return list(clips) if len(set(budgets)) > 1 else clips, budgets

    def _check_budget(self, budget: int, grid: SamplingGrid) -> None:
        tokens, pool = Budget.of(budget).tokens, self.model.config.pool(grid)
        if tokens is None:
            raise ValueError(
                f"budget {budget}: a model takes tokens; FluxViTVideoProcessor also takes GFLOPs"
            )
        if tokens > pool:
            raise ValueError(
                f"budget {budget}: clips of {grid} have a pool of {pool} tokens; sample a larger grid"
            )


class FluxViTModel(FluxViTPreTrainedModel):
    """A FluxViT that returns features: tokens and the pooled vector."""

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: Tensor,
        budget: int | None = None,
        head: int | None = None,
        selector: str | None = None,
        output_hidden_states: bool | None = None,
    ) -> FluxViTModelOutput:
        """Encode clips of one grid.

        Args:
            pixel_values_videos: Normalised clips ``[B, T, C, H, W]``, such as from
                :class:`~fluxvit.hf.FluxViTVideoProcessor`.
            budget: Tokens to keep of each clip. None: the budget of the configuration; if that is None, too,
                all tokens are kept.
            head: Index of the head that pools; None: the one trained nearest to the kept tokens.
            selector: Name of the selector of tokens; None: that of the configuration.
            output_hidden_states: Whether to return the tokens of all layers; None: as the configuration says.

        Raises:
            ValueError: The budget is larger than the pool of the clips, they differ in grid or budget, or do
                not divide into tokens.
        """
        clips, budgets = self._inputs(pixel_values_videos, budget)
        if isinstance(clips, list):
            raise ValueError("FluxViTModel encodes clips of one grid and one budget at a time")
        ((tokens, kept),), _ = self.model.select_tokens(clips, budgets[:1], selector or self.config.selector)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        last, layers = self.model.encode_layers(tokens, range(len(self.model.blocks)) if wanted else ())
        return FluxViTModelOutput(
            last_hidden_state=last,
            pooler_output=self.model.forward_head(last, head, pre_logits=True),
            kept=kept,
            hidden_states=(tokens, *layers) if wanted else None,
        )


class FluxViTForVideoClassification(FluxViTPreTrainedModel):
    """A FluxViT that classifies clips.

    Raises:
        ValueError: The configuration has no classes.
    """

    def __init__(self, config: FluxViTConfig) -> None:
        if not config.num_labels:
            raise ValueError(
                "the configuration has no classes; give num_labels or id2label, or use FluxViTModel"
            )
        super().__init__(config)

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: Tensor | Sequence[Tensor],
        budget: int | Sequence[int] | Tensor | None = None,
        head: int | None = None,
        selector: str | None = None,
        labels: Tensor | None = None,
    ) -> FluxViTClassifierOutput:
        """Classify clips, which may differ in grid and budget.

        In training, labels without a budget train every head at its own budget, as Flux-Multi tuning does:
        the loss is the mean over the budgets, and the rest of the output is that of the largest one.

        Args:
            pixel_values_videos: Normalised clips ``[B, T, C, H, W]``, or a list of clips ``[T, C, H, W]`` of
                different grids, which are packed without padding.
            budget: Tokens to keep, one number or one for each clip. None: the budget of the configuration; if
                that is None, too, all tokens are kept.
            head: Index of the head to read; None: the one trained nearest to the kept tokens.
            selector: Name of the selector of tokens; None: that of the configuration.
            labels: Classes, int64 ``[B]``; for multi-label models floats ``[B, classes]``.

        Raises:
            ValueError: A budget is larger than the pool of its clip, or a clip does not divide into tokens.
        """
        clips, budgets = self._inputs(pixel_values_videos, budget)
        if self.training and labels is not None and head is None and set(budgets) == {None}:
            choices = [[tokens] * len(clips) for tokens in self.model.config.budgets]
            for clip in clips:
                self._check_budget(self.model.config.budgets[0], SamplingGrid(*clip.shape[-3:]))
        else:
            choices = [budgets]
        outputs = self._classify(clips, choices, head, selector or self.config.selector)
        if labels is None:
            return outputs[0]
        losses = [
            self.loss_function(labels=labels, pooled_logits=output.logits, config=self.config)
            for output in outputs
        ]
        return FluxViTClassifierOutput(loss=torch.stack(losses).mean(), **outputs[0])

    def _classify(
        self,
        clips: Tensor | list[Tensor],
        choices: list[list[int | None]],
        head: int | None,
        selector: str,
    ) -> list[FluxViTClassifierOutput]:
        """One output for each choice of the clips' budgets."""
        if isinstance(clips, Tensor):
            outputs = self.model(clips, [budgets[0] for budgets in choices], head, selector)
            return [FluxViTClassifierOutput(None, out.logits, out.embedding, out.kept) for out in outputs]
        packs = [self.model.forward_packed(clips, budgets, head, selector) for budgets in choices]
        return [
            FluxViTClassifierOutput(
                logits=torch.cat([out.logits for out in pack]),
                pooler_output=torch.cat([out.embedding for out in pack]),
                kept=tuple(None if out.kept is None else out.kept[0] for out in pack),
            )
            for pack in packs
        ]
