from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from test_training import MEAN, STD, interrupting, trainer
from torch import Tensor

from conftest import small_model
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.models.config import FluxViTConfig
from fluxvit.models.fluxvit import FluxViT
from fluxvit.models.teachers import FluxViTTeacher, spread_layers
from fluxvit.training.optim import parameter_groups
from fluxvit.training.recipes import DistillSettings
from fluxvit.training.tasks.distill import DistillTask
from fluxvit.training.trainer import Trainer
from fluxvit.utils.system import Stopped

SHAPE = (4, 3, 3)
STUDENT = FluxViTConfig(
    embed_dim=16,
    depth=3,
    num_heads=2,
    patch_size=4,
    tubelet_size=2,
    table_shape=SHAPE,
    budgets=(20, 12, 7),
    pool_dim=8,
    pool_heads=2,
    num_classes=0,
    layer_scale=0.5,
)
TEACHER = FluxViTConfig(
    embed_dim=32,
    depth=5,
    num_heads=4,
    patch_size=4,
    tubelet_size=1,
    table_shape=SHAPE,
    budgets=(24,),
    pool_dim=24,
    pool_heads=4,
    num_classes=0,
    layer_scale=0.5,
    drop_path=0.5,
    dual_patch_norm=False,
    global_position=False,
    local_position=False,
)


class CountedTeacher(FluxViTTeacher):
    """Counts how often it runs."""

    runs = 0

    def _features(self, video, shape, kept, layers):
        self.runs += 1
        return super()._features(video, shape, kept, layers)


def stirred(config: FluxViTConfig, seed: int) -> FluxViT:
    """A model whose every parameter is away from its initial value."""
    torch.manual_seed(seed)
    model = FluxViT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def make(budgets: tuple[int, ...] = (20, 12, 7), **options) -> tuple[FluxViT, DistillTask]:
    config = FluxViTConfig.from_dict({**STUDENT.to_dict(), "budgets": budgets})
    teacher = CountedTeacher(stirred(TEACHER, 1), (0.4, 0.5, 0.6), (0.3, 0.2, 0.1), torch.float32)
    model = stirred(config, 3)
    torch.manual_seed(2)
    settings = DistillSettings(**{"layers": 2, "teacher_tokens": 0, **options})
    return model, DistillTask(Checkpoint(model, mean=MEAN, std=STD), teacher, settings)


def clips(seed: int = 4) -> Tensor:
    """Normalised as the student sees them."""
    pixels = torch.rand(2, 3, 8, 12, 12, generator=torch.Generator().manual_seed(seed))
    mean, std = (torch.tensor(x).view(3, 1, 1, 1) for x in (MEAN, STD))
    return (pixels - mean) / std


# A reference: one token at a time, in double precision -----------------------------------------------------


def rms(x: list[Tensor], weight: Tensor) -> list[Tensor]:
    return [v / torch.sqrt((v * v).mean() + 1e-6) * weight for v in x]


def layer_norm(v: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (v - v.mean()) / torch.sqrt(((v - v.mean()) ** 2).mean() + 1e-5) * weight + bias


def gelu(v: Tensor, kind: str = "tanh") -> Tensor:
    if kind == "erf":
        return 0.5 * v * (1 + torch.erf(v / math.sqrt(2)))
    return 0.5 * v * (1 + torch.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))


def unit(v: Tensor) -> Tensor:
    return v / torch.sqrt((v * v).sum())


def attend(queries: list[Tensor], keys: list[Tensor], values: list[Tensor], heads: int) -> list[Tensor]:
    out = []
    for q in queries:
        parts = []
        width = len(q) // heads
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            logits = torch.stack([(q[part] * k[part]).sum() / math.sqrt(width) for k in keys])
            weights = torch.exp(logits) / torch.exp(logits).sum()
            parts.append(sum(w * v[part] for w, v in zip(weights, values, strict=True)))
        out.append(torch.cat(parts))
    return out


