"""Linear probes on a frozen backbone: how much of a data set's classes a checkpoint's features tell.

`run_probe` is all of ``fluxvit probe``. After DINOv2's evaluation (``dinov2/eval/linear.py``), the backbone
runs once over every video, and a linear layer is trained on each of two vectors at several settings. The
setting that is best on the validation videos is scored on the test videos, and saved with the backbone as an
ordinary checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fluxvit import __version__
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.dataset import ClipDataset
from fluxvit.evaluation.config import ProbeConfig
from fluxvit.evaluation.metrics import Score
from fluxvit.evaluation.probing.features import Backbone, cached_features
from fluxvit.evaluation.probing.linear import (
    LinearProbes,
    Setting,
    Standardizer,
    merge,
    score_probes,
    train_probes,
)
from fluxvit.evaluation.probing.splits import Split, read_splits
from fluxvit.flux.plan import Plan
from fluxvit.utils.files import lock_folder, write_json
from fluxvit.utils.system import environment, log_device, usable_device
from fluxvit.utils.terminal import table


@dataclass(frozen=True)
class Trial:
    """A trained probe.

    Args:
        readout: The vector that it reads: ``pooled`` or ``mean``.
        setting: Settings of the training.
        val: Its score on the validation videos; videos that cannot be read count as wrong.
        val_loss: Mean cross-entropy there; not finite if the training diverged.
    """

    readout: str
    setting: Setting
    val: Score
    val_loss: float

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.val_loss)

    @property
    def rank(self) -> tuple[bool, int, float]:
        """The larger, the better: by score, then by loss; behind all others if it diverged."""
        return (False, 0, 0.0) if self.diverged else (True, self.val.correct, -self.val_loss)

    @property
    def record(self) -> dict[str, Any]:
        """What ``probe.json`` holds of it."""
        loss = None if self.diverged else self.val_loss
        return {"readout": self.readout, **asdict(self.setting), "val_loss": loss, "val": self.val.record}


@dataclass(frozen=True)
class ProbeResult:
    """The results of a run of probes; as a string, for people.

    Args:
        trials: Every probe.
        best: The probe with the best validation accuracy; of equals, the one with the lower loss.
        test: Score of the best on the test videos; None without test videos.
        checkpoint: Folder of the merged model.
        lines: Conditions of the run, for people.
    """

    config: ProbeConfig
    trials: list[Trial]
    best: Trial
    test: Score | None
    checkpoint: Path
    lines: list[str]

    def __str__(self) -> str:
        rows = [("readout", "lr", "weight decay", "val loss", "val accuracy")]
        for trial in sorted(self.trials, key=lambda trial: trial.rank, reverse=True):
            loss, score = ("-", "diverged") if trial.diverged else (f"{trial.val_loss:.3f}", str(trial.val))
            lr, decay = trial.setting.lr, trial.setting.weight_decay
            rows.append((trial.readout, f"{lr:g}", f"{decay:g}", loss, score))
        best, lrs, choices = self.best, self.config.lrs, len(self.trials)
        chosen = f"lr {best.setting.lr:g}, weight decay {best.setting.weight_decay:g}"
        lines = [*self.lines, *table(rows), f"chosen  {best.readout}, {chosen}"]
        if len(lrs) > 1 and best.setting.lr in (max(lrs), min(lrs)):
            side = ("largest", "larger") if best.setting.lr == max(lrs) else ("smallest", "smaller")
            lines.append(f"        its learning rate is the {side[0]} that was tried; try {side[1]} ones too")
        if self.test is not None:
            lines += [f"val     {best.val}, which chose among {choices}", f"test    {self.test}"]
        else:
            lines.append(f"val     {best.val}; these videos also chose among {choices} settings, so it is")
            lines.append("        optimistic; --test gives an honest figure")
        lines.append(f"wrote   {Path(self.config.out) / 'probe.json'}")
        return "\n".join([*lines, f"checkpoint  {self.checkpoint}"])


def run_probe(config: ProbeConfig, progress: bool = True) -> ProbeResult:
    """Compute features, train all settings, choose one on the validation videos and score it.

    Writes into ``config.out``: ``probe.json``; ``best``, a checkpoint folder of the backbone with the chosen
    probe as its head; and ``features``. An interrupted run continues with the features that are there.

    Raises:
        ValueError: The checkpoint, the manifests, the plan or the settings cannot be used, or every setting
            diverged, or another run is writing into ``config.out``; the message says why.
    """
    with lock_folder(config.out):
        return _run_probe(config, progress)


def _run_probe(config: ProbeConfig, progress: bool) -> ProbeResult:
    device, out = usable_device(config.device), Path(config.out)
    splits = read_splits(config.train, config.val, config.test, config.target)
    checkpoint = Checkpoint.load(config.checkpoint, device)
    digest, prepared = checkpoint.digest(), checkpoint.prepared(config.precision)
    backbone = Backbone(prepared, digest, _plan(checkpoint, config))
    log_device(device)
    features = {
        role: cached_features(
            backbone,
            ClipDataset(split.manifest, sampling=checkpoint.sampling),
            out / "features",
            config.workers,
            f"Features of {split.name}" if progress else None,
        )
        for role, split in splits.items()
    }
    labels = {role: split.labels.to(device) for role, split in splits.items()}
    settings = [Setting(lr, decay) for decay in config.weight_decays for lr in config.lrs]
    trials: list[Trial] = []
    trained: list[tuple[Standardizer, LinearProbes, int]] = []
    for name, width in backbone.widths.items():
        standardizer = Standardizer.fit(features["train"][name])
        probes = LinearProbes(len(settings), width, splits["train"].classes, config.seed).to(device)
        train_probes(
            probes,
            standardizer(features["train"][name]).to(device),
            labels["train"],
            settings,
            epochs=config.epochs,
            batch_size=config.batch_size,
            seed=config.seed,
            progress=f"Training {len(settings)} probes on {name}" if progress else None,
        )
        correct, losses = score_probes(probes, standardizer(features["val"][name]).to(device), labels["val"])
        for number, setting in enumerate(settings):
            val = Score(correct[number], splits["val"].total)
            trials.append(Trial(name, setting, val, losses[number]))
            trained.append((standardizer, probes, number))
    choice = max(range(len(trials)), key=lambda i: trials[i].rank)
    best, (standardizer, probes, number) = trials[choice], trained[choice]
    if best.diverged:
        raise ValueError(f"every setting diverged; use learning rates below {min(config.lrs):g}")
    test = None
    if "test" in splits:
        vectors = standardizer(features["test"][best.readout]).to(device)
        test = Score(score_probes(probes, vectors, labels["test"])[0][number], splits["test"].total)
    plain = replace(backbone, checkpoint=checkpoint)
    model = merge(plain, best.readout, standardizer, probes[number])  # type: ignore[arg-type]
    names = splits["train"].manifest.labels
    folder = replace(
        checkpoint,
        model=model,
        labels=list(names) if len(names) == splits["train"].classes else [],
        grids=[backbone.plan.grid],
        plans=[Plan(backbone.plan.grid, backbone.plan.keep, selector=backbone.plan.selector)],
        multi_label=False,
        provenance={
            "made_by": f"fluxvit {__version__} probe",
            "probe": {"readout": best.readout, **asdict(best.setting), "epochs": config.epochs},
            "data": splits["train"].manifest.digest,
            "backbone": {"digest": backbone.digest, **checkpoint.provenance},
        },
    ).save(out / "best")
    hits = labels["val"] == labels["train"].bincount().argmax()
    commonest = Score(int(hits.sum()), splits["val"].total)
    lines = _conditions(config, backbone, splits, commonest)
    result = ProbeResult(config, trials, best, test, folder, lines)
    record = {
        "config": asdict(config),
        "backbone": backbone.facts,
        "classes": splits["train"].classes,
        "data": {
            role: {"digest": split.manifest.digest, "videos": split.total, "unreadable": split.unreadable}
            for role, split in splits.items()
        },
        "commonest_class": commonest.record,
        "trials": [trial.record for trial in trials],
        "chosen": best.record,
        "val_chose_among": len(trials),
        "test": None if test is None else test.record,
        "versions": environment(device),
    }
    write_json(out / "probe.json", record)
    return result


def _plan(checkpoint: Checkpoint, config: ProbeConfig) -> Plan:
    plan = checkpoint.plan(config.budget, config.grid)
    # The merged model selects tokens by the checkpoint's selector, and so must its features.
    head = checkpoint.model.config.nearest_head(plan.keep) if plan.head is None else plan.head
    return Plan(plan.grid, plan.keep, head, checkpoint.selector)


def _conditions(
    config: ProbeConfig, backbone: Backbone, splits: dict[str, Split], commonest: Score
) -> list[str]:
    plan = backbone.plan
    videos = ", ".join(f"{role} {split.total}" for role, split in splits.items())
    lines = [
        f"{config.checkpoint}: {plan.keep} of {backbone.checkpoint.pool(plan.grid)} tokens of {plan.grid}",
        f"{videos} videos of {splits['train'].classes} classes; the commonest class of training alone: "
        f"{commonest} of val",
    ]
    for role, split in splits.items():
        if split.unreadable:
            fate = "are left out" if role == "train" else "count as wrong"
            lines.append(f"{split.name}: {split.unreadable} videos cannot be read and {fate}")
    return lines
