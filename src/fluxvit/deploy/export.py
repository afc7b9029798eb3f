"""Exports a checkpoint at one budget to a runtime that needs no PyTorch.

An exported model takes the frames of its grid as a decoder gives them, uint8 ``[B, T, H, W, 3]``. It
normalises them, selects the tokens and classifies. ``export.json`` beside it says what else a program needs:
the labels, the plan, how the frames are spread over a video, and how they are resized and cut.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fluxvit import __version__
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.latency import milliseconds, time_in_turns
from fluxvit.deploy.config import ExportConfig, Target
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.plan import Plan
from fluxvit.models.inference import prepare
from fluxvit.utils.files import atomic_folder, check_replaceable
from fluxvit.video.transforms import normalize

Session = Callable[[np.ndarray], list[np.ndarray]]
"""An exported model in its runtime: uint8 frames ``[B, T, H, W, 3]`` to logits, embeddings, kept indices."""

FACTS = "export.json"
OUTPUTS = ("logits", "embedding", "kept")
MODEL_FILES: dict[Target, str] = {
    "pt2": "model.pt2",
    "onnx": "model.onnx",
    "openvino": "model.xml",
    "executorch": "model.pte",
}
# Large weights lie beside the model.
_FILES = frozenset({*MODEL_FILES.values(), "model.bin", "model.onnx.data", FACTS})
PACKAGES: dict[Target, tuple[str, ...]] = {
    "pt2": (),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "executorch": ("executorch",),
}
# Runtimes that agree with PyTorch in fp32 differ by less, relative to the largest logit.
_AGREES = 1e-3


class ExportedModel(nn.Module):
    """A checkpoint at one plan, from frames to logits.

    Args:
        checkpoint: A checkpoint with a classifier.
        plan: Grid, tokens to keep, head and selector.
    """

    def __init__(self, checkpoint: Checkpoint, plan: Plan) -> None:
        super().__init__()
        # Not packed: the target runtime has a layout of its own.
        self.model = prepare(checkpoint.model, backend="torch", pack=False)
        self.plan, self.mean, self.std = plan, checkpoint.mean, checkpoint.std
        self.pool = checkpoint.pool(plan.grid)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Classify clips.

        Args:
            frames: uint8 ``[B, T, H, W, 3]``, of the plan's grid.

        Returns:
            Logits fp32 ``[B, classes]``, pooled vectors fp32 ``[B, P]``, and the indices of the kept tokens
            in the pool, int64 ``[B, K]``, ascending.
        """
        plan = self.plan
        video = normalize(frames.permute(0, 4, 1, 2, 3), self.mean, self.std)
        out = self.model(video, plan.keep, plan.head, plan.selector)
        kept = out.kept
        if kept is None:
            kept = torch.arange(self.pool, device=frames.device).expand(frames.shape[0], -1)
        return out.logits, out.embedding, kept


def run_export(config: ExportConfig) -> str:
    """Write a folder with the exported model and ``export.json``; returns a report for people.

    The exported model is run in its runtime and compared with PyTorch before anything is written.

    Raises:
        ValueError: The checkpoint or the budget cannot be used, a package is not installed, the folder holds
            something else than an exported model, or the exported model disagrees with PyTorch.
    """
    _require(config.to)
    out = Path(config.out)
    check_replaceable(out, _FILES, "an exported model")
    checkpoint = Checkpoint.load(config.checkpoint)
    if checkpoint.model.num_classes == 0:
        raise ValueError(f"{config.checkpoint} has no classifier; train one, or export another checkpoint")
    plan = checkpoint.plan(config.budget, config.grid)
    model = ExportedModel(checkpoint, plan)
    with atomic_folder(out) as folder:
        write_model(model, folder, config.to)
        session = open_exported(folder / MODEL_FILES[config.to], config.to)
        report = compare(model, session, (1,) if config.to == "executorch" else (1, 3))
        if not report["agrees"]:
            raise ValueError(
                f"{config.checkpoint}: the model exported to {config.to} disagrees with PyTorch (largest "
                f"difference of logits {report['difference']:.2g}, kept tokens "
                f"{'equal' if report['kept_equal'] else 'differ'}); please report it"
            )
        facts = export_facts(checkpoint, plan, config.to) | {"verified": report}
        (folder / FACTS).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    ours, theirs = report["pytorch_ms"], report["latency_ms"]
    return (
        f"wrote   {config.out}: {MODEL_FILES[config.to]}, {FACTS}\n"
        f"plan    {plan.keep} of {model.pool} tokens of {plan.grid}, {plan.selector}\n"
        f"parity  logits differ by {report['difference']:.1e} of the largest, kept tokens equal\n"
        f"latency {theirs:.3g} ms for a clip in {config.to}, {ours:.3g} ms in PyTorch"
    )