def patches(config: FluxViTConfig, p: dict[str, Tensor], clip: Tensor) -> list[Tensor]:
    """Embeddings without positions of the tubelets of a clip [3, T, H, W], in raster order."""
    t, s = config.tubelet_size, config.patch_size
    found = []
    for a in range(0, clip.shape[1], t):
        for y in range(0, clip.shape[2], s):
            for x in range(0, clip.shape[3], s):
                pixels = clip[:, a : a + t, y : y + s, x : x + s].permute(1, 2, 3, 0).flatten()
                if config.dual_patch_norm:
                    (pixels,) = rms([pixels], p["patch_embed.norm_before.weight"])
                v = p["patch_embed.proj.weight"] @ pixels + p["patch_embed.proj.bias"]
                found += rms([v], p["patch_embed.norm.weight"]) if config.dual_patch_norm else [v]
    return found


def encode(
    config: FluxViTConfig, p: dict[str, Tensor], embedded: list[Tensor], kept: list[int]
) -> list[list[Tensor]]:
    """Tokens after each block, class token first."""
    rows = p["pos_embed.grid"].flatten(0, 2)
    if config.global_position:
        rows = rows * p["pos_embed.scale"] + p["pos_embed.shift"]
    x = [p["cls_token"][0, 0] + p["pos_embed.cls"][0], *(embedded[i] + rows[i] for i in kept)]
    after = []
    for b in range(config.depth):
        w = {name.split(".", 2)[2]: value for name, value in p.items() if name.startswith(f"blocks.{b}.")}
        qkv = [w["attn.qkv.weight"] @ v for v in rms(x, w["norm1.weight"])]
        c = config.embed_dim
        q = rms([v[:c] for v in qkv], w["attn.q_norm.weight"])
        k = rms([v[c : 2 * c] for v in qkv], w["attn.k_norm.weight"])
        values = [v[2 * c :] for v in qkv]
        mixed = attend(q, k, values, config.num_heads)
        if config.local_position:
            shift, scale = w["attn.local_shift"], w["attn.local_scale"]
            mixed = [m + v * scale + shift for m, v in zip(mixed, values, strict=True)]
        x = [
            v + w["ls1.gamma"] * (w["attn.proj.weight"] @ m + w["attn.proj.bias"])
            for v, m in zip(x, mixed, strict=True)
        ]
        hidden = [gelu(w["mlp.fc1.weight"] @ v + w["mlp.fc1.bias"]) for v in rms(x, w["norm2.weight"])]
        x = [
            v + w["ls2.gamma"] * (w["mlp.fc2.weight"] @ h + w["mlp.fc2.bias"])
            for v, h in zip(x, hidden, strict=True)
        ]
        after.append(x)
    return after


def pool(
    config: FluxViTConfig, p: dict[str, Tensor], x: list[Tensor], head: int
) -> tuple[Tensor, list[float]]:
    """The pooled vector, and how much each token counts in it."""
    w = {n.split("pool.")[1]: v for n, v in p.items() if n.startswith(f"heads.{head}.pool.")}
    normed = {
        part: [layer_norm(v, w[f"norm_{part}.weight"], w[f"norm_{part}.bias"]) for v in tokens]
        for part, tokens in (("q", [sum(x) / len(x)]), ("k", x), ("v", x))
    }
    (q,), k, v = ([w[f"{n}.weight"] @ t + w[f"{n}.bias"] for t in normed[n]] for n in "qkv")
    (mixed,) = attend([q], k, v, config.pool_heads)
    width, counts = config.embed_dim // config.pool_heads, [0.0] * len(x)
    for h in range(config.pool_heads):
        part = slice(h * width, (h + 1) * width)
        shares = [math.exp(float((q[part] * t[part]).sum()) / math.sqrt(width)) for t in k]
        counts = [c + s / sum(shares) / config.pool_heads for c, s in zip(counts, shares, strict=True)]
    return w["proj.weight"] @ mixed + w["proj.bias"], counts


