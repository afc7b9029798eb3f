"""Training a connector on questions about videos: what a step computes, and the questions it is asked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fluxvit.checkpoints.language_model import LanguageModel
from fluxvit.data.dataset import Clip
from fluxvit.data.manifest import Manifest
from fluxvit.data.questions import DESCRIBE, pack_turns, questions_of
from fluxvit.flux.selection import Selector
from fluxvit.models.chat import Connector, VideoChat
from fluxvit.models.fluxvit import FluxViT

# Of a batch, each of conversations of about the same length.
_PARTS = 4


class FluxInstruct(nn.Module):
    """Trains a connector: the language model is to give the answers, and both networks stay as they are
    (paper table 10), but for adapters of either, which are trained, too.

    Every step draws one of the budgets, so that one connector serves all.

    Args:
        connector: Trained.
        language: Frozen.
        before: int64 ``[P]``, the prompt before the video.
        budgets: Token budgets to draw from.
        selector: Which tokens are kept.
        adapters: Those of the language model, from :func:`~fluxvit.models.adapters.add_adapters`; None if it
            has none. Those of the video side belong to the model.
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
        """Clips ``[B, 3, T, H, W]`` and conversations ``[B, 3, L]``, as `Questions` gives them."""
        model.eval()
        budget = self._budgets[int(torch.randint(len(self._budgets), ()))]
        chat = VideoChat(model, self.connector, self._language[0])
        before, seen = self._before[0].to(video.device), chat.look([video], budget, self._selector)
        ends = _ends(questions)
        likely, lengths = [], []
        # Conversations of about the same length go together, so that little is padding.
        for rows in ends.argsort().split(-(-len(ends) // _PARTS)):
            ids, turns, hearing = questions[rows, :, : int(ends[rows].max())].unbind(1)
            one = bool((hearing <= 1).all())
            found = chat.log_probabilities(before, seen[rows], ids, turns > 0, None if one else hearing)
            each = F.one_hot(turns)[..., 1:]
            said = each.any(1)
            likely.append((found[..., None] * each).sum(1)[said])
            lengths.append(each.sum(1)[said])
        # All answers count the same, however long.
        return {
            "loss": -(torch.cat(likely) / torch.cat(lengths)).mean(),
            # Probability of a whole answer, on the average.
            "answer": torch.cat(likely).detach().exp().mean(),
        }

    def no_weight_decay(self) -> set[str]:
        """Parameters of two or more axes that must not decay."""
        return {f"connector.{name}" for name in self.connector.no_weight_decay()}


def _ends(questions: Tensor) -> Tensor:
    """Tokens of each conversation of ``[B, 3, L]``: the last one is said."""
    places = torch.arange(1, questions.shape[2] + 1, device=questions.device)
    return ((questions[:, 1] > 0) * places).max(1).values


class Questions:
    """Gives each clip of a batch a conversation: some of its video's questions, one behind the other.

    Args:
        manifest: The videos.
        language: Language model whose tokens they become.
        instruction: What the model is told to be.
        told: Part of the questions with choices that are asked with them.
        captions: Part of the clips, of those whose videos have captions, that are to be described instead of
            being asked one of the questions: the answer is a caption. It says far more of a video than most
            answers do.
        turns: Most questions of a conversation, which begins anywhere as long as so many are left.
        apart: Part of the clips whose questions do not hear one another: so answers cannot be taken from
            earlier questions and answers, and must be seen.

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
        turns: int = 1,
        apart: float = 0.0,
    ) -> None:
        self._asked = [questions_of(entry) for entry in manifest.entries]
        for entry, asked in zip(manifest.entries, self._asked, strict=True):
            if not asked:
                raise ValueError(f"{entry.path} has no question; leave it out of the manifest")
        self._told_captions = [entry.captions for entry in manifest.entries]
        self._language, self._instruction, self._told = language, instruction, told
        self._captions, self._turns, self._apart = captions, turns, apart

    def __call__(self, batch: Clip) -> Tensor:
        """int64 ``[B, 3, L]``, as :func:`~fluxvit.data.questions.pack_turns` makes them. It draws from
        PyTorch's generator.
        """
        items = batch.item.tolist()
        apart = (torch.rand(len(items)) < self._apart).tolist()
        rows = [self._conversation(item, alone) for item, alone in zip(items, apart, strict=True)]
        return pack_turns(rows, apart)

    def _conversation(self, item: int, apart: bool) -> list[tuple[Tensor, Tensor]]:
        first, what, which, where, *how = torch.rand(4 + self._turns).tolist()
        asked, captions = self._asked[item], self._told_captions[item]
        start = int(first * (max(0, len(asked) - self._turns) + 1))
        turns = [
            (one.with_choices if draw < self._told else one.question, one.answer)
            for one, draw in zip(asked[start : start + self._turns], how, strict=False)
        ]
        if captions and what < self._captions:
            turns[int(where * len(turns))] = (DESCRIBE, captions[int(which * len(captions))])
        return [
            (
                self._language.next_turn(question)
                if number and not apart
                else self._language.first_turn(question, self._instruction)[1],
                self._language.answer_ids(answer),
            )
            for number, (question, answer) in enumerate(turns)
        ]
