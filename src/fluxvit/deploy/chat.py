"""Conversations about a video, which is encoded once; each question continues the conversation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fluxvit.checkpoints.chat import ChatCheckpoint
from fluxvit.checkpoints.hub import transformers_library
from fluxvit.deploy.config import AnswerLimit, ClipCount, Temperature
from fluxvit.flux.budget import Budget
from fluxvit.flux.grid import SamplingGrid
from fluxvit.utils.options import Precision
from fluxvit.utils.schema import convert, plain
from fluxvit.utils.system import usable_device
from fluxvit.video.inputs import VideoInput
from fluxvit.video.reader import open_video
from fluxvit.video.transforms import read_clips


def check_answer(limit: int, temperature: float = 0.0) -> None:
    """Raise a ValueError unless answers may have up to ``limit`` tokens, drawn at this temperature."""
    convert(plain(limit), AnswerLimit, key="limit")
    convert(plain(temperature), Temperature, key="temperature")


class Chat:
    """``chat = Chat("runs/chat/last"); chat.watch("clip.mp4"); print(*chat.ask("What moves?"), sep="")``.

    Args:
        checkpoint: A chat model's folder.
        budget: What a clip of a video may cost; a number means tokens. None is the largest trained budget.
        grid: Sampling grid. None takes the checkpoint's plan for the budget, or a grid of its training.
        language: Folder or file of the language model, if it was moved after training.
        device: Device to run on. None is the accelerator if there is one.
        precision: Number format in which the network multiplies; see
            :meth:`~fluxvit.checkpoints.chat.ChatCheckpoint.prepared`.

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
        precision: Precision = "auto",
    ) -> None:
        self.device = usable_device(device)
        loaded = ChatCheckpoint.load(checkpoint, self.device, language=language)
        self.checkpoint = loaded.prepared(precision)
        self.model, self.language = self.checkpoint.model, self.checkpoint.language
        self.plan = self.checkpoint.video.plan(budget, grid)
        self._cache: Any = None
        self._turns = 0

    @torch.inference_mode()
    def watch(self, video: VideoInput, clips: int = 1, *, fps: float | None = None) -> int:
        """Encode a video, and begin a new conversation.

        Args:
            video: The path of a video file or of a folder of frames, the bytes of a file, a file opened in
                binary mode, or frames; see :func:`~fluxvit.video.reader.open_video`.
            fps: Frames per second of a folder of frames or of frames in memory; None: 25.
            clips: Number of equal parts of a long video; each part is sampled and encoded as a clip.

        Returns:
            The number of vectors that the language model is given for the video.

        Raises:
            ValueError: ``clips`` is out of range.
            VideoError: It cannot be read.
        """
        clips = convert(plain(clips), ClipCount, key="clips")
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
        return self.see(parts)

    @torch.inference_mode()
    def see(self, clips: Sequence[np.ndarray]) -> int:
        """Encode clips of a video, and begin a new conversation.

        Args:
            clips: Each uint8 ``[T, height, width, 3]``, on the grid of the plan.

        Returns:
            The number of vectors that the language model is given for them.
        """
        videos = [self.checkpoint.video.clip(clip, self.plan.grid) for clip in clips]
        seen = self.model.look(videos, self.plan.keep, self.plan.selector)
        before, _ = self.language.first_turn("", self.checkpoint.instruction)
        words = self.model.embed_words(before[None].to(self.device))
        self._cache, self._turns = transformers_library("chats").DynamicCache(), 0
        # The language model processes what comes before every question once.
        self.model.extend(torch.cat([words, seen.to(words.dtype)], dim=1), self._cache)
        return seen.shape[1]

    def ask(self, question: str, *, limit: int = 256, temperature: float = 0.0) -> Iterator[str]:
        """Answer a question, piece by piece.

        Args:
            limit: Largest number of tokens in the answer.
            temperature: Randomness of the answer; 0 always takes the most likely token.

        Raises:
            ValueError: The question is empty, a number is out of range, or no video was encoded yet.
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
        tokens: list[int] = []
        given = ""
        for token in self.model.generate(
            words, self._cache, stop=self.language.stops, limit=limit, temperature=temperature
        ):
            tokens.append(token)
            text = self.language.tokenizer.decode(tokens, skip_special_tokens=True)
            # A letter may be made of several tokens.
            if not text.endswith("\ufffd"):
                yield text[len(given) :]
                given = text
