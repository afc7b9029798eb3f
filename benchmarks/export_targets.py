"""Every target of `fluxvit export`, and int8, beside PyTorch: agreement on real clips and milliseconds.

    fluxvit data make motionworld clips --videos 16 --val 16 --test 20
    python benchmarks/export_targets.py fluxvit_nano_motionworld --data clips/test.jsonl --budget 36
    python benchmarks/export_targets.py fluxvit_small --budget 1024

A size has random weights and is given noise instead of clips. `difference` is the largest difference of a
logit, relative to the largest logit of the network as it is trained. int8 is quantisation by NNCF of all that
does not lead to the kept tokens, calibrated on the first clips.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.latency import milliseconds, time_in_turns
from fluxvit.checkpoints.loading import load_or_create
from fluxvit.data.manifest import read_manifest
from fluxvit.deploy.bench import conditions, forms_of
from fluxvit.deploy.export import MODEL_FILES, ExportedModel, Session, open_exported, write_model
from fluxvit.deploy.predictor import Predictor
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.utils.terminal import table
from fluxvit.video.transforms import resize_and_crop, to_tensor


def session_of(file: Path, hint: str) -> Session:
    """An OpenVINO model that computes in a precision."""
    import openvino

    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": hint, **threads})
    return lambda frames: list(compiled(frames).to_tuple())


def quantise(file: Path, clips: list[np.ndarray]) -> Path:
    """The OpenVINO model in int8, except what leads to the kept tokens."""
    import nncf
    import openvino

    model = openvino.Core().read_model(file)
    todo = [each for each in model.get_results() if each.get_element_type() == openvino.Type.i64]
    names: set[str] = set()
    while todo:
        node = todo.pop()
        if node.get_friendly_name() not in names:
            names.add(node.get_friendly_name())
            todo += [source.get_source_output().get_node() for source in node.inputs()]
    kinds = {each.get_friendly_name(): each.get_type_name() for each in model.get_ops()}
    keep = [name for name in names if kinds.get(name) not in ("Constant", "Result", "Parameter", None)]
    quantised = nncf.quantize(
        model,
        nncf.Dataset(clips),
        subset_size=len(clips),
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(names=keep, validate=False),
    )
    out = file.with_name("int8.xml")
    openvino.save_model(quantised, out, compress_to_fp16=False)
    return out


def pytorch(checkpoint: Checkpoint, plan: Plan) -> Session:
    """The checkpoint's network, from frames to outputs."""

    @torch.inference_mode()
    def run(frames: np.ndarray) -> list[np.ndarray]:
        video = checkpoint.normalize(torch.from_numpy(frames).permute(0, 4, 1, 2, 3))
        out = checkpoint.model(video, plan.keep, plan.head, plan.selector)
        assert out.kept is not None
        return [out.logits.float().numpy(), out.embedding.float().numpy(), out.kept.numpy()]

    return run


def clips_of(checkpoint: Checkpoint, plan: Plan, data: str, count: int) -> list[np.ndarray]:
    grid = plan.grid
    if not data:
        shape = 1, grid.frames, grid.height, grid.width, 3
        return [np.random.default_rng(seed).integers(0, 256, shape, np.uint8) for seed in range(count)]
    manifest, predictor = read_manifest(data), Predictor(checkpoint, plan.keep, grid=grid)
    clips = []
    for entry in manifest.entries[:count]:
        frames = predictor.sample(manifest.root / entry.path, [grid]).frames[grid]
        pixels = resize_and_crop(to_tensor(frames), (grid.height, grid.width)).permute(1, 2, 3, 0)
        clips.append(pixels.numpy()[None])
    return clips


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", default="", help="manifest of videos")
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--grid", type=SamplingGrid.parse)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--runs", type=int, default=10)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    checkpoint = load_or_create(args.model)
    if checkpoint.model.num_classes == 0:
        checkpoint.model.reset_classifier(400)
    plan = checkpoint.plan(args.budget, args.grid)
    clips = clips_of(checkpoint, plan, args.data, args.clips)
    print(", ".join(f"{name} {value}" for name, value in conditions(torch.device("cpu")).items()))
    print(
        f"{args.model}: {plan.keep} of {checkpoint.pool(plan.grid)} tokens of {plan.grid}, {len(clips)} clips"
    )
    model = ExportedModel(checkpoint, plan)
    sessions: dict[str, Session] = {"PyTorch, as trained": pytorch(checkpoint, plan)}
    forms, _ = forms_of(checkpoint, ("torch", "openvino"), ("fp32", "bf16"))
    for each in forms:
        sessions[f"inference form, {each}"] = pytorch(each.checkpoint, plan)
    with tempfile.TemporaryDirectory() as folder:
        for target, name in MODEL_FILES.items():
            file = Path(folder) / target / name
            file.parent.mkdir()
            try:
                write_model(model, file.parent, target)
                sessions[f"export, {target}"] = open_exported(file, target)
                if target == "openvino":
                    sessions["export, openvino in bf16"] = session_of(file, "bf16")
                    int8 = quantise(file, clips[:10])
                    sessions["export, openvino int8"] = session_of(int8, "f32")
                    sessions["export, openvino int8 and bf16"] = session_of(int8, "bf16")
            except Exception as error:
                print(f"{target} is not supported here: {type(error).__name__}: {str(error)[:200]}")
        expected = [sessions["PyTorch, as trained"](clip) for clip in clips]
        works: list[Callable[[], object]] = [partial(run, clips[0]) for run in sessions.values()]
        device = torch.device("cpu")
        latencies = time_in_turns([partial(milliseconds, work, device) for work in works], runs=args.runs)
        rows = [["form", "difference", "first class equal", "kept tokens equal", "ms", "times as trained"]]
        for (name, run), latency in zip(sessions.items(), latencies, strict=True):
            found = [run(clip) for clip in clips]
            pairs = list(zip(found, expected, strict=True))
            difference = max(np.abs(f[0] - e[0]).max() / np.abs(e[0]).max() for f, e in pairs)
            first = np.mean([f[0].argmax() == e[0].argmax() for f, e in pairs])
            kept = np.mean([len(np.intersect1d(f[2], e[2])) / e[2].size for f, e in pairs])
            rows.append(
                [
                    name,
                    f"{difference:.1e}",
                    f"{100 * first:.0f} %",
                    f"{100 * kept:.1f} %",
                    f"{latency.p50:.2f}",
                    f"{latencies[0].p50 / latency.p50:.2f}",
                ]
            )
    print(*table(rows), sep="\n")


if __name__ == "__main__":
    main()
