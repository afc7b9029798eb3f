"""The settings that all training runs share, as plain values. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.config import (
    Budgets,
    ClassWidth,
    Depth,
    Heads,
    LayerScale,
    MlpRatio,
    Patch,
    Rate,
    TableShape,
    Width,
)
from fluxvit.utils.options import DeviceOptions
from fluxvit.utils.schema import (
    Batch,
    Count,
    Natural,
    NotNegative,
    Seed,
    Share,
    Size,
    Workers,
    check,
    located,
)
from fluxvit.video.augment_settings import AugmentSettings

# Ranges of settings, far beyond what is of use: they stop typing errors before anything is read or allocated.
LearningRate = Annotated[float, Meta(ge=0, le=1e9)]
Decay = Annotated[float, Meta(ge=0, lt=1)]
Weight = Annotated[float, Meta(ge=0, le=1e6)]
Epochs = Annotated[float, Meta(gt=0, le=1e6)]
Frames = Annotated[int, Meta(ge=1, le=1 << 20)]
_MOST_GRIDS = 10_000


def check_section(settings: Any, section: str) -> None:
    """Check the fields of a section of a recipe; errors name them as ``section.field``."""
    try:
        check(settings)
    except ValueError as error:
        raise ValueError(f"{section}.{error}") from None


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Args:
        steps: Optimiser steps.
        batch_size: Clips in a step.
        lr: Peak learning rate.
        min_lr_ratio: Ratio of the last learning rate to the peak learning rate.
        warmup: Steps of linear warm-up, included in ``steps``.
        weight_decay: Weight decay, applied to matrices only.
        betas: AdamW betas (beta1, beta2).
        eps: AdamW epsilon.
        clip_grad: Largest norm of the gradient; 0 sets no limit.
        precision: Number format: ``fp32``, ``bf16`` (autocast), or ``auto``, the one that multiplies faster
            on the device.
        seed: Seed of initialisation, grids, clip order and augmentation.
        save_seconds: Seconds between saved states.
        layer_decay: Ratio of the learning rate of a layer to that of the layer above it; 1 gives all layers
            one rate.
        accumulate: Number of parts that a batch is cut into so that it fits the memory; the step stays the
            same.
        ema: Decay of the moving average of the weights, such as 0.9999; 0 keeps no average.
        checkpoint_blocks: Recompute activations in the backward pass, which takes less memory and a third
            more compute.
        compile_blocks: Compile each block with torch.compile.
        shard: Shard parameters, gradients and optimiser state over the processes (FSDP2), for networks that
            do not fit into one device. With a single process it changes nothing.
        log_every: Steps between two lines of the log.
        tensorboard: Log to TensorBoard, too.
    """

    steps: Count = 1000
    batch_size: Batch = 32
    lr: LearningRate = 1e-3
    min_lr_ratio: Share = 0.01
    warmup: Natural = 100
    weight_decay: Annotated[float, Meta(ge=0, le=1000)] = 0.05
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    eps: Share = 1e-8
    clip_grad: Annotated[float, Meta(ge=0, le=1e9)] = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: Seed = 0
    save_seconds: Annotated[float, Meta(ge=0, le=1e9)] = 60.0
    layer_decay: Annotated[float, Meta(gt=0, le=1)] = 1.0
    accumulate: Batch = 1
    ema: Decay = 0.0
    checkpoint_blocks: bool = False
    compile_blocks: bool = False
    shard: bool = False
    log_every: Count = 10
    tensorboard: bool = False

    def __post_init__(self) -> None:
        check_section(self, "optim")
        if self.batch_size % self.accumulate:
            raise ValueError(f"a batch of {self.batch_size} cannot be cut into {self.accumulate} equal parts")


