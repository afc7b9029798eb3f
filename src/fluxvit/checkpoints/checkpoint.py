"""A checkpoint: a FluxViT with everything that is needed to use it, and the folder that holds both.

The folder has ``model.safetensors``, and ``config.json`` with the architecture, class names, normalisation,
sampling and training grids. It may also have a plan table, ``plans.json``, and ``optimize.json``, the results
of the search for it. :mod:`fluxvit.checkpoints.official` reads the official checkpoints of the authors.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from fluxvit.checkpoints.folder import (
    VIDEO,
    FolderCheckpoint,
    check_size,
    compare_keys,
    load_state,
    read_format,
    read_state,
    state_digest,
)
from fluxvit.checkpoints.latency import plan_for
from fluxvit.checkpoints.state_dicts import bare, savable
from fluxvit.flux.budget import Budget
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Cascade, Measured, Plan
from fluxvit.flux.selection import SelectorName
from fluxvit.models.config import FluxViTConfig
from fluxvit.models.fluxvit import FluxViT
from fluxvit.models.graphs import CapturedFluxViT
from fluxvit.models.inference import Backend, form, prepare, resolve_precision
from fluxvit.utils.files import write_json
from fluxvit.utils.options import Precision
from fluxvit.utils.schema import Finite, Positive, convert, located
from fluxvit.utils.schema import load as load_json
from fluxvit.utils.system import usable_device
from fluxvit.video.sampling import SPARSE, ClipSampling
from fluxvit.video.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize, resize_and_crop, to_tensor

WEIGHTS, CONFIG, PLANS = "model.safetensors", "config.json", "plans.json"
SEARCH = "optimize.json"
PRETRAINED = Path(__file__).parents[1] / "pretrained"
DEFAULT_CHECKPOINT = "fluxvit_nano_motionworld"
"""The checkpoint that commands use by default; it comes with the package."""
# Pool over budget without a plan table; published searches end at 1.3 to 4 (paper tables 1 and 11).
_USUAL_POOL = 2.5


@dataclass
class Checkpoint(FolderCheckpoint):
    """A FluxViT, with a classifier or without one (pre-trained), and everything that is needed to use it.

    Args:
        model: The network. It can also be saved in a wrapper of ``torch.compile`` (around the network or
            around single blocks), DistributedDataParallel, DataParallel, or a moving average.
        labels: Class names in the order of the logits; empty if unknown.
        mean: Mean of the RGB values in 0..1, which is subtracted.
        std: Standard deviation of the RGB values, by which they are divided.
        grids: Sampling grids of training; empty if unknown.
        provenance: Origin of the weights; free-form.
        plans: Best known plan of each budget; may be empty.
        cascades: Cascades for mean budgets; may be empty.
        multi_label: Whether a clip may show several classes at once. The sigmoid of each logit is then the
            probability of its class.
        sampling: How the frames of a clip were spread over a video in training.
        selector: Rule that selected the tokens in training. Plans that are not in the table use it, too.
    """

    KIND: ClassVar[str] = "checkpoint"
    WEIGHTS: ClassVar[str] = WEIGHTS
    CONFIG: ClassVar[str] = CONFIG
    OTHERS: ClassVar[frozenset[str]] = frozenset({PLANS, SEARCH})

    model: FluxViT
    labels: list[str] = field(default_factory=list)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    grids: list[SamplingGrid] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    plans: list[Plan] = field(default_factory=list)
    cascades: list[Cascade] = field(default_factory=list)
    multi_label: bool = False
    sampling: ClipSampling = SPARSE
    selector: SelectorName = "group_dynamic"

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    @property
    def class_names(self) -> list[str]:
        """The labels, or numbers for classes without names."""
        return self.labels or [f"class {i}" for i in range(self.model.num_classes)]

    @property
    def video(self) -> Checkpoint:
        """This checkpoint: dual encoders and chat models have one for their video side."""
        return self

    @property
    def embedding_dim(self) -> int:
        """Length P of the vectors of videos."""
        return self.model.config.pool_dim

    def prepared(self, precision: Precision = "auto", backend: Backend = "auto") -> Checkpoint:
        """This checkpoint with its network in the inference form
        (:func:`~fluxvit.models.inference.prepare`), which cannot be trained or saved. On CUDA devices it is
        a :class:`~fluxvit.models.graphs.CapturedFluxViT`.

        A network that is not in fp32 was made smaller on purpose, and stays as it is.

        Args:
            precision: Type in which the blocks compute; ``auto`` is the faster of ``bf16`` and ``fp32`` on
                the device of the model.
            backend: What runs the blocks; ``auto`` is OpenVINO on a CPU if it is installed, else PyTorch.

        Raises:
            ValueError: The backend cannot be used.
        """
        if form(self.model) != "plain" or self.model.cls_token.dtype != torch.float32:
            return self
        bf16 = resolve_precision(precision, self.device) == "bf16"
        model = prepare(self.model, torch.bfloat16 if bf16 else torch.float32, backend)
        return replace(self, model=CapturedFluxViT(model) if self.device.type == "cuda" else model)

    def pool(self, grid: SamplingGrid) -> int:
        """The number of tokens of a grid.

        Raises:
            ValueError: The grid does not divide into tokens.
        """
        return self.model.config.pool(grid)

    def plan(self, budget: Budget | int | None = None, grid: SamplingGrid | None = None) -> Plan:
        """The plan that a budget leads to, on the device of the model.

        Args:
            budget: Maximum cost of a clip; a number is a number of tokens, all of which are kept. None: the
                largest trained budget, or all tokens of the largest grid.
            grid: Sampling grid; None: that of the plan table, or one of training.

        Raises:
            ValueError: The budget or the grid cannot be used, or the checkpoint has no training grids.
        """
        if budget is None:
            budget = self.default_budgets(grid)[0]
        budget = Budget.of(budget)
        if grid:
            known = [Plan(grid, budget.tokens or self.pool(grid), selector=self.selector)]
        else:
            known = self.plans or self.default_plans(budget.tokens)
        return plan_for(self.model, budget, known)

    def default_budgets(self, grid: SamplingGrid | None = None) -> list[int]:
        """The token budgets of the model; where no grid has so many tokens, all of its tokens.

        Args:
            grid: The only grid; None: those of the plan table or of training.
        """
        grids = [grid] if grid else [plan.grid for plan in self.plans] or self.grids
        most = max(map(self.pool, grids), default=math.inf)
        return [int(min(budget, most)) for budget in self.model.config.budgets]

    def default_plans(self, tokens: int | None = None) -> list[Plan]:
        """Plans for use without a plan table: each budget gets the training grid whose pool is nearest to 2.5
        times the budget, and of several such grids the one with the most frames.

        Args:
            tokens: The only budget that gets a plan; None: the budgets of the model.

        Raises:
            ValueError: The checkpoint has no training grids either.
        """
        if not self.grids:
            raise ValueError(
                "the checkpoint names neither plans nor training grids; give a grid, such as 16x224"
            )

        def plan(budget: int) -> Plan:
            largest = max(self.grids, key=self.pool)
            fitting = [grid for grid in self.grids if self.pool(grid) >= budget] or [largest]
            grid = min(fitting, key=lambda g: (abs(self.pool(g) - _USUAL_POOL * budget), -g.frames))
            return Plan(grid, budget, selector=self.selector)

        return [plan(budget) for budget in ([tokens] if tokens else self.model.config.budgets)]

    def clip(self, frames: np.ndarray, grid: SamplingGrid) -> Tensor:
        """A clip ``[1, 3, T, height, width]`` on the model's device, of frames uint8 ``[T, H, W, 3]`` that
        are resized, cropped and normalised as in evaluation.
        """
        return self.normalize(resize_and_crop(to_tensor(frames), (grid.height, grid.width)))[None]

    def normalize(self, video: Tensor) -> Tensor:
        """Clips ``[..., 3, T, H, W]``, normalised as in training, on the model's device."""
        return normalize(video.to(self.device), self.mean, self.std)

    def embed(self, video: Tensor, plan: Plan) -> Tensor:
        """The vectors of normalised clips ``[B, 3, T, H, W]``, fp32 ``[B, P]``."""
        return self.vectors(self.model(video, plan.keep, plan.head, plan.selector).embedding)

    def vectors(self, pooled: Tensor) -> Tensor:
        """The vectors of videos, fp32 ``[B, P]``, which are the network's pooled vectors."""
        return pooled.float()

    def mean_vector(self, vectors: Tensor) -> Tensor:
        """The vector ``[P]`` of a video whose clips have ``vectors`` ``[N, P]``."""
        return vectors.mean(0)

    def digest(self) -> str:
        """16 hexadecimal digits that identify weights, architecture and normalisation.

        Raises:
            ValueError: The network is in its inference form.
        """
        check_plain(self.model)
        facts = json.dumps([self.model.config.to_dict(), list(self.mean), list(self.std)], sort_keys=True)
        return state_digest(self.model.state_dict(), facts)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The probability of each class, float64, in the shape of ``logits`` ``[..., classes]``."""
        return logits.double().sigmoid() if self.multi_label else logits.double().softmax(-1)

    def _content(self, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        network = bare(self.model, FluxViT)
        check_plain(network)
        if self.labels and len(self.labels) != network.num_classes:
            raise ValueError(f"{len(self.labels)} labels for a model of {network.num_classes} classes")
        state = savable(network.state_dict(), what)
        with torch.device("meta"):
            report = compare_keys(state, FluxViT(network.config))
        if not report.matches:
            raise ValueError(f"{what}: model and configuration disagree: {report.summary}")
        facts = self.facts
        _read_facts(convert(facts, _ConfigFile, what), what)
        return state, facts

    @property
    def facts(self) -> dict[str, Any]:
        """The content of ``config.json`` except ``format``, as plain values. ``model_type`` is there for
        Hugging Face's Auto classes (:mod:`fluxvit.hf`).
        """
        return {
            "model_type": "fluxvit",
            "model": bare(self.model, FluxViT).config.to_dict(),
            "labels": list(self.labels),
            "multi_label": self.multi_label,
            "normalization": {"mean": list(self.mean), "std": list(self.std)},
            "grids": [str(grid) for grid in self.grids],
            "sampling": _without_none(asdict(self.sampling)),
            "selector": self.selector,
            "provenance": self.provenance,
        }

    @property
    def plan_table(self) -> dict[str, list[dict[str, Any]]]:
        """The content of ``plans.json``, as plain values."""
        return {
            "plans": list(map(_plan_row, self.plans)),
            "cascades": [
                _without_none(asdict(cascade)) | {"stages": [_plan_row(plan) for plan in cascade.stages]}
                for cascade in self.cascades
            ],
        }

    def _save_others(self, folder: Path) -> None:
        if self.plans or self.cascades:
            self.save_plans(folder)

    def save_plans(self, folder: str | Path) -> None:
        """Write the plan table alone, into a folder that holds the rest of the checkpoint."""
        write_json(Path(folder) / PLANS, self.plan_table)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device | None = "cpu") -> Checkpoint:
        """Read a checkpoint folder; the model is in eval mode.

        Args:
            folder: A folder, or the name of a checkpoint of the package (:func:`pretrained_names`).
            device: Device of the model; None: the accelerator if there is one.

        Raises:
            ValueError: The folder is missing, incomplete or damaged, or there is no such device; the message
                names the problem.
        """
        folder, device = checkpoint_folder(folder), usable_device(device)
        if folder.suffix in (".pth", ".pt", ".bin"):
            raise ValueError(
                f"{folder} is a PyTorch file; turn it into a checkpoint folder with: fluxvit convert"
            )
        if folder.is_file():
            raise ValueError(f"{folder} is a file; a checkpoint is a folder with {CONFIG} and {WEIGHTS}")
        if not folder.is_dir():
            known = ", ".join(pretrained_names())
            raise ValueError(f"{folder}: no such checkpoint folder; the package itself has {known}")
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                hint = ""
                if (folder / VIDEO / CONFIG).is_file():  # A dual encoder or a chat model.
                    hint = f"; its video side is one: {folder / VIDEO}"
                elif inner := next((path for path in ("best", "last") if (folder / path).is_dir()), ""):
                    hint = f"; the folder of a run holds one: {folder / inner}"
                elif (folder / name).is_symlink():
                    hint = f"; the link {folder / name} leads nowhere"
                raise ValueError(f"{folder} is not a checkpoint: it has no {name}{hint}")
        plans = load_json(folder / PLANS) if (folder / PLANS).exists() else None
        config, facts = read_facts(load_json(folder / CONFIG), plans, folder)
        state = read_state(folder / WEIGHTS)
        check_size(config.parameters, state, f"{folder}: {WEIGHTS} and {CONFIG}")
        with torch.device("meta"):
            model = FluxViT(config)
        load_state(model, state, folder / WEIGHTS, CONFIG, assign=True)
        return cls(model.requires_grad_(True).to(device).eval(), **facts)


def check_plain(model: FluxViT) -> None:
    """Raise a ValueError if a network is in its inference form, which is not what a checkpoint holds."""
    if form(model) != "plain":
        raise ValueError(
            "the network is in its inference form, which cannot be saved or identified; use the checkpoint "
            "that it was prepared from"
        )


def read_facts(config: Any, plans: Any, folder: str | Path) -> tuple[FluxViTConfig, dict[str, Any]]:
    """The architecture and the other fields of a :class:`Checkpoint`, from the contents of its JSON files.

    Args:
        config: The content of ``config.json``.
        plans: The content of ``plans.json``; None if there is no such file.
        folder: The folder of both, for messages.

    Raises:
        ValueError: A value has another type or range, or does not fit the others.
    """
    where = str(Path(folder) / CONFIG)
    architecture, facts = _read_facts(read_format(config, _ConfigFile, where), where)
    if plans is not None:
        facts |= _read_plans(plans, str(Path(folder) / PLANS), architecture)
    return architecture, facts


def _plan_row(plan: Plan) -> dict[str, Any]:
    return _without_none(asdict(plan) | {"grid": str(plan.grid)})


def _without_none(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_none(value) if isinstance(value, dict) else value
        for name, value in row.items()
        if value is not None
    }


class _Normalization(msgspec.Struct, forbid_unknown_fields=True):
    mean: Annotated[tuple[Finite, ...], Meta(min_length=1, max_length=1024)]
    std: Annotated[tuple[Positive, ...], Meta(min_length=1, max_length=1024)]


class _ConfigFile(msgspec.Struct):
    """``config.json``. Unknown keys, as later versions may add them, are ignored, except those of the
    model."""

    model: dict[str, Any]
    labels: list[str]
    normalization: _Normalization
    grids: list[str]
    provenance: dict[str, Any]
    multi_label: bool = False
    sampling: ClipSampling = SPARSE
    selector: SelectorName = "group_dynamic"


def _read_facts(file: _ConfigFile, where: str) -> tuple[FluxViTConfig, dict[str, Any]]:
    """The architecture, and the fields of the checkpoint.

    Raises:
        ValueError: A value has another type or range, or does not fit the others.
    """
    config = FluxViTConfig.from_dict(file.model, where, "model")
    if file.labels and len(file.labels) != config.num_classes:
        raise ValueError(f"{where}: {len(file.labels)} labels for a model of {config.num_classes} classes")
    mean, std = file.normalization.mean, file.normalization.std
    if len(mean) != len(std) or len(mean) not in (3, config.in_chans):
        raise ValueError(
            f"{where}: normalization has {len(mean)} means and {len(std)} deviations for 3 channels"
        )
    grids = []
    for i, text in enumerate(file.grids):
        with located(where, f"grids[{i}]"):
            grids.append(SamplingGrid.parse(text))
    return config, {
        "labels": file.labels,
        "mean": mean,
        "std": std,
        "grids": grids,
        "provenance": file.provenance,
        "multi_label": file.multi_label,
        "sampling": file.sampling,
        "selector": file.selector,
    }


def _read_plans(content: Any, where: str, config: FluxViTConfig) -> dict[str, Any]:
    """The plans and cascades of a plan table; tables of the first version are a list of plans."""
    table = convert({"plans": content} if isinstance(content, list) else content, dict[str, Any], where)
    if "plans" not in table:
        raise ValueError(f"{where}: plans is missing")
    plans = convert(table["plans"], list[Any], where, "plans")
    cascades = convert(table.get("cascades", []), list[Any], where, "cascades")
    return {
        "plans": [_plan(row, where, f"plans[{i}]", config) for i, row in enumerate(plans)],
        "cascades": [_cascade(row, where, f"cascades[{i}]", config) for i, row in enumerate(cascades)],
    }


def _plan(values: Any, where: str, key: str, config: FluxViTConfig) -> Plan:
    row = convert(values, dict[str, Any], where, key)
    if row.get("measured") is not None:
        row["measured"] = convert(row["measured"], Measured, where, f"{key}.measured")
    if "grid" in row:
        text = convert(row["grid"], str, where, f"{key}.grid")
        with located(where, key):
            row["grid"] = SamplingGrid.parse(text)
    plan = convert(row, Plan, where, key)
    with located(where, key):
        if plan.head is not None and plan.head >= len(config.budgets):
            raise ValueError(f"head {plan.head} does not exist; the model has {len(config.budgets)} heads")
        config.pool(plan.grid)
    return plan


def _cascade(values: Any, where: str, key: str, config: FluxViTConfig) -> Cascade:
    row = convert(values, dict[str, Any], where, key)
    if row.get("measured") is not None:
        row["measured"] = convert(row["measured"], Measured, where, f"{key}.measured")
    stages = convert(row.get("stages", []), list[Any], where, f"{key}.stages")
    row["stages"] = [_plan(stage, where, f"{key}.stages[{n}]", config) for n, stage in enumerate(stages)]
    return convert(row, Cascade, where, key)


def pretrained_names() -> list[str]:
    """Names of the checkpoints that come with the package; each has a model card, ``README.md``."""
    return sorted(path.name for path in PRETRAINED.iterdir() if path.is_dir())


def checkpoint_folder(folder: str | Path) -> Path:
    """The folder of a checkpoint: a folder of that name, or else one of the package."""
    packaged = PRETRAINED / folder
    return packaged if str(folder) in pretrained_names() and not Path(folder).exists() else Path(folder)
