"""Checkpoints as encoders of mteb, so that ``mteb.evaluate`` runs the video tasks of MVEB at a budget."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.checkpoints.loading import load_encoder
from fluxvit.flux.budget import Budget
from fluxvit.flux.grid import SamplingGrid
from fluxvit.hf.clips import read_clip
from fluxvit.models.finite import check_finite
from fluxvit.utils.options import Precision
from fluxvit.utils.system import usable_device
from fluxvit.video.sampling import ClipSampling

try:
    import datasets
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ScoringFunction
    from tqdm.auto import tqdm
except ImportError as error:
    raise ImportError(f"this needs mteb ({error}): pip install 'fluxvit[mteb]'") from error


class MTEBEncoder(AbsEncoder):
    """An encoder for ``mteb.evaluate`` that spends the same budget on every video.

    PyAV reads the videos from the files of the data set, with any number of frames at any size, and only the
    frames of the grid are kept. torchcodec is not needed.

    Args:
        checkpoint: Checkpoint folder: of a classifier or a pre-trained network, which embeds videos as pooled
            vectors; or of a dual encoder, which embeds videos and texts as unit vectors.
        budget: What a video may cost; a number means tokens. By default it is the largest token budget of
            training.
        name: ``organization/model``, to which the budget is appended. By default it is ``fluxvit/FOLDER``.
        device: Device to run on. By default it is the accelerator, or the CPU if there is none.
        precision: Number format in which the network multiplies.

    Attributes:
        video: The checkpoint, or the video side of the dual encoder, in the inference form.
        dual: The dual encoder, or None.
        plan: How the budget is spent.
        mteb_model_meta: What mteb stores with the results. What a checkpoint does not tell, such as its
            licence, is None; ``mteb_model_meta.model_copy(update={...})`` adds it.

    Raises:
        ValueError: The checkpoint or the budget cannot be used.
    """

    mteb_model_meta: ModelMeta

    def __init__(
        self,
        checkpoint: str | Path,
        budget: Budget | int | None = None,
        *,
        name: str | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "auto",
    ) -> None:
        loaded = load_encoder(checkpoint, usable_device(device))
        self._encoder = prepared = loaded.prepared(precision)
        self.dual = prepared if isinstance(prepared, DualEncoderCheckpoint) else None
        self.video = prepared.video
        self.plan = plan = self.video.plan(budget)
        spent = str(Budget.of(plan.keep if budget is None else budget)).replace(" ", "-")
        parameters = list(loaded.model.parameters())
        # mteb caches results by name and revision, which therefore tell weights, budgets and plans apart.
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": f"{name or f'fluxvit/{Path(checkpoint).name}'}-{spent}",
                "revision": f"{loaded.digest()}-{plan.grid}-{plan.keep}-{plan.selector}",
                "modalities": ["video", "text"] if self.dual else ["video"],
                "embed_dim": loaded.embedding_dim,
                "max_tokens": self.dual.texts.context if self.dual else None,
                "n_parameters": sum(weight.numel() for weight in parameters),
                "memory_usage_mb": sum(w.numel() * w.element_size() for w in parameters) / 2**20,
                "framework": ["PyTorch"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": False,
            }
        )

    @torch.inference_mode()
    def encode(
        self,
        inputs: DataLoader,
        *,
        task_metadata: Any = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        show_progress_bar: bool = True,
        **kwargs: Any,
    ) -> np.ndarray:
        """Embed the rows of mteb's loader, fp32 ``[N, D]``.

        A row has the column ``video``, ``text``, or both, whose unit vectors are then added.

        Raises:
            VideoError: A video cannot be read.
            ValueError: A text is empty, or the checkpoint cannot embed texts.
        """
        dataset: Any = inputs.dataset
        # Nothing else is decoded, such as sound.
        dataset = dataset.select_columns([name for name in ("video", "text") if name in dataset.features])
        if isinstance(dataset.features.get("video"), datasets.Video):
            # Undecoded: datasets decodes by torchcodec.
            dataset = dataset.cast_column("video", datasets.Video(decode=False))
        loader = DataLoader(
            dataset,
            inputs.batch_size,
            collate_fn=partial(_collate, grid=self.plan.grid, sampling=self.video.sampling),
            num_workers=inputs.num_workers,
        )
        rows = [self._embed(**batch) for batch in tqdm(loader, "Encoding", disable=not show_progress_bar)]
        return torch.cat(rows).numpy()

    def _embed(self, video: Tensor | None = None, text: list[str] | None = None) -> Tensor:
        found = []
        if video is not None:
            vectors = self._encoder.embed(self.video.normalize(video), self.plan)
            found.append(check_finite(vectors.cpu(), "videos"))
        if text is not None:
            if self.dual is None:
                raise ValueError(f"{self.mteb_model_meta.name} embeds no texts; give it a dual encoder")
            found.append(self.dual.embed_texts(text))
        return found[0] if len(found) == 1 else F.normalize(found[0] + found[1], dim=-1)


def _collate(rows: Sequence[dict[str, Any]], grid: SamplingGrid, sampling: ClipSampling) -> dict[str, Any]:
    batch: dict[str, Any] = {}
    if "video" in rows[0]:
        batch["video"] = torch.stack([read_clip(row["video"], grid, sampling) for row in rows])
    if "text" in rows[0]:
        batch["text"] = [row["text"] for row in rows]
    return batch
