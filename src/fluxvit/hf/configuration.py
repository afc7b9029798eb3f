"""The configuration of a FluxViT in transformers: all that a checkpoint folder says beside the weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.utils.hub import cached_file

from fluxvit import __version__
from fluxvit.checkpoints.checkpoint import PLANS, Checkpoint, read_facts
from fluxvit.checkpoints.folder import FORMAT
from fluxvit.models.config import FluxViTConfig as Architecture
from fluxvit.models.config import preset
from fluxvit.models.fluxvit import FluxViT
from fluxvit.utils.files import write_json
from fluxvit.utils.schema import load as load_json
from fluxvit.video.transforms import IMAGENET_MEAN, IMAGENET_STD

PREPROCESSOR = "video_preprocessor_config.json"
_AUTO_CLASSES = {
    "AutoConfig": "FluxViTConfig",
    "AutoModel": "FluxViTModel",
    "AutoModelForVideoClassification": "FluxViTForVideoClassification",
}
# Folders carry this line, not copies of the code: those would fail with another version of fluxvit.
_AUTO_MODULE = "fluxvit_auto"
_AUTO_CODE = f"from fluxvit.hf import {', '.join(_AUTO_CLASSES.values())}  # pip install 'fluxvit[hf]'\n"
_MULTI_LABEL = "multi_label_classification"
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class FluxViTConfig(PreTrainedConfig):
    """The configuration of a FluxViT.

    Its ``config.json`` has the keys of a checkpoint folder of fluxvit and those of transformers, and the plan
    table lies beside it in ``plans.json``. Class names are ``id2label``, as in transformers.

    Args:
        model: The architecture: fields of :class:`fluxvit.FluxViTConfig`, or the name of a size such as
            ``fluxvit_nano``. ``num_labels`` and ``id2label`` replace its number of classes.
        labels: Class names in the order of the logits; ``id2label`` replaces them.
        normalization: ``mean`` and ``std`` of the RGB values; None: those of ImageNet.
        grids: Sampling grids of training, such as ``16x224``.
        sampling: How the frames of a clip are spread over a video; None: evenly.
        selector: Name of the rule that selects tokens, if a call names none.
        multi_label: Whether a clip may show several classes at once; ``problem_type`` replaces it.
        provenance: Origin of the weights; free-form. The model card shows its ``license``.
        plan_table: The content of ``plans.json``: known plans and cascades.
        budget: Tokens that the model keeps and that processors plan for, if a call names no budget. None: the
            model keeps all tokens, and processors plan for the largest trained budget.
        keep_aspect: Whether processors give the grid the shape of each video, instead of cutting out the
            middle. The number of frames and the budget stay, and the pool is at most a quarter smaller.
        num_frames: Frames that the pipeline asks processors for. None leaves them to the budget.

    Raises:
        ValueError: A value has another type or range, or does not fit the others.
    """

    model_type = "fluxvit"
    keys_to_ignore_at_inference = ["pooler_output", "kept", "hidden_states"]  # noqa: RUF012

    def __init__(
        self,
        model: Mapping[str, Any] | str | None = None,
        labels: list[str] | None = None,
        normalization: Mapping[str, Any] | None = None,
        grids: list[str] | None = None,
        sampling: Mapping[str, Any] | None = None,
        selector: str = "group_dynamic",
        multi_label: bool = False,
        provenance: Mapping[str, Any] | None = None,
        plan_table: Any = None,
        budget: int | None = None,
        keep_aspect: bool = False,
        num_frames: int | None = None,
        **kwargs: Any,
    ) -> None:
        if model is None or isinstance(model, str):
            model = (preset(model) if model else Architecture()).to_dict()
        self.format = kwargs.pop("format", FORMAT)
        self.model = dict(model)
        self.normalization = normalization or {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
        self.grids = list(grids or [])
        self.sampling = sampling
        self.selector = selector
        self.provenance = dict(provenance or {})
        self.plan_table = plan_table
        self.budget = budget
        self.keep_aspect = keep_aspect
        self.num_frames = num_frames
        if kwargs.get("id2label") is None:
            if labels:
                kwargs["id2label"] = dict(enumerate(labels))
                kwargs["label2id"] = {label: i for i, label in enumerate(labels)}
            elif kwargs.get("num_labels") is None:
                kwargs["num_labels"] = self.model.get("num_classes", Architecture.num_classes)
        if multi_label and kwargs.get("problem_type") is None:
            kwargs["problem_type"] = _MULTI_LABEL
        super().__init__(**kwargs)
        self._read_facts()  # Checks all values.

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> FluxViTConfig:
        """The configuration of a checkpoint."""
        facts = {name: value for name, value in checkpoint.facts.items() if name != "model_type"}
        return cls(**facts, plan_table=checkpoint.plan_table)

    def to_checkpoint(self, network: FluxViT | None = None) -> Checkpoint:
        """The checkpoint that a network forms with this configuration.

        Args:
            network: The network; None: one without weights, on the meta device.
        """
        architecture, facts = self._read_facts()
        if network is None:
            with torch.device("meta"):
                network = FluxViT(architecture)
        return Checkpoint(network, **facts)

    def _read_facts(self) -> tuple[Architecture, dict[str, Any]]:
        return read_facts(self.to_dict(), self.plan_table, self.name_or_path or "configuration")

    @property
    def architecture(self) -> Architecture:
        """The architecture of the network, with a class for each label."""
        return Architecture.from_dict({**self.model, "num_classes": self.num_labels})

    @property
    def hidden_size(self) -> int:
        """Width of the tokens."""
        return self.architecture.embed_dim

    @property
    def num_hidden_layers(self) -> int:
        """Number of transformer blocks."""
        return self.architecture.depth

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Does nothing: every folder that is saved names its classes."""

    def read_plans(self, source: str | os.PathLike[str], **options: Any) -> None:
        """Take over the plan table of a folder or of a model on the hub, if there is one.

        Args:
            options: Options of ``from_pretrained``, of which those about the hub are used.
        """
        hub = {name: options[name] for name in _HUB_OPTIONS if options.get(name) is not None}
        file = cached_file(str(source), PLANS, _raise_exceptions_for_missing_entries=False, **hub)
        if file is not None:
            self.plan_table = load_json(Path(file))

    def mark_trained(self) -> None:
        """Say that the weights were trained further. What was measured of the plans, and the cascades, do not
        hold for them and are dropped; what was known of their origin is that of their start.
        """
        checkpoint = self.to_checkpoint()
        plans = [replace(plan, measured=None) for plan in checkpoint.plans]
        self.plan_table = replace(checkpoint, plans=plans, cascades=[]).plan_table
        known = {name: value for name, value in self.provenance.items() if name != "license"}
        kept = {"license": self.provenance["license"]} if "license" in self.provenance else {}
        made = {"made_by": f"fluxvit {__version__}, trained in transformers"}
        self.provenance = kept | made | ({"start": known} if known else {})

    # What is written -------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the keys of transformers and those of checkpoint folders."""
        content = super().to_dict()
        names = [name for _, name in sorted((self.id2label or {}).items())]
        content["model"] = {**content["model"], "num_classes": len(names)}
        content["labels"] = [] if names == [f"LABEL_{i}" for i in range(len(names))] else names
        content["multi_label"] = self.problem_type == _MULTI_LABEL
        if content["sampling"] is None:
            del content["sampling"]
        return content

    def to_diff_dict(self) -> dict[str, Any]:
        """The content of ``config.json``."""
        content = super().to_diff_dict()
        content.pop("plan_table", None)
        content["auto_map"] = {auto: f"{_AUTO_MODULE}.{name}" for auto, name in _AUTO_CLASSES.items()}
        return content

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write ``config.json``, ``plans.json`` if there are plans, and the names of the classes, by which
        pipelines find the processor, and ``trust_remote_code=True`` finds the models.
        """
        write_json(Path(save_directory) / PREPROCESSOR, {"video_processor_type": "FluxViTVideoProcessor"})
        (Path(save_directory) / f"{_AUTO_MODULE}.py").write_text(_AUTO_CODE, encoding="utf-8")
        path = Path(save_directory) / PLANS
        if self.plan_table:
            write_json(path, self.plan_table)
        else:
            path.unlink(missing_ok=True)
        super().save_pretrained(save_directory, push_to_hub, **kwargs)
