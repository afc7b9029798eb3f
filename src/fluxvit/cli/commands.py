"""The commands of ``fluxvit``: where the options of each are defined, and what runs it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command of ``fluxvit``.

    Args:
        summary: One line for ``fluxvit --help``.
        config: Path of the config dataclass, as ``module:name``. Its module imports no PyTorch.
        run: Path of the function that takes an instance of it, as ``module:name``. If it returns an integer,
            that is the exit code; anything else is printed.
        resumes: Whether the same command continues after an interruption.
        distributed: Whether ``torchrun`` may start several processes of it. The function then also takes a
            `World`.
    """

    summary: str
    config: str
    run: str
    resumes: bool = False
    distributed: bool = False


_GROUPS: dict[str, dict[str, Command]] = {
    "start": {
        "demo": Command(
            "make a small data set, train, evaluate and write a report, in a quarter of an hour",
            "fluxvit.demo_config:DemoConfig",
            "fluxvit.demo:run_demo",
            resumes=True,
        ),
    },
    "train": {
        "pretrain": Command(
            "pre-train a network without labels, on the features of a frozen teacher (Flux-UMT)",
            "fluxvit.training.recipes:PretrainRecipe",
            "fluxvit.training.runs.pretrain:pretrain_recipe",
            resumes=True,
            distributed=True,
        ),
        "train": Command(
            "train a video classifier for one or several budgets (Flux-Single, Flux-Multi)",
            "fluxvit.training.recipes:Recipe",
            "fluxvit.training.runs.train:train_recipe",
            resumes=True,
            distributed=True,
        ),
        "train-contrastive": Command(
            "train a dual encoder, which maps videos and captions into one space",
            "fluxvit.training.recipes:ContrastiveRecipe",
            "fluxvit.training.runs.contrastive:contrastive_recipe",
            resumes=True,
            distributed=True,
        ),
        "train-chat": Command(
            "train a connector, through which a language model reads video features",
            "fluxvit.training.recipes:ChatRecipe",
            "fluxvit.training.runs.chat:chat_recipe",
            resumes=True,
            distributed=True,
        ),
        "probe": Command(
            "train linear classifiers on the features of a frozen checkpoint",
            "fluxvit.evaluation.config:ProbeConfig",
            "fluxvit.evaluation.probing.probe:run_probe",
            resumes=True,
        ),
    },
    "measure": {
        "evaluate": Command(
            "test a checkpoint on labelled videos at several budgets",
            "fluxvit.evaluation.config:EvaluateConfig",
            "fluxvit.evaluation.evaluate:run_evaluation",
            resumes=True,
            distributed=True,
        ),
        "evaluate-retrieval": Command(
            "test a dual encoder: find videos by captions, and captions by videos",
            "fluxvit.evaluation.config:RetrievalConfig",
            "fluxvit.evaluation.language.retrieval:run_retrieval",
        ),
        "evaluate-qa": Command(
            "test a chat model on multiple-choice questions about videos",
            "fluxvit.evaluation.config:VideoQAConfig",
            "fluxvit.evaluation.language.video_qa:run_video_qa",
        ),
        "optimize": Command(
            "find the best sampling for each budget, and store it in the checkpoint",
            "fluxvit.optimization.config:OptimizeConfig",
            "fluxvit.optimization.dual_encoder:optimize_folder",
            resumes=True,
        ),
        "bench": Command(
            "measure how fast models run on this machine",
            "fluxvit.deploy.config:BenchConfig",
            "fluxvit.deploy.bench:run_bench",
        ),
    },
    "use": {
        "predict": Command(
            "classify videos at a budget",
            "fluxvit.deploy.config:PredictConfig",
            "fluxvit.cli.predict:run",
        ),
        "stream": Command(
            "classify the video of a camera or a stream while it plays",
            "fluxvit.deploy.config:StreamConfig",
            "fluxvit.cli.stream:run",
        ),
        "index": Command(
            "make the videos of a folder searchable",
            "fluxvit.deploy.config:IndexConfig",
            "fluxvit.deploy.search.index:run_index",
            resumes=True,
        ),
        "features": Command(
            "write features of long videos, window by window",
            "fluxvit.deploy.config:FeaturesConfig",
            "fluxvit.deploy.features:run_features",
            resumes=True,
        ),
        "label": Command(
            "classify many videos, on this machine or a Ray cluster, and write a table",
            "fluxvit.deploy.bulk.config:LabelConfig",
            "fluxvit.deploy.bulk.job:run_bulk",
            resumes=True,
        ),
        "embed": Command(
            "embed many videos, on this machine or a Ray cluster, and write a table",
            "fluxvit.deploy.bulk.config:EmbedConfig",
            "fluxvit.deploy.bulk.job:run_bulk",
            resumes=True,
        ),
        "search": Command(
            "find moments in indexed videos by a sentence or another video",
            "fluxvit.deploy.config:SearchConfig",
            "fluxvit.cli.search:run",
        ),
        "zero-shot": Command(
            "make a classifier from class names and a dual encoder, without training",
            "fluxvit.deploy.config:ZeroShotConfig",
            "fluxvit.evaluation.language.zero_shot:run_zero_shot",
        ),
        "chat": Command(
            "ask questions about a video",
            "fluxvit.deploy.config:ChatConfig",
            "fluxvit.cli.chat:run",
        ),
    },
    "ship": {
        "export": Command(
            "write a checkpoint at one budget for ONNX Runtime, OpenVINO or ExecuTorch",
            "fluxvit.deploy.config:ExportConfig",
            "fluxvit.deploy.export:run_export",
        ),
        "serve": Command(
            "serve a checkpoint over HTTP, with a page to try it",
            "fluxvit.serving.config:ServeConfig",
            "fluxvit.serving.run:run_server",
        ),
        "convert": Command(
            "turn a .pth file of the FluxViT authors or of InternVideo2 into a checkpoint folder",
            "fluxvit.checkpoints.config:ConvertConfig",
            "fluxvit.checkpoints.convert:convert",
        ),
        "info": Command(
            "show the parameters of a model and its cost at each budget",
            "fluxvit.deploy.config:InfoConfig",
            "fluxvit.cli.info:run",
        ),
    },
    "data": {
        "data check": Command(
            "check every video of a data set and list them in a manifest",
            "fluxvit.data.config:CheckConfig",
            "fluxvit.data.check:check_dataset",
            resumes=True,
        ),
        "data shard": Command(
            "pack the videos of a manifest into tar files",
            "fluxvit.data.config:ShardConfig",
            "fluxvit.data.shards:shard_manifest",
            resumes=True,
        ),
        "data make motionworld": Command(
            "make videos of drawn objects that only motion can tell apart",
            "fluxvit.synthetic.motionworld:MakeMotionWorldConfig",
            "fluxvit.synthetic.motionworld:make_motionworld",
            resumes=True,
        ),
    },
}

GROUPS = {group: tuple(commands) for group, commands in _GROUPS.items()}
"""The names of the commands under each heading of ``fluxvit --help``."""

COMMANDS = {name: command for commands in _GROUPS.values() for name, command in commands.items()}
"""The commands by name."""
