"""What probes read of a backbone's features, and the model that backbone and probe are together.

Both kinds of probe are heads that a FluxViT can have, so a trained one becomes an ordinary checkpoint whose
trunk is untouched. Linear probes read ``pooled`` or ``mean``, standardised as by MAE's batch norm without
affine (``main_linprobe.py``), which `merge` folds into the linear layer; attentive ones read the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fluxvit.evaluation.features import Backbone
from fluxvit.evaluation.probing.training import Fetch
from fluxvit.models.config import FluxViTConfig
from fluxvit.models.fluxvit import FluxViT


@dataclass(frozen=True)
class Standardizer:
    """Layer norm, then mean 0 and deviation 1 of every channel over the training videos.

    Args:
        mean, deviation: float64 ``[inputs]``.
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def fit(cls, x: Tensor) -> Standardizer:
        """From training vectors ``[N, inputs]``."""
        x = F.layer_norm(x, x.shape[-1:]).double()
        # MAE's batch norm adds the same to the variance.
        return cls(x.mean(0), (x.var(0, correction=0) + 1e-6).sqrt())

    def __call__(self, x: Tensor) -> Tensor:
        """Vectors ``[N, inputs]``, float32 in and out."""
        return ((F.layer_norm(x, x.shape[-1:]).double() - self.mean) / self.deviation).float()

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The linear layer that does with mere layer norm before it what the given one does with this."""
        scaled = weight.double() / self.deviation
        return scaled.float(), (bias.double() - scaled @ self.mean).float()


@dataclass(frozen=True)
class Readout:
    """The features that probes read.

    Args:
        name: ``pooled``, ``mean`` or ``attentive``.
        width: Width of the vector or of a token.
        fetch: Features of videos by their numbers, for each role.
        standardizer: What linear ones went through; None for tokens.
    """

    name: str
    width: int
    fetch: dict[str, Fetch]
    standardizer: Standardizer | None = None


def readouts(backbone: Backbone, features: dict[str, np.memmap], device: str) -> list[Readout]:
    """All readouts of a backbone's features, which are given by role.

    Vectors are loaded, and standardised over the role ``train``; tokens stay on disk until they are fetched.
    """
    config = backbone.checkpoint.model.config

    def mapped(rows: np.memmap) -> Fetch:
        return lambda numbers: torch.from_numpy(rows[numbers.numpy()]).to(device).float()

    def held(vectors: Tensor) -> Fetch:
        return lambda numbers: vectors[numbers.to(device)]

    if backbone.kind == "attentive":
        return [
            Readout("attentive", config.embed_dim, {role: mapped(rows) for role, rows in features.items()})
        ]
    found = []
    for name, columns in (("pooled", slice(0, config.pool_dim)), ("mean", slice(config.pool_dim, None))):
        vectors = {role: torch.from_numpy(np.array(rows[:, columns])) for role, rows in features.items()}
        standardizer = Standardizer.fit(vectors["train"])
        fetch = {role: held(standardizer(x).to(device)) for role, x in vectors.items()}
        found.append(Readout(name, vectors["train"].shape[1], fetch, standardizer))
    return found


def merge(backbone: Backbone, readout: Readout, probe: dict[str, Tensor]) -> FluxViT:
    """The backbone with one head, for the plan's budget, that computes what a probe does.

    Args:
        readout: What the probe reads.
        probe: Its parameters, as :meth:`Probes.one` gives them.

    Returns:
        On the CPU, in eval mode.
    """
    config = backbone.checkpoint.model.config
    state = {name: value.cpu() for name, value in backbone.checkpoint.model.state_dict().items()}
    weight, bias = probe["weight"], probe["bias"]
    if readout.standardizer is not None:
        weight, bias = readout.standardizer.fold(weight, bias)
    head = {"fc.weight": weight, "fc.bias": bias}
    pool_dim = config.pool_dim
    if readout.name == "pooled":
        prefix = f"heads.{backbone.plan.head}."
        head |= {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(f"{prefix}pool.")}
    elif readout.name == "mean":
        pool_dim = config.embed_dim
        # A query of zero attends to all tokens alike.
        zero, one = torch.zeros(pool_dim, pool_dim), torch.eye(pool_dim)
        head |= {f"pool.{name}.weight": zero for name in "qk"}
        head |= {f"pool.{name}.weight": one for name in ("v", "proj")}
    else:
        head |= {f"pool.{name.replace('_', '.')}": value for name, value in probe.items() if "_" in name}
    changed = {"budgets": (backbone.plan.keep,), "pool_dim": pool_dim, "num_classes": len(bias)}
    model = FluxViT(FluxViTConfig.from_dict({**config.to_dict(), **changed}))
    trunk = {n: v for n, v in state.items() if not n.startswith(("heads.", "head_norm.", "aligners."))}
    # What is not given keeps its initial value: norms without effect, biases of 0.
    merged = {**model.state_dict(), **trunk, **{f"heads.0.{name}": value for name, value in head.items()}}
    model.load_state_dict(merged)
    return model.eval()