@dataclass(frozen=True)
class VideoSettings:
    """Videos.

    Args:
        train: Manifest of the training videos.
        root: Data set on disk, such as a folder of classes, instead of ``train``. It is checked when training
            begins; if it has no splits of its own, a tenth is held out.
        workers: Processes that prepare clips.
        cache: Folder of decoded frames, for short videos and few cores; empty for no cache.
        cache_frames: Frames of each video in the cache.
        cache_side: Shorter side of the cached frames in pixels.
        sampling: ``sparse`` takes a frame of each of equal segments, ``dense`` every ``stride``-th frame of a
            window. Validation clips are sampled likewise.
        stride: Frames from one sampled frame to the next in dense sampling.
        stride_fps: Frame rate at which the stride counts; 0 takes the rate of each video.
    """

    train: str = ""
    root: str = ""
    workers: Workers = 2
    cache: str = ""
    cache_frames: Frames = 32
    cache_side: Size = 128
    sampling: Literal["sparse", "dense"] = "sparse"
    stride: Frames = 4
    stride_fps: Annotated[float, Meta(ge=0, le=1e6)] = 0.0

    def __post_init__(self) -> None:
        check_section(self, "data")
        if self.root and (self.train or getattr(self, "val", "")):
            raise ValueError(
                "give data.root, or data.train and data.val; '' takes one back that a recipe gives"
            )


