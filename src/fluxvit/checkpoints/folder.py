"""Checkpoints: our own folders. (Other people's files are read by :mod:`fluxvit.checkpoints.official`.)

The format is a folder: ``model.safetensors``, and ``config.json`` with the architecture and everything that
is needed to use the weights (class names, normalisation, training grids). A plan table, ``plans.json``, may
lie beside them, and ``optimize.json``, the account of the search that it comes from.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta
from torch import Tensor, nn

from fluxvit.checkpoints.state_dicts import bare, savable, strip_prefixes
from fluxvit.checkpoints.weights import read_tensors, tensor_shapes, write_tensors
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Cascade, Measured, Plan
from fluxvit.models.config import FluxViTConfig
from fluxvit.models.fluxvit import FluxViT
from fluxvit.utils.files import atomic_folder, write_json
from fluxvit.utils.schema import Finite, Positive, convert, located, shown
from fluxvit.utils.schema import load as load_json
from fluxvit.utils.system import usable_device
from fluxvit.video.sampling import SPARSE, ClipSampling
from fluxvit.video.transforms import IMAGENET_MEAN, IMAGENET_STD

FORMAT = 1
WEIGHTS, CONFIG, PLANS = "model.safetensors", "config.json", "plans.json"
SEARCH = "optimize.json"
PRETRAINED = Path(__file__).parents[1] / "pretrained"
DEFAULT_CHECKPOINT = "fluxvit_nano_motionworld"
"""The checkpoint that answers when none is named: it comes with the package."""


@dataclass
class CheckpointInfo:
    """What a model must be used with.

    Args:
        labels: Class names in the order of the logits; empty if unknown.
        mean: Mean of the RGB values in 0..1, which is subtracted.
        std: Standard deviation of the RGB values, by which they are divided.
        grids: Sampling grids seen in training; empty if unknown.
        provenance: Where the weights come from; free-form.
        plans: Best known sampling per budget; may be empty.
        cascades: Cascades for mean budgets; may be empty.
        multi_label: Whether a clip may show several classes at once: each logit is then a class's own, and
            its sigmoid is the class's probability.
        sampling: How the frames of a clip were spread over a video in training.
    """

    labels: list[str] = field(default_factory=list)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    grids: list[SamplingGrid] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    plans: list[Plan] = field(default_factory=list)
    cascades: list[Cascade] = field(default_factory=list)
    multi_label: bool = False
    sampling: ClipSampling = SPARSE

    def probabilities(self, logits: Tensor) -> Tensor:
        """The probability of each class, float64 like ``logits`` ``[..., classes]``."""
        return logits.double().sigmoid() if self.multi_label else logits.double().softmax(-1)


def save_checkpoint(folder: str | Path, model: nn.Module, info: CheckpointInfo) -> Path:
    """Write a checkpoint folder; an older one of that name is replaced only when the new one is complete.

    Nothing is written that :func:`load_checkpoint` could not read back.

    Args:
        model: A FluxViT, or one in a wrapper of ``torch.compile`` (as a whole or of single blocks),
            DistributedDataParallel, DataParallel, or a moving average.

    Raises:
        ValueError: The labels do not fit the model's classes, ``folder`` holds something else, the model has
            other tensors than its configuration says, or some that hold no numbers or none that are finite.
    """
    folder, network = Path(folder), bare(model, FluxViT)
    if info.labels and len(info.labels) != network.num_classes:
        raise ValueError(f"{len(info.labels)} labels for a model of {network.num_classes} classes")
    if folder.exists() and not _only_checkpoint(folder):
        raise ValueError(f"{folder} holds something else than a checkpoint; choose another folder")
    state = savable(network.state_dict(), f"{folder} is not written")
    with torch.device("meta"):
        report = compare_keys(state, FluxViT(network.config))
    if not report.matches:
        raise ValueError(f"{folder} is not written: model and configuration disagree: {report.summary}")
    facts = {
        "format": FORMAT,
        "model": network.config.to_dict(),
        "labels": list(info.labels),
        "multi_label": info.multi_label,
        "normalization": {"mean": list(info.mean), "std": list(info.std)},
        "grids": [str(grid) for grid in info.grids],
        "sampling": _without_nothing(asdict(info.sampling)),
        "provenance": info.provenance,
    }
    _info(facts, f"{folder} is not written")
    with atomic_folder(folder) as partial:
        write_tensors(partial / WEIGHTS, state)
        write_json(partial / CONFIG, facts)
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


class _Normalization(msgspec.Struct, forbid_unknown_fields=True):
    mean: Annotated[tuple[Finite, ...], Meta(min_length=1, max_length=1024)]
    std: Annotated[tuple[Positive, ...], Meta(min_length=1, max_length=1024)]


class _ConfigFile(msgspec.Struct):
    """``config.json``. Keys of later versions are passed over; the model's are not."""

    model: dict[str, Any]
    labels: list[str]
    normalization: _Normalization
    grids: list[str]
    provenance: dict[str, Any]
    multi_label: bool = False
    sampling: ClipSampling = SPARSE


