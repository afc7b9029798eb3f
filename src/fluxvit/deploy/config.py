"""Options of the commands that use a model. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from fluxvit.flux.budget import Budget
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.selection import SelectorName
from fluxvit.utils.options import POSITIONAL, DeviceOptions, ModelOptions
from fluxvit.utils.schema import Batch, Count, NotNegative, Positive, check

DATABASE = "runs/videos.db"

ClipCount = Annotated[int, Meta(ge=1, le=10_000)]
AnswerLimit = Annotated[int, Meta(ge=1, le=1 << 20)]
Layer = Annotated[int, Meta(ge=-1000, le=999)]
Temperature = Annotated[float, Meta(ge=0, le=1e6)]


@dataclass(frozen=True, kw_only=True)
class PlanOptions(ModelOptions):
    """The budget of a command that runs a model, its device and precision.

    Args:
        budget: What one clip or window may cost: a number of tokens, such as 1024, or 20gflops, or 50ms. By
            default it is the largest number of tokens that the model was trained for.
        grid: Frames and pixels to sample, such as 16x224 for 16 frames of 224x224. By default they follow
            from the budget.
    """

    budget: Budget | None = None
    grid: SamplingGrid | None = None


@dataclass(frozen=True)
class PredictConfig(PlanOptions):
    """Classify videos at a budget.

    With a budget for each second of video, such as 64/s, a long video is sampled several times, and the mean
    is the answer.

    Args:
        clips: Video files, or folders of frames.
        checkpoint: Checkpoint folder, such as runs/demo/best. By default a small model that comes with the
            package is used, which recognises 16 motions of drawn objects.
        top: Number of classes to show.
        json: Print a JSON object for each clip.
        explain: Video file (.mp4, .mov or .mkv) to write, which shows the clip with the dropped patches
            dimmed.
        cascade: Run a cheap plan (a grid with few tokens) first, and a more expensive one only if its answer
            is unsure. The budget is then the mean cost of a clip. fluxvit optimize --cascades tunes cascades.
        selector: Rule that selects the tokens to keep, such as moving_pixels or codec; docs/selection.md
            describes each. By default it is that of the plan.
    """

    clips: tuple[str, ...] = field(metadata=POSITIONAL)
    checkpoint: str = ""
    top: Count = 5
    json: bool = False
    explain: str = ""
    cascade: bool = False
    selector: SelectorName | None = None

    def __post_init__(self) -> None:
        check(self)
        if self.cascade and (self.grid or self.selector):
            raise ValueError(
                f"--cascade has plans of its own; leave out --{'grid' if self.grid else 'selector'}"
            )
        if self.explain and len(self.clips) > 1:
            raise ValueError("--explain takes one clip at a time")
        if self.explain and Path(self.explain).suffix not in (".mp4", ".mov", ".mkv"):
            raise ValueError(f"--explain {self.explain}: the name must end in .mp4, .mov or .mkv")
        if self.explain and Path(self.explain).resolve() == Path(self.clips[0]).resolve():
            raise ValueError(f"--explain {self.explain}: that is the clip itself; choose another name")


@dataclass(frozen=True)
class StreamConfig(PlanOptions):
    """Classify a video while it plays. Each answer is about a window that slides over the video.

    A budget for each second of video, such as 64/s, is what the steps of a second encode.

    Args:
        source: Video file, camera (/dev/video0, camera:0), address (rtsp://...), or - for standard input.
        checkpoint: Checkpoint folder, such as runs/demo/best. By default a small model that comes with the
            package is used, which recognises 16 motions of drawn objects.
        window: Length of the window in seconds. By default it is the length of the clips that the checkpoint
            was trained on if they were sampled densely, and otherwise 4, or the length of a shorter file.
        hop: Seconds between two answers. By default it is an eighth of the window.
        live: Skip windows when the model is too slow for all of them. By default it is true for cameras and
            live addresses such as rtsp.
        reconnect: Seconds for which a live camera or address that was lost is tried again, with waits that
            grow from 1 to 30 seconds. 0 ends the command when the stream is lost or ends.
        top: Number of classes to show.
        json: Print a JSON object for each answer.
    """

    source: str = field(metadata=POSITIONAL)
    checkpoint: str = ""
    window: Positive | None = None
    hop: Positive | None = None
    live: bool | None = None
    reconnect: NotNegative = 300.0
    top: Count = 1
    json: bool = False

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class IndexConfig(PlanOptions):
    """Make the videos of a folder searchable: store an embedding of each window of them in a database.

    Run it again when files were added, changed or removed. An interrupted run continues where it stopped.

    Args:
        folder: Folder of videos, including its subfolders.
        db: Database file to write. An existing one is updated.
        checkpoint: Folder of a dual encoder that fluxvit train-contrastive has written, such as
            runs/contrastive/last. A new database needs it.
        seconds: Length of a window in seconds. The default for a new database is the length of the clips that
            the checkpoint was trained on if they were sampled densely, and otherwise 4.
        shots: End windows at cuts between shots. The default for a new database is true.
        rebuild: Delete the contents of the database, and embed all videos again.
    """

    folder: str = field(metadata=POSITIONAL)
    db: str = DATABASE
    checkpoint: str = ""
    seconds: float | None = None
    shots: bool | None = None
    rebuild: bool = False


@dataclass(frozen=True)
class FeaturesConfig(PlanOptions):
    """Write the features of long videos, window by window, as ActionFormer and OpenTAD read them.

    NAME.npy holds a row for each window, and NAME.spans.npy its start and end in seconds. Run it again to
    continue an interrupted run, or when videos were added. Of a budget for each second of video, such as
    64/s, a window gets what its stride is worth.

    Args:
        videos: Video files, and folders of videos, including their subfolders.
        checkpoint: Folder of a classifier, a pre-trained network or a dual encoder.
        window: Length of a window in seconds. By default it is the length of the clips that the checkpoint
            was trained on if they were sampled densely, and otherwise 4.
        stride: Seconds from one window to the next. By default it is half a window.
        layers: Blocks whose outputs are the features, such as 1,3 or -1 for the last one: their means over
            the tokens, one after the other. By default the pooled vector of the network is the feature.
        tokens: Write the features of each kept token, by default those of the last block, and
            NAME.kept.npy, the position of each in the window.
        format: npy, or parquet: NAME.parquet, with a row for each window, or for each token.
        batch: Number of windows in a pass.
        out: Folder to write.
    """

    videos: tuple[str, ...] = field(metadata=POSITIONAL)
    checkpoint: str = "fluxvit_nano_motionworld"
    window: Positive | None = None
    stride: Positive | None = None
    layers: tuple[Layer, ...] = ()
    tokens: bool = False
    format: Literal["npy", "parquet"] = "npy"
    batch: Batch = 8
    out: str = "runs/features"

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class SearchConfig(ModelOptions):
    """Find moments in indexed videos by a sentence or by another video.

    Args:
        sentence: Description of what to find, such as "a red ball bouncing twice".
        video: Video file to search with instead of a sentence; moments similar to it are found.
        db: Database file that fluxvit index has written.
        count: Number of moments to show.
        path: Search only files whose path contains this text.
        start: Search only after this time of each video, in seconds.
        end: Search only before this time of each video, in seconds.
        since: Search only files that were modified on this day or later, such as 2026-11-24.
        until: Search only files that were modified before this day.
        checkpoint: Folder of the dual encoder, if it was moved after indexing.
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
    """Make a classifier from class names and a dual encoder, without training.

    The result is an ordinary checkpoint, which predict, evaluate and optimize accept.

    Args:
        checkpoint: Folder of a dual encoder that fluxvit train-contrastive has written, such as
            runs/contrastive/last.
        names: Text file of class names, one on each line, with or without their indices; or a manifest with
            class names.
        templates: Text file of sentences in which {} stands for the class name, one on each line. By default
            the 16 sentences of the package are used.
        average: What is averaged over the sentences of a class: their embeddings, or the scores of a video
            with them.
        out: Checkpoint folder to write.
    """

    checkpoint: str = field(metadata=POSITIONAL)
    names: str = field(metadata=POSITIONAL)
    templates: str = ""
    average: Literal["embeddings", "scores"] = "embeddings"
    out: str = "runs/zero-shot"


@dataclass(frozen=True)
class ChatConfig(PlanOptions):
    """Ask questions about a video in the terminal. An empty line ends the conversation.

    Args:
        clip: Video file, or folder of frames.
        questions: Questions to answer. By default they are read from the terminal.
        checkpoint: Folder of a chat model that fluxvit train-chat has written.
        clips: Number of equal parts into which a long video is cut; each part is sampled and encoded as a
            clip.
        language: Folder or file of the language model, if it was moved after training.
        temperature: Randomness of the answers; 0 always takes the most likely token.
        limit: Largest number of language-model tokens in an answer.
    """

    clip: str = field(metadata=POSITIONAL)
    questions: tuple[str, ...] = field(default=(), metadata=POSITIONAL)
    checkpoint: str = "runs/chat/last"
    clips: ClipCount = 1
    language: str = ""
    temperature: Temperature = 0.0
    limit: AnswerLimit = 256

    def __post_init__(self) -> None:
        check(self)


Target = Literal["pt2", "onnx", "openvino", "executorch"]


@dataclass(frozen=True)
class ExportConfig:
    """Export a checkpoint at one budget to a runtime that needs no PyTorch.

    The exported model takes the frames of its grid as a decoder gives them, and returns logits; export.json
    beside it says which frames, and names the classes. It is run once and compared with PyTorch.

    Args:
        checkpoint: Checkpoint folder, such as runs/demo/best.
        out: Folder to write.
        to: Format. ``onnx`` runs in ONNX Runtime, ``openvino`` in OpenVINO, ``executorch`` in ExecuTorch with
            XNNPACK, one clip at a time, and ``pt2`` in PyTorch itself (torch.export) without this package.
        budget: What one clip may cost: a number of tokens, such as 1024, or 20gflops, or 50ms. By default it
            is the largest budget that the model was trained for.
        grid: Frames and pixels to sample, such as 16x224 for 16 frames of 224x224. By default they follow
            from the budget.
    """

    checkpoint: str = field(metadata=POSITIONAL)
    out: str = field(metadata=POSITIONAL)
    to: Target = "onnx"
    budget: Budget | None = None
    grid: SamplingGrid | None = None

    def __post_init__(self) -> None:
        check(self)


BenchBackend = Literal["openvino", "torch", "plain"]


@dataclass(frozen=True)
class BenchConfig(DeviceOptions):
    """Measure how fast models run on this machine.

    For each model, budget, batch, precision and backend it prints the median and 90th percentile of a pass,
    clips per second, and the share of the rate of large matrix products on the same machine; and for one clip
    how long each stage from the video file to the logits takes. The numbers also go to bench.csv, bench.json
    and a picture.

    Args:
        models: Checkpoint folders, or sizes of the network with random weights, such as fluxvit_small.
        budget: Budgets in tokens. By default they are those of the model.
        grid: Frames and pixels to sample, such as 16x224. By default they follow from the budget, and for a
            size they are 16 frames of 16x16 patches.
        batch: Numbers of clips in a pass.
        precision: Precisions of the blocks.
        backend: What runs the network: openvino, torch (both in the inference form), or plain, the network as
            it is trained, which computes in bf16 by autocast.
        runs: Passes of each row.
        video: Video file whose decoding is measured. By default a clip of ten seconds is made.
        out: Folder to write.
    """

    models: tuple[str, ...] = field(metadata=POSITIONAL)
    budget: tuple[Count, ...] = ()
    grid: SamplingGrid | None = None
    batch: tuple[Batch, ...] = (1,)
    precision: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
    backend: tuple[BenchBackend, ...] = ("openvino", "torch", "plain")
    runs: Count = 20
    video: str = ""
    out: str = "runs/bench"

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class InfoConfig:
    """Show the parameters of a model, its cost at each budget, and the plans of a checkpoint.

    Args:
        model: Checkpoint folder, or a size of the network, such as fluxvit_small.
        tokens: Budgets to show, in tokens, such as 512,1024. By default they are those of the model and of
            the paper.
        grid: Sampling grid whose tokens are embedded before most of them are dropped, such as 16x224. By
            default a grid with twice as many tokens as the budget is assumed.
    """

    model: str = field(metadata=POSITIONAL)
    tokens: tuple[Count, ...] = ()
    grid: SamplingGrid | None = None

    def __post_init__(self) -> None:
        check(self)
