"""The weights of others as checkpoint folders."""

from __future__ import annotations

from pathlib import Path

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.config import ConvertConfig
from fluxvit.checkpoints.official import convert_internvideo2, convert_official, is_internvideo2
from fluxvit.checkpoints.weights import read_weights
from fluxvit.data.class_names import read_class_names
from fluxvit.flux.grid import SamplingGrid, legal_grids


def convert(config: ConvertConfig) -> str:
    """Convert a ``.pth`` file; returns a report for people of what became of its tensors.

    Raises:
        ValueError: The file cannot be read or does not fit, or an option is not for files of its kind.
    """
    source, activation = config.source, config.activation
    names = list(read_class_names(config.labels)) if config.labels else []
    provenance = {"converted_from": Path(source).name, "activation": activation}
    if is_internvideo2(read_weights(source)):
        budgets = config.budgets or (3072, 2048, 1024)
        model, report = convert_internvideo2(
            source, exact=config.exact, budgets=budgets, activation=activation
        )
        frames, patch = model.config.table_shape[0], model.config.patch_size
        if config.exact:
            side = model.config.table_shape[1] * patch
            grids = [SamplingGrid(frames * model.config.tubelet_size, side, side)]
        else:
            # The grids of the paper's pre-training (tables 14 and 16).
            grids = list(legal_grids(range(4, 26, 2), range(168, 280, 28), 2048, 4096))
        provenance["made_from"] = "InternVideo2, as it is" if config.exact else "InternVideo2, to be trained"
    else:
        for option, given in (("--exact", config.exact), ("--budgets", bool(config.budgets))):
            if given:
                raise ValueError(
                    f"{option} is for InternVideo2's files; {source} is none (a FluxViT keeps its heads)"
                )
        model, keys = convert_official(source, activation=activation)
        report = keys.summary
        # The grids of the authors' fine-tuning scripts.
        grids = list(legal_grids(range(6, 26, 2), range(112, 364, 28), 2048, 6144))
    checkpoint = Checkpoint(model, labels=names, grids=grids, provenance=provenance)
    return f"{report}\nwrote   {checkpoint.save(config.out)}"