def group_dynamic(embedded: list[Tensor], keep: int) -> list[int]:
    """Two groups of two frames, the share of each its most changed tokens; a group's first frame copies."""
    frames, length = SHAPE[0], SHAPE[1] * SHAPE[2]
    kept = []
    for group in range(2):
        scores = {}
        for t in range(group * frames // 2, (group + 1) * frames // 2):
            source = group * frames // 2 + 1 if t == group * frames // 2 else t
            for i in range(length):
                change = embedded[source * length + i] - embedded[(source - 1) * length + i]
                scores[t * length + i] = float((change * change).sum())
        kept += sorted(scores, key=lambda i: (-round(scores[i], 4), i))[: keep // 2]
    return sorted(kept)


def decode(p: dict[str, Tensor], name: str, v: Tensor) -> Tensor:
    hidden = gelu(p[f"{name}.fc1.weight"] @ v + p[f"{name}.fc1.bias"], "erf")
    out = p[f"{name}.fc2.weight"] @ hidden + p[f"{name}.fc2.bias"]
    return unit(layer_norm(out, p[f"{name}.norm.weight"], p[f"{name}.norm.bias"]))


def reference(model: FluxViT, task: DistillTask, video: Tensor, teacher_tokens: int) -> Tensor:
    teacher = task.teacher
    ours, theirs, beside = (
        {name: value.double() for name, value in module.state_dict().items()}
        for module in (model, teacher.network, task.decoders)
    )
    mean, std, to_mean, to_std = (
        torch.tensor(x, dtype=torch.float64).view(3, 1, 1, 1) for x in (MEAN, STD, teacher.mean, teacher.std)
    )
    losses = []
    for clip in video.double():
        embedded = patches(model.config, ours, clip)
        seen = group_dynamic(embedded, teacher_tokens) if teacher_tokens else list(range(len(embedded)))
        # The teacher has no tubelets: it sees the second frame of each of the student's.
        pixels = (clip * std + mean)[:, 1::2]
        layers = encode(TEACHER, theirs, patches(TEACHER, theirs, (pixels - to_mean) / to_std), seen)
        wanted, counts = pool(TEACHER, theirs, layers[-1], 0)
        order = sorted(range(len(seen)), key=lambda i: -counts[1 + i])
        for head, budget in enumerate(model.config.budgets):
            chosen = sorted(order[:budget])
            kept = [seen[i] for i in chosen]
            tokens = encode(model.config, ours, embedded, kept)
            loss = torch.zeros((), dtype=torch.float64)
            for number, (mine, its) in enumerate(((1, 3), (2, 4))):
                distances = []
                places = [beside["positions.cls"][0]]
                places += [beside["positions.grid"].flatten(0, 2)[i] for i in kept]
                targets = [layers[its][0], *(layers[its][1 + i] for i in chosen)]
                for v, place, target in zip(tokens[mine], places, targets, strict=True):
                    mapped = decode(beside, f"layers.{number}", v + place)
                    distances.append(2 - 2 * (mapped * unit(target)).sum())
                loss = loss + sum(distances) / len(distances) / 2
            pooled, _ = pool(model.config, ours, tokens[-1], head)
            loss = loss + task.settings.pooled_weight * (
                2 - 2 * (decode(beside, "pooled", pooled) * unit(wanted)).sum()
            )
            losses.append(loss)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("teacher_tokens", [0, 24])
def test_a_step_is_what_plain_loops_compute(teacher_tokens: int) -> None:
    model, task = make(mask="top", teacher_tokens=teacher_tokens, pooled_weight=0.7)
    with torch.no_grad():
        found = task({"video": clips()})["loss"]
        expected = reference(model, task, clips(), teacher_tokens)
    assert abs(found.double() - expected) < 1e-6


# Properties ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budgets", [(20,), (20, 12), (20, 12, 7, 3)])
def test_the_teacher_runs_once_a_step_and_learns_nothing(budgets: tuple[int, ...]) -> None:
    model, task = make(budgets, teacher_tokens=24)
    before = {name: value.clone() for name, value in task.teacher.network.state_dict().items()}
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    task({"video": clips()})["loss"].backward()
    optimizer.step()
    teacher = task.teacher
    assert teacher.runs == 1
    assert all(p.grad is None and not p.requires_grad for p in teacher.network.parameters())
    assert all(torch.equal(before[n], v) for n, v in teacher.network.state_dict().items())
    # It is no part of what is trained, saved or shared out.
    assert not any("teacher" in name for name in task.state_dict())
    # All of the student is, but what needs classes.
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    assert all(name.startswith(("head_norm", "aligners")) for name in idle)
    assert all(p.grad is not None for p in task.decoders.parameters())


def test_the_teachers_stochastic_depth_is_off() -> None:
    """Its network has a rate of 0.5, and the run puts the student in training mode."""
    model, task = make(mask="top")
    model.train()
    task.train()
    results = {task({"video": clips()})["loss"].item() for _ in range(3)}
    assert len(results) == 1


def test_the_embedding_serves_all_budgets() -> None:
    model, task = make(teacher_tokens=24)
    calls = []
    model.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    task({"video": clips()})
    assert len(calls) == 1


def test_single_is_multi_at_one_budget() -> None:
    """With its own head: the loss of three budgets is the mean of those of each."""
    model, task = make(mask="top", teacher_tokens=24)
    together = task({"video": clips()})
    parts = []
    for head, budget in enumerate(STUDENT.budgets):
        alone, one = make((budget,), mask="top", teacher_tokens=24)
        state = {n: v for n, v in model.state_dict().items() if n in alone.state_dict() and "heads." not in n}
        heads = {n: v for n, v in model.state_dict().items() if n.startswith(f"heads.{head}.")}
        state |= {n.replace(f"heads.{head}.", "heads.0."): v for n, v in heads.items()}
        alone.load_state_dict(state, strict=False)
        one.decoders.load_state_dict(task.decoders.state_dict())
        result = one({"video": clips()})
        parts.append(result["loss"])
        torch.testing.assert_close(result[f"layers@{budget}"], together[f"layers@{budget}"])
    torch.testing.assert_close(torch.stack(parts).mean(), together["loss"])


# Masks -----------------------------------------------------------------------------------------------------


def visible(mask: str, attention: Tensor, budgets=(6, 3), scope: str = "clip") -> list[Tensor]:
    _, task = make(mask=mask, scope=scope)
    return task._visible(attention, (2, 2, 2), budgets)


def test_top_keeps_the_most_attended() -> None:
    attention = torch.tensor([[0.1, 0.3, 0.05, 0.2, 0.02, 0.15, 0.08, 0.1]])
    six, three = visible("top", attention)
    assert three.tolist() == [[1, 3, 5]]
    assert six.tolist() == [[0, 1, 3, 5, 6, 7]]  # Of equals the first ones, and a subset.


@pytest.mark.parametrize("mask", ["sampled", "top"])
@pytest.mark.parametrize("scope", ["clip", "frame"])
def test_smaller_budgets_see_subsets(mask: str, scope: str) -> None:
    attention = torch.rand(50, 8).softmax(-1)
    for row_6, row_3 in zip(*visible(mask, attention, (6, 4), scope), strict=True):
        assert set(row_3.tolist()) < set(row_6.tolist())
        assert row_6.tolist() == sorted(row_6.tolist())
        if scope == "frame":
            assert (row_6 < 4).sum() == 3
            assert (row_3 < 4).sum() == 2


def test_sampling_follows_the_attention_without_replacement() -> None:
    """First draws have the attention's own frequencies; a token without any is drawn last."""
    torch.manual_seed(0)
    attention = torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0, 0.0]).repeat(20000, 1)
    (first,) = visible("sampled", attention, (1,))
    frequencies = first[:, 0].bincount(minlength=8) / 20000
    torch.testing.assert_close(frequencies, attention[0], atol=0.012, rtol=0)
    (four,) = visible("sampled", attention[:100], (4,))
    assert (four == torch.arange(4)).all()


