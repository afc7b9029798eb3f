"""Talking about a video: it is encoded once, and every question goes on from what was said before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta

from fluxvit.checkpoints.chat import ChatCheckpoint
from fluxvit.checkpoints.hub import transformers_library
from fluxvit.flux.budget import Budget
from fluxvit.flux.grid import SamplingGrid
from fluxvit.utils.schema import convert, plain
from fluxvit.utils.system import usable_device
from fluxvit.video.inputs import VideoInput
from fluxvit.video.reader import open_video
from fluxvit.video.transforms import read_clips

_Tokens = Annotated[int, Meta(ge=1, le=1 << 20)]
_Clips = Annotated[int, Meta(ge=1, le=10_000)]
_Temperature = Annotated[float, Meta(ge=0, le=1e6)]


def check_answer(limit: int, temperature: float = 0.0) -> None:
    """Raise a ValueError unless answers may have up to ``limit`` tokens, drawn at this temperature."""
    convert(plain(limit), _Tokens, key="limit")
    convert(plain(temperature), _Temperature, key="temperature")


class Chat:
    """``chat = Chat("runs/chat/last"); chat.watch("clip.mp4"); print(*chat.ask("What moves?"), sep="")``.

    Args:
        checkpoint: A chat model's folder.
        budget: What a clip of a video may cost; a number is tokens. None: the largest trained budget.
        grid: Sampling grid; None: the checkpoint's plan for the budget, or one that it was trained on.
        language: Where the language model is now, if not where the checkpoint says.
        device: Where to run; None: the accelerator if there is one.

    Raises:
        ValueError: The checkpoint, the language model, the budget or the grid cannot be used.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        budget: Budget | int | None = None,
        *,
        grid: SamplingGrid | None = None,
        language: str = "",
        device: str | torch.device | None = None,
    ) -> None:
        self.device = usable_device(device)
        self.checkpoint = ChatCheckpoint.load(checkpoint, self.device, language=language)
        self.model, self.language = self.checkpoint.model, self.checkpoint.language
        self.plan = self.checkpoint.video.plan(budget, grid)
        self._cache: Any = None
        self._turns = 0

    @torch.inference_mode()
    def watch(self, video: VideoInput, clips: int = 1, *, fps: float | None = None) -> int:
        """Encode a video, and forget the conversation about the former one.

        Args:
            video: The path of a video file or of a folder of frames, the bytes of a file, a file opened in
                binary mode, or frames; see :func:`~fluxvit.video.reader.open_video`.
            fps: Frames per second of a folder of frames or of frames in memory; None: 25.
            clips: Equal parts of a long video, each of which the plan is spent on.

        Returns:
            How many vectors the language model sees of it.

        Raises:
            ValueError: ``clips`` is out of range.
            VideoError: It cannot be read.
        """
        clips = convert(plain(clips), _Clips, key="clips")
        grid, checkpoint = self.plan.grid, self.checkpoint.video
        size = (grid.height, grid.width)
        with open_video(video, fps=fps) as reader:
            starts, length = np.linspace(0, reader.end, clips, endpoint=False), reader.end / clips
            parts = read_clips(
                reader,
                [
                    (checkpoint.sampling.times(start, start + length, grid.frames, reader.fps), size)
                    for start in starts.tolist()
                ],
            )
        videos = [checkpoint.clip(part, grid) for part in parts]
        seen = self.model.look(videos, self.plan.keep, self.plan.selector)
        before, _ = self.language.first_turn("", self.checkpoint.instruction)
        words = self.model.embed_words(before[None].to(self.device))
        self._cache, self._turns = transformers_library("chats").DynamicCache(), 0
        # What stands before every question is gone through once.
        self.model.extend(torch.cat([words, seen.to(words.dtype)], dim=1), self._cache)
        return seen.shape[1]

    def ask(self, question: str, *, limit: int = 256, temperature: float = 0.0) -> Iterator[str]:
        """The answer, piece by piece.

        Args:
            limit: Most tokens of it.
            temperature: 0 says the likeliest.

        Raises:
            ValueError: The question is empty, a number is out of range, or no video was taken up yet.
        """
        check_answer(limit, temperature)
        if not question.strip():
            raise ValueError("the question is empty")
        if self._cache is None:
            raise ValueError("there is no video to ask about: call watch first")
        if self._turns:
            ids = self.language.next_turn(question)
        else:
            ids = self.language.first_turn(question, self.checkpoint.instruction)[1]
        self._turns += 1
        with torch.no_grad():
            words = self.model.embed_words(ids[None].to(self.device))
        said: list[int] = []
        told = ""
        for token in self.model.generate(
            words, self._cache, stop=self.language.stops, limit=limit, temperature=temperature
        ):
            said.append(token)
            text = self.language.tokenizer.decode(said, skip_special_tokens=True)
            # A letter may be made of several tokens.
            if not text.endswith("\ufffd"):
                yield text[len(told) :]
                told = text
