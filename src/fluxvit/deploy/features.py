"""Features of long videos, window by window: ``fluxvit features``.

The windows are those of ``fluxvit index`` with another stride, and do not end at cuts. A video ``NAME.mp4``
becomes ``NAME.npy``, fp32 ``[N, P]``, one row a window, as ActionFormer and OpenTAD read them, and
``NAME.spans.npy``, the start and end of each window in seconds, float64 ``[N, 2]``. Features of tokens are
fp32 ``[N, K, C]``; ``NAME.kept.npy``, int64 ``[N, K]``, says where in the pool of a window they come from. As
Parquet a video is one file, ``NAME.parquet``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from fluxvit.checkpoints.loading import load_encoder
from fluxvit.data.formats.layout import videos_below
from fluxvit.data.formats.walk import LeftOut
from fluxvit.deploy.config import FeaturesConfig
from fluxvit.deploy.feature_files import Features, write_npy, write_parquet
from fluxvit.deploy.search.windows import windows
from fluxvit.flux.budget import Budget
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.models.finite import check_finite
from fluxvit.models.inference import form
from fluxvit.models.openvino_blocks import OpenVINOBlocks
from fluxvit.utils.files import lock_folder, write_json
from fluxvit.utils.options import Precision
from fluxvit.utils.schema import read
from fluxvit.utils.system import log_device, usable_device
from fluxvit.utils.terminal import printable, say
from fluxvit.video.base import VideoError
from fluxvit.video.inputs import VideoInput

SETTINGS = "features.json"
_FORMAT = "fluxvit features 1"


class FeatureExtractor:
    """Embeds the windows of videos.

    Args:
        checkpoint: Checkpoint folder: of a classifier or a pre-trained network, whose pooled vectors are the
            features; or of a dual encoder, whose unit vectors are.
        budget: What a window may cost, or the tokens of a second of video, which a stride gets. By default it
            is the largest token budget of training.
        grid: Sampling grid of a window. By default it follows from the budget.
        window: Length of a window in seconds. By default it is that of the clips of dense training, or 4.
        stride: Seconds from one window to the next. By default it is half a window.
        layers: Blocks whose outputs are the features, concatenated; negative numbers count from the end. They
            are means over the tokens. By default the pooled vector is taken.
        tokens: Give the features of each kept token, by default those of the last block.
        batch: Windows in a pass.
        device: Device to run on. By default it is the accelerator, or the CPU if there is none.
        precision: Number format in which the network multiplies.

    Raises:
        ValueError: The checkpoint, the budget or the grid cannot be used, or the stride is longer than the
            window.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        budget: Budget | int | None = None,
        grid: SamplingGrid | None = None,
        *,
        window: float | None = None,
        stride: float | None = None,
        layers: Sequence[int] = (),
        tokens: bool = False,
        batch: int = 8,
        device: str | torch.device | None = None,
        precision: Precision = "auto",
    ) -> None:
        self.device, self.batch = usable_device(device), batch
        self._layers, self._tokens = (tuple(layers) or (-1,) if tokens else tuple(layers)), tokens
        loaded = load_encoder(checkpoint, self.device)
        self.digest, self._encoder = loaded.digest(), loaded.prepared(precision)
        self._video = self._encoder.video
        budget = None if budget is None else Budget.of(budget)
        if budget is not None and budget.tokens_per_s is not None:
            # Windows begin every stride, whose length follows from the grid if it is not given.
            seconds = stride or (window or self._window(self._video.plan(None, grid))) / 2
            budget = Budget(tokens=budget.of_seconds(seconds))
        self.plan: Plan = self._video.plan(budget, grid)
        depth = len(self._video.model.blocks)
        if wrong := [layer for layer in self._layers if not -depth <= layer < depth]:
            raise ValueError(f"layer {wrong[0]} does not exist; this model has layers 0 to {depth - 1}")
        if isinstance(blocks := self._video.model.blocks, OpenVINOBlocks):
            blocks.clear(0)  # A run that continues must give what an uninterrupted one gives.
        self.window = window or self._window(self.plan)
        self.stride = stride or self.window / 2
        if self.stride > self.window:
            raise ValueError(
                f"stride {self.stride:g} s is longer than the window of {self.window:g} s and would leave "
                "video out; lengthen the window"
            )

    def _window(self, plan: Plan) -> float:
        return self._video.sampling.window(plan.grid.frames) or 4.0

    def _embed(self, video: Tensor) -> tuple[Tensor, Tensor | None]:
        """The rows of normalised clips ``[B, C, T, H, W]``, and the indices of their tokens."""
        plan, model = self.plan, self._video.model
        if self._layers:
            out = model.forward_intermediates(video, self._layers, plan.keep, plan.selector)
            tokens = torch.cat(out.layers, dim=-1)[:, 1:]  # Without the class token.
            if not self._tokens:
                return tokens.mean(1), None
            kept = out.kept
            return tokens, torch.arange(plan.keep).expand(len(video), -1) if kept is None else kept
        return self._encoder.embed(video, plan), None

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the features depend on besides the video."""
        plan = self.plan
        settings = {
            "format": _FORMAT,
            "checkpoint": self.digest,
            "form": form(self._video.model),
            "grid": str(plan.grid),
            "tokens": plan.keep,
            "head": plan.head,
            "selector": plan.selector,
            "window_s": self.window,
            "stride_s": self.stride,
        }
        if self._layers:
            settings |= {"layers": list(self._layers), "per_token": self._tokens}
        return settings

    def __call__(self, video: VideoInput) -> Features:
        """The features of a video.

        The rest at the end is a window of its own if it is at least an eighth of a window.

        Raises:
            VideoError: The video cannot be read.
        """
        spans, rows, kept = zip(*self.batches(video), strict=True)
        return Features(
            np.concatenate(spans), np.concatenate(rows), np.concatenate(kept) if self._tokens else None
        )

    def batches(self, video: VideoInput) -> Iterator[Features]:
        """The features of a video, some windows at a time, for a video whose features are too many to hold.

        Raises:
            VideoError: The video cannot be read.
        """
        remaining = windows(video, self.plan.grid, self.window, shots=False, stride=self.stride)
        name = video if isinstance(video, (str, Path)) else "the given video"
        while batch := list(islice(remaining, self.batch)):
            with torch.inference_mode():
                clips = self._video.normalize(torch.stack([window.video for window in batch]))
                rows, kept = self._embed(clips)
            yield Features(
                np.array([(window.start, window.end) for window in batch]),
                check_finite(rows.float().cpu(), name).numpy(),
                None if kept is None else kept.cpu().numpy(),
            )


def run_features(config: FeaturesConfig) -> int:
    """Write the features of videos; the exit code is 2 if one of them cannot be read.

    Videos whose features are there already are left out, so that an interrupted run continues.

    Raises:
        ValueError: The videos, the checkpoint or an option cannot be used, or the folder holds features that
            were made with other settings.
    """
    if config.format == "parquet" and find_spec("pyarrow") is None:
        raise ValueError("--format parquet needs pyarrow: pip install 'fluxvit[bulk]'")
    write, suffix = (write_npy, ".npy") if config.format == "npy" else (write_parquet, ".parquet")
    out, names = Path(config.out), _named(config.videos)
    extract = FeatureExtractor(
        config.checkpoint,
        config.budget,
        config.grid,
        window=config.window,
        stride=config.stride,
        layers=config.layers,
        tokens=config.tokens,
        batch=config.batch,
        device=config.device,
        precision=config.precision,
    )
    log_device(extract.device)
    out.mkdir(parents=True, exist_ok=True)
    with lock_folder(out):
        _check_settings(out / SETTINGS, extract.settings)
        todo = {name: path for name, path in names.items() if not (out / f"{name}{suffix}").exists()}
        rows, failed = 0, []
        console = Console(stderr=True)
        for name, path in track(
            todo.items(), "Features", console=console, transient=True, disable=not console.is_terminal
        ):
            try:
                rows += write(out / name, extract.batches(path))
            except VideoError as error:  # The other videos go on.
                failed.append(str(error))
    for reason in failed:
        say(f"fluxvit: {printable(reason)}", error=True)
    done = len(todo) - len(failed)
    say(f"wrote   {out}: {rows} windows of {done} videos, {len(names) - len(todo)} were there already")
    return 2 if failed else 0


def _named(videos: Sequence[str]) -> dict[str, Path]:
    """The videos of files and folders, by the name of their features.

    Raises:
        ValueError: A folder holds no videos, or two videos would have the same name.
    """
    named: dict[str, Path] = {}
    for name, path in _listed(videos):
        if name in named:
            raise ValueError(f"{named[name]} and {path} would both be written to {name}; run them apart")
        named[name] = path
    return named


def _listed(videos: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for text in videos:
        folder = Path(text)
        if not folder.is_dir():
            yield folder.stem, folder
            continue
        left_out = LeftOut()
        found = videos_below(folder, left_out)
        if not found:
            raise ValueError("; ".join((f"{folder}: no videos in it", *left_out.notes)))
        for path in found:
            name = path.relative_to(folder) if path != folder else Path(folder.name)
            yield name.with_suffix("").as_posix(), path


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write the settings, or compare them with those of the features that are there.

    Raises:
        ValueError: They differ.
    """
    if not path.exists():
        write_json(path, settings)
        return
    former = read(path, dict[str, Any])
    if changed := [name for name in {**settings, **former} if former.get(name) != settings.get(name)]:
        raise ValueError(
            f"{path.parent} holds features of other settings ({', '.join(changed)}); choose another --out"
        )
