"""Checkpoints of dual encoders.

The folder has ``language.safetensors``, ``tokenizer.json``, and ``language.json`` with a description of the
text tower. Its folder ``video`` is an ordinary checkpoint with its plans, which every command for videos
accepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
import torch
from msgspec import Meta
from torch import Tensor
from torch.nn import functional as F

from fluxvit.checkpoints.checkpoint import Checkpoint, check_plain
from fluxvit.checkpoints.folder import (
    VIDEO,
    FolderCheckpoint,
    check_size,
    load_state,
    read_format,
    read_state,
    state_digest,
)
from fluxvit.checkpoints.huggingface_text import remake_text
from fluxvit.checkpoints.state_dicts import bare, savable
from fluxvit.data.texts import Texts
from fluxvit.flux.plan import Plan
from fluxvit.models.config import FluxViTConfig, Width
from fluxvit.models.dual_encoder import DualEncoder, LanguageSide
from fluxvit.models.finite import check_finite
from fluxvit.models.fluxvit import FluxViT
from fluxvit.models.text import TextConfig, TextTower, TextTransformer
from fluxvit.utils.options import Precision
from fluxvit.utils.schema import convert, located, shown
from fluxvit.utils.schema import load as load_json

_TOKENIZER = "tokenizer.json"
_AT_ONCE = 256  # Texts that are embedded in one batch.


@dataclass
class DualEncoderCheckpoint(FolderCheckpoint):
    """A dual encoder and everything that is needed to use it.

    Args:
        model: The network, which shares its FluxViT with ``video``. It can also be saved in the wrappers that
            :class:`~fluxvit.Checkpoint` lists.
        texts: The tokenizer.
        video: The video side, a checkpoint of its own.
        provenance: Origin of the weights; free-form.
    """

    KIND: ClassVar[str] = "dual encoder"
    WEIGHTS: ClassVar[str] = "language.safetensors"
    CONFIG: ClassVar[str] = "language.json"
    OTHERS: ClassVar[frozenset[str]] = frozenset({VIDEO, _TOKENIZER})

    model: DualEncoder
    texts: Texts
    video: Checkpoint
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def embedding_dim(self) -> int:
        """Length D of the vectors of videos and sentences."""
        return self.model.language.dim

    def prepared(self, precision: Precision = "auto") -> DualEncoderCheckpoint:
        """This checkpoint with its video side in the inference form, as by :meth:`Checkpoint.prepared`."""
        video = self.video.prepared(precision)
        return replace(self, model=DualEncoder(video.model, self.model.language), video=video)

    def embed(self, video: Tensor, plan: Plan) -> Tensor:
        """Unit vectors of normalised clips ``[B, 3, T, H, W]``, fp32 ``[B, D]``."""
        return self.model.embed_video(video, plan.keep, plan.head, plan.selector).float()

    def vectors(self, pooled: Tensor) -> Tensor:
        """Unit vectors fp32 ``[B, D]`` of the video side's pooled vectors ``[B, P]``."""
        return self.model.language.embed_video(self.video.model, pooled).float()

    def mean_vector(self, vectors: Tensor) -> Tensor:
        """The unit vector ``[D]`` of a video whose clips have ``vectors`` ``[N, D]``."""
        return F.normalize(vectors.mean(0), dim=0)

    @torch.no_grad()
    def embed_texts(self, sentences: Sequence[str]) -> Tensor:
        """Unit vectors ``[N, D]`` of sentences, fp32, on the CPU.

        Raises:
            ValueError: A sentence is empty.
        """
        rows = []
        for first in range(0, len(sentences), _AT_ONCE):
            ids, lengths = self.texts(sentences[first : first + _AT_ONCE])
            device = self.video.device
            rows.append(self.model.embed_text(ids.to(device), lengths.to(device)).float().cpu())
        return check_finite(torch.cat(rows), "texts")

    def classifier(self, vectors: Tensor, labels: Sequence[str] = ()) -> Checkpoint:
        """The video side with a class for each of ``vectors`` ``[N, D]``; logits are cosines over the
        temperature.

        It is in eval mode, and shares all weights except the classifiers with the encoder.

        Raises:
            ValueError: The video side is in its inference form.
        """
        check_plain(self.model.video)
        video, language = self.model.video, self.model.language
        count, dim = vectors.shape
        config = {**video.config.to_dict(), "num_classes": count, "class_dim": dim}
        with torch.device("meta"):
            model = FluxViT(FluxViTConfig.from_dict(config))
        state = {name: value for name, value in video.state_dict().items() if ".fc." not in name}
        for number in range(len(video.config.budgets)):
            prefix = f"heads.{number}.fc."
            state |= {
                # Copies: files of weights hold no tensor twice.
                f"{prefix}proj.weight": language.video_proj.weight.detach().clone(),
                f"{prefix}proj.bias": language.video_proj.bias.detach().clone(),
                f"{prefix}classes": vectors.to(video.cls_token.device, copy=True),
                f"{prefix}scale": language.scale.detach().reshape(1),
            }
        model.load_state_dict(state, assign=True)
        return replace(self.video, model=model.eval().requires_grad_(False), labels=list(labels))

    def digest(self) -> str:
        """16 hexadecimal digits that identify weights, normalisation and tokenizer.

        Raises:
            ValueError: The video side is in its inference form.
        """
        check_plain(self.model.video)
        facts = [self.video.mean, self.video.std, self.texts.to_json(), self.model.video.config.to_dict()]
        return state_digest(self.model.state_dict(), repr(facts))

    def _content(self, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        language = bare(bare(self.model, DualEncoder).language, LanguageSide)
        return savable(language.state_dict(), what), {
            "dim": language.dim,
            "least_temperature": language.least_temperature,
            "context": self.texts.context,
            "text": language.text.describe(),
            "provenance": self.provenance,
        }

    def _save_others(self, folder: Path) -> None:
        self.video.save(folder / VIDEO)
        (folder / _TOKENIZER).write_text(self.texts.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device | None = "cpu") -> DualEncoderCheckpoint:
        """Read a checkpoint folder; the encoder is in eval mode.

        Args:
            device: Device of the model; None: the accelerator if there is one.

        Raises:
            ValueError: The folder is missing, incomplete or damaged, or there is no such device; the message
                names the problem.
        """
        folder = Path(folder)
        if not cls.is_in(folder):
            kind = "is a checkpoint without texts" if Checkpoint.is_in(folder) else "is none"
            raise ValueError(f"{folder}: no dual encoder, which `fluxvit train-contrastive` makes: it {kind}")
        video = Checkpoint.load(folder / VIDEO, device)
        weights, where = folder / cls.WEIGHTS, str(folder / cls.CONFIG)
        facts = read_format(load_json(folder / cls.CONFIG), _LanguageFile, where)
        try:
            tokenizer = (folder / _TOKENIZER).read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"{folder} is not complete: {error.filename} cannot be read") from error
        except UnicodeDecodeError:
            raise ValueError(f"{folder / _TOKENIZER}: not UTF-8 text") from None
        state = read_state(weights)
        state.pop("bias", None)  # Former versions had the bias of a sigmoid loss.
        with located(where, "text"):
            check_size(_parameters(facts.text), state, f"{cls.WEIGHTS} and {cls.CONFIG}")
            tower = _remake(facts.text)
        least = facts.least_temperature
        # Not on the meta device: networks of transformers have buffers that no file holds.
        language = LanguageSide(tower, video.model.config.pool_dim, facts.dim, 2 * least, least)
        load_state(language, state, weights, cls.CONFIG)
        language.to(video.device)
        try:
            texts = Texts.from_json(tokenizer, facts.context)
        except ValueError as error:
            raise ValueError(f"{folder / _TOKENIZER}: {error}") from error
        rows = language.text.vocab_size
        if texts.largest_id >= rows:
            raise ValueError(
                f"{folder}: {_TOKENIZER} has token ids up to {texts.largest_id}, "
                f"and the text tower knows {rows}"
            )
        return cls(DualEncoder(video.model, language).eval(), texts, video, facts.provenance)