def test_a_budget_that_is_not_reached_sees_all() -> None:
    assert visible("sampled", torch.rand(2, 8), (8,)) == [None]


def test_standardised_targets_have_mean_0_and_deviation_1_in_every_channel() -> None:
    _, task = make(budgets=(36,))
    batches = [(clips(seed), SHAPE) for seed in (1, 2, 3)]
    before = task({"video": clips(1)})["loss"]
    task.standardize(batches)
    found = [task._targets(video, shape, None) for video, shape in batches]
    for number, channels in enumerate(
        [lambda f: f.layers[0][:, 1:], lambda f: f.layers[1][:, 1:], lambda f: f.pooled]
    ):
        rows = torch.cat([task.scales[number](channels(f)).flatten(0, -2) for f in found])
        torch.testing.assert_close(rows.mean(0), torch.zeros(rows.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(rows.std(0, correction=0), torch.ones(rows.shape[1]), atol=1e-3, rtol=0)
    assert task({"video": clips(1)})["loss"] != before
    # A resumed run needs no clips for it.
    _, again = make(budgets=(36,))
    again.load_state_dict(task.state_dict())
    assert torch.equal(again({"video": clips(1)})["loss"], task({"video": clips(1)})["loss"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "best"}, "task.mask is 'best', expected one of 'sampled', 'top'"),
        ({"scope": "tube"}, "task.scope is 'tube'"),
        ({"teacher_tokens": 10}, "sees 10 tokens, fewer than the budget of 20"),
        ({"teacher_tokens": 24, "scope": "frame"}, "the teacher sees full frames"),
    ],
)
def test_bad_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_layers_are_spread_like_their_ancestors() -> None:
    assert spread_layers(12, 40, 6) == ([6, 7, 8, 9, 10, 11], [23, 26, 29, 33, 36, 39])  # InternVideo2
    assert spread_layers(12, 12, 6) == ([6, 7, 8, 9, 10, 11], [6, 7, 8, 9, 10, 11])  # UMT-B
    assert spread_layers(24, 40, 6)[1] == [31, 33, 34, 36, 38, 39]
    assert spread_layers(4, 1, 6) == ([3], [0])
    for student in range(1, 30):
        for teacher in range(1, 50):
            mine, its = spread_layers(student, teacher, 6)
            assert len(set(mine)) == len(set(its)) == min(6, student, teacher)
            assert (mine[-1], its[-1]) == (student - 1, teacher - 1)
            assert min(its) >= 0


