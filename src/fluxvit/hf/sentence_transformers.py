"""Dual encoders in sentence-transformers: ``SentenceTransformer.encode`` takes sentences and videos."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.data.formats.layout import is_video
from fluxvit.flux.budget import Budget
from fluxvit.flux.plan import Plan
from fluxvit.hf.clips import read_clip

try:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import InputModule
except ImportError as error:
    raise ImportError(f"this needs sentence-transformers ({error}): pip install 'fluxvit[mteb]'") from error

_ENCODER = "encoder"


class DualEncoderModule(InputModule):
    """A dual encoder as the only module of a ``SentenceTransformer``.

    A saved folder holds the dual encoder in ``encoder/``, an ordinary checkpoint.

    Args:
        checkpoint: The dual encoder.
        budget: What a video may cost, unless ``encode`` is given another ``budget``: a number of tokens, a
            :class:`~fluxvit.Budget` or its text, such as ``"20gflops"``. By default it is the largest token
            budget of training.

    Raises:
        ValueError: The budget cannot be used.
    """

    config_file_name = "fluxvit.json"
    config_keys: list[str] = ["budget"]  # noqa: RUF012
    forward_kwargs: set[str] = {"budget"}  # noqa: RUF012

    def __init__(self, checkpoint: DualEncoderCheckpoint, budget: Budget | int | str | None = None) -> None:
        super().__init__()
        self.checkpoint, self.model = checkpoint, checkpoint.model
        self.budget = budget
        self._plans: dict[tuple[Budget | None, torch.device], Plan] = {}
        self.plan()

    @property
    def modalities(self) -> list[Any]:
        return ["text", "video"]

    @property
    def max_seq_length(self) -> int:
        """The largest number of tokens of a sentence; longer ones are cut."""
        return self.checkpoint.texts.context

    def get_embedding_dimension(self) -> int:
        return self.model.language.dim

    def plan(self, budget: Budget | int | str | None = None) -> Plan:
        """The plan of a budget, by default of that of the module, on the device of the model.

        Raises:
            ValueError: The budget cannot be used.
        """
        budget = self.budget if budget is None else budget
        key = _budget(budget), self.checkpoint.video.device
        if key not in self._plans:  # Milliseconds are measured once.
            self._plans[key] = self.checkpoint.video.plan(key[0])
        return self._plans[key]

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        budget: Budget | int | str | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Token ids of sentences, or clips uint8 ``[B, 3, T, H, W]`` of videos.

        Args:
            inputs: Sentences, or videos that :func:`~fluxvit.hf.clips.read_clip` accepts. A string is a video
                if it is the path of a file, looks like one (``.mp4``), or is an address. ``{"text": ...}``
                and ``{"video": ...}`` say what an input is.
            prompt: Text to put before each sentence.
            budget: What a video may cost; None: the budget of the module.

        Raises:
            VideoError: A video cannot be read.
            ValueError: The inputs are of both kinds, a sentence is empty, or the budget cannot be used.
        """
        kinds, items = zip(*map(_with_kind, inputs), strict=True)
        if len(set(kinds)) > 1:
            raise ValueError("a batch has sentences and videos; encode them in two calls")
        if kinds[0] == "text":
            ids, lengths = self.checkpoint.texts([(prompt or "") + item for item in items])
            return {"input_ids": ids, "lengths": lengths}
        plan, sampling = self.plan(budget), self.checkpoint.video.sampling
        return {"video": torch.stack([read_clip(item, plan.grid, sampling) for item in items])}

    def forward(
        self, features: dict[str, Tensor], budget: Budget | int | str | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Add ``sentence_embedding``, unit vectors ``[B, D]``, to what :meth:`preprocess` has made."""
        if "video" in features:
            plan, clips = self.plan(budget), self.checkpoint.video.normalize(features["video"])
            vectors = self.model.embed_video(clips, plan.keep, plan.head, plan.selector)
        else:
            vectors = self.model.embed_text(features["input_ids"], features["lengths"])
        features["sentence_embedding"] = vectors
        return features

    def get_config_dict(self) -> dict[str, Any]:
        budget = _budget(self.budget)
        return {"budget": None if budget is None else str(budget)}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        self.checkpoint.save(Path(output_path) / _ENCODER)
        self.save_config(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> DualEncoderModule:
        where: Any = (token, cache_folder, revision, local_files_only)
        config = cls.load_config(model_name_or_path, subfolder, None, *where)
        folder = cls.load_dir_path(model_name_or_path, os.path.join(subfolder, _ENCODER), *where)
        if folder is None:
            raise ValueError(f"{model_name_or_path}: it has no folder {_ENCODER} with the dual encoder")
        return cls(DualEncoderCheckpoint.load(folder), config.get("budget"))


def sentence_transformer(
    checkpoint: str | Path | DualEncoderCheckpoint,
    budget: Budget | int | str | None = None,
    **kwargs: Any,
) -> SentenceTransformer:
    """A dual encoder as a ``SentenceTransformer``.

    ``model.save(folder)`` writes a folder for ``SentenceTransformer(folder, trust_remote_code=True)``.

    Args:
        checkpoint: A dual encoder or its folder.
        budget: What a video may cost; see :class:`DualEncoderModule`.
        **kwargs: Arguments of ``SentenceTransformer``, such as ``device``.

    Raises:
        ValueError: The checkpoint or the budget cannot be used.
    """
    if not isinstance(checkpoint, DualEncoderCheckpoint):
        checkpoint = DualEncoderCheckpoint.load(checkpoint)
    module = DualEncoderModule(checkpoint, budget)
    return SentenceTransformer(modules=[module], **{"similarity_fn_name": "cosine", **kwargs})


def _budget(value: Budget | int | str | None) -> Budget | None:
    if value is None:
        return None
    return Budget.parse(value) if isinstance(value, str) else Budget.of(value)


def _with_kind(item: Any) -> tuple[str, Any]:
    """Whether an input is "text" or "video", and the input itself."""
    if isinstance(item, Mapping) and len(item) == 1 and (kind := next(iter(item))) in ("text", "video"):
        return kind, item[kind]
    if not isinstance(item, str):
        return "video", item
    is_address = "://" in item and " " not in item
    return "video" if is_address or is_video(item) or os.path.isfile(item) else "text", item