class _PlanRow(msgspec.Struct, forbid_unknown_fields=True):
    """A plan in ``plans.json``; the rows are checked further by the objects that are made of them."""

    grid: str
    keep: int
    head: int | None = None
    selector: str = "group_dynamic"
    measured: dict[str, Any] | None = None


class _CascadeRow(msgspec.Struct, forbid_unknown_fields=True):
    stages: list[Any]
    threshold: float
    temperatures: list[float]
    measured: dict[str, Any] | None = None
    average: bool = False
    reach: list[float] = []


class _PlansFile(msgspec.Struct):
    plans: list[Any]
    cascades: list[Any] = []


def check_format(content: Any, known: int, where: str) -> None:
    """Refuse a file of another version, which may have other keys, before these are checked.

    Raises:
        ValueError: The content is no object, or its ``format`` is another one.
    """
    found = convert(content, dict[str, Any], where)
    if "format" not in found:
        raise ValueError(f"{where}: format is missing")
    if found["format"] != known or isinstance(found["format"], (bool, float)):
        raise ValueError(f"{where}: format {shown(found['format'])}, this version of fluxvit reads {known}")


def _info(content: Any, where: str) -> tuple[FluxViTConfig, CheckpointInfo]:
    """What ``config.json`` says.

    Raises:
        ValueError: A value is missing, has another type or range, or does not fit the others.
    """
    check_format(content, FORMAT, where)
    file = convert(content, _ConfigFile, where)
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
    return config, CheckpointInfo(
        file.labels,
        mean,
        std,
        grids,
        file.provenance,
        multi_label=file.multi_label,
        sampling=file.sampling,
    )


def _read_plans(content: Any, where: str, config: FluxViTConfig, info: CheckpointInfo) -> None:
    """Take up the plan table; tables of the first version are a list of plans."""
    table = convert({"plans": content} if isinstance(content, list) else content, _PlansFile, where)
    info.plans = [_plan(row, where, f"plans[{i}]", config) for i, row in enumerate(table.plans)]
    info.cascades = []
    for i, values in enumerate(table.cascades):
        key = f"cascades[{i}]"
        row = convert(values, _CascadeRow, where, key)
        stages = tuple(
            _plan(stage, where, f"{key}.stages[{n}]", config) for n, stage in enumerate(row.stages)
        )
        measured = _measured(row.measured, where, f"{key}.measured")
        with located(where, key):
            info.cascades.append(
                Cascade(
                    stages, row.threshold, tuple(row.temperatures), measured, row.average, tuple(row.reach)
                )
            )