# Runs ------------------------------------------------------------------------------------------------------


def run_of(folder: Path, steps: int = 6, mask: str = "sampled", **settings) -> Trainer:
    """A trainer as in test_training, which distils a larger model of the same patches into the small one."""
    folder.mkdir(parents=True, exist_ok=True)
    student = small_model(0)
    student.head_norm.requires_grad_(False)
    student.aligners.requires_grad_(False)
    config = FluxViTConfig.from_dict({**student.config.to_dict(), "embed_dim": 48, "depth": 3})
    torch.manual_seed(5)
    teacher = FluxViTTeacher(FluxViT(config), MEAN, STD, torch.float32)
    loss = DistillSettings(layers=2, teacher_tokens=24, mask=mask)
    return trainer(
        folder, steps, task=lambda start: DistillTask(start, teacher, loss), model=student, **settings
    )


def outcome(run: Trainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in run.task.parameters()])


def test_the_student_comes_to_agree_with_its_teacher(tmp_path: Path) -> None:
    run = run_of(tmp_path, steps=120, lr=3e-3, log_every=1)
    run.run(progress=False)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for name in ("loss", "layers@6", "pooled@6", "layers@24"):
        early, late = ([row[name] for row in part] for part in (rows[:10], rows[-10:]))
        assert sum(late) < 0.7 * sum(early)


def test_interrupted_and_resumed_equals_undisturbed(tmp_path: Path) -> None:
    """Decoders and their moments are saved; draws of tokens depend on the step alone."""
    undisturbed = run_of(tmp_path / "a", ema=0.9)
    undisturbed.run(progress=False)
    with pytest.raises(Stopped):
        run_of(tmp_path / "b", ema=0.9, wrap=interrupting).run(progress=False)
    resumed = run_of(tmp_path / "b", ema=0.9)
    resumed.run(progress=False)
    assert torch.equal(outcome(resumed), outcome(undisturbed))
    assert resumed.ema.weights.keys() == resumed.task.state_dict().keys()


def test_decoders_learn_like_heads_and_positions_do_not_decay(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    groups = parameter_groups(run.task, 0.05, 0.5)
    of = {id(p): (group["weight_decay"], group["lr_scale"]) for group in groups for p in group["params"]}
    names = dict(run.task.named_parameters())
    assert of[id(names["decoders.pooled.fc1.weight"])] == (0.05, 1.0)
    assert of[id(names["decoders.positions.grid"])] == (0.0, 1.0)
    assert of[id(names["decoders.layers.0.norm.weight"])] == (0.0, 1.0)
    assert of[id(run.task.model.patch_embed.proj.weight)] == (0.05, 0.5**3)


def test_clips_of_any_grid_are_distilled() -> None:
    _, task = make(budgets=(4, 2), teacher_tokens=6)
    for grid in ((2, 8, 4), (6, 12, 20), (10, 4, 8)):
        result = task({"video": torch.randn(1, 3, *grid)})
        assert torch.isfinite(result["loss"])
