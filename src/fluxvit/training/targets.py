"""A teacher's features of a whole data set, computed once and kept on disk: for machines that cannot run a
teacher in every step.

What is kept are features on one lattice, of the clip that a test would see: the middle of the frame, at fixed
times. Students may sample other grids of the same view, for features between the lattice's are interpolated;
but clips must not be cropped, mirrored or jittered in time.

On disk: a folder, named by a digest of all that it depends on, of shards of a few hundred videos each. A
shard is written whole or not at all, so that an interrupted build goes on; processes share them out.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from fluxvit.checkpoints.folder import state_digest
from fluxvit.data.dataset import ClipDataset, ClipRequest
from fluxvit.data.loader import loader
from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.teachers import Teacher, TeacherFeatures, TokenShape, tokens_of_maps
from fluxvit.utils.distributed import World, fail_together
from fluxvit.utils.files import atomic_path, write_json
from fluxvit.video.base import VideoError

_TYPES = {"fp8": torch.float8_e4m3fn, "bf16": torch.bfloat16}
_PER_SHARD = 256
_CLIPS_AT_ONCE = 16
_VERSION = 1


class CachedTargets:
    """Features from disk. :meth:`build` comes first.

    Args:
        folder: Where the folder of shards lies, or will lie.
        teacher: Any; runs only if something is missing.
        layers: Which of its layers to keep.
        shape: Features kept along time, height and width.
        dtype: ``fp8`` (e4m3: three bits of mantissa; half the size) or ``bf16``. What is kept are unit
            vectors, scaled to deviation 1.
    """

    def __init__(
        self,
        folder: str | Path,
        teacher: Teacher,
        layers: Sequence[int],
        shape: TokenShape,
        dtype: str = "fp8",
    ) -> None:
        self.widths = [teacher.widths[layer] for layer in layers]
        self.pooled_width, self.class_token = teacher.pooled_width, teacher.class_token
        self.path = Path(folder)
        self._teacher, self._layers, self._shape = teacher, list(layers), shape
        self._dtype = dtype
        self._open: dict[int, Any] = {}
        self._stack = ExitStack()

    def build(
        self, dataset: ClipDataset, world: World, *, workers: int = 0, progress: bool = True
    ) -> CachedTargets:
        """Compute what is missing of a data set's features; all processes together.

        Args:
            dataset: Data set whose items are requested later.
            workers: Processes that prepare clips, for each process.

        Raises:
            ValueError: A video cannot be read, or the disk is too small.
            OSError: A shard could not be written.
        """
        facts = self._facts(dataset)
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        self.path = self.path / key
        trouble: Exception | None = None
        try:
            self._compute(dataset, facts, world, workers, progress)
        except Exception as error:  # Whatever it is: the others must hear of it, or they wait for ever.
            trouble = error
        fail_together(trouble, world, "computing the teacher's features")
        return self

    def __call__(
        self, video: Tensor, item: Tensor, shape: TokenShape, kept: Tensor | None
    ) -> TeacherFeatures:
        rows = [self._read(int(number)) for number in item]
        columns = [torch.stack(column).to(video.device) for column in zip(*rows, strict=True)]
        attention, pooled, *layers = columns
        found = []
        for layer in layers:
            prefix = int(self.class_token)
            maps = layer[:, prefix:].unflatten(1, self._shape)
            tokens = tokens_of_maps(maps, shape, kept)
            found.append(torch.cat([layer[:, :prefix], tokens], dim=1))
        maps = attention.float().unflatten(1, self._shape)[..., None]
        at_tokens = tokens_of_maps(maps, shape, kept)[..., 0]
        return TeacherFeatures(found, pooled, at_tokens / at_tokens.sum(1, keepdim=True))

    def _facts(self, dataset: ClipDataset) -> dict[str, Any]:
        """All that the features depend on."""
        return {
            "version": _VERSION,
            "teacher": state_digest(self._teacher.network.state_dict()),
            "normalization": [list(self._teacher.mean), list(self._teacher.std)],
            "grid": list(self._teacher.grid(self._shape)),
            "precision": str(self._teacher.dtype),
            "layers": self._layers,
            "shape": list(self._shape),
            "type": self._dtype,
            "data": dataset.manifest.digest,
        }

    def _compute(
        self, dataset: ClipDataset, facts: dict[str, Any], world: World, workers: int, progress: bool
    ) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        if world.is_main:
            write_json(self.path / "about.json", facts)
        numbers = range(0, len(dataset), _PER_SHARD)
        missing = [n for n in range(len(numbers)) if not self._shard(n).exists()][world.rank :: world.size]
        if not missing:
            return
        self._check_room(len(missing))
        grid = SamplingGrid(*self._teacher.grid(self._shape))
        batches = [
            [ClipRequest(i, grid) for i in range(first, min(first + _CLIPS_AT_ONCE, last))]
            for n in missing
            for last in [min(len(dataset), (n + 1) * _PER_SHARD)]
            for first in range(n * _PER_SHARD, last, _CLIPS_AT_ONCE)
        ]
        parts: list[list[Tensor]] = []
        device = next(self._teacher.network.parameters()).device
        clips = track(
            loader(dataset, batches, workers),
            "Features of the teacher",
            len(batches),
            console=Console(stderr=True),
            transient=True,
            disable=not progress or not world.is_main,
        )
        try:
            for clip in clips:
                video = clip.video.to(device).float() / 255
                found = self._teacher.features(video, self._shape, None, self._layers)
                layers = [self._pack(layer) for layer in found.layers]
                parts.append([found.attention.to(torch.bfloat16).cpu(), self._pack(found.pooled), *layers])
                last = int(clip.item[-1]) + 1
                if last % _PER_SHARD == 0 or last == len(dataset):
                    self._write(self._shard((last - 1) // _PER_SHARD), parts)
                    parts = []
        except VideoError as error:
            raise ValueError(
                f"{error}; probe the data set again, so that it is known to be broken"
            ) from error

    def _pack(self, vectors: Tensor) -> Tensor:
        unit = F.normalize(vectors.float(), dim=-1) * vectors.shape[-1] ** 0.5
        return unit.to(_TYPES[self._dtype]).cpu()

    def _write(self, path: Path, parts: list[list[Tensor]]) -> None:
        attention, pooled, *layers = (torch.cat(column) for column in zip(*parts, strict=True))
        tensors = {"attention": attention, "pooled": pooled}
        tensors |= {f"layer{number}": layer for number, layer in enumerate(layers)}
        with atomic_path(path) as partial:
            save_file(tensors, partial)
            partial.chmod(0o644)  # The library writes for the owner's eyes only.

    def _check_room(self, shards: int) -> None:
        t, h, w = self._shape
        per_token = 2 + sum(self.widths) * _TYPES[self._dtype].itemsize
        needed = shards * _PER_SHARD * t * h * w * per_token
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise ValueError(
                f"teacher.cache: features of {shards * _PER_SHARD} videos need {needed / 1e9:.1f} GB, and "
                f"{self.path} has {free / 1e9:.1f} GB left; use a smaller cache_shape, fp8, or fewer layers"
            )

    def _shard(self, number: int) -> Path:
        return self.path / f"targets-{number:05d}.safetensors"

    def _read(self, item: int) -> list[Tensor]:
        """Attention, pooled vector and layers of a video."""
        number, row = divmod(item, _PER_SHARD)
        if number not in self._open:
            try:
                file = self._stack.enter_context(safe_open(self._shard(number), "pt"))
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{self._shard(number)}: {error}; remove it and run again") from error
            names = ["attention", "pooled", *(f"layer{n}" for n in range(len(self._layers)))]
            self._open[number] = [file.get_slice(name) for name in names]
        return [tensor[row].to(torch.bfloat16) for tensor in self._open[number]]  # Nothing computes in fp8.
