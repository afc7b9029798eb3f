"""Options of the commands that use a model. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from fluxvit.flux.budget import Budget
from fluxvit.flux.grid import SamplingGrid
from fluxvit.utils.options import POSITIONAL, DeviceOptions
from fluxvit.utils.schema import Count, Positive, check

DATABASE = "runs/videos.db"


@dataclass(frozen=True)
class PredictConfig(DeviceOptions):
    """Classify videos, at a budget.

    Args:
        clips: Video files, or folders of frames.
        checkpoint: Checkpoint folder, such as runs/demo/best. By default the nano model of the package
            answers.
        budget: What a clip may cost, such as 1024 (tokens), 20gflops or 50ms. By default the largest budget
            that was trained is spent.
        grid: Sampling grid, such as 16x224. By default the checkpoint's plan for the budget says it.
        top: Classes to show.
        json: Print one JSON object for each clip.
        explain: Video file to write, with the dropped patches of the clip dimmed.
        cascade: Run a cheap plan first, and a dearer one only where the answer is unsure; ``budget`` is then
            the mean of a clip.
    """

    clips: tuple[str, ...] = field(metadata=POSITIONAL)
    checkpoint: str = ""
    budget: Budget | None = None
    grid: SamplingGrid | None = None
    top: Count = 5
    json: bool = False
    explain: str = ""
    cascade: bool = False

    def __post_init__(self) -> None:
        check(self)
        if self.cascade and self.grid:
            raise ValueError("--cascade has plans of its own; leave out --grid")
        if self.explain and len(self.clips) > 1:
            raise ValueError("--explain takes one clip at a time")
        if self.explain and Path(self.explain).suffix not in (".mp4", ".mov", ".mkv"):
            raise ValueError(f"--explain {self.explain}: the name must end in .mp4, .mov or .mkv")
        if self.explain and Path(self.explain).resolve() == Path(self.clips[0]).resolve():
            raise ValueError(f"--explain {self.explain}: that is the clip itself; choose another name")


@dataclass(frozen=True)
class StreamConfig(DeviceOptions):
    """Classify a video while it comes, for a window that slides.

    Args:
        source: Video file, camera (/dev/video0, camera:0), address (rtsp://...), or - for standard input.
        checkpoint: Checkpoint folder, such as runs/demo/best. By default the nano model of the package
            answers.
        budget: What a step may cost, such as 1024 (tokens), 20gflops or 50ms. By default the largest budget
            that was trained is spent.
        grid: Sampling grid of the window, such as 16x224. By default the checkpoint's plan for the budget
            says it.
        window: Length of the window in seconds. By default it is that of the clips that a dense
            checkpoint was trained on, or else 4; or the length of a shorter file.
        hop: Seconds from one answer to the next. By default it is an eighth of the window.
        token_rate: Tokens to encode for each second of the video, in place of ``budget``.
        live: Skip what the model cannot keep up with. By default cameras and rtsp addresses do.
        top: Classes to show.
        json: Print one JSON object for each step.
    """

    source: str = field(metadata=POSITIONAL)
    checkpoint: str = ""
    budget: Budget | None = None
    grid: SamplingGrid | None = None
    window: Positive | None = None
    hop: Positive | None = None
    token_rate: Positive | None = None
    live: bool | None = None
    top: Count = 1
    json: bool = False

    def __post_init__(self) -> None:
        check(self)
        if self.token_rate is not None and self.budget is not None:
            raise ValueError("give --budget, what a step may cost, or --token_rate, not both")


@dataclass(frozen=True)
class IndexConfig(DeviceOptions):
    """Make the videos of a folder searchable: embed their windows into a database.

    Run it again when files have come, changed or gone. An interrupted run goes on where it was.

    Args:
        folder: Folder of videos, which may lie in any folders below it.
        db: Database file.
        checkpoint: Folder of a dual encoder, such as runs/contrastive/last. A new database needs it.
        budget: What a window may cost, such as 1024 (tokens), 20gflops or 50ms. By default the largest budget
            that was trained is spent.
        grid: Sampling grid of a window, such as 16x224. By default the plan for the budget says it.
        seconds: Length of a window. The default for a new database is that of the clips that a dense
            checkpoint was trained on, or else 4.
        shots: End windows where shots end. The default for a new database is true.
        rebuild: Forget what the database holds, and embed everything anew.
    """

    folder: str = field(metadata=POSITIONAL)
    db: str = DATABASE
    checkpoint: str = ""
    budget: Budget | None = None
    grid: SamplingGrid | None = None
    seconds: float | None = None
    shots: bool | None = None
    rebuild: bool = False


@dataclass(frozen=True)
class SearchConfig(DeviceOptions):
    """Find moments in indexed videos, by a sentence or by another video.

    Args:
        sentence: What to find, such as "a red ball bouncing twice".
        video: Video file; moments that look like it are found, instead of a sentence.
        db: Database file.
        count: Number of moments.
        path: Text that the paths of the files to search must contain.
        start: Search only after this second of each video.
        end: Search only before this second of each video.
        since: Search only files that were modified on this day or later, such as 2026-11-24.
        until: Search only files that were modified before this day.
        checkpoint: Folder of the dual encoder, if it has moved.
    """

    sentence: str = field(default="", metadata=POSITIONAL)
    video: str | None = None
    db: str = DATABASE
    count: Count = 5
    path: str = ""
    start: float | None = None
    end: float | None = None
    since: str | None = None
    until: str | None = None
    checkpoint: str = ""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class ZeroShotConfig(DeviceOptions):
    """Make a classifier of class names out of a dual encoder, without training.

    The result is an ordinary checkpoint, which predict, evaluate and optimize take.

    Args:
        checkpoint: Folder of a dual encoder, such as runs/contrastive/last.
        names: File of class names, one a line or with indices; or a manifest that names its classes.
        templates: Text file of sentences with {} in place of the class. By default 16 of the package's are
            used.
        average: What is averaged over the templates.
        out: Checkpoint folder to write.
    """

    checkpoint: str = field(metadata=POSITIONAL)
    names: str = field(metadata=POSITIONAL)
    templates: str = ""
    average: Literal["embeddings", "scores"] = "embeddings"
    out: str = "runs/zero-shot"


@dataclass(frozen=True)
class ChatConfig(DeviceOptions):
    """Ask questions about a video in the terminal; an empty line ends it.

    Args:
        clip: Video file, or folder of frames.
        questions: Questions to answer. By default they are read from the keyboard.
        checkpoint: Folder of a chat model.
        budget: What a clip may cost, such as 1024 (tokens), 20gflops or 50ms. By default the largest budget
            that was trained is spent.
        grid: Sampling grid, such as 16x224. By default the plan for the budget says it.
        clips: Number of clips that a long video is looked at in.
        language: Folder or file of the language model, if it has moved.
        temperature: Randomness of the answers; 0 takes the likeliest words.
        limit: Tokens of the longest answer.
    """

    clip: str = field(metadata=POSITIONAL)
    questions: tuple[str, ...] = field(default=(), metadata=POSITIONAL)
    checkpoint: str = "runs/chat/last"
    budget: Budget | None = None
    grid: SamplingGrid | None = None
    clips: Annotated[int, Meta(ge=1, le=1 << 20)] = 1
    language: str = ""
    temperature: float = 0.0
    limit: int = 256

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class InfoConfig:
    """Show the parameters and the cost of a model at each budget, and the plan table of a checkpoint.

    Args:
        model: Name of a size, such as fluxvit_small, or a checkpoint.
        tokens: Budgets, such as 512,1024. By default those of the model and of its paper are shown.
        grid: Sampling grid whose pool is embedded, such as 16x224. By default the pool is twice the budget.
    """

    model: str = field(metadata=POSITIONAL)
    tokens: tuple[Count, ...] = ()
    grid: SamplingGrid | None = None

    def __post_init__(self) -> None:
        check(self)