def _plan(values: Any, where: str, key: str, config: FluxViTConfig) -> Plan:
    row = convert(values, _PlanRow, where, key)
    measured = _measured(row.measured, where, f"{key}.measured")
    with located(where, key):
        plan = Plan(SamplingGrid.parse(row.grid), row.keep, row.head, row.selector, measured)
        if plan.head is not None and plan.head >= len(config.budgets):
            raise ValueError(f"head {plan.head} does not exist; the model has {len(config.budgets)} heads")
        plan.grid.tokens(config.patch_size, config.tubelet_size)
    return plan


def _measured(values: dict[str, Any] | None, where: str, key: str) -> Measured | None:
    return None if values is None else convert(values, Measured, where, key)


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
    if folder.is_file():
        raise ValueError(f"{folder} is a file; a checkpoint is a folder with {CONFIG} and {WEIGHTS}")
    if not folder.is_dir():
        known = ", ".join(pretrained_names())
        raise ValueError(f"{folder}: no such checkpoint folder; the package itself has {known}")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            hint = ""
            if (folder / "video" / CONFIG).is_file():  # Of dual encoders and chat models.
                hint = f"; its video side is one: {folder / 'video'}"
            elif inner := next((path for path in ("best", "last") if (folder / path).is_dir()), ""):
                hint = f"; the folder of a run holds one: {folder / inner}"
            elif (folder / name).is_symlink():
                hint = f"; the link {folder / name} leads nowhere"
            raise ValueError(f"{folder} is not a checkpoint: it has no {name}{hint}")
    model_config, info = _info(load_json(folder / CONFIG), str(folder / CONFIG))
    if (folder / PLANS).exists():
        _read_plans(load_json(folder / PLANS), str(folder / PLANS), model_config, info)
    # The header alone, so that a configuration cannot ask for a network far larger than its weights.
    check_size(model_config.parameters, tensor_shapes(folder / WEIGHTS), f"{folder}: {WEIGHTS} and {CONFIG}")
    with torch.device("meta"):
        model = FluxViT(model_config)
    state = strip_prefixes(read_tensors(folder / WEIGHTS))
    report = compare_keys(state, model)
    if not report.matches:
        raise ValueError(f"{folder}: {WEIGHTS} and {CONFIG} disagree: {report.summary}")
    check_numbers(state, folder / WEIGHTS)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(True).to(device).eval(), info


def check_size(parameters: int, shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Refuse to build a network that is far larger than its weights.

    Args:
        parameters: About those of the network.
        shapes: Shapes of the tensors.
        what: Disagrees.

    Raises:
        ValueError: It is.
    """
    there = sum(math.prod(shape) for shape in shapes.values())
    if parameters > 2 * there + 1_000_000:
        raise ValueError(
            f"{what} disagree: a network of {parameters:,} parameters, and weights of {there:,} numbers"
        )


def check_numbers(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that are integers or complex numbers, in which no network can compute.

    Raises:
        ValueError: There are some.
    """
    for name, value in state.items():
        if value.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise ValueError(f"{path}: {name} is {value.dtype}; weights must be floating-point numbers")


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


_LISTED = 20  # Names that a report prints of each kind.


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
        """The counts and the first names, in one line."""
        parts = [f"{len(self.used)} tensors used"]
        for title, names in self._listed():
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            parts.append(f"{len(names)} {title}" + (f" ({some})" if names else ""))
        return ", ".join(parts)

    def __str__(self) -> str:
        lines = [f"{len(self.used)} tensors used"]
        for title, names in self._listed():
            lines += [f"{len(names)} {title}", *(f"  {name}" for name in names[:_LISTED])]
            if len(names) > _LISTED:
                lines.append(f"  and {len(names) - _LISTED} more")
        return "\n".join(lines)

    def _listed(self) -> list[tuple[str, list[str]]]:
        shapes = [
            f"{name}: {list(theirs)} in the file, {list(ours)} here" for name, theirs, ours in self.mismatched
        ]
        return [("missing", self.missing), ("unexpected", self.unexpected), ("of another shape", shapes)]


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
