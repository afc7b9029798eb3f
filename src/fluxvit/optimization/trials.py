"""The passes of a search over its clips, and the log from which it continues after a crash."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.dataset import Clip, FrameSource, check_sampling, read_frames
from fluxvit.data.loader import loader
from fluxvit.data.manifest import Manifest
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.selection import get_selector
from fluxvit.models.finite import check_finite
from fluxvit.optimization.halving import Sampling, Table, halve, pass_gmacs
from fluxvit.utils.files import append_json, read_json_lines
from fluxvit.utils.progress import tracked
from fluxvit.utils.schema import Natural, Share, convert, located
from fluxvit.video.base import VideoError
from fluxvit.video.sampling import SPARSE, ClipSampling
from fluxvit.video.transforms import resize_and_crop, to_tensor

# Largest size of a batch: bytes of the pixels of clips on all candidate grids, and clips.
_BATCH_BYTES, _MOST_CLIPS = 128 << 20, 16

_log = logging.getLogger(__name__)


class GridRequest(NamedTuple):
    """Video number ``item`` on several grids."""

    item: int
    grids: tuple[SamplingGrid, ...]


class GridClips(Dataset[Clip]):
    """The same test clip on several grids, decoded once; on each grid it equals the clip of `ClipDataset`.

    The ``video`` of a `Clip` holds the pixels of all grids one after the other; :func:`split_grids` separates
    them. A clip that cannot be read is black and counts as replaced, and ``faults`` has its error.
    """

    def __init__(self, manifest: Manifest, source: FrameSource, sampling: ClipSampling = SPARSE) -> None:
        check_sampling(source, sampling)
        self.manifest, self.source, self.sampling = manifest, source, sampling

    def __getitem__(self, request: GridRequest) -> Clip:
        places: dict[int, np.ndarray] = {}

        def times(start: float, end: float, fps: float) -> np.ndarray:
            each = {grid.frames: self.sampling.times(start, end, grid.frames, fps) for grid in request.grids}
            # Times are sorted and unique, because grids have many of them in common.
            every = np.unique(np.concatenate(list(each.values())))
            places.update({frames: np.searchsorted(every, own) for frames, own in each.items()})
            return every

        item, label = torch.tensor(request.item), torch.tensor(self.manifest.entries[request.item].label)
        try:
            frames = to_tensor(read_frames(self.source, request.item, times))
        except VideoError as error:
            black = torch.zeros(sum(map(_pixels, request.grids)), dtype=torch.uint8)
            # The number of the video makes the error unique, because batches drop repeated errors.
            return Clip(black, label, item, torch.tensor(1), (f"{request.item} {error}",))
        parts = []
        for grid in request.grids:
            parts.append(resize_and_crop(frames[:, places[grid.frames]], (grid.height, grid.width)).flatten())
        return Clip(torch.cat(parts), label, item, torch.tensor(0))


def _pixels(grid: SamplingGrid) -> int:
    return 3 * grid.frames * grid.height * grid.width


def split_grids(video: Tensor, grids: Sequence[SamplingGrid]) -> Iterator[Tensor]:
    """Split the pixels of a batch, ``[B, all]``, into clips ``[B, 3, T, H, W]`` for each grid."""
    for part, grid in zip(video.split([_pixels(grid) for grid in grids], dim=1), grids, strict=True):
        yield part.unflatten(1, (3, grid.frames, grid.height, grid.width))


class _Tried(msgspec.Struct):
    """The results of a sampling on a batch."""

    grid: str
    keep: Natural
    selector: str
    truth: list[list[Share]]
    right: list[list[int]]


class _Row(msgspec.Struct):
    """A batch in the log of a search."""

    batch: tuple[Natural, Natural]
    clips: list[Natural]
    unreadable: list[tuple[Natural, str]]
    gmacs: float
    seconds: float
    tried: list[_Tried]


class Search:
    """Tries samplings on clips, and keeps the results of each in a log.

    Args:
        checkpoint: The checkpoint, with its model in eval mode.
        manifest: The clips, in shuffled order.
        source: The frames of the clips.
        candidates: Samplings of each budget.
        workers: Number of processes that decode; with 0 this process decodes.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        manifest: Manifest,
        source: FrameSource,
        candidates: dict[int, list[Sampling]],
        workers: int = 0,
    ) -> None:
        self.checkpoint, self.model = checkpoint, checkpoint.model
        self.candidates, self.workers = candidates, workers
        self.clips = GridClips(manifest, source, checkpoint.sampling)
        self.heads = len(self.model.config.budgets)
        self.table = Table(len(manifest), self.heads)
        self.unreadable: dict[int, str] = {}
        self.gmacs = self.seconds = 0.0
        self._logged: dict[tuple[int, int], dict[str, Any]] = {}

    def run(
        self, log: Path, facts: dict[str, Any], *, exhaustive: bool = False, progress: bool = False
    ) -> dict[int, list[Sampling]]:
        """Run or continue the search, and return for each budget the samplings that saw all clips.

        Args:
            log: File that gets a row for each batch.
            facts: Everything that the results depend on.
            exhaustive: Try every sampling on every clip.

        Raises:
            ValueError: The log is of another search, or no clip can be read.
        """
        self._read_log(log, facts)

        def measure(samplings: list[Sampling], clips: range) -> None:
            self._measure(samplings, clips, log, progress)

        if exhaustive:
            every = sorted({sampling for rows in self.candidates.values() for sampling in rows})
            measure(every, range(len(self.table.usable)))
            finalists = self.candidates
        else:
            finalists = halve(self.table, self.candidates, measure, self.cost)
        if not self.table.usable.any():
            raise ValueError(f"no clip can be read, the first: {self.unreadable[0]}")
        return finalists

    def cost(self, sampling: Sampling) -> float:
        """1e9 multiply-accumulates of a clip."""
        return sampling.gmacs(self.model.config.size)

    def _read_log(self, log: Path, facts: dict[str, Any]) -> None:
        """Read the rows of an earlier run."""
        log.parent.mkdir(parents=True, exist_ok=True)
        rows = read_json_lines(log)
        if not rows:
            append_json(log, facts)
            return
        other = [name for name, value in facts.items() if rows[0].get(name) != value]
        if other:
            raise ValueError(
                f"{log.parent} holds a search with other {', '.join(other)}; "
                "choose another folder with --out, or remove it"
            )
        # Rows are entered one by one: samplings must be dropped by the clips that were seen until then.
        for row in rows[1:]:
            with located(str(log)):
                self._check(convert(row, _Row))
        self._logged = {tuple(row["batch"]): row for row in rows[1:]}

    def _check(self, row: _Row) -> None:
        """Refuse a row that does not fit the search."""
        clips = [*row.clips, *(clip for clip, _ in row.unreadable)]
        shapes = {(len(x), *map(len, x)) for tried in row.tried for x in (tried.truth, tried.right)}
        if max(clips, default=0) >= len(self.table.usable) or shapes - {
            (len(row.clips), *(self.heads,) * len(row.clips))
        }:
            raise ValueError("a row is of another search; choose another folder with --out, or remove it")

    def _enter(self, row: dict[str, Any]) -> None:
        for clip, error in row["unreadable"]:
            self.table.usable[clip] = False
            self.unreadable[clip] = error
        for tried in row["tried"]:
            self.table.put(_sampling(tried), row["clips"], tried["truth"], tried["right"])
        self.gmacs += row["gmacs"]
        self.seconds += row["seconds"]

    def _known(self, batch: range, samplings: Sequence[Sampling]) -> dict[str, Any] | None:
        """The row of an earlier run for a batch; None if there is none."""
        row = self._logged.get((batch.start, batch.stop))
        if row is None or (row["clips"] and set(map(_sampling, row["tried"])) != set(samplings)):
            return None
        return row

    def _measure(self, samplings: list[Sampling], clips: range, log: Path, progress: bool) -> None:
        grids = tuple(dict.fromkeys(sampling.grid for sampling in samplings))
        at_once = min(_MOST_CLIPS, max(1, _BATCH_BYTES // sum(map(_pixels, grids))))
        batches = [clips[first : first + at_once] for first in range(0, len(clips), at_once)]
        while batches and (row := self._known(batches[0], samplings)) is not None:
            self._enter(row)
            del batches[0]
        if not batches:
            return
        requests = [[GridRequest(clip, grids) for clip in batch] for batch in batches]
        title = f"{len(samplings)} candidates, clips {clips.start + 1} to {clips.stop}"
        start = time.perf_counter()
        clips_on_grids = loader(self.clips, requests, self.workers, name_faults=False)
        pairs = zip(batches, clips_on_grids, strict=True)
        for batch, clip in tracked(pairs, title if progress else None, len(batches)):
            row = {"batch": [batch.start, batch.stop], **self._try(clip, grids, samplings)}
            now = time.perf_counter()
            row["seconds"], start = round(now - start, 4), now
            append_json(log, row)
            self._enter(row)

    @torch.inference_mode()
    def _try(
        self, clip: Clip, grids: Sequence[SamplingGrid], samplings: Sequence[Sampling]
    ) -> dict[str, Any]:
        """The results of samplings on a batch, a row of the log."""
        readable = clip.replaced == 0
        faults = [(int(item), error) for item, _, error in (fault.partition(" ") for fault in clip.faults)]
        for _, error in faults:
            _log.warning("%s; left out", error)
        clips, labels = clip.item[readable].tolist(), clip.label[readable]
        tried = []
        for grid, pixels in zip(grids, split_grids(clip.video[readable], grids), strict=True):
            if not clips:
                break
            video = self.checkpoint.normalize(pixels)
            here = [sampling for sampling in samplings if sampling.grid == grid]
            for sampling, tokens in self._encoded(video, here):
                heads = [self.model.forward_head(tokens, head) for head in range(self.heads)]
                logits = check_finite(torch.stack(heads, 1).cpu().double(), f"sampling {grid}")
                truth = logits.softmax(-1)[torch.arange(len(clips)), :, labels]
                right = logits.argmax(-1) == labels[:, None]
                tried.append(
                    {
                        "grid": str(grid),
                        "keep": sampling.keep,
                        "selector": sampling.selector,
                        "truth": [[round(value, 6) for value in row] for row in truth.tolist()],
                        "right": right.int().tolist(),
                    }
                )
        gmacs = len(clips) * pass_gmacs(self.model.config.size, samplings, self.heads)
        return {"clips": clips, "unreadable": faults, "gmacs": gmacs, "tried": tried}

    def _encoded(self, video: Tensor, samplings: Sequence[Sampling]) -> Iterator[tuple[Sampling, Tensor]]:
        """Samplings of one grid, each with the output of the last block, ``[B, 1 + K, C]``."""
        model = self.model
        pool = None
        for selector in dict.fromkeys(sampling.selector for sampling in samplings):
            here = [sampling for sampling in samplings if sampling.selector == selector]
            keeps = [sampling.keep for sampling in here]
            if get_selector(selector).reads == "embeddings":
                # All of them share one embedding of the pool.
                pool = model.patch_embed(video) if pool is None else pool
                embeddings, shape = pool
                choices = model.select_indices(embeddings, keeps, selector)
                inputs = iter(model.add_positions(embeddings, shape, choices))
            else:
                inputs = (tokens for tokens, _ in model.select_tokens(video, keeps, selector)[0])
            for sampling, tokens in zip(here, inputs, strict=True):
                yield sampling, model.encode(tokens)


def _sampling(row: dict[str, Any]) -> Sampling:
    return Sampling(row["keep"], SamplingGrid.parse(row["grid"]), row["selector"])
