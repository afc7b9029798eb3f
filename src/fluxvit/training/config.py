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
    SelectorWidth,
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
        steps: Number of optimiser steps. A recipe sets ``epochs`` instead.
        batch_size: Number of clips in a step, over all processes together.
        lr: Peak learning rate.
        min_lr_ratio: Ratio of the final learning rate to the peak learning rate.
        warmup: Number of steps of linear warm-up, included in ``steps``. A recipe sets ``warmup_epochs``
            instead.
        weight_decay: Weight decay, applied to matrices only.
        betas: AdamW betas (beta1, beta2).
        eps: AdamW epsilon.
        clip_grad: Largest norm of the gradient; a larger gradient is scaled down to it. 0 means no limit.
        precision: Number format of the computation: ``fp32``, ``bf16`` (autocast), or ``auto``, whichever of
            them multiplies faster on the device.
        seed: Seed of the initial weights, sampling grids, clip order and augmentation.
        save_seconds: Seconds between two saves of the training state, from which an interrupted run
            continues.
        layer_decay: Ratio of the learning rate of a layer to that of the layer above it; 1 gives all layers
            one rate.
        accumulate: Number of equal parts in which a batch is processed, to save memory. The result of the
            step stays the same.
        ema: Decay of the exponential moving average of the weights, such as 0.9999; 0 means no average.
        checkpoint_blocks: Recompute activations in the backward pass, which saves memory and costs a third
            more compute.
        compile_blocks: Compile each block with torch.compile, once for all grids and budgets. ``auto`` does
            so on CUDA if Triton and a C compiler are installed and the run has 1000 steps or more, because
            compiling takes a minute or two.
        shard: Shard parameters, gradients and optimiser state over the processes (FSDP2), for networks that
            do not fit on one device. It has no effect in a single process.
        log_every: Number of steps between two lines of the log. A line has the metrics, tokens and clips per
            second, the share of the device's own rate of matrix products, which is measured when the run
            starts, the share of time spent waiting for data, and the memory in use.
        tensorboard: Also write the log for TensorBoard.
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
    compile_blocks: bool | Literal["auto"] = "auto"
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
        train: Manifest of the training videos, as fluxvit data check writes it.
        root: Data set on disk, such as a folder with one subfolder per class, instead of ``train``. It is
            checked when training begins. If it has no splits of its own, a tenth is held out.
        workers: Number of processes that prepare clips; with 0 the main process prepares them itself.
        cache: Folder for a cache of decoded frames, which helps with short videos and few CPU cores. Empty
            (the default) means no cache.
        cache_frames: Number of frames of each video in the cache.
        cache_side: Shorter side of the cached frames in pixels.
        sampling: How frames are sampled: ``sparse`` takes one frame from each of equal segments of the video,
            ``dense`` takes every ``stride``-th frame of a window. Validation clips are sampled in the same
            way.
        stride: Distance in frames between two sampled frames in dense sampling.
        stride_fps: Frame rate in which ``stride`` is counted, such as 30; 0 means the frame rate of each
            video.
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
        budgets: Token budgets, largest first; the model has a head for each. With ``model.init``, a head for
            a budget that the checkpoint lacks starts as a copy of the head with the nearest budget.
        drop_path: Stochastic depth rate of the last block. The rate rises linearly from 0 at the first block.
        drop_rate: Dropout of the pooled vector before the classifier.
        embed_dim: Width of the tokens.
        depth: Number of transformer blocks.
        num_heads: Number of attention heads in each block.
        mlp_ratio: Ratio of the hidden width of the MLPs to ``embed_dim``.
        patch_size: Side of the square patches in pixels.
        tubelet_size: Number of consecutive frames that a token covers.
        table_shape: Size (time, height, width), in tokens, of the learned position table.
        pool_dim: Width of the pooled vector, which is the embedding of the clip.
        pool_heads: Number of attention heads in the pooling layer.
        class_dim: Width of the space in which each class is a vector and logits are scaled cosines; 0 means a
            linear classifier.
        selector_dim: Width of the learned selector, the network behind ``task.selector: learned``, such as
            16; 0 means none.
        activation: Activation of the MLPs: ``gelu_tanh`` (the tanh approximation) or ``gelu`` (exact, with
            erf).
        dual_patch_norm: Apply an RMS norm before and after the patch embedding.
        global_position: Scale and shift the position table by learned numbers.
        local_position: Add a learned per-channel affine map of the values to the output of the attention.
        qk_norm: Apply an RMS norm to queries and keys, over their full width.
        qkv_bias: Add a bias to the projection of queries, keys and values.
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
    selector_dim: SelectorWidth | None = None
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
        rank: Rank of each adapter, the width between its two linear maps, such as 8; 0 means no adapters.
        alpha: The output of an adapter is multiplied by ``alpha / rank``; 0 means a factor of 1.
    """

    rank: Annotated[int, Meta(ge=0, le=1 << 16)] = 0
    alpha: Annotated[int, Meta(ge=0, le=1 << 20)] = 0

    def __post_init__(self) -> None:
        check_section(self, "adapters")


@dataclass(frozen=True)
class AdapterSettings(LowRank):
    """Low-rank adapters of the video tower.

    Args:
        layers: Layers of each block that have an adapter, out of attn.qkv, attn.proj, mlp.fc1 and mlp.fc2.
    """

    layers: Annotated[
        tuple[Literal["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"], ...], Meta(min_length=1)
    ] = ("attn.qkv", "attn.proj")


@dataclass(frozen=True)
class ModelSettings:
    """Network.

    Args:
        name: Size of the network: ``fluxvit_nano``, ``_tiny``, ``_small``, ``_base`` or ``_large``.
        init: Checkpoint folder to start from, whose architecture is kept. Empty (the default) means random
            initial weights.
        settings: Settings of the network to replace. By default each has the value of the named size or of
            ``init``.
        adapters: Low-rank adapters (LoRA). With a ``rank`` above 0 the blocks keep the weights of ``init``,
            and adapters of them are trained instead, together with the heads. Checkpoints contain the merged
            weights.
        weights: Initial weights where there is no ``init``: ``small`` (normal, standard deviation 0.02), or
            ``motion``, with which training learns earlier where classes differ by motion (see
            docs/training.md).
    """

    name: str = "fluxvit_small"
    init: str = ""
    settings: NetworkSettings = field(default_factory=NetworkSettings)
    adapters: AdapterSettings = field(default_factory=AdapterSettings)
    weights: Literal["small", "motion"] = "small"

    def __post_init__(self) -> None:
        if self.adapters.rank and not self.init:
            raise ValueError("model.adapters adapt trained weights: give the checkpoint, model.init")


@dataclass(frozen=True)
class GridSettings:
    """Sampling grids that batches draw from (Flux augmentation), or one grid for fixed-grid training.

    Args:
        frames: Numbers of frames, as first, end (not included) and step; 4,26,2 means 4, 6, ... 24.
        sizes: Sides of the square frames in pixels, as first, end (not included) and step.
        min_tokens: Tokens of the smallest grid; grids with fewer tokens are left out.
        max_tokens: Tokens of the largest grid; grids with more tokens are left out.
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
        grid: Sampling grid of validation clips, such as ``8x224`` for 8 frames of 224x224.
        every_epochs: Number of epochs between two validations.
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
        out: Folder for checkpoints and logs.
        model: The network.
        grids: The sampling grids: numbers of frames and frame sizes. Each batch draws one of them at random.
        optim: The optimisation. Set ``epochs`` and ``warmup_epochs`` instead of ``steps`` and ``warmup``.
        epochs: Passes over the training videos.
        warmup_epochs: Epochs of linear learning-rate warm-up, included in ``epochs``.
        samples: Number of clips of each decoded video in a batch, each augmented differently.
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
