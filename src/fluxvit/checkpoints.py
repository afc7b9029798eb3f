"""Checkpoints: our own folders. (Other people's files are read by :mod:`fluxvit.releases`.)

The format is a folder: ``model.safetensors``, and ``config.json`` with the architecture and everything that
is needed to use the weights (class names, normalisation, training grids). A plan table, ``plans.json``, may
lie beside them, and ``optimize.json``, the account of the search that it comes from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fluxvit.files import atomic_folder, read_json, write_json
from fluxvit.flux.budget import Cascade, Measured, Plan
from fluxvit.flux.grid import SamplingGrid
from fluxvit.machine import usable_device
from fluxvit.models.config import FluxViTConfig
from fluxvit.models.fluxvit import FluxViT
from fluxvit.video.transforms import IMAGENET_MEAN, IMAGENET_STD

FORMAT = 1
WEIGHTS, CONFIG, PLANS = "model.safetensors", "config.json", "plans.json"
SEARCH = "optimize.json"
PRETRAINED = Path(__file__).parent / "pretrained"
DEFAULT_CHECKPOINT = "fluxvit_nano_motionworld"
"""The checkpoint that answers when none is named: it comes with the package."""


@dataclass
class CheckpointInfo:
    """What a model must be used with.

    Args:
        labels: Class names in the order of the logits; empty if unknown.
        mean, std: Normalisation of RGB values in 0..1.
        grids: Sampling grids seen in training; empty if unknown.
        provenance: Where the weights come from; free-form.
        plans: Best known sampling per budget; may be empty.
        cascades: Spending by need, for mean budgets; may be empty.
    """

    labels: list[str] = field(default_factory=list)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    grids: list[SamplingGrid] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    plans: list[Plan] = field(default_factory=list)
    cascades: list[Cascade] = field(default_factory=list)


def save_checkpoint(folder: str | Path, model: FluxViT, info: CheckpointInfo) -> Path:
    """Write a checkpoint folder; an older one of that name is replaced only when the new one is complete.

    Raises:
        ValueError: The labels do not fit the model's classes, or ``folder`` holds something else.
    """
    folder = Path(folder)
    if info.labels and len(info.labels) != model.num_classes:
        raise ValueError(f"{len(info.labels)} labels for a model of {model.num_classes} classes")
    if folder.exists() and not _only_checkpoint(folder):
        raise ValueError(f"{folder} holds something else than a checkpoint; choose another folder")
    with atomic_folder(folder) as partial:
        state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        safetensors.torch.save_file(state, partial / WEIGHTS)
        (partial / WEIGHTS).chmod(0o644)  # The library writes for the owner's eyes only.
        write_json(
            partial / CONFIG,
            {
                "format": FORMAT,
                "model": model.config.to_dict(),
                "labels": info.labels,
                "normalization": {"mean": list(info.mean), "std": list(info.std)},
                "grids": [str(grid) for grid in info.grids],
                "provenance": info.provenance,
            },
        )
        if info.plans or info.cascades:
            save_plans(partial, info)
    return folder


def _only_checkpoint(folder: Path) -> bool:
    """Whether replacing ``folder`` loses nothing but a checkpoint."""
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= {WEIGHTS, CONFIG, PLANS, SEARCH}


def save_plans(folder: str | Path, info: CheckpointInfo) -> None:
    """Write the plan table of a checkpoint: its plans and cascades."""
    write_json(
        Path(folder) / PLANS,
        {
            "plans": [_plan_row(plan) for plan in info.plans],
            "cascades": [
                _without_nothing(asdict(cascade)) | {"stages": [_plan_row(plan) for plan in cascade.stages]}
                for cascade in info.cascades
            ],
        },
    )


def _plan_row(plan: Plan) -> dict[str, Any]:
    return _without_nothing(asdict(plan) | {"grid": str(plan.grid)})


def _without_nothing(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_nothing(value) if isinstance(value, dict) else value
        for name, value in row.items()
        if value is not None
    }


def _read_plans(path: Path, info: CheckpointInfo) -> None:
    """Take up the plan table; tables of the first version are a list of plans."""
    table = read_json(path)
    table = {"plans": table} if isinstance(table, list) else table
    info.plans = [_plan(row) for row in table["plans"]]
    for row in table.get("cascades", ()):
        facts = {
            "stages": tuple(_plan(stage) for stage in row["stages"]),
            "temperatures": tuple(row["temperatures"]),
            "reach": tuple(row.get("reach", ())),
            "measured": _measured(row),
        }
        info.cascades.append(Cascade(**{**row, **facts}))


def _plan(row: dict[str, Any]) -> Plan:
    return Plan(**{**row, "grid": SamplingGrid.parse(row["grid"]), "measured": _measured(row)})


def _measured(row: dict[str, Any]) -> Measured | None:
    return Measured(**row["measured"]) if "measured" in row else None


def load_checkpoint(
    folder: str | Path, device: str | torch.device | None = "cpu"
) -> tuple[FluxViT, CheckpointInfo]:
    """Read a checkpoint folder; the model is in eval mode.

    Args:
        folder: A folder, or the name of a checkpoint that comes with the package (:func:`pretrained_names`).
        device: Where the model goes; None: the accelerator if there is one.

    Raises:
        ValueError: The folder is missing, incomplete or damaged, or there is no such device; the message says
            which.
    """
    folder, device = checkpoint_folder(folder), usable_device(device)
    if folder.suffix in (".pth", ".pt", ".bin"):
        raise ValueError(
            f"{folder} is a PyTorch file; turn it into a checkpoint folder with: fluxvit convert"
        )
    if not folder.is_dir():
        known = ", ".join(pretrained_names())
        raise ValueError(f"{folder}: no such checkpoint folder; the package itself has {known}")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            inner = folder / "video"  # Of dual encoders and chat models.
            hint = f"; its video side is one: {inner}" if (inner / CONFIG).is_file() else ""
            raise ValueError(f"{folder} is not a checkpoint: it has no {name}{hint}")
    config = read_json(folder / CONFIG)
    try:
        if config["format"] != FORMAT:
            raise ValueError(f"format {config['format']}, this version of fluxvit reads {FORMAT}")
        model_config = FluxViTConfig.from_dict(config["model"], key="model")
        info = CheckpointInfo(
            labels=config["labels"],
            mean=tuple(config["normalization"]["mean"]),
            std=tuple(config["normalization"]["std"]),
            grids=[SamplingGrid.parse(text) for text in config["grids"]],
            provenance=config["provenance"],
        )
        if (folder / PLANS).exists():
            _read_plans(folder / PLANS, info)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"missing key {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{folder}: bad {CONFIG} or {PLANS}: {reason}") from error
    with torch.device("meta"):
        model = FluxViT(model_config)
    try:
        state = safetensors.torch.load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS}: damaged or not a safetensors file ({error})") from error
    report = compare_keys(state, model)
    if not report.matches:
        raise ValueError(f"{folder}: {WEIGHTS} and {CONFIG} disagree: {report.summary}")
    if info.labels and len(info.labels) != model.num_classes:
        raise ValueError(f"{folder}: {len(info.labels)} labels for a model of {model.num_classes} classes")
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(True).to(device).eval(), info


def pretrained_names() -> list[str]:
    """Names of the checkpoints that come with the package; each has a model card, ``README.md``."""
    return sorted(path.name for path in PRETRAINED.iterdir() if path.is_dir())


def checkpoint_folder(folder: str | Path) -> Path:
    """Where a checkpoint lies: a folder of that name comes first, then the package's own."""
    packaged = PRETRAINED / folder
    return packaged if str(folder) in pretrained_names() and not Path(folder).exists() else Path(folder)