@dataclass(frozen=True)
class NetworkSettings:
    """Fields of the network's configuration that a recipe replaces. Null keeps what the size or the
    checkpoint has, and the number of classes follows from the data.

    Args:
        budgets: Token budgets that have a head each, largest first. With ``model.init``, heads of other
            budgets start as copies of the checkpoint's nearest.
        drop_path: Stochastic depth rate of the last block; rises linearly from 0.
        drop_rate: Dropout of the pooled vector before the classifier.
        embed_dim: Width of the tokens.
        depth: Transformer blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over ``embed_dim``.
        patch_size: Side of a square patch in pixels.
        tubelet_size: Frames that one token spans.
        table_shape: Size (time, height, width), in tokens, of the learned position table.
        pool_dim: Width of the pooled vector, the clip's embedding.
        pool_heads: Attention heads of the pooling.
        class_dim: Width of a space in which each class is a vector and logits are scaled cosines; 0 for a
            linear classifier.
        activation: ``gelu_tanh`` or ``gelu`` (erf).
        dual_patch_norm: RMS norm before and after patch embedding.
        global_position: Learned scale and shift of the position table.
        local_position: Learned per-channel affine of the values, added to the attention output.
        qk_norm: RMS norm of queries and keys over the full width.
        qkv_bias: Bias of the qkv projection.
        layer_scale: Initial value of LayerScale.
    """

    budgets: Budgets | None = None
    drop_path: Rate | None = None
    drop_rate: Rate | None = None
    embed_dim: Width | None = None
    depth: Depth | None = None
    num_heads: Heads | None = None
    mlp_ratio: MlpRatio | None = None
    patch_size: Patch | None = None
    tubelet_size: Patch | None = None
    table_shape: TableShape | None = None
    pool_dim: Width | None = None
    pool_heads: Heads | None = None
    class_dim: ClassWidth | None = None
    activation: Literal["gelu_tanh", "gelu"] | None = None
    dual_patch_norm: bool | None = None
    global_position: bool | None = None
    local_position: bool | None = None
    qk_norm: bool | None = None
    qkv_bias: bool | None = None
    layer_scale: LayerScale | None = None

    def __post_init__(self) -> None:
        check_section(self, "model.settings")

    @property
    def given(self) -> dict[str, Any]:
        """The fields that are replaced."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class LowRank:
    """Low-rank adapters (LoRA) of a network whose own weights stay as they are. They need the package peft:
    ``pip install 'fluxvit[lora]'``.

    Args:
        rank: Width of an adapter between its two linear maps, such as 8; 0 for no adapters.
        alpha: The output of an adapter is multiplied by ``alpha / rank``; 0 for a factor of 1.
    """

    rank: Annotated[int, Meta(ge=0, le=1 << 16)] = 0
    alpha: Annotated[int, Meta(ge=0, le=1 << 20)] = 0

    def __post_init__(self) -> None:
        check_section(self, "adapters")


@dataclass(frozen=True)
class AdapterSettings(LowRank):
    """Low-rank adapters of the video tower.

    Args:
        layers: The layers of each block that have an adapter.
    """

    layers: Annotated[
        tuple[Literal["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"], ...], Meta(min_length=1)
    ] = ("attn.qkv", "attn.proj")


@dataclass(frozen=True)
class ModelSettings:
    """Network.

    Args:
        name: Name of a size, such as ``fluxvit_small``.
        init: Checkpoint folder to start from, whose architecture is kept; empty to start at random.
        settings: Fields of the network's configuration to replace.
        adapters: Low-rank adapters (LoRA). With a ``rank`` above 0 the blocks keep the weights of ``init``,
            and adapters of them are trained instead, together with the heads. Checkpoints hold the sum.
    """

    name: str = "fluxvit_small"
    init: str = ""
    settings: NetworkSettings = field(default_factory=NetworkSettings)
    adapters: AdapterSettings = field(default_factory=AdapterSettings)

    def __post_init__(self) -> None:
        if self.adapters.rank and not self.init:
            raise ValueError("model.adapters adapt trained weights: give the checkpoint, model.init")


@dataclass(frozen=True)
class GridSettings:
    """Sampling grids that batches draw from (Flux augmentation), or one grid for fixed-grid training.

    Args:
        frames: First number of frames, end (not included) and step.
        sizes: First side of square frames in pixels, end (not included) and step.
        min_tokens: Tokens of the smallest pool.
        max_tokens: Tokens of the largest pool.
    """

    frames: tuple[Frames, Frames, Frames] = (4, 26, 2)
    sizes: tuple[Size, Size, Size] = (168, 280, 28)
    min_tokens: Count = 2048
    max_tokens: Count = 4096

    def __post_init__(self) -> None:
        check_section(self, "grids")
        if len(range(*self.frames)) * len(range(*self.sizes)) > _MOST_GRIDS:
            raise ValueError(
                f"grids.frames {list(self.frames)} and grids.sizes {list(self.sizes)} make more than "
                f"{_MOST_GRIDS} grids; use larger steps"
            )


@dataclass(frozen=True)
class EvalSettings:
    """Validation while training.

    Args:
        grid: Sampling grid of validation clips, such as ``8x224``.
        every_epochs: Epochs between two validations.
    """

    grid: str = "8x224"
    every_epochs: Epochs = 1.0

    def __post_init__(self) -> None:
        check_section(self, "evaluation")
        with located("evaluation.grid"):
            SamplingGrid.parse(self.grid)


@dataclass(frozen=True)
class RunRecipe(DeviceOptions):
    """A training run.

    Args:
        data: The videos.
        out: Folder of checkpoints and logs.
        model: The network.
        grids: The sampling grids.
        optim: How to train. Its ``steps`` and ``warmup`` follow from the epochs.
        epochs: Passes over the training videos.
        warmup_epochs: Epochs of linear warm-up, included in ``epochs``.
        samples: Differently augmented clips of each decoded video in a batch.
        augment: Augmentation of the training clips.
    """

    data: VideoSettings
    out: str = "runs/train"
    model: ModelSettings = field(default_factory=ModelSettings)
    grids: GridSettings = field(default_factory=GridSettings)
    optim: TrainConfig = field(default_factory=TrainConfig)
    epochs: Epochs = 5.0
    warmup_epochs: NotNegative = 1.0
    samples: Annotated[int, Meta(ge=1, le=1024)] = 1
    augment: AugmentSettings = field(default_factory=AugmentSettings)

    def __post_init__(self) -> None:
        check(self)
        if not self.out:
            raise ValueError("out is empty; give the folder of checkpoints and logs")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs:g}; it must be below epochs, which is {self.epochs:g}"
            )
        # A recipe counts in epochs; a setting that would be overridden must not pass in silence.
        for name, instead in (("steps", "epochs"), ("warmup", "warmup_epochs")):
            if getattr(self.optim, name) != getattr(TrainConfig, name):
                raise ValueError(f"optim.{name} follows from the epochs in a recipe; set {instead} instead")
