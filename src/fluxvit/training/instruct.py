"""Training a connector on questions about videos: what a step computes, and the questions it is asked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fluxvit.data.dataset import Clip
from fluxvit.data.manifest import Manifest
from fluxvit.data.questions import pack_questions, questions_of
from fluxvit.flux.selection import Selector
from fluxvit.models.chat import Connector, VideoChat
from fluxvit.models.fluxvit import FluxViT
from fluxvit.models.language_model import LanguageModel

DESCRIBE = "What happens in the video?"


class FluxInstruct(nn.Module):
    """Trains a connector: the language model is to give the answers, and both networks stay as they are
    (paper table 10), unless the language model has adapters, which are trained, too.

    Every step draws one of the budgets, so that one connector serves all.

    Args:
        connector: Trained.
        language: Frozen.
        before: int64 ``[P]``, the prompt before the video.
        budgets: Token budgets to draw from.
        selector: Which tokens are kept.
        adapters: Of the language model; None: it has none.
    """

    def __init__(
        self,
        connector: Connector,
        language: LanguageModel,
        before: Tensor,
        budgets: Sequence[int],
        selector: str | Selector = "group_dynamic",
        adapters: nn.ModuleDict | None = None,
    ) -> None:
        super().__init__()
        self.connector = connector
        self.adapters = nn.ModuleDict() if adapters is None else adapters
        # Not as modules: what is frozen is neither saved with the run nor copied between processes.
        self._language, self._before = (language.network,), (before,)
        self._budgets, self._selector = tuple(budgets), selector

    def forward(self, model: FluxViT, video: Tensor, questions: Tensor) -> dict[str, Tensor]:
        """Clips ``[B, 3, T, H, W]`` and ``[B, 2 + L]``, as `Questions` gives them."""
        model.eval()
        budget = self._budgets[int(torch.randint(len(self._budgets), ()))]
        chat = VideoChat(model, self.connector, self._language[0])
        prompts, lengths, ids = questions[:, 0], questions[:, 1], questions[:, 2:]
        seen = chat.look([video], budget, self._selector)
        found = chat.log_probabilities(self._before[0].to(video.device), seen, ids, lengths, prompts)
        tokens = lengths - prompts
        return {
            "loss": -(found.sum(1) / tokens).mean(),
            # Probability of a whole answer, on the average.
            "answer": found.detach().sum(1).exp().mean(),
        }

    def no_weight_decay(self) -> set[str]:
        """Parameters of two or more axes that must not decay."""
        return {f"connector.{name}" for name in self.connector.no_weight_decay()}


class Questions:
    """Gives the clips of a batch one question each, drawn among their video's.

    Args:
        manifest: The videos.
        language: Whose tokens they become.
        instruction: What the model is told to be.
        told: Part of the questions with choices that are asked with them.
        captions: Part of the clips, of those whose videos have captions, that are to be described instead:
            the answer is a caption. It says far more of a video than most answers do.

    Raises:
        ValueError: A video has no question.
    """

    def __init__(
        self,
        manifest: Manifest,
        language: LanguageModel,
        instruction: str = "",
        told: float = 0.0,
        captions: float = 0.0,
    ) -> None:
        self._asked = [questions_of(entry) for entry in manifest.entries]
        for entry, asked in zip(manifest.entries, self._asked, strict=True):
            if not asked:
                raise ValueError(f"{entry.path} has no question; leave it out of the manifest")
        self._told_captions = [entry.captions for entry in manifest.entries]
        self._language, self._instruction, self._told = language, instruction, told
        self._captions = captions

    def __call__(self, batch: Clip) -> Tensor:
        """int64 ``[B, 2 + L]``: tokens of the prompt behind the video, of prompt and answer together, and
        their ids. It draws from PyTorch's generator.
        """
        draws = torch.rand(len(batch.item), 3).tolist()
        rows = []
        for item, (which, how, what) in zip(batch.item.tolist(), draws, strict=True):
            captions = self._told_captions[item]
            if captions and what < self._captions:
                question, answer = DESCRIBE, captions[int(which * len(captions))]
            else:
                asked = self._asked[item][int(which * len(self._asked[item]))]
                question = asked.with_choices if how < self._told else asked.question
                answer = asked.answer
            prompt = self._language.first_turn(question, self._instruction)[1]
            rows.append((prompt, self._language.answer_ids(answer)))
        return pack_questions(rows)
