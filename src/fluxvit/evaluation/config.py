"""Options of the commands that measure a model. Imports no PyTorch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

from msgspec import Meta

from fluxvit.flux.budget import Budget
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.selection import SelectorName
from fluxvit.utils.options import POSITIONAL, DecodeOptions, ModelOptions
from fluxvit.utils.schema import Batch, Count, Seed, Size, check, convert, shown

MOST_VIEWS = 1000
"""Views of a video that an evaluation may ask for."""
_VIEWS = re.compile(r"(\d{1,12})x(\d{1,12})", re.ASCII)
_Part = Annotated[int, Meta(ge=1, le=MOST_VIEWS)]


class Views(NamedTuple):
    """``clips`` at different times of a video and ``crops`` of each: 4x3 are twelve views.

    One crop is the centre. Several are spread evenly along the side of the frame that has room for them,
    once the grid just fits into it.
    """

    clips: _Part = 1
    crops: _Part = 1

    @classmethod
    def parse(cls, text: str) -> Views:
        """Read ``"4x3"``: four clips, three crops of each.

        Raises:
            ValueError: ``text`` is something else, or a number is not from 1 to 1000.
        """
        match = _VIEWS.fullmatch(text.strip().lower())
        if not match:
            raise ValueError(f"views {shown(text)}: give CLIPSxCROPS, such as 4x3 or 1x1")
        return convert([int(match[1]), int(match[2])], cls, key="views")

    @property
    def total(self) -> int:
        """The number of views of a video."""
        return self.clips * self.crops

    def __str__(self) -> str:
        return f"{self.clips}x{self.crops}"


ONE_VIEW = Views()


@dataclass(frozen=True)
class EvaluateConfig(DecodeOptions):
    """Test a checkpoint on labelled videos, with plain and optimised sampling at each budget.

    Plain sampling takes as many frames as the budget pays for and keeps all of their tokens; optimised
    sampling is the one that fluxvit optimize has found. An interrupted evaluation continues where it stopped.
    Under ``torchrun`` the processes share the videos.

    Args:
        checkpoint: Checkpoint folder, such as runs/demo/best, or the name of a packaged checkpoint
            (fluxvit_nano_motionworld).
        data: Manifest of the test videos, such as test.jsonl.
        budgets: Costs that one view of a video may have, such as 1024,512 (tokens), 20gflops or 50ms. By
            default the token budgets that the checkpoint was trained for are tested.
        views: Views of each video, as CLIPSxCROPS; 4x3 means four clips with three crops each. Their
            predictions are averaged.
        grid: Sampling grid to test instead of the checkpoint's plans, such as 16x224 for 16 frames of
            224x224.
        baselines: Token selectors to compare with on the same grids, such as random,uniform
            (docs/selection.md).
        plain_size: Side of the square frames of plain sampling in pixels. By default it is the size of the
            training grid with the most tokens whose frames fit into the smallest budget.
        target: Key of the class index in the manifest.
        batch_size: Number of views in a batch, at least the views of one video.
        latency: Measure the latency of each tested plan.
        out: Folder for the results.
        report: Folder for a report, an HTML page with figures. By default no report is written.

    Raises:
        ValueError: A setting is out of its range.
    """

    checkpoint: str = field(metadata=POSITIONAL)
    data: str = field(metadata=POSITIONAL)
    budgets: tuple[Budget, ...] = ()
    views: Views = ONE_VIEW
    grid: SamplingGrid | None = None
    baselines: tuple[SelectorName, ...] = ()
    plain_size: Size | None = None
    target: str = "label"
    batch_size: Batch = 32
    latency: bool = True
    out: str = "runs/evaluate"
    report: str = ""

    def __post_init__(self) -> None:
        check(self)
        if self.views.total > MOST_VIEWS:
            raise ValueError(
                f"views {self.views} are {self.views.total} of each video, which are held at once; "
                f"use at most {MOST_VIEWS}"
            )


@dataclass(frozen=True)
class RetrievalConfig(DecodeOptions):
    """Test a dual encoder: find videos by their captions, and captions by their videos, at each budget.

    Plain sampling, which takes as many frames as the budget pays for and keeps all of their tokens, is tested
    beside the plans of the checkpoint.

    Args:
        checkpoint: Folder of a dual encoder that fluxvit train-contrastive has written, such as
            runs/contrastive/last.
        data: Manifest of the videos, with captions, such as test.jsonl.
        budgets: Costs that one clip may have, such as 1024,512 (tokens), 20gflops or 50ms. By default the
            token budgets that the checkpoint was trained for are tested.
        grid: Sampling grid to test instead of the checkpoint's plans, such as 16x224 for 16 frames of
            224x224.
        plain_size: Side of the square frames of plain sampling in pixels. By default it is the size of the
            training grid with the most tokens whose frames fit into the smallest budget.
        batch_size: Number of clips in a batch.
        out: Folder for the results.

    Raises:
        ValueError: A setting has another type or is out of its range.
    """

    checkpoint: str = field(metadata=POSITIONAL)
    data: str = field(metadata=POSITIONAL)
    budgets: tuple[Budget, ...] = ()
    grid: SamplingGrid | None = None
    plain_size: Size | None = None
    batch_size: Batch = 32
    out: str = "runs/evaluate-retrieval"

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class VideoQAConfig(ModelOptions):
    """Test a chat model on multiple-choice questions about videos: without the video, and at each budget.

    A dual encoder can be tested, too; it chooses the answer nearest to the video.

    Args:
        checkpoint: Folder of a chat model that fluxvit train-chat has written, such as runs/chat/last, or of
            a dual encoder.
        data: Manifest of the test videos, with multiple-choice questions (key ``qa``), such as test.jsonl.
        budgets: Costs that one clip may have, such as 1024,512 (tokens), 20gflops or 50ms. By default the
            token budgets that the video model was trained for are tested.
        grid: Sampling grid for all budgets, such as 16x224 for 16 frames of 224x224. By default the plans of
            the checkpoint choose it.
        videos: Number of videos to draw from the manifest at random. By default all are used.
        seed: Seed of the choice of videos.
        language: Folder or file of the language model, if it was moved after training.
        out: Folder for the results.

    Raises:
        ValueError: A setting is out of its range.
    """

    checkpoint: str = field(metadata=POSITIONAL)
    data: str = field(metadata=POSITIONAL)
    budgets: tuple[Budget, ...] = ()
    grid: SamplingGrid | None = None
    videos: Count | None = None
    seed: Seed = 0
    language: str = ""
    out: str = "runs/evaluate-qa"

    def __post_init__(self) -> None:
        check(self)


_LearningRates = Annotated[tuple[Annotated[float, Meta(gt=0, le=1e37)], ...], Meta(min_length=1)]
_Decays = Annotated[tuple[Annotated[float, Meta(ge=0, le=1000)], ...], Meta(min_length=1)]
_Epochs = Annotated[int, Meta(ge=1, le=1_000_000)]


@dataclass(frozen=True)
class ProbeConfig(DecodeOptions):
    """Train linear classifiers on the features of a frozen checkpoint, with several settings at once.

    Validation videos choose the best setting. Features are stored in ``out``, so that an interrupted run
    continues where it stopped.

    Args:
        checkpoint: Checkpoint folder of the backbone, such as runs/demo/best.
        train: Manifest of the training videos.
        val: Manifest of the validation videos, which choose the setting.
        test: Manifest of the test videos, on which the chosen classifier is tested. By default there is no
            test.
        grid: Sampling grid, such as 16x224 for 16 frames of 224x224. By default it is that of the
            checkpoint's plan for the budget.
        budget: Number of tokens to keep. By default it is the largest number that the checkpoint was trained
            for.
        epochs: Passes over the training features.
        batch_size: Number of videos in a training step.
        lrs: Peak learning rates to try.
        weight_decays: Weight decays to try, each with every learning rate.
        seed: Seed of the initial weights and of the order of the videos, the same for all settings.
        target: Key of the class index in the manifests.
        out: Folder for the features, the classifier and the results.

    Raises:
        ValueError: A setting is out of its range.
    """

    checkpoint: str = field(metadata=POSITIONAL)
    train: str
    val: str
    test: str = ""
    grid: SamplingGrid | None = None
    budget: Count | None = None
    epochs: _Epochs = 20
    batch_size: Batch = 64
    lrs: _LearningRates = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    weight_decays: _Decays = (0.01,)
    seed: Seed = 0
    target: str = "label"
    out: str = "runs/probe"

    def __post_init__(self) -> None:
        check(self)