def write_model(model: ExportedModel, folder: Path, target: Target) -> None:
    """Write the files of an exported model into a folder that exists. The batch size stays free, except in
    ExecuTorch.
    """
    file = folder / MODEL_FILES[target]
    with _quiet():
        program = export_program(model, free_batch=target != "executorch")
        if target == "pt2":
            torch.export.save(program, file)
        elif target == "onnx":
            onnx = torch.onnx.export(program, dynamo=True, input_names=["frames"], output_names=[*OUTPUTS])
            assert onnx is not None
            onnx.save(file)
        elif target == "executorch":
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            file.write_bytes(edge.to_executorch().buffer)
        else:
            import openvino

            # fp32 weights: halves save space, not time, and would be rounded.
            openvino.save_model(openvino.convert_model(program), file, compress_to_fp16=False)


def export_program(model: ExportedModel, *, free_batch: bool = True) -> ExportedProgram:
    """The model as a graph of PyTorch's operators, for batches of any size or of one clip."""
    frames = torch.from_numpy(_noise(model.plan, 2 if free_batch else 1))
    shapes = {"frames": {0: Dim("batch", max=1024)}} if free_batch else None
    return torch.export.export(model, (frames,), dynamic_shapes=shapes)


def open_exported(file: Path, target: Target) -> Session:
    """Load an exported model into its runtime, on the CPU."""
    if target == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return lambda frames: session.run([*OUTPUTS], {"frames": frames})
    if target == "openvino":
        import openvino

        compiled = openvino.compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda frames: list(compiled(frames).to_tuple())
    if target == "executorch":
        from executorch.runtime import Runtime

        method = Runtime.get().load_program(file).load_method("forward")
        # The outputs lie in memory that the next call writes to.
        return lambda frames: [
            x.numpy().copy() for x in method.execute([torch.from_numpy(np.ascontiguousarray(frames))])
        ]
    module = torch.export.load(file).module()

    @torch.inference_mode()
    def run(frames: np.ndarray) -> list[np.ndarray]:
        return [output.numpy() for output in module(torch.from_numpy(frames))]

    return run


@torch.inference_mode()
def compare(model: ExportedModel, session: Session, batches: Sequence[int] = (1, 3)) -> dict[str, Any]:
    """Compare an exported model with PyTorch on noise, at several sizes of a batch."""
    difference, kept_equal = 0.0, True
    for batch in batches:
        frames = _noise(model.plan, batch)
        logits, _, kept = (output.numpy() for output in model(torch.from_numpy(frames)))
        outputs = session(frames)
        difference = max(difference, float(np.abs(outputs[0] - logits).max() / np.abs(logits).max()))
        kept_equal &= np.array_equal(outputs[2], kept)
    one, packed = _noise(model.plan, 1), torch.from_numpy(_noise(model.plan, 1))
    device = torch.device("cpu")
    theirs, ours = time_in_turns(
        [
            lambda: milliseconds(lambda: session(one), device),
            lambda: milliseconds(lambda: model(packed), device),
        ]
    )
    return {
        "agrees": kept_equal and difference < _AGREES,
        "difference": difference,
        "kept_equal": kept_equal,
        "latency_ms": theirs.p50,
        "pytorch_ms": ours.p50,
        "threads": torch.get_num_threads(),
    }


def export_facts(checkpoint: Checkpoint, plan: Plan, target: Target) -> dict[str, Any]:
    """What a program needs besides the model's file, in values that JSON knows."""
    grid = plan.grid
    batch = 1 if target == "executorch" else None  # Any.
    cost = grid_cost(checkpoint.model.config.size, grid, plan.keep, plan.selector)
    return {
        "format": "fluxvit export 1",
        "target": target,
        "file": MODEL_FILES[target],
        "fluxvit": __version__,
        "input": {
            "name": "frames",
            "type": "uint8",
            "layout": "batch, frame, row, column, RGB",
            "shape": [batch, grid.frames, grid.height, grid.width, 3],
        },
        "outputs": {
            "logits": [batch, checkpoint.model.num_classes],
            "embedding": [batch, checkpoint.model.config.pool_dim],
            "kept": [batch, min(plan.keep, checkpoint.pool(grid))],
        },
        "probabilities": "sigmoid" if checkpoint.multi_label else "softmax",
        "labels": checkpoint.class_names,
        "plan": {"grid": str(grid), "keep": plan.keep, "head": plan.head, "selector": plan.selector},
        "gmacs": cost.total / 1e9,
        "sampling": asdict(checkpoint.sampling),
        "transform": (
            "Sparse sampling cuts the video into as many segments of equal length as the grid has frames and "
            "takes the frame in the middle of each. Frames are resized by bilinear interpolation with "
            "antialiasing, keeping their aspect, until the grid's rows and columns just fit into them; then "
            "the middle is cut out. The model normalises the frames itself."
        ),
    }


def _noise(plan: Plan, batch: int) -> np.ndarray:
    grid, rng = plan.grid, np.random.default_rng(0)
    return rng.integers(0, 256, (batch, grid.frames, grid.height, grid.width, 3), dtype=np.uint8)


def _require(target: Target) -> None:
    """Raise a ValueError if the packages that write and run a target are not installed."""
    if missing := [name for name in PACKAGES[target] if find_spec(name) is None]:
        raise ValueError(f"--to {target} needs {', '.join(missing)}: pip install 'fluxvit[{target}]'")


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters print their progress, and warn of their own parts."""
    former = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(former)