class _LanguageFile(msgspec.Struct):
    """``language.json``. Unknown keys, as later versions may add them, are ignored."""

    dim: Width
    least_temperature: Annotated[float, Meta(gt=0, le=100)]
    context: Annotated[int, Meta(ge=1, le=1 << 20)]
    text: dict[str, Any]
    provenance: dict[str, Any]


class _HuggingFaceText(msgspec.Struct):
    """A text tower of transformers in ``language.json``."""

    config: dict[str, Any]
    pooling: str
    context: Annotated[int, Meta(ge=1, le=1 << 20)]


def _remake(description: dict[str, Any]) -> TextTower:
    if description.get("kind") == "huggingface":
        return remake_text(description)
    return TextTransformer(_text_config(description))


def _text_config(description: dict[str, Any]) -> TextConfig:
    if description.get("kind") != "transformer":
        raise ValueError(f"kind is {shown(description.get('kind'))}, expected 'transformer' or 'huggingface'")
    return convert({k: v for k, v in description.items() if k != "kind"}, TextConfig)


def _parameters(description: dict[str, Any]) -> int:
    """The number of parameters of a text tower, counted before it takes memory."""
    if description.get("kind") != "huggingface":
        return _text_config(description).parameters
    convert(description, _HuggingFaceText)
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in remake_text(description).parameters())


def copy_language(language: LanguageSide, state: dict[str, Tensor]) -> LanguageSide:
    """A language side of the same shape with the weights of ``state``."""
    least = language.least_temperature
    copied = LanguageSide(
        _remake(language.text.describe()), language.video_proj.in_features, language.dim, 2 * least, least
    )
    copied.load_state_dict(state)
    return copied
