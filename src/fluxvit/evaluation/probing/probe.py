"""Frozen-backbone probes: how much of a data set's classes a checkpoint's features already tell.

`run_probe` is the whole of ``fluxvit probe``. The backbone runs once over every video (`features`). Small
classifiers are trained on what it gives, all settings of the optimiser at once (`probe_training`). The one
that does best on validation videos is scored on test videos and saved with the backbone as a checkpoint
(`probe_readouts`). There are two kinds:

* ``linear``, after DINOv2's evaluation (``dinov2/eval/linear.py``): a linear layer on each of several
  readouts of the backbone, with several learning rates each; the choice is made on validation data.
* ``attentive``, after V-JEPA's (``evals/video_classification_frozen``): attention pooling of all tokens,
  layer norm and a linear layer, all learned. The pooling is a FluxViT's own: its query is a learned map of
  the mean token, and with the bias of that map it includes the query that V-JEPA learns outright.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fluxvit import __version__
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.classes import multi_hot
from fluxvit.data.dataset import ClipDataset
from fluxvit.evaluation.classification import Score
from fluxvit.evaluation.config import ProbeConfig
from fluxvit.evaluation.features import USUAL_SELECTOR, Backbone, cached_features
from fluxvit.evaluation.metrics import MeanPrecision, average_precision, mean_of_classes
from fluxvit.evaluation.probing.readouts import Readout, merge, readouts
from fluxvit.evaluation.probing.splits import Split, read_splits
from fluxvit.evaluation.probing.training import (
    AttentiveProbes,
    LinearProbes,
    Probes,
    Setting,
    rank_probes,
    score_probes,
    train_probes,
)
from fluxvit.flux.plan import Plan, nearest_plan
from fluxvit.models.fluxvit import FluxViT
from fluxvit.utils.files import lock_folder, write_json
from fluxvit.utils.system import log_device, usable_device


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values) or "(none)"


def _settings(config: ProbeConfig) -> list[Setting]:
    """Every learning rate with every weight decay."""
    return [Setting(lr, decay) for decay in config.weight_decays for lr in config.lrs]


@dataclass(frozen=True)
class Trial:
    """A probe that was trained.

    Args:
        readout: What it reads: ``pooled``, ``mean`` or ``attentive``.
        setting: How it was trained.
        val: Its score on validation data, mean average precision where videos have several classes; videos
            that cannot be read count as wrong.
        val_loss: Mean cross-entropy there; not finite if it diverged.
    """

    readout: str
    setting: Setting
    val: Score | MeanPrecision
    val_loss: float

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.val_loss)

    @property
    def rank(self) -> tuple[bool, float, float]:
        """The larger, the better: by score, then by loss; behind all others if it diverged."""
        return (False, 0.0, 0.0) if self.diverged else (True, _figure(self.val), -self.val_loss)


def _figure(score: Score | MeanPrecision) -> float:
    return score.value if isinstance(score, MeanPrecision) else score.accuracy


@dataclass(frozen=True)
class ProbeResult:
    """What a run of probes found; as a string, for people.

    Args:
        trials: Every probe.
        best: The one with the best validation accuracy; of equals, the one with the lower loss.
        test: Score of the best on the test videos; None without any.
        commonest: Score on the validation videos of always answering the commonest training class; where
            videos have several classes, of telling nothing.
        checkpoint: Folder of the merged model; None if no checkpoint can hold it.
        lines: Conditions of the run, for people.
    """

    config: ProbeConfig
    trials: list[Trial]
    best: Trial
    test: Score | MeanPrecision | None
    commonest: Score | MeanPrecision
    checkpoint: Path | None
    lines: list[str]

    def __str__(self) -> str:
        lines = [*self.lines, _row("readout", "lr", "weight decay", "val loss", "val accuracy")]
        for trial in sorted(self.trials, key=lambda trial: trial.rank, reverse=True):
            loss, score = ("-", "diverged") if trial.diverged else (f"{trial.val_loss:.3f}", str(trial.val))
            setting = trial.setting
            lines.append(_row(trial.readout, f"{setting.lr:g}", f"{setting.weight_decay:g}", loss, score))
        best, lrs, choices = self.best, self.config.lrs, len(self.trials)
        chosen = f"lr {best.setting.lr:g}, weight decay {best.setting.weight_decay:g}"
        lines.append(f"chosen  {best.readout}, {chosen}")
        if len(lrs) > 1 and best.setting.lr in (max(lrs), min(lrs)):
            side = ("largest", "larger") if best.setting.lr == max(lrs) else ("smallest", "smaller")
            lines.append(f"        its learning rate is the {side[0]} that was tried; try {side[1]} ones too")
        if self.test is not None:
            lines.append(f"val     {best.val}, which chose among {choices}")
            lines.append(f"test    {self.test}")
        elif choices > 1:
            lines.append(f"val     {best.val}; these videos also chose among {choices} settings, so it is")
            lines.append("        optimistic; --test gives an honest figure")
        else:
            lines.append(f"val     {best.val}; there was nothing to choose")
        lines.append(f"wrote   {Path(self.config.out) / 'probe.json'}")
        if self.checkpoint is not None:
            lines.append(f"checkpoint  {self.checkpoint}")
        else:
            lines.append(
                f"no checkpoint: models select tokens by {USUAL_SELECTOR}, not {self.config.selector}"
            )
        return "\n".join(lines)


def _row(readout: str, lr: str, decay: str, loss: str, score: str) -> str:
    return f"{readout:<9} {lr:>8} {decay:>12} {loss:>9}   {score}"


def run_probe(config: ProbeConfig, progress: bool = True) -> ProbeResult:
    """Compute features, train all settings, choose one on the validation videos and score it.

    Writes into ``config.out``: ``probe.json``; ``best``, a checkpoint folder of the backbone with the chosen
    probe as its head; and ``features``, unless ``config.cache`` says where. An interrupted run goes on with
    the features that are there.

    Raises:
        ValueError: The checkpoint, the manifests, the plan or the settings cannot be used, or every setting
            diverged, or another run is writing into ``config.out``; the message says why.
    """
    with lock_folder(config.out):
        return _run_probe(config, progress)


def _run_probe(config: ProbeConfig, progress: bool) -> ProbeResult:
    device = usable_device(config.device)
    config, out = replace(config, device=str(device)), Path(config.out)
    splits = read_splits(config.train, config.val, config.test, config.target)
    checkpoint = Checkpoint.load(config.checkpoint, device)
    plan = _plan(checkpoint, config)
    backbone = Backbone(checkpoint, checkpoint.digest(), plan, config.kind, config.selector)
    log_device(device)
    features = {
        role: cached_features(
            backbone,
            ClipDataset(split.manifest, sampling=checkpoint.sampling),
            config.cache or out / "features",
            workers=config.workers,
            progress=f"Features of {split.name}" if progress else None,
        )
        for role, split in splits.items()
    }
    stacks, trials = [], []
    for readout in readouts(backbone, features, str(device)):
        probes = _train(config, backbone, readout, splits["train"], progress)
        stacks.append((readout, probes))
        scores, losses = _score(config, probes, readout, splits, "val")
        for setting, score, loss in zip(_settings(config), scores, losses, strict=True):
            trials.append(Trial(readout.name, setting, score, loss))
    choice = max(range(len(trials)), key=lambda i: trials[i].rank)
    best = trials[choice]
    if best.diverged:
        raise ValueError(f"every setting diverged; use smaller learning rates than {_listed(config.lrs)}")
    number, place = divmod(choice, len(_settings(config)))
    readout, probes = stacks[number]
    test = None
    if "test" in splits:
        # Only the chosen one is looked at.
        test = _score(config, probes, readout, splits, "test")[0][place]
    folder = None
    if config.selector == USUAL_SELECTOR or plan.keep == backbone.pool:
        merged = merge(backbone, readout, probes.one(place))
        folder = _merged(config, backbone, merged, splits["train"], best).save(out / "best")
    guessed = _guessed(splits["train"], splits["val"])
    lines = _conditions(config, backbone, splits, guessed)
    result = ProbeResult(config, trials, best, test, guessed, folder, lines)
    write_json(out / "probe.json", _record(result, backbone, splits))
    return result


def _score(
    config: ProbeConfig, probes: Probes, readout: Readout, splits: dict[str, Split], role: str
) -> tuple[list[Score | MeanPrecision], list[float]]:
    """Score and loss of each setting on the videos of a role."""
    split, fetch, classes = splits[role], readout.fetch[role], splits["train"].classes
    labels = split.labels(classes)
    if split.multi_label:
        missed = torch.from_numpy(multi_hot(split.missed, classes))
        figures, losses = rank_probes(probes, fetch, labels, missed, config.batch_size)
        return [MeanPrecision(figure) for figure in figures], losses
    correct, losses = score_probes(probes, fetch, labels, config.batch_size)
    return [Score(hits, split.total) for hits in correct], losses


def _guessed(train: Split, val: Split) -> Score | MeanPrecision:
    """What is right on ``val`` without looking."""
    labels = val.labels(train.classes)
    if val.multi_label:
        missed = torch.from_numpy(multi_hot(val.missed, train.classes))
        scores = torch.cat([torch.zeros_like(labels), torch.full(missed.shape, torch.nan)])
        return MeanPrecision(mean_of_classes(average_precision(scores, torch.cat([labels, missed]))))
    commonest = train.labels(train.classes).bincount().argmax()
    return Score(int((labels == commonest).sum()), val.total)


def _plan(checkpoint: Checkpoint, config: ProbeConfig) -> Plan:
    model = checkpoint.model
    budget = model.config.budgets[0] if config.budget is None else config.budget
    if budget < 1:
        raise ValueError(f"budget {budget}: at least one token must be kept")
    if not config.grid and not checkpoint.plans:
        raise ValueError(f"{config.checkpoint} has no plan table; give a grid, such as 16x224")
    plan = Plan(config.grid, budget) if config.grid else nearest_plan(checkpoint.plans, budget)
    pool = checkpoint.pool(plan.grid)
    if config.budget is not None and budget > pool:
        raise ValueError(
            f"budget {budget}: grid {plan.grid} has {pool} tokens; keep at most these, or use a larger grid"
        )
    keep = min(budget, pool)
    return Plan(plan.grid, keep, model.config.nearest_head(keep) if plan.head is None else plan.head)


def _train(config: ProbeConfig, backbone: Backbone, readout: Readout, train: Split, progress: bool) -> Probes:
    """A probe for every setting, on one readout."""
    settings, size = _settings(config), backbone.checkpoint.model.config
    probes: Probes
    if config.kind == "linear":
        probes = LinearProbes(len(settings), readout.width, train.classes, config.seed)
    else:
        shape = readout.width, size.pool_heads, size.pool_dim
        probes = AttentiveProbes(len(settings), *shape, train.classes, config.seed)
    train_probes(
        probes.to(config.device),
        readout.fetch["train"],
        train.labels(train.classes),
        settings,
        epochs=config.epochs,
        batch_size=config.batch_size,
        seed=config.seed,
        progress=f"Training {len(settings)} probes on {readout.name}" if progress else None,
    )
    return probes


def _conditions(
    config: ProbeConfig, backbone: Backbone, splits: dict[str, Split], guessed: Score | MeanPrecision
) -> list[str]:
    plan, classes = backbone.plan, splits["train"].classes
    videos = ", ".join(f"{role} {split.total}" for role, split in splits.items())
    blind = "telling nothing" if splits["val"].multi_label else "the commonest class of training alone"
    lines = [
        f"{config.checkpoint}: {plan.keep} of {backbone.pool} tokens of {plan.grid} ({config.selector})",
        f"{videos} videos of {classes} classes; {blind}: {guessed} of val",
    ]
    for role, split in splits.items():
        if split.unreadable:
            fate = "are left out" if role == "train" else "count as wrong"
            lines.append(f"{split.name}: {split.unreadable} videos cannot be read and {fate}")
    return lines


def _merged(config: ProbeConfig, backbone: Backbone, model: FluxViT, train: Split, best: Trial) -> Checkpoint:
    """The checkpoint of the backbone with a probe as its head."""
    names = train.manifest.labels
    return replace(
        backbone.checkpoint,
        model=model,
        labels=list(names) if len(names) == train.classes else [],
        grids=[backbone.plan.grid],
        plans=[Plan(backbone.plan.grid, backbone.plan.keep)],
        multi_label=train.multi_label,
        provenance={
            "made_by": f"fluxvit {__version__} probe",
            "probe": {"readout": best.readout, **asdict(best.setting), "epochs": config.epochs},
            "data": train.digest,
            "backbone": {"digest": backbone.digest, **backbone.checkpoint.provenance},
        },
    )


def _record(result: ProbeResult, backbone: Backbone, splits: dict[str, Split]) -> dict[str, Any]:
    """What ``probe.json`` holds."""

    def score(value: Score | MeanPrecision) -> dict[str, Any]:
        if isinstance(value, MeanPrecision):
            return {"map": value.value}
        return {**asdict(value), "accuracy": value.accuracy, "interval": value.interval}

    def trial(value: Trial) -> dict[str, Any]:
        facts = {"readout": value.readout, **asdict(value.setting)}
        if value.diverged:
            return {**facts, "diverged": True}
        return {**facts, "val_loss": value.val_loss, "val": score(value.val)}

    return {
        "config": asdict(result.config),
        "backbone": backbone.facts,
        "pool": backbone.pool,
        "classes": splits["train"].classes,
        "data": {
            role: {"digest": split.digest, "videos": split.total, "unreadable": split.unreadable}
            for role, split in splits.items()
        },
        "commonest_class": score(result.commonest),
        "trials": [trial(value) for value in result.trials],
        "chosen": trial(result.best),
        "val_chose_among": len(result.trials),
        "test": None if result.test is None else score(result.test),
        "versions": {
            "fluxvit": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": result.config.device,
        },
    }
