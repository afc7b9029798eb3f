"""From a recipe to a chat model: a connector between a frozen FluxViT and a frozen language model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from fluxvit.checkpoints.chat import copy_adapters, copy_connector
from fluxvit.checkpoints.language_model import load_language_model
from fluxvit.data.questions import questions_of
from fluxvit.models.adapters import add_adapters
from fluxvit.models.chat import Connector, ConnectorConfig
from fluxvit.training.recipes import ChatRecipe
from fluxvit.training.runs.base import (
    Schedule,
    clip_dataset,
    readable_with,
    start_checkpoint,
    with_manifests,
)
from fluxvit.training.tasks.chat import ChatTask, Choices, Questions, WordsTask
from fluxvit.utils.distributed import World


def chat_recipe(recipe: ChatRecipe, world: World, progress: bool = True) -> Path:
    """Train a connector by a recipe, or go on where a former run of it stopped.

    Writes into ``recipe.out``: ``last``, the checkpoint folder of a chat model; ``log.jsonl``; ``run.json``,
    the recipe and the environment.

    Returns:
        The folder of the checkpoint.

    Raises:
        Stopped, OSError: See :meth:`Schedule.run`.
        ValueError: The recipe, the language model, the data or the folder cannot be used.
    """
    recipe = with_manifests(recipe, world, progress)
    train = readable_with(recipe.data.train, "question", lambda entry: bool(questions_of(entry)))
    start = start_checkpoint(recipe, classes=0)
    model = start.model
    model.requires_grad_(False).to(world.device)
    language = load_language_model(recipe.language)
    language.network.to(world.device)
    if world.device.type == "cpu":
        # On a CPU the backward pass of fused attention is slow in bf16: a step takes a quarter longer.
        language.network.set_attn_implementation("eager")
    task = recipe.task
    config = ConnectorConfig(
        model.config.embed_dim,
        model.config.pool_dim,
        language.dim,
        task.connector,
        task.queries,
        task.width,
        scale=language.word_scale,
    )
    # Loading a language model may draw random numbers; connectors must start the same without.
    torch.manual_seed(recipe.optim.seed + 1)
    connector = Connector(config)
    if task.init:
        copy_connector(task.init, connector, model)
    elif task.loss == "words":
        connector.start_as_words(language.network.get_input_embeddings().weight.detach().float().cpu())
    connector.requires_grad_(not task.freeze_connector).to(world.device)
    video, words = recipe.model.adapters, task.adapters
    if video.rank:
        add_adapters(model, video.rank, video.alpha or video.rank, video.layers)
    adapters, scale = None, 1.0
    if words.rank:
        alpha = words.alpha or words.rank
        scale = alpha / words.rank
        adapters = add_adapters(language.network, words.rank, alpha, words.layers)
    if task.init and task.loss == "answers":
        copy_adapters(task.init, adapters or nn.ModuleDict(), scale)
    schedule = Schedule(recipe, len(train), model.config.size, world)
    # The plans of the video side stay valid as long as it does not change.
    plans = [] if recipe.model.settings.budgets or video.rank else start.plans
    checkpoint = replace(schedule.describe(start, train, "train-chat", recipe.task.selector), plans=plans)
    questions = Questions(train, language, task)
    if task.loss == "words":
        chat: ChatTask = WordsTask(checkpoint, connector, questions, Choices(train, language))
    else:
        chat = ChatTask(checkpoint, connector, questions, adapters, scale)
    return schedule.run(chat, clip_dataset(recipe, train), progress)