def load(folder: str | Path, device: str | torch.device | None = "cpu") -> FluxViT:
    """The model of a checkpoint folder, in eval mode. Errors as in :func:`load_checkpoint`."""
    return load_checkpoint(folder, device)[0]


@dataclass
class KeyReport:
    """How the tensors of a file fit a model. ``mismatched`` lists (name, shape in file, shape in model)."""

    used: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]]

    @property
    def matches(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    @property
    def summary(self) -> str:
        """The counts, in one line."""
        return (
            f"{len(self.used)} tensors used, {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected, {len(self.mismatched)} of another shape"
        )

    def __str__(self) -> str:
        lines = [f"{len(self.used)} tensors used"]
        for title, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            lines.append(f"{len(names)} {title}" + "".join(f"\n  {name}" for name in names))
        lines.append(f"{len(self.mismatched)} of another shape")
        lines += [
            f"  {name}: {list(theirs)} in the file, {list(ours)} here"
            for name, theirs, ours in self.mismatched
        ]
        return "\n".join(lines)


def state_digest(state: Mapping[str, Tensor], facts: str = "") -> str:
    """16 hexadecimal digits of tensors, by name, and of ``facts`` that belong to them."""
    digest = hashlib.sha256(facts.encode())
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        # As bytes: NumPy does not know every type.
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def compare_keys(state: Mapping[str, Tensor], model: torch.nn.Module) -> KeyReport:
    """Compare names and shapes of a state dict with a model's."""
    wanted = model.state_dict()
    shared = [name for name in wanted if name in state]
    mismatched = [
        (name, tuple(state[name].shape), tuple(wanted[name].shape))
        for name in shared
        if state[name].shape != wanted[name].shape
    ]
    bad = {name for name, _, _ in mismatched}
    return KeyReport(
        used=[name for name in shared if name not in bad],
        missing=[name for name in wanted if name not in state],
        unexpected=[name for name in state if name not in wanted],
        mismatched=mismatched,
    )
