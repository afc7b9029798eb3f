"""FluxViT: one video transformer for any sampling grid and any token budget.

"Make Your Training Flexible: Towards Deployment-Efficient Video Models" (arXiv 2503.14237).

Reading order: :meth:`FluxViT.forward` embeds the whole pool once, scores it once, and for each budget encodes
the kept tokens and reads the head that was trained nearest to that budget. If the selector reads no
embeddings, the pool is scored first and only the kept tokens are embedded.

Shapes: B clips, T token frames, L tokens per frame, K kept tokens, C channels, P width of the pooled vector.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn

from fluxvit.flux.selection import Given, Learned, Selector, gather_tokens, get_selector, select_many
from fluxvit.models.attention import Packing
from fluxvit.models.config import FluxViTConfig, preset
from fluxvit.models.embed import PatchEmbed, PositionTable
from fluxvit.models.layers import (
    Aligner,
    Block,
    Blocks,
    BudgetHead,
    CosineClassifier,
    init_linear,
    make_classifier,
)
from fluxvit.models.limits import check_memory, check_pool, token_budget
from fluxvit.models.token_scorer import make_token_scorer

# Pixel values of the clips that a CPU embeds at a time: 16 MB in fp32.
_VALUES_AT_ONCE = 1 << 22


class FluxViTOutput(NamedTuple):
    """The output at one budget.

    ``logits`` [B, classes]; ``embedding`` [B, P], the pooled vector, not normalised; ``kept`` int64 [B, K],
    ascending indices into the pool of T * L tokens, or None if no token was dropped; ``head``, the index of
    the head.
    """

    logits: Tensor
    embedding: Tensor
    kept: Tensor | None
    head: int


class Intermediates(NamedTuple):
    """Token-level features.

    ``tokens`` [B, 1 + K, C] after the last block, class token first; ``layers``, the same after the requested
    blocks; ``kept`` as in :class:`FluxViTOutput`; ``shape``, the pool's (T, height, width) in tokens.
    """

    tokens: Tensor
    layers: list[Tensor]
    kept: Tensor | None
    shape: tuple[int, int, int]


class FluxViT(nn.Module):
    """Budget-adaptive video transformer.

    ``model(video, budget=1024)`` keeps 1024 tokens; ``budget=[2048, 1024, 512]`` gives one output per budget.
    The video ``[B, C, T, H, W]`` may be of any grid that divides into tubelets, square or not, batch 1 too.

    Raises:
        ValueError: The network is larger than the memory of this machine.
    """

    def __init__(self, config: FluxViTConfig) -> None:
        super().__init__()
        check_memory(config)
        self.config = config
        dim = config.embed_dim
        self.patch_embed = PatchEmbed(
            config.patch_size, config.tubelet_size, config.in_chans, dim, dual_norm=config.dual_patch_norm
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = PositionTable(config.table_shape, dim, affine=config.global_position)
        self.blocks = Blocks(
            Block(config, config.drop_path * i / max(1, config.depth - 1)) for i in range(config.depth)
        )
        self.heads = nn.ModuleList(BudgetHead(config) for _ in config.budgets)
        self.head_drop = nn.Dropout(config.drop_rate)
        self.head_norm = nn.LayerNorm(config.pool_dim)
        self.aligners = nn.ModuleList(Aligner(config.pool_dim) for _ in config.budgets[1:])
        self.token_scorer = make_token_scorer(config)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise with std 0.02 except in the patch projection; residual branches are scaled by depth."""
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and name != "patch_embed.proj":
                init_linear(module)
        with torch.no_grad():
            for i, block in enumerate(self.blocks, start=1):
                block.attn.proj.weight.div_((2 * i) ** 0.5)
                block.mlp.fc2.weight.div_((2 * i) ** 0.5)

    # The network -----------------------------------------------------------------------------------------

    @overload
    def forward(
        self,
        video: Tensor,
        budget: int | None = None,
        head: int | None = None,
        selector: str | Selector = "group_dynamic",
    ) -> FluxViTOutput: ...

    @overload
    def forward(
        self,
        video: Tensor,
        budget: Sequence[int],
        head: int | None = None,
        selector: str | Selector = "group_dynamic",
    ) -> list[FluxViTOutput]: ...

    def forward(
        self,
        video: Tensor,
        budget: int | Sequence[int] | None = None,
        head: int | None = None,
        selector: str | Selector = "group_dynamic",
    ) -> FluxViTOutput | list[FluxViTOutput]:
        """Classify clips.

        Args:
            video: Normalised clips ``[B, C, T, H, W]``.
            budget: Tokens to keep. None, or a budget of at least the size of the pool, keeps all. A sequence
                embeds and scores the pool once and gives one output per budget, in its order.
            head: Index of the head to read; None: the one trained nearest to the number of kept tokens.
            selector: A selector or its name, which chooses the kept tokens.

        Raises:
            ValueError: A budget is not a positive integer, there is no such head, or the video does not
                divide into tubelets.
        """
        budgets = list(budget) if isinstance(budget, Sequence) else [budget]
        samples, _ = self.select_tokens(video, budgets, selector)
        outputs = [self.head_output(self.encode(tokens), kept, head) for tokens, kept in samples]
        return outputs if isinstance(budget, Sequence) else outputs[0]

    def forward_features(
        self, video: Tensor, budget: int | None = None, selector: str | Selector = "group_dynamic"
    ) -> Tensor:
        """Tokens after the last block ``[B, 1 + K, C]``, class token first; arguments as in ``forward``."""
        ((tokens, _),), _ = self.select_tokens(video, [budget], selector)
        return self.encode(tokens)

    def forward_head(self, tokens: Tensor, head: int | None = None, pre_logits: bool = False) -> Tensor:
        """Tokens ``[B, 1 + K, C]`` to logits ``[B, classes]``, or to the pooled vector ``[B, P]``.

        Raises:
            ValueError: There is no such head.
        """
        head = self._choose_head(tokens, head)
        pooled = self.heads[head].pool(tokens)
        return pooled if pre_logits else self.classify(pooled, head)

    def forward_intermediates(
        self,
        video: Tensor,
        indices: int | Sequence[int] = 1,
        budget: int | None = None,
        selector: str | Selector = "group_dynamic",
    ) -> Intermediates:
        """Token features after chosen blocks, with the positions that they come from.

        Args:
            video: Normalised clips ``[B, 3, T, H, W]``.
            indices: Blocks to take (negative ones count from the end), or how many of the last ones.
            budget: Tokens to keep; None keeps all.
            selector: Name of a selector, or a selector.

        Raises:
            ValueError: A block does not exist, or there are fewer blocks.
        """
        depth = len(self.blocks)
        if isinstance(indices, int) and not 1 <= indices <= depth:
            raise ValueError(f"the last {indices} blocks: this model has {depth}")
        blocks = list(range(depth - indices, depth)) if isinstance(indices, int) else list(indices)
        if any(not -depth <= i < depth for i in blocks):
            raise ValueError(f"blocks {blocks}: this model has blocks 0 to {depth - 1}")
        ((tokens, kept),), shape = self.select_tokens(video, [budget], selector)
        tokens, layers = self.encode_layers(tokens, blocks)
        return Intermediates(tokens, layers, kept, shape)

    def forward_packed(
        self,
        videos: Sequence[Tensor],
        budgets: Sequence[int | None],
        head: int | None = None,
        selector: str | Selector = "group_dynamic",
    ) -> list[FluxViTOutput]:
        """Clips of different grids and budgets in one pass, without padding.

        Args:
            videos: Clips ``[C, T, H, W]``, each of its own size.
            budgets: One for each clip, as in :meth:`forward`.

        Returns:
            One output per clip, with a batch axis of 1; equal to running each clip alone.
        """
        samples = [
            self.select_tokens(video[None], [budget], selector)[0][0]
            for video, budget in zip(videos, budgets, strict=True)
        ]
        lengths = [tokens.shape[1] for tokens, _ in samples]
        packed = self.encode(torch.cat([tokens for tokens, _ in samples], dim=1), lengths)
        return [
            self.head_output(tokens, kept, head)
            for tokens, (_, kept) in zip(packed.split(lengths, dim=1), samples, strict=True)
        ]

    # Its steps -------------------------------------------------------------------------------------------

    def select_tokens(
        self,
        video: Tensor,
        budgets: Sequence[int | None],
        selector: str | Selector = "group_dynamic",
    ) -> tuple[list[tuple[Tensor, Tensor | None]], tuple[int, int, int]]:
        """Select the tokens that enter the blocks at each budget; see :meth:`forward` for the arguments.

        No token is embedded twice. Dropped tokens are not embedded if the selector reads no embeddings.

        Returns:
            For each budget the kept tokens with their positions, class token first, ``[B, 1 + K, C]``, and
            their indices ``[B, K]``, or None if all are kept; and the pool's shape (t, h, w).

        Raises:
            ValueError: A budget is not a positive integer, or the video does not divide into tubelets.
        """
        if not torch.compiler.is_compiling():
            check_pool(self.config, video)
            # Scores are given for all clips at once.
            whole = isinstance(selector, Given)
            if video.device.type == "cpu" and not torch.is_grad_enabled() and not whole:
                parts = video.split(max(1, _VALUES_AT_ONCE // max(1, video[:1].numel())))
                if len(parts) > 1:
                    return self._select_in_parts(parts, budgets, selector)
        chooser = get_selector(selector)
        if chooser.reads == "embeddings":
            embeddings, shape = self.patch_embed(video)
            choices = self.select_indices(embeddings, budgets, chooser)
            inputs = self.add_positions(embeddings, shape, choices)
            return list(zip(inputs, choices, strict=True)), shape
        patches, shape = self.patch_embed.patchify(video)
        read = self.thumbnails(video) if chooser.reads == "thumbnails" else patches
        choices = self.select_indices(read, budgets, chooser)
        # Smaller budgets keep subsets, so that the largest choice contains all of them.
        pool = patches.shape[1] * patches.shape[2]
        largest = max(choices, key=lambda kept: pool if kept is None else kept.shape[1], default=None)
        patches = patches.flatten(1, 2)
        embeddings = self.patch_embed.embed(patches if largest is None else gather_tokens(patches, largest))
        cls, rows = self._positions(embeddings, shape)
        embeddings = embeddings + (rows if largest is None else rows[largest])
        samples = []
        for kept in choices:
            index = kept
            if largest is not None and kept is not None:
                # OpenVINO has no searchsorted, and exports have one budget.
                index = None if kept is largest else torch.searchsorted(largest, kept)
            samples.append((_with_class_token(cls, embeddings, index), kept))
        return samples, shape

    def _select_in_parts(
        self, videos: Sequence[Tensor], budgets: Sequence[int | None], selector: str | Selector
    ) -> tuple[list[tuple[Tensor, Tensor | None]], tuple[int, int, int]]:
        """:meth:`select_tokens` of a few clips at a time, whose pools stay in the cache of a CPU."""
        parts, shapes = zip(*(self.select_tokens(video, budgets, selector) for video in videos), strict=True)
        samples = []
        for sample in zip(*parts, strict=True):
            tokens, kept = zip(*sample, strict=True)
            samples.append((torch.cat(tokens), None if kept[0] is None else torch.cat(kept)))
        return samples, shapes[0]

    def select_indices(
        self,
        tokens: Tensor,
        budgets: Sequence[int | None],
        selector: str | Selector = "group_dynamic",
    ) -> list[Tensor | None]:
        """Select the indices ``[B, K]`` to keep for each budget; None if all tokens are kept.

        Args:
            tokens: Input of the selector, ``[B, T, L, C]``, or :meth:`thumbnails`.

        Raises:
            ValueError: A budget is not a positive integer.
        """
        chooser = get_selector(selector)
        if isinstance(chooser, Learned):
            assert self.token_scorer is not None
            scores = self.token_scorer(tokens).flatten(2)
            tokens, chooser = scores[..., None], chooser.given(scores)
        pool = tokens.shape[1] * tokens.shape[2]
        budgets = [None if budget is None else token_budget(budget) for budget in budgets]
        keeps = [budget for budget in budgets if budget is not None and budget < pool]
        if chooser.reads == "pixels":
            tokens = tokens.unflatten(-1, (self.config.tubelet_size, -1))
        selections = iter(select_many(tokens, keeps, chooser) if keeps else [])
        return [None if budget is None or budget >= pool else next(selections) for budget in budgets]

    def thumbnails(self, video: Tensor) -> Tensor:
        """What the learned selector reads of normalised clips; see :meth:`TokenScorer.thumbnails`.

        Raises:
            ValueError: The model has no learned selector.
        """
        if self.token_scorer is None:
            raise ValueError(
                "selector learned: this model has none; train it with fluxvit train RECIPE "
                "configs/overlays/selector.yaml --model.init CHECKPOINT"
            )
        return self.token_scorer.thumbnails(video)

    def add_positions(
        self, embeddings: Tensor, shape: tuple[int, int, int], choices: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """Add positions to the pool's embeddings ``[B, T, L, C]`` once, and gather what each budget keeps.

        Args:
            shape: The pool's shape (t, h, w) in tokens.
            choices: Indices ``[B, K]`` to keep for each budget; None keeps all.

        Returns:
            For each budget ``[B, 1 + K, C]``, class token first.
        """
        cls, rows = self._positions(embeddings, shape)
        pool = embeddings.flatten(1, 2)
        if torch.is_grad_enabled():
            # The backward pass of one addition is faster than that of gathering positions for each budget.
            pool = pool + rows
            return [_with_class_token(cls, pool, kept) for kept in choices]
        return [
            torch.cat([cls, pool + rows if kept is None else gather_tokens(pool, kept) + rows[kept]], dim=1)
            for kept in choices
        ]

    def _positions(self, embeddings: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """The class token with its position ``[B, 1, C]``, and the pool's positions ``[N, C]``."""
        cls_row, rows = self.pos_embed(shape)
        cls = (self.cls_token + cls_row).to(embeddings.dtype).expand(embeddings.shape[0], -1, -1)
        return cls, rows.to(embeddings.dtype)

    def encode(self, x: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Run the blocks on ``[B, N, C]``; there is no norm after the last one.

        Args:
            lengths: None for a dense batch. Else B is 1, N is the sum of the lengths, and tokens attend only
                to those of their own sequence.
        """
        return self.encode_layers(x, (), lengths)[0]

    def encode_layers(
        self, x: Tensor, indices: Sequence[int], lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """:meth:`encode`, and the outputs of the blocks ``indices``, each of the same shape; negative indices
        count from the end.
        """
        packing = None if lengths is None else Packing.of(lengths, x.device)
        return self.blocks(x, packing, indices)

    def align(self, embedding: Tensor, head: int) -> Tensor:
        """Unit vectors ``[B, P]`` that compare the pooled vector of a smaller budget with that of head 0.

        Raises:
            ValueError: The head is 0 or does not exist, so that it has no aligner.
        """
        if not 1 <= head < len(self.heads):
            raise ValueError(f"head {head} has no aligner; heads 1 to {len(self.heads) - 1} do")
        return self.aligners[head - 1](embedding)

    def head_output(self, tokens: Tensor, kept: Tensor | None, head: int | None = None) -> FluxViTOutput:
        """The output for encoded tokens ``[B, 1 + K, C]``, whose indices in the pool are ``kept``.

        Raises:
            ValueError: There is no such head.
        """
        head = self._choose_head(tokens, head)
        pooled = self.heads[head].pool(tokens)
        return FluxViTOutput(self.classify(pooled, head), pooled, kept, head)

    def _choose_head(self, tokens: Tensor, head: int | None) -> int:
        if head is None:
            return self.config.nearest_head(tokens.shape[1] - 1)
        if isinstance(head, bool) or not hasattr(head, "__index__") or not 0 <= head < len(self.heads):
            raise ValueError(f"head {head!r} does not exist; this model has heads 0 to {len(self.heads) - 1}")
        return head

    def classify(self, pooled: Tensor, head: int) -> Tensor:
        """Pooled vectors ``[B, P]`` to logits ``[B, classes]``."""
        return self.heads[head].fc(self.head_norm(self.head_drop(pooled)))

    # timm's vocabulary -----------------------------------------------------------------------------------

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    def get_classifier(self) -> nn.ModuleList:
        """The classifiers, one per budget."""
        return nn.ModuleList(head.fc for head in self.heads)

    def reset_classifier(self, num_classes: int) -> None:
        """New classifiers for ``num_classes`` classes (0: none), freshly initialised."""
        self.config = FluxViTConfig.from_dict({**self.config.to_dict(), "num_classes": num_classes})
        reference = self.head_norm.weight
        for head in self.heads:
            head.fc = make_classifier(self.config).to(reference.device, reference.dtype)

    @torch.no_grad()
    def reorder_classes(self, order: Sequence[int]) -> None:
        """Renumber the classes: the new class ``i`` is the former class ``order[i]``.

        Raises:
            ValueError: ``order`` does not hold every class once.
        """
        if sorted(order) != list(range(self.num_classes)):
            raise ValueError(f"an order of {self.num_classes} classes must hold each of them once")
        for head in self.heads:
            fc = head.fc
            rows = (fc.classes,) if isinstance(fc, CosineClassifier) else (fc.weight, fc.bias)
            for values in rows:
                assert isinstance(values, Tensor)
                values.copy_(values[list(order)])

    def reset_budgets(self, budgets: Sequence[int]) -> None:
        """Heads for other token budgets, largest first: each starts as a copy of the head nearest to it.

        Aligners are initialised again, unless the budgets stay as they are.

        Raises:
            ValueError: There are no budgets, or they do not fall.
        """
        former = self.config
        self.config = FluxViTConfig.from_dict({**former.to_dict(), "budgets": tuple(budgets)})
        if self.config.budgets == former.budgets:
            return
        heads = [self.heads[former.nearest_head(budget)] for budget in budgets]
        self.heads = nn.ModuleList(copy.deepcopy(head) for head in heads)
        aligners = nn.ModuleList(Aligner(former.pool_dim) for _ in budgets[1:])
        for layer in aligners.modules():
            if isinstance(layer, nn.Linear):
                init_linear(layer)
        self.aligners = aligners.to(self.head_norm.weight.device, self.head_norm.weight.dtype)

    def reset_selector(self, width: int) -> None:
        """A learned selector of ``width`` channels, freshly initialised, unless it has that width already.
        0 removes it.
        """
        if width != self.config.selector_dim:
            self.config = FluxViTConfig.from_dict({**self.config.to_dict(), "selector_dim": width})
            scorer = make_token_scorer(self.config)
            self.token_scorer = None if scorer is None else scorer.to(self.cls_token.device)

    def no_weight_decay(self) -> set[str]:
        """Parameters of two or more axes that must not decay; those of one axis never should."""
        return {"cls_token", "pos_embed.cls", "pos_embed.grid"}

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns that assign parameters to layers, from the input on (timm's convention).

        A number that a pattern captures orders the layers that it matches. Parameters that no pattern matches
        belong to the last layer. ``coarse`` changes nothing here.
        """
        return {"stem": r"cls_token|pos_embed|patch_embed", "blocks": r"blocks\.(\d+)\."}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass, which saves memory and costs time."""
        self.blocks.grad_checkpointing = enable


def _with_class_token(cls: Tensor, tokens: Tensor, index: Tensor | None) -> Tensor:
    """The class token ``[B, 1, C]``, then the tokens of ``[B, N, C]`` at ``index`` ``[B, K]``."""
    return torch.cat([cls, tokens if index is None else gather_tokens(tokens, index)], dim=1)


def create_model(name: str, **overrides: Any) -> FluxViT:
    """A model of a named size, freshly initialised; keyword arguments replace fields of its configuration.

    Raises:
        ValueError: The name or a field is unknown, or a value is bad.
    """
    return FluxViT(preset(name, **overrides))
