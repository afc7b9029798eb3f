"""Options of ``fluxvit optimize``. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field

from fluxvit.flux.budget import Budget
from fluxvit.flux.selection import SelectorName
from fluxvit.utils.options import POSITIONAL, DecodeOptions
from fluxvit.utils.schema import Count, Frames, Seed, Size, check


@dataclass(frozen=True)
class OptimizeConfig(DecodeOptions):
    """Find the best sampling for each token budget on held-out videos, and store it in the checkpoint.

    A sampling is a number of frames, a frame size, and a selector of the tokens to keep. Most candidates are
    tried on few clips, and the best ones on all clips. An interrupted search continues where it stopped.

    Args:
        checkpoint: Checkpoint folder, such as runs/demo/best, or the name of a packaged checkpoint
            (fluxvit_nano_motionworld).
        data: Manifest of the held-out videos on which the candidates are tried. They must not be the test
            videos.
        budgets: Numbers of tokens to keep, such as 512,1024; a plan is made for each. By default they are
            those of training.
        frames: Numbers of frames to try, such as 8,12,16. By default they are those of training, one step
            beyond, and half as many again.
        sizes: Sides of the square frames to try in pixels, such as 168,224. By default they are those of
            training and one step beyond.
        selectors: Token selectors to try, such as group_dynamic,two_sided (docs/selection.md). By default
            they are the one of training, those of the checkpoint's plans, and moving_pixels.
        videos: Number of videos to draw from the manifest at random. By default all are used.
        seed: Seed of the order of the videos.
        test: Manifest of the test videos. The search is refused if ``data`` contains any of them.
        exhaustive: Try every candidate on every clip.
        cascades: Mean costs of a clip, such as 40,60 (tokens), 20gflops or 8ms. For each, a cascade is tuned
            on the same videos: a cheap plan that is followed by a more expensive one if its answer is unsure.
        to: Folder for a copy of the checkpoint with the plans. By default they are written into the
            checkpoint itself.
        target: Key of the class index in the manifests.
        out: Folder for the log of the search.

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
