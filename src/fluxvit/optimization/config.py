"""Options of ``fluxvit optimize``. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field

from fluxvit.flux.budget import Budget
from fluxvit.flux.selection import SelectorName
from fluxvit.utils.options import POSITIONAL, DecodeOptions
from fluxvit.utils.schema import Count, Frames, Seed, Size, check


@dataclass(frozen=True)
class OptimizeConfig(DecodeOptions):
    """Find the best sampling for each token budget on held-out videos, and write it beside the weights.

    Few clips decide on most candidates, and all clips on the best ones. An interrupted search continues where
    it was.

    Args:
        checkpoint: Checkpoint folder, such as runs/demo/best, or the name of a packaged checkpoint.
        data: Manifest of the held-out videos that choose. They must not be those that test.
        budgets: Tokens to keep, a plan for each, such as 512,1024. By default those of training are planned.
        frames: Frames of the candidate grids, such as 8,12,16. By default those of training are tried, and
            one step beyond.
        sizes: Sides of square candidate grids in pixels, such as 168,224, with the same default.
        selectors: Selectors to try. By default those of the checkpoint's plans are tried, or group_dynamic.
        videos: Number of videos to draw at random. By default all are used.
        seed: Seed of their order.
        test: Manifest of the videos that will test; it is refused if it shares videos with ``data``.
        exhaustive: Try every candidate on every clip.
        cascades: Mean budgets, such as 40,60 (tokens), 20gflops or 8ms, for each of which a cascade is tuned
            on the same videos.
        to: Folder for a copy of the checkpoint that gets the plans. By default the checkpoint itself does.
        target: Key of the class index in the manifests.
        out: Folder of the log.

    Raises:
        ValueError: A setting is out of its range.
    """

    checkpoint: str = field(metadata=POSITIONAL)
    data: str = field(metadata=POSITIONAL)
    budgets: tuple[Count, ...] = ()
    frames: tuple[Frames, ...] = ()
    sizes: tuple[Size, ...] = ()
    selectors: tuple[SelectorName, ...] = ()
    videos: Count | None = None
    seed: Seed = 0
    test: str = ""
    exhaustive: bool = False
    cascades: tuple[Budget, ...] = ()
    to: str = ""
    target: str = "label"
    out: str = "runs/optimize"

    def __post_init__(self) -> None:
        check(self)
